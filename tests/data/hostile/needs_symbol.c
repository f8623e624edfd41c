/* Calls a function that nothing defines. */
#include <sys/types.h>

void* pool_of_another_library(ssize_t size);

void* my_malloc(ssize_t size, int device, void* stream) {
  (void)device, (void)stream;
  return pool_of_another_library(size);
}

void my_free(void* memory, ssize_t size, int device, void* stream) {
  (void)memory, (void)size, (void)device, (void)stream;
}
