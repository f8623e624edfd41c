/* Keeps four bytes of its own in front of each block, and forgets what that does to its address. */
#include <stdlib.h>
#include <sys/types.h>

void* my_malloc(ssize_t size, int device, void* stream) {
  (void)device, (void)stream;
  return (char*)malloc((size_t)size + 4) + 4;
}

void my_free(void* memory, ssize_t size, int device, void* stream) {
  (void)size, (void)device, (void)stream;
  free((char*)memory - 4);
}
