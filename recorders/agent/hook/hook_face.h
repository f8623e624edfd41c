// What the parts built apart from the hook use of it: operators and Python stacks need other
// headers than the hook does, and most recordings need neither.
#pragma once

#include <cstdint>

#include "spool_format.h"

#define WORKBENCH_EXPORT extern "C" __attribute__((visibility("default")))

namespace workbench {

// What a record of a device says, but for what the thread knows: when, who, in which scope.
struct DeviceEvent {
  spool::Event event;
  std::uint16_t device;  // a spool::Device
  std::int32_t stream = 0;
  std::uint32_t pool = 0;
  std::uint64_t address = 0;
  std::uint64_t bytes = 0;
  std::uint64_t began = 0;  // HookFace::now() before the call; 0: how long it took is not known
  std::int64_t value = -1;  // below 0: none
};

// A written record whose call is still to come, to say afterwards how long it took.
struct OpenCall {
  spool::Detail* detail = nullptr;
  std::uint64_t segment = 0;
  std::uint64_t began = 0;
};

struct HookFace {
  std::uint32_t* (*thread_scope)();  // the calling thread's; module << 16 | operator
  std::uint64_t (*session)();        // number of the recording in progress, 0 if none
  std::uint32_t (*define_name)(const char* kind, const char* text);  // its number, 0 if none
  void (*set_stack_finder)(std::uint32_t (*finder)());  // called for each allocation; null: none
  std::uint64_t (*now)();                               // the clock of the records
  // After the call, or before one that gives memory back. `has_stack`: no lock is held under which
  // Python must not run.
  OpenCall (*record_device)(const DeviceEvent& event, bool has_stack);
  void (*call_ended)(const OpenCall& call);
};

}  // namespace workbench
