/* Gives the first block back to the system at the third request. */
#include <sys/mman.h>
#include <sys/types.h>

static int calls;
static void* first;
static size_t first_size;

void* my_malloc(ssize_t size, int device, void* stream) {
  (void)device, (void)stream;
  void* memory = mmap(0, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (++calls == 1) first = memory, first_size = (size_t)size;
  if (calls == 3) munmap(first, first_size);
  return memory;
}

void my_free(void* memory, ssize_t size, int device, void* stream) {
  (void)device, (void)stream;
  if (memory != first) munmap(memory, (size_t)size);
}
