// What the parts built apart from the hook use of it: operators and Python stacks need other
// headers than the hook does, and most recordings need neither.
#pragma once

#include <cstdint>

#define WORKBENCH_EXPORT extern "C" __attribute__((visibility("default")))

namespace workbench {

struct HookFace {
  std::uint32_t* (*thread_scope)();  // the calling thread's; module << 16 | operator
  std::uint64_t (*session)();        // number of the recording in progress, 0 if none
  std::uint32_t (*define_name)(const char* kind, const char* text);  // its number, 0 if none
  void (*set_stack_finder)(std::uint32_t (*finder)());  // called for each allocation; null: none
};

}  // namespace workbench
