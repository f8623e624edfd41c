// Every number and rule of the model of the driver's memory pool, with where it comes from.
// docs/allocators.md, "async", shows the same as a table: keep the two together.
//
// "CUDA documentation" is the Runtime API reference (memory pools) and the Programming Guide
// (stream-ordered memory allocator). "Assumption" has no source and is to be measured on hardware.
#pragma once

#include "core/units.h"

namespace workbench {

struct PoolModel {
  // Physical memory is taken in chunks of this. Assumption, within public reports: a pool's
  // reserved bytes (rapidsai/rmm issue 1245: 84490059776) are a multiple of 64 MiB and not of 128;
  // 27 MiB were left on a device at out of memory (pytorch/pytorch issue 110194). To be measured.
  Bytes chunk = 32 * kMiB;

  // Bytes above which unused chunks are given back where the host synchronizes. Source: CUDA
  // documentation (default 0); PyTorch sets it to unlimited, and so does the layer above.
  Bytes release_threshold = 0;

  // The three rules of reuse between streams. Source: CUDA documentation, all on by default.
  // Memory freed on a stream that the allocating one was ordered after.
  bool follow_event_dependencies = true;
  // Memory whose free has completed, though no dependency says so.
  bool allow_opportunistic = true;
  // Where the device refuses more: wait for the stream that freed it.
  bool allow_internal_dependencies = true;

  // Whether wholly free chunks are mapped anew side by side for a request that no free block is
  // large enough for. Source: NVIDIA's article "Using the CUDA stream-ordered memory allocator,
  // part 1" says that the driver does so; two public reports (rapidsai/rmm issue 1245,
  // pytorch/pytorch issue 110194) show pools that kept 20 to 30 GB unused at out of memory. That it
  // works on whole chunks alone is an assumption that fits both; to be measured on hardware.
  bool remap = true;
};

// Blocks start at, and are, multiples of this. Source: a public report (rapidsai/cudf issue 10384)
// saw it; the CUDA documentation promises 256. That *used* counts whole blocks is an assumption.
inline constexpr Bytes kPoolAlignment = kDeviceAlignment;

// Further rules, in simulated_pool.cpp, all assumptions:
// - the smallest free block that fits is taken, the lowest of equals; its front is handed out;
// - a stream's own free memory and such as is anyone's come first, then memory it was ordered
//   after, then memory whose free has completed, then neighbours of all these together, then
//   remapped and fresh chunks, then memory of streams it has to wait for;
// - free neighbours merge where they are of the same stream, and the whole is freed when its last
//   part was, or where all of it is anyone's;
// - what remains of fresh chunks is anyone's;
// - *used* falls when the free is called, not when it completes;
// - a request takes no less than whole chunks from the device, and is refused where they do not
// fit;
// - chunks are given back from the highest position down.
//
// A free on a stream that waits for others, as PyTorch's unifying stream does, completes when what
// it waited for has, but for the stream that the block was made on: a trace says when other streams
// were done with a block (free_completed), and nothing of its own.

}  // namespace workbench
