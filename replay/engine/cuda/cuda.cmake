# The backend `cuda`, where a CUDA toolkit is found; -DWORKBENCH_CUDA=OFF leaves it out. It is a
# library of its own, so that the engine loads where there is no CUDA, with the runtime as a shared
# library, so that it is the one that a torch in the same process has.
option(WORKBENCH_CUDA "Build the backend cuda where a CUDA toolkit is found" ON)
set(WORKBENCH_HAS_CUDA OFF)
if(WORKBENCH_CUDA)
  include(CheckLanguage)
  check_language(CUDA)
  find_package(CUDAToolkit QUIET)
  if(CMAKE_CUDA_COMPILER AND TARGET CUDA::cudart)
    set(WORKBENCH_HAS_CUDA ON)
  else()
    message(STATUS "No CUDA toolkit was found: the backend cuda is left out")
  endif()
endif()
if(NOT WORKBENCH_HAS_CUDA)
  return()
endif()

# PTX that the driver compiles for any later card, and code for Hopper, so that there it need not.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 75-virtual 90-real)
endif()
enable_language(CUDA)

file(GLOB cuda_sources CONFIGURE_DEPENDS cuda/*.cpp cuda/*.cu)
add_library(workbench_cuda MODULE ${cuda_sources} backends/fill.cpp)
target_include_directories(workbench_cuda PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
target_include_directories(workbench_cuda SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
# Warnings and sanitizers are the host compiler's: nvcc's own code is not clean.
set_source_files_properties(cuda/kernels.cu PROPERTIES COMPILE_OPTIONS "")
target_link_libraries(workbench_cuda PRIVATE CUDA::cudart Threads::Threads)
target_compile_options(
  workbench_cuda PRIVATE
  "$<$<COMPILE_LANGUAGE:CXX>:$<TARGET_PROPERTY:workbench_flags,INTERFACE_COMPILE_OPTIONS>>")
# A path in LD_LIBRARY_PATH comes before those below.
target_link_options(workbench_cuda PRIVATE -Wl,--enable-new-dtags
                    "$<TARGET_PROPERTY:workbench_flags,INTERFACE_LINK_OPTIONS>")
# The runtime that pip installs, torch's own, the toolkit's.
string(CONCAT runtime_folders "$ORIGIN/../../nvidia/cu${CUDAToolkit_VERSION_MAJOR}/lib;"
                              "$ORIGIN/../../nvidia/cuda_runtime/lib;$ORIGIN/../../torch/lib;"
                              "${CUDAToolkit_LIBRARY_DIR}")
set_target_properties(
  workbench_cuda
  PROPERTIES PREFIX "lib"
             CUDA_RUNTIME_LIBRARY Shared
             # CMake before 3.26 knows no later one of the newer toolkits.
             CUDA_STANDARD 17
             CUDA_VISIBILITY_PRESET hidden
             LINKER_LANGUAGE CXX
             BUILD_RPATH "${CUDAToolkit_LIBRARY_DIR}"
             INSTALL_RPATH "${runtime_folders}")
set_source_files_properties(
  backends/cuda.cpp PROPERTIES COMPILE_DEFINITIONS
                               "WORKBENCH_CUDA_MAJOR=\"${CUDAToolkit_VERSION_MAJOR}\"")
if(WORKBENCH_PYTHON)
  install(TARGETS workbench_cuda LIBRARY DESTINATION workbench/replay)
endif()

# Tests run it over the stand-in for the CUDA runtime, which is found first.
if(WORKBENCH_TESTS)
  set(stub ${PROJECT_SOURCE_DIR}/replay/cuda_stub)
  file(GLOB stub_sources CONFIGURE_DEPENDS ${stub}/*.cpp)
  add_library(cuda_stub SHARED ${stub_sources})
  set(stub_name libcudart.so.${CUDAToolkit_VERSION_MAJOR})
  set_target_properties(
    cuda_stub PROPERTIES OUTPUT_NAME cudart SUFFIX .so.${CUDAToolkit_VERSION_MAJOR} NO_SONAME ON
                         LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/cuda_stub
                         CXX_VISIBILITY_PRESET default)
  target_link_options(cuda_stub PRIVATE -Wl,-soname,${stub_name}
                      -Wl,--version-script=${stub}/${stub_name}.map)
  target_link_libraries(cuda_stub PRIVATE Threads::Threads)
  target_include_directories(cuda_stub PUBLIC ${stub} ${CMAKE_CURRENT_SOURCE_DIR}/include)
  target_include_directories(cuda_stub SYSTEM PUBLIC ${CUDAToolkit_INCLUDE_DIRS})
  add_library(cuda_kernels_on_host MODULE
              ${PROJECT_SOURCE_DIR}/tests/cpp/cuda_kernels_on_host.cpp)
  target_link_libraries(cuda_kernels_on_host PRIVATE workbench_flags cuda_stub)
  set_target_properties(workbench_cuda PROPERTIES BUILD_RPATH
                                                  ${CMAKE_CURRENT_BINARY_DIR}/cuda_stub)
  add_dependencies(workbench_cuda cuda_stub cuda_kernels_on_host)
endif()
