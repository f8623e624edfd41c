/* A stand-in for the CUDA runtime: a device that is not there, for tests and for replays without a
 * GPU. It is a libcudart of the same name and versions as the real one, so that programs built
 * against that one run over it; what is below it has besides.
 *
 * It has a device of its own, which these variables of the environment describe, read once:
 *
 *   WB_CUDA_STUB_BYTES       bytes of each device (80 GiB)
 *   WB_CUDA_STUB_DEVICES     how many there are (1)
 *   WB_CUDA_STUB_MEMORY      none: addresses only; host: this machine's memory behind them (none)
 *   WB_CUDA_STUB_COMPLETION  immediate: work is complete as soon as nothing it waits for is in its
 *                            way; waited: only once somebody waits for it (immediate)
 *
 * PyTorch's libc10_cuda.so needs three calls of what usually loads it before expandable segments
 * work over this: replay/references/torch_cuda.h makes them.
 */
#ifndef WORKBENCH_CUDA_STUB_H
#define WORKBENCH_CUDA_STUB_H

#include <stddef.h>
#include <stdint.h>
#include <workbench_allocator.h>

#ifdef __cplusplus
extern "C" {
#endif

/* From here on memory, ranges of addresses and CUDA events come from `host`, which outlives the use
 * of it; NULL: from the device of its own. What of the one before was not given back is forgotten,
 * and must not be given back any more. With a host there are 100 devices, which are all the same
 * one: each has a state of its own in what is above. */
void wb_cuda_stub_use(const wb_host* host);

/* The number of a stream and the stream of a number, made where there is none yet. The default
 * stream, which is NULL, has 0. -1: no stream. */
int32_t wb_cuda_stub_stream_number(const void* stream);
void* wb_cuda_stub_stream(int32_t number);

/* How often a function of the runtime or the driver was called, by its name. */
uint64_t wb_cuda_stub_calls(const char* function);
/* How many ranges of addresses are reserved (cuMemAddressReserve). */
size_t wb_cuda_stub_ranges(void);

/* What a launch of the kernel of this name (mangled, unless it is extern "C") does; without one it
 * does nothing. `arguments` are pointers to copies of the kernel's; their sizes are `sizes`. */
typedef void (*wb_cuda_stub_run)(void** arguments, const uint32_t grid[3], const uint32_t block[3]);
void wb_cuda_stub_kernel(const char* name, wb_cuda_stub_run run, const size_t* sizes, size_t count);

#ifdef __cplusplus
}
#endif

#endif /* WORKBENCH_CUDA_STUB_H */
