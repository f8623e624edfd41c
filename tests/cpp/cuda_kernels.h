// Our kernels for the stand-in for the CUDA runtime, where the tests are built with one.
#pragma once

#include <dlfcn.h>

#include <cstdio>

#ifdef WORKBENCH_KERNELS
inline const bool cuda_kernels_loaded = [] {
  const bool loaded = dlopen(WORKBENCH_KERNELS, RTLD_NOW | RTLD_GLOBAL) != nullptr;
  if (!loaded) std::printf("%s\n", dlerror());
  return loaded;
}();
#endif
