// What a library reports, held against what must hold of every allocator.
#pragma once

#include <cstddef>

#include "core/statistics.h"
#include "core/units.h"

namespace workbench {

// Throws LibraryFaultError, with the numbers and the event.
void check_reported(std::size_t event, const Reported& reported, const Statistics& now,
                    Bytes largest_free);

}  // namespace workbench
