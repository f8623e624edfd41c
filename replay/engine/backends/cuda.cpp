// Finds and loads the library that knows CUDA (cuda/library.cpp): the engine itself runs where
// there is none.
#include "backends/cuda.h"

#include <dlfcn.h>
#include <unistd.h>

#include <mutex>
#include <string>

#include "backends/backend.h"
#include "core/errors.h"

namespace workbench {
namespace {

constexpr const char* kLibrary = "libworkbench_cuda.so";
// The runtime of the CUDA that the library was built with, and the folders of packages that bring
// it; WORKBENCH_CUDA_MAJOR is that CUDA's number, or not there.
#ifdef WORKBENCH_CUDA_MAJOR
constexpr bool kBuilt = true;
const std::string kMajor = WORKBENCH_CUDA_MAJOR;
#else
constexpr bool kBuilt = false;
const std::string kMajor;
#endif
const std::string kRuntime = "libcudart.so." + kMajor;

std::vector<std::string> (*python_folders)() = nullptr;

class Library {
 public:
  Library() {
    if (!kBuilt) {
      reason_ =
          "the workbench was built without CUDA; install a CUDA toolkit (nvcc) and then the "
          "workbench again, with pip install --no-binary allocator-workbench --force-reinstall";
      return;
    }
    Dl_info here;
    const bool is_known = dladdr(reinterpret_cast<void*>(&look_for_cuda_in), &here) != 0;
    const std::string own = is_known ? here.dli_fname : "";
    const std::string path = own.substr(0, own.rfind('/') + 1) + kLibrary;
    if (access(path.c_str(), R_OK) != 0) {
      reason_ = "the part that knows CUDA is missing (" + path + "); install the workbench again";
      return;
    }
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr && load_runtime()) handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      const char* const said = dlerror();
      const std::string why = said == nullptr ? "no reason" : said;
      reason_ = why.find(kRuntime + ": cannot open") != std::string::npos
                    ? "the CUDA runtime " + kRuntime +
                          " is not here; pip install nvidia-cuda-runtime brings it, and so does a "
                          "torch built for CUDA " +
                          kMajor
                    : "the part that knows CUDA cannot be loaded: " + why;
      return;
    }
    unavailable_ = reinterpret_cast<const char* (*)()>(dlsym(handle, "workbench_cuda_unavailable"));
    create_ = reinterpret_cast<Backend* (*)(const BackendOptions&)>(
        dlsym(handle, "workbench_cuda_create"));
    calibrate_ = reinterpret_cast<decltype(calibrate_)>(dlsym(handle, "workbench_cuda_calibrate"));
  }

  std::string unavailable() const { return unavailable_ == nullptr ? reason_ : unavailable_(); }
  std::unique_ptr<Backend> create(const BackendOptions& options) const {
    if (const std::string reason = unavailable(); !reason.empty()) throw UnavailableError(reason);
    return std::unique_ptr<Backend>(create_(options));
  }
  void calibrate(const CalibrationOptions& options, CalibrationSink& sink) const {
    if (const std::string reason = unavailable(); !reason.empty()) throw UnavailableError(reason);
    calibrate_(options, sink);
  }

 private:
  // A library of that name that is loaded is what the other one finds.
  static bool load_runtime() {
    if (python_folders == nullptr) return false;
    for (const std::string& folder : python_folders()) {
      for (const std::string& package :
           {"/nvidia/cu" + kMajor + "/lib/", std::string("/nvidia/cuda_runtime/lib/"),
            std::string("/torch/lib/")}) {
        if (dlopen((folder + package + kRuntime).c_str(), RTLD_NOW | RTLD_LOCAL) != nullptr) {
          return true;
        }
      }
    }
    return false;
  }

  std::string reason_;
  const char* (*unavailable_)() = nullptr;
  Backend* (*create_)(const BackendOptions&) = nullptr;
  void (*calibrate_)(const CalibrationOptions&, CalibrationSink&) = nullptr;
};

const Library& library() {
  static const Library loaded;
  return loaded;
}

const bool registered = backend_registry().add({
    .name = "cuda",
    .summary = "the GPU: its memory, its streams, its driver",
    .is_model = false,
    .create = [](const BackendOptions& options) { return library().create(options); },
    .unavailable = [] { return library().unavailable(); },
});

}  // namespace

void look_for_cuda_in(std::vector<std::string> (*folders)()) { python_folders = folders; }

void calibrate_cuda(const CalibrationOptions& options, CalibrationSink& sink) {
  library().calibrate(options, sink);
}

}  // namespace workbench
