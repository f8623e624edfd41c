/* Ends the program when something is freed. */
#include <stdlib.h>
#include <sys/types.h>

void* my_malloc(ssize_t size, int device, void* stream) {
  (void)device, (void)stream;
  return malloc((size_t)size);
}

void my_free(void* memory, ssize_t size, int device, void* stream) {
  (void)memory, (void)size, (void)device, (void)stream;
  exit(0);
}
