#include "cuda_numbers.h"

#include <algorithm>

namespace workbench {
namespace {

// Of the last stream that the thread asked about: allocations come in rows on the same one.
struct LastStream {
  std::uint64_t session = 0;
  int device = 0;
  cudaStream_t stream = nullptr;
  std::int32_t number = 0;
};
thread_local LastStream last_stream;

// The device that the thread met last.
struct LastMet {
  std::uint64_t session = 0;
  int device = 0;
};
thread_local LastMet last_met;

std::string field(const char* name, const std::string& value) {
  return '"' + std::string(name) + "\": " + value;
}

std::string truth(std::optional<bool> value) { return !value ? "null" : *value ? "true" : "false"; }

// The error of a question of ours is not the program's.
bool ok(cudaError_t error) {
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error == cudaSuccess;
}

}  // namespace

std::string quoted(const std::string& text) {
  std::string found = "\"";
  for (const char letter : text) {
    if (letter == '"' || letter == '\\') found += '\\';
    if (static_cast<unsigned char>(letter) >= 0x20) found += letter;
  }
  return found + '"';
}

CudaNumbers::Known& CudaNumbers::known(int device) {
  if (const std::uint64_t session = face_.session(); session != session_) {
    known_.clear();
    session_ = session;
  }
  for (Known& one : known_) {
    if (one.device == device) return one;
  }
  known_.push_back({device, false, {}, {}});
  return known_.back();
}

std::int32_t CudaNumbers::stream(int device, cudaStream_t stream, std::optional<bool> external) {
  if (stream == nullptr) return 0;
  LastStream& last = last_stream;
  const std::uint64_t session = face_.session();
  if (last.session == session && last.device == device && last.stream == stream) {
    return last.number;
  }
  const std::lock_guard<std::mutex> locked(mutex_);
  std::vector<cudaStream_t>& streams = known(device).streams;
  const auto place = std::find(streams.begin(), streams.end(), stream);
  const auto number = static_cast<std::int32_t>(place - streams.begin()) + 1;
  if (place == streams.end()) {
    streams.push_back(stream);
    int priority = 0;
    const bool is_told = ok(cudaStreamGetPriority(stream, &priority));
    const std::string text = '{' + field("device", std::to_string(device)) + ", " +
                             field("number", std::to_string(number)) + ", " +
                             field("priority", is_told ? std::to_string(priority) : "null") + ", " +
                             field("external", truth(external)) + '}';
    face_.define_name("stream", text.c_str());
  }
  last = {session, device, stream, number};
  return number;
}

std::uint32_t CudaNumbers::pool(int device, c10::MempoolId_t id) {
  if (id.first == 0 && id.second == 0) return 0;
  const std::lock_guard<std::mutex> locked(mutex_);
  std::vector<c10::MempoolId_t>& pools = known(device).pools;
  const auto place = std::find(pools.begin(), pools.end(), id);
  const auto number = static_cast<std::uint32_t>(place - pools.begin()) + 1;
  if (place == pools.end()) {
    pools.push_back(id);
    // The first of the pair counts pools of graphs, the second those that the program made.
    const std::string text =
        '{' + field("device", std::to_string(device)) + ", " +
        field("number", std::to_string(number)) + ", " +
        field("id", '[' + std::to_string(id.first) + ", " + std::to_string(id.second) + ']') +
        ", " + field("kind", id.first != 0 ? "\"graph\"" : "\"user\"") + '}';
    face_.define_name("pool", text.c_str());
  }
  return number;
}

std::vector<int> CudaNumbers::devices() {
  const std::lock_guard<std::mutex> locked(mutex_);
  std::vector<int> found;
  for (const Known& one : known_) found.push_back(one.device);
  return found;
}

void CudaNumbers::meet_device(int device,
                              c10::cuda::CUDACachingAllocator::CUDAAllocator& allocator) {
  const std::uint64_t session = face_.session();
  if (last_met.session == session && last_met.device == device) return;
  last_met = {session, device};
  {
    const std::lock_guard<std::mutex> locked(mutex_);
    Known& one = known(device);
    if (one.is_met) return;
    one.is_met = true;
  }
  std::uint64_t reserved = 0;
  try {
    reserved = static_cast<std::uint64_t>(
        allocator.getDeviceStats(static_cast<c10::DeviceIndex>(device)).reserved_bytes[0].current);
  } catch (const std::exception&) {  // it keeps no statistics
  }
  std::size_t free = 0, total = 0;
  const bool is_told = ok(cudaMemGetInfo(&free, &total));
  const std::uint64_t used = total - free;
  cudaDeviceProp properties{};
  const bool has_name = ok(cudaGetDeviceProperties(&properties, device));
  const std::string text =
      '{' + field("device", std::to_string(device)) + ", " +
      field("capacity", is_told ? std::to_string(total) : "null") + ", " +
      field("held_by_others", is_told ? std::to_string(used - std::min(used, reserved)) : "null") +
      ", " + field("name", has_name ? quoted(properties.name) : "null") + '}';
  face_.define_name("device", text.c_str());
}

}  // namespace workbench
