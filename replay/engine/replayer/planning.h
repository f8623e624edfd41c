// The plan of an allocator that runs one, made of the traffic it is to serve.
#pragma once

#include <memory>

#include "core/events.h"
#include "core/plan.h"
#include "core/settings.h"

namespace workbench {

// As the settings planner, alignment, steps, thread and seconds say. Throws InputError for a value
// that will not do, and where a plan from a file was asked for, which only the caller can read.
std::shared_ptr<const Plan> plan_for(const Events& events, const Settings& settings);

}  // namespace workbench
