/// \file
/// The list of workloads.
#pragma once

#include "scenario/batch64.hpp"
#include "scenario/handoff.hpp"
#include "scenario/hot16.hpp"
#include "scenario/pair.hpp"
#include "scenario/slots1000.hpp"

namespace orderly::bench {

template <template <class> class... Scenarios>
struct scenario_list {};

using all_scenarios =
    scenario_list<pair_scenario, hot16_scenario, batch64_scenario, slots1000_scenario, handoff_scenario>;

}  // namespace orderly::bench
