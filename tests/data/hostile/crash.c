/* Reads where there is nothing at the third request. */
#include <stdlib.h>
#include <sys/types.h>

static int calls;

void* my_malloc(ssize_t size, int device, void* stream) {
  (void)device, (void)stream;
  if (++calls == 3) return *(void* volatile*)8;
  return malloc((size_t)size);
}

void my_free(void* memory, ssize_t size, int device, void* stream) {
  (void)size, (void)device, (void)stream;
  free(memory);
}
