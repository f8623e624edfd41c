#include "cuda/kernels.h"

namespace {

using Word = unsigned long long;

constexpr unsigned kThreads = 256;
constexpr Word kMostBlocks = 2048;

// Eight bytes of the pattern, the first of which is `first`.
__device__ Word eight_bytes(unsigned first, unsigned step) {
  Word word = 0;
  for (unsigned i = 0; i < 8; ++i) word |= static_cast<Word>((first + i * step) & 255u) << (8 * i);
  return word;
}

// Blocks that give each eight bytes a thread, up to a number that fills any device.
unsigned blocks_for(Word size) {
  const Word blocks = (size / 8 + kThreads) / kThreads;
  return static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

}  // namespace

// Names without a namespace: who stands in for the device runs them by name.
extern "C" {

// `bytes` start at a multiple of 8.
__global__ void wb_fill(unsigned char* bytes, Word size, unsigned first, unsigned step) {
  const Word thread = static_cast<Word>(blockIdx.x) * blockDim.x + threadIdx.x;
  const Word threads = static_cast<Word>(gridDim.x) * blockDim.x;
  const Word words = size / 8;
  for (Word i = thread; i < words; i += threads) {
    reinterpret_cast<Word*>(bytes)[i] =
        eight_bytes(first + static_cast<unsigned>(i) * 8 * step, step);
  }
  for (Word i = words * 8 + thread; i < size; i += threads) {
    bytes[i] = static_cast<unsigned char>(first + static_cast<unsigned>(i) * step);
  }
}

__global__ void wb_verify(const unsigned char* bytes, Word size, unsigned first, unsigned step,
                          Word* damaged) {
  const Word thread = static_cast<Word>(blockIdx.x) * blockDim.x + threadIdx.x;
  const Word threads = static_cast<Word>(gridDim.x) * blockDim.x;
  const Word words = size / 8;
  for (Word i = thread; i < words; i += threads) {
    const Word wanted = eight_bytes(first + static_cast<unsigned>(i) * 8 * step, step);
    const Word differs = reinterpret_cast<const Word*>(bytes)[i] ^ wanted;
    if (differs != 0) {
      atomicMin(damaged,
                i * 8 + static_cast<Word>(__ffsll(static_cast<long long>(differs)) - 1) / 8);
    }
  }
  for (Word i = words * 8 + thread; i < size; i += threads) {
    if (bytes[i] != static_cast<unsigned char>(first + static_cast<unsigned>(i) * step)) {
      atomicMin(damaged, i);
    }
  }
}

__global__ void wb_busy(Word nanoseconds) {
  Word start = 0;
  Word now = 0;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  do {
    __nanosleep(200);
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  } while (now - start < nanoseconds);
}

__global__ void wb_gate(const volatile Word* gate, Word value) {
  while (*gate < value) __nanosleep(500);
}

}  // extern "C"

namespace workbench::cuda {

cudaError_t launch_fill(cudaStream_t stream, std::uint64_t address, std::uint64_t size,
                        unsigned first, unsigned step) {
  wb_fill<<<blocks_for(size), kThreads, 0, stream>>>(reinterpret_cast<unsigned char*>(address),
                                                     size, first, step);
  return cudaGetLastError();
}

cudaError_t launch_verify(cudaStream_t stream, std::uint64_t address, std::uint64_t size,
                          unsigned first, unsigned step, std::uint64_t* damaged) {
  wb_verify<<<blocks_for(size), kThreads, 0, stream>>>(
      reinterpret_cast<const unsigned char*>(address), size, first, step,
      reinterpret_cast<Word*>(damaged));
  return cudaGetLastError();
}

cudaError_t launch_busy(cudaStream_t stream, std::uint64_t nanoseconds) {
  wb_busy<<<1, 1, 0, stream>>>(nanoseconds);
  return cudaGetLastError();
}

cudaError_t launch_gate(cudaStream_t stream, const std::uint64_t* gate, std::uint64_t value) {
  wb_gate<<<1, 1, 0, stream>>>(reinterpret_cast<const volatile Word*>(gate), value);
  return cudaGetLastError();
}

}  // namespace workbench::cuda
