// async on a simulated device, for its tests.
#pragma once

#include <memory>
#include <string_view>

#include "allocators/async.h"

namespace workbench {

inline constexpr Bytes kChunk = 32 * kMiB;

inline std::unique_ptr<Backend> device(Bytes capacity = kUnlimited,
                                       std::string_view completion = "never") {
  return backend_registry()
      .get("simulated")
      .create({.capacity = capacity, .completion = Completion::parse(completion)});
}

inline std::unique_ptr<Async> make(Backend& backend, std::string_view text = "") {
  const Settings settings(text, "async", allocator_registry().get("async").settings);
  return std::make_unique<Async>(backend, AsyncSettings(settings));
}

}  // namespace workbench
