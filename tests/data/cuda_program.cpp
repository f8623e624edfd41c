// A program that allocates through PyTorch's CUDA allocator and says what it did, recorded by the
// hooks: for tests over the stand-in for the CUDA runtime. Reads commands from stdin, one a line.
//
//   cuda_program CPU_HOOK CUDA_HOOK SPOOL_FOLDER

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/cuda/PeerToPeerAccess.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace c10::cuda::_internal {
C10_CUDA_API void setHasPrimaryContext(bool (*func)(DeviceIndex));
}

namespace {

namespace native = c10::cuda::CUDACachingAllocator;

template <typename Function>
Function find(void* library, const char* name) {
  void* const found = dlsym(library, name);
  if (found == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    std::exit(3);
  }
  return reinterpret_cast<Function>(found);
}

void* open(const char* path) {
  void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    std::exit(3);
  }
  return library;
}

std::vector<c10::cuda::CUDAStream> streams;

c10::cuda::CUDAStream stream_of(int device, std::size_t number) {
  if (number == 0) return c10::cuda::getDefaultCUDAStream(static_cast<c10::DeviceIndex>(device));
  while (streams.size() < number) streams.push_back(c10::cuda::getStreamFromPool(false, 0));
  return streams[number - 1];
}

// What a second tracker, the program's own, sees of the allocator.
void say(const native::TraceEntry& entry) {
  const char* what = nullptr;
  switch (entry.action_) {
    case native::TraceEntry::FREE_COMPLETED:
      what = "completed";
      break;
    case native::TraceEntry::SEGMENT_ALLOC:
      what = "segment_alloc";
      break;
    case native::TraceEntry::SEGMENT_FREE:
      what = "segment_free";
      break;
    case native::TraceEntry::SEGMENT_MAP:
      what = "segment_map";
      break;
    case native::TraceEntry::SEGMENT_UNMAP:
      what = "segment_unmap";
      break;
    default:
      return;
  }
  std::cout << what << ' ' << entry.addr_ << ' ' << entry.size_ << '\n';
}

// Only some versions of PyTorch tell the allocator.
template <typename Allocator>
void mark_capture(Allocator& allocator, bool begins) {
  if constexpr (requires { allocator.markCaptureBegin(0); }) {
    begins ? allocator.markCaptureBegin(0) : allocator.markCaptureEnd(0);
  }
}

void run(std::istream& line, const std::string& command) {
  static std::map<int, c10::DataPtr> pointers;
  static std::map<int, void*> raw;
  const c10::MempoolId_t no_pool{0, 0};
  int id = 0, device = 0;
  std::size_t bytes = 0, number = 0;
  unsigned long long pool = 0;
  if (command == "alloc" || command == "raw") {
    line >> id >> bytes >> device >> number;
    const c10::cuda::CUDAStreamGuard guard(stream_of(device, number));
    try {
      if (command == "raw") {
        raw[id] = native::raw_alloc(bytes);
        std::cout << "address " << reinterpret_cast<std::uintptr_t>(raw[id]) << '\n';
      } else {
        pointers[id] = native::get()->allocate(bytes);
        std::cout << "address " << reinterpret_cast<std::uintptr_t>(pointers[id].get()) << '\n';
      }
    } catch (const c10::OutOfMemoryError&) {
      std::size_t free = 0, total = 0;
      (void)cudaMemGetInfo(&free, &total);
      std::cout << "oom " << free << '\n';
    }
  } else if (command == "free") {
    line >> id;
    if (raw.count(id) != 0) native::raw_delete(raw[id]);
    raw.erase(id);
    pointers.erase(id);
  } else if (command == "use") {
    line >> id >> number;
    native::recordStream(pointers[id], stream_of(0, number));
  } else if (command == "empty") {
    native::emptyCache();
  } else if (command == "begin") {
    line >> pool;
    native::beginAllocateToPool(0, {0, pool}, [](cudaStream_t) { return true; });
  } else if (command == "end") {
    line >> pool;
    native::endAllocateToPool(0, {0, pool});
  } else if (command == "release") {
    line >> pool;
    native::releasePool(0, {0, pool});
  } else if (command == "capture" || command == "captured") {
    mark_capture(*native::get(), command == "capture");
  } else if (command == "fraction") {
    double fraction = 1;
    line >> fraction;
    native::setMemoryFraction(fraction, 0);
  } else if (command == "query") {
    (void)native::getDeviceStats(0);
  } else if (command == "reset") {
    native::resetPeakStats(0);
  } else if (command == "wait") {
    c10::cuda::device_synchronize();
  } else {
    std::fprintf(stderr, "unknown command %s\n", command.c_str());
    std::exit(3);
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) return 3;
  c10::cuda::_internal::setHasPrimaryContext([](c10::DeviceIndex) { return true; });
  void* const cpu = open(arguments[1]);
  void* const cuda = open(arguments[2]);
  const auto start = find<int (*)(const char*, std::uint64_t, std::uint64_t, int)>(cpu, "wb_start");
  if (start(arguments[3], std::uint64_t{1} << 32, 0, 1) != 0) return 4;
  find<void (*)(const void*)>(cuda, "wb_cuda_start")(find<const void* (*)()>(cpu, "wb_face")());
  const int devices = c10::cuda::device_count();
  c10::cuda::detail::init_p2p_access_cache(devices);
  // Left open it is settled with NVML, which is not there where there is no GPU.
  native::CUDAAllocatorConfig::set_expandable_segments_handle_type(
      native::Expandable_Segments_Handle_Type::POSIX_FD);
  native::init(devices);
  if (native::name() == "native") native::attachAllocatorTraceTracker(&say);
  std::string text;
  while (std::getline(std::cin, text)) {
    std::cout << "do " << text << '\n';
    std::istringstream line(text);
    std::string command;
    line >> command;
    run(line, command);
  }
  const auto stats = native::getDeviceStats(0);
  std::cout << "peaks " << stats.requested_bytes[0].peak << ' ' << stats.allocated_bytes[0].peak
            << ' ' << stats.active_bytes[0].peak << ' ' << stats.reserved_bytes[0].peak << '\n';
  find<void (*)()>(cuda, "wb_cuda_tell_peaks")();
  find<void (*)()>(cuda, "wb_cuda_stop")();
  find<void (*)()>(cpu, "wb_stop")();
  std::cout.flush();
  std::_Exit(0);  // what is live stays live
}
