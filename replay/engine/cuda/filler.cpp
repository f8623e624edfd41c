#include "cuda/filler.h"

#include <mutex>

#include "core/errors.h"
#include "cuda/kernels.h"

namespace workbench::cuda {
namespace {

constexpr std::size_t kPlaces = 1 << 14;
// Every byte of an offset that was not set; also greater than any offset.
constexpr int kUnset = 0xff;
constexpr std::uint64_t kWhole = ~std::uint64_t{0};

}  // namespace

Filler::Filler(Calls& calls, Streams& streams, bool several_threads)
    : calls_(calls), streams_(streams), lock_(several_threads) {}

Filler::~Filler() {
  if (offsets_ == nullptr) return;
  streams_.open_all();
  cudaDeviceSynchronize();
  cudaFree(offsets_);
  cudaGetLastError();
}

void Filler::fill(const FilledBlock& block, StreamId stream) {
  const cudaStream_t on = streams_.at(stream);
  streams_.submitted(stream);
  const std::lock_guard guard(lock_);
  prepare();
  working_ = true;
  calls_.require("filling a block", calls_.make([&] {
    return launch_fill(on, block.address, static_cast<std::uint64_t>(block.size),
                       block.first_byte(), kFillStep);
  }));
}

std::optional<Damage> Filler::verify(const FilledBlock& block, StreamId stream) {
  const cudaStream_t on = streams_.at(stream);
  streams_.submitted(stream);
  const std::lock_guard guard(lock_);
  prepare();
  working_ = true;
  calls_.require("verifying a block", calls_.make([&] {
    return launch_verify(on, block.address, static_cast<std::uint64_t>(block.size),
                         block.first_byte(), kFillStep, offsets_ + blocks_.size());
  }));
  blocks_.push_back(block);
  return blocks_.size() < kPlaces ? std::nullopt : look_through();
}

// Before any work, since it opens the gates.
void Filler::prepare() {
  if (offsets_ != nullptr) return;
  streams_.open_all();
  void* memory = nullptr;
  const std::size_t size = kPlaces * sizeof(std::uint64_t);
  calls_.require("cudaMalloc", calls_.make([&] { return cudaMalloc(&memory, size); }));
  offsets_ = static_cast<std::uint64_t*>(memory);
  copies_.resize(kPlaces);
  blocks_.reserve(kPlaces);
  calls_.require("cudaMemset", calls_.make([&] { return cudaMemset(memory, kUnset, size); }));
  synchronize();  // before other streams write there
}

void Filler::keep_busy(StreamId stream, std::uint64_t nanoseconds) {
  const cudaStream_t on = streams_.at(stream);
  streams_.submitted(stream);
  const std::lock_guard guard(lock_);
  working_ = true;
  calls_.require("keeping a stream busy",
                 calls_.make([&] { return launch_busy(on, nanoseconds); }));
}

std::optional<Damage> Filler::collect() {
  const std::lock_guard guard(lock_);
  return look_through();
}

std::optional<Damage> Filler::look_through() {
  if (blocks_.empty()) return std::nullopt;
  synchronize();
  const std::size_t size = blocks_.size() * sizeof(std::uint64_t);
  calls_.require("cudaMemcpy", calls_.make([&] {
    return cudaMemcpy(copies_.data(), offsets_, size, cudaMemcpyDeviceToHost);
  }));
  calls_.require("cudaMemset", calls_.make([&] { return cudaMemset(offsets_, kUnset, size); }));
  synchronize();
  std::optional<Damage> found;
  for (std::size_t i = 0; i < blocks_.size() && !found; ++i) {
    if (copies_[i] != kWhole) found = Damage{blocks_[i], static_cast<Bytes>(copies_[i])};
  }
  blocks_.clear();
  return found;
}

void Filler::settle() {
  const std::lock_guard guard(lock_);
  if (!working_) return;
  streams_.open_all();
  working_ = false;
  calls_.keep("cudaDeviceSynchronize", calls_.make([] { return cudaDeviceSynchronize(); }));
}

void Filler::synchronize() {
  streams_.open_all();
  working_ = false;
  calls_.require("cudaDeviceSynchronize", calls_.make([] { return cudaDeviceSynchronize(); }));
}

}  // namespace workbench::cuda
