// Under which settings every allocator is held to what all are held to.
#pragma once

#include <string>
#include <vector>

#include "allocators/allocator.h"
#include "cuda_kernels.h"

inline std::vector<std::string> settings_of(const workbench::AllocatorEntry& allocator) {
  // One that needs a library is tested with the example.
  const std::string library =
      allocator.needs_library ? "library:\"" WORKBENCH_EXAMPLE_LIBRARY "\"" : "";
  std::vector<std::string> settings = {library};
  for (const std::string& more : allocator.also_tested_with) {
    settings.push_back(library.empty() ? more : library + "," + more);
  }
  return settings;
}
