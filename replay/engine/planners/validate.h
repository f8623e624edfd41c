// Whether a plan can be run. Shares nothing with the planners: their mistakes are not its own.
#pragma once

#include "core/plan.h"

namespace workbench {

// Throws InputError unless it is a power of two from 64 to 4096 bytes.
void check_alignment(Bytes alignment);

// Throws InputError, naming the id, where columns differ in length, a value is out of range, or an
// offset is not aligned.
void check_columns(const Plan& plan);

// As check_columns, and throws InputError, naming both ids, where two allocations that are
// alive together share a byte.
void validate(const Plan& plan);

}  // namespace workbench
