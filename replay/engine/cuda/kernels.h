// What runs on the device. Each launch only puts work into a stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace workbench::cuda {

// Byte i becomes first + i · step, modulo 256.
cudaError_t launch_fill(cudaStream_t stream, std::uint64_t address, std::uint64_t size,
                        unsigned first, unsigned step);
// `*damaged`, on the device, becomes the least offset whose byte is not that, unless it is less.
cudaError_t launch_verify(cudaStream_t stream, std::uint64_t address, std::uint64_t size,
                          unsigned first, unsigned step, std::uint64_t* damaged);
// Keeps the stream busy.
cudaError_t launch_busy(cudaStream_t stream, std::uint64_t nanoseconds);
// Waits until `*gate`, in pinned memory, is at least `value`.
cudaError_t launch_gate(cudaStream_t stream, const std::uint64_t* gate, std::uint64_t value);

}  // namespace workbench::cuda
