/* Writes into the first block, which is live, at the third request. */
#include <stdlib.h>
#include <sys/types.h>

static int calls;
static char* first;

void* my_malloc(ssize_t size, int device, void* stream) {
  (void)device, (void)stream;
  char* memory = malloc((size_t)size);
  if (first == NULL) first = memory;
  if (++calls == 3) first[10] ^= 1;
  return memory;
}

void my_free(void* memory, ssize_t size, int device, void* stream) {
  (void)size, (void)device, (void)stream;
  free(memory);
}
