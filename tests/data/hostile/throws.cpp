// Reports that memory ran out in a way that C does not know.
#include <sys/types.h>

#include <stdexcept>

extern "C" void* my_malloc(ssize_t, int, void*) { throw std::runtime_error("the pool is closed"); }

extern "C" void my_free(void*, ssize_t, int, void*) {}
