// Both clocks of a recording at one moment.
#pragma once

#include "agent/hook/spool_format.h"

namespace workbench {

// Processor ticks and CLOCK_MONOTONIC nanoseconds, read within the shortest of several brackets.
// On a processor without a tick counter both numbers are nanoseconds.
spool::ClockPair ReadClock();

}  // namespace workbench
