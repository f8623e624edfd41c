/* Hands out one block to everyone. */
#include <stdlib.h>
#include <sys/types.h>

static void* block;

void* my_malloc(ssize_t size, int device, void* stream) {
  (void)size, (void)device, (void)stream;
  if (block == NULL) block = malloc(1 << 24);
  return block;
}

void my_free(void* memory, ssize_t size, int device, void* stream) {
  (void)memory, (void)size, (void)device, (void)stream;
}
