// A backend, an allocator and a program: what a pass over the events needs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>

#include "allocators/allocator.h"
#include "allocators/walk.h"
#include "backends/backend.h"
#include "core/events.h"
#include "replayer/replay.h"

namespace workbench {

class Run {
 public:
  Run(const Events& events, const CompletedStreams& completed_streams, const CellOptions& options)
      : backend_(backend_registry().get(options.backend).create(options.backend_options)),
        allocator_(make_allocator(options.allocator, options.settings, *backend_)),
        program_(events, completed_streams, *backend_, options.continue_after_oom) {}

  ~Run() { end_program(); }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  Backend& backend() { return *backend_; }
  Allocator& allocator() { return *allocator_; }
  Program& program() { return program_; }

  // Frees what the program left; all its work is complete.
  void end_program() {
    for (void*& handle : program_.handles) {
      if (handle != nullptr) allocator_->free(handle, 0);
      handle = nullptr;
    }
    backend_->progress().synchronize(kAllStreams);
    program_.completed_seen = 0;
  }

  // Has `pass(begin, end)` walk the events in chunks of `chunk`, and calls `checkpoint`
  // between them. False where it stopped because memory ran out.
  template <class Pass>
  bool in_chunks(std::size_t chunk, const Checkpoint& checkpoint, Pass&& pass) {
    const std::size_t count = program_.events.count();
    for (std::size_t begin = 0; begin < count; begin += chunk) {
      const std::size_t end = std::min(count, begin + chunk);
      if (!pass(begin, end)) return false;
      if (end < count) checkpoint(end);
    }
    return true;
  }

 private:
  const std::unique_ptr<Backend> backend_;
  const std::unique_ptr<Allocator> allocator_;
  Program program_;
};

}  // namespace workbench
