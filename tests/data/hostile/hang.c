/* Waits for ever at the second request. */
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

static int calls;

void* my_malloc(ssize_t size, int device, void* stream) {
  (void)device, (void)stream;
  if (++calls == 2) {
    for (;;) pause();
  }
  return malloc((size_t)size);
}

void my_free(void* memory, ssize_t size, int device, void* stream) {
  (void)size, (void)device, (void)stream;
  free(memory);
}
