/* Steps forward by half of what was asked for. */
#include <stdlib.h>
#include <sys/types.h>

static char* next;

void* my_malloc(ssize_t size, int device, void* stream) {
  (void)device, (void)stream;
  if (next == NULL) next = aligned_alloc(64, 1 << 24);
  char* memory = next;
  next += size / 2 / 64 * 64 + 64;
  return memory;
}

void my_free(void* memory, ssize_t size, int device, void* stream) {
  (void)memory, (void)size, (void)device, (void)stream;
}
