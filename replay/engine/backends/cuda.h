// The backend `cuda` is a library of its own, loaded when it is asked for.
#pragma once

#include <string>
#include <vector>

namespace workbench {

// Names folders below which Python's packages lie; some bring the CUDA runtime.
void look_for_cuda_in(std::vector<std::string> (*folders)());

}  // namespace workbench
