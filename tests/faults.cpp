// Each call of a memory source and of a stream driver fails in turn, under all that a pool does. The pool that is left is
// whole: nothing is lost, no block is in two hands, no event is left over, and all of it is of use.
#include <doctest/doctest.h>

#include <cstddef>
#include <memory>
#include <optional>

#include "orderly/pool.hpp"
#include "orderly/software_stream.hpp"
#include "orderly/stream_pool.hpp"
#include "support/failing_driver.hpp"
#include "support/failing_source.hpp"
#include "support/fault_plan.hpp"
#include "support/scale.hpp"
#include "support/workout.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

/// How a pool in stream order is set up.
struct manner {
  bool safe;
  bool watches;
  bool may_wait;
};
constexpr manner every_manner[] = {{false, false, false}, {true, false, false}, {false, true, false}, {false, false, true}};

[[nodiscard]] stream_options settings_of(const manner& how) {
  stream_options settings;
  settings.memory.capacity = 2 * mib;
  settings.memory.on_bad_free = on_bad_free::count;
  settings.safe_mode = how.safe;
  settings.watch_captures = how.watches;
  settings.wait_before_refusing = how.may_wait;
  settings.seal_bytes = 256 * kib;
  return settings;
}

/// One run of the workout of streams, with a source and a driver that obey `plan`; either may be left out.
void run_in_streams(const manner& how, software_schedule schedule, std::uint64_t seed, fault_plan& plan, bool source_fails,
                    bool driver_fails, bool undo_fails = false) {
  CAPTURE(how.safe);
  CAPTURE(how.watches);
  CAPTURE(how.may_wait);
  fault_plan unused;
  const auto log = std::make_shared<source_log>();
  if (source_fails) log->obey(plan);
  if (undo_fails) log->refuse_all(source_log::call::decommit);
  const software_device device(schedule, seed);
  const auto driver = std::make_shared<failing_driver>(device.driver(), driver_fails ? plan : unused);
  {
    std::optional<stream_pool> tested;
    try {
      tested.emplace(make_failing_source(log), driver, settings_of(how));
    } catch (const out_of_memory&) {
      CHECK(log->reserved_ranges() == 0);
      return;
    }
    stream_workout work(*tested, device, how.safe || how.watches);
    work.run();
    plan.disarm();
    log->refuse_none();
    work.end();
    tested->trim();
    CHECK(tested->stats().memory.committed == 0);
    CHECK(log->committed() == 0);
  }
  CHECK(log->reserved_ranges() == 0);
  CHECK(driver->events() == 0);
  ORDERLY_CHECK_CONTRACT(*log);
}

}  // namespace

TEST_SUITE("stress") {

TEST_CASE("whichever call of the source fails, once or from then on, with or without a way back, a pool stays whole") {
  fault_plan plan;
  std::size_t points = 0;
  for (const std::size_t more : {std::size_t{0}, std::size_t{2}, all_more}) {
    for (const bool undo_fails : {false, true}) {
      points += for_each_fault(plan, more, [&](std::size_t k) {
        CAPTURE(k);
        CAPTURE(more);
        CAPTURE(undo_fails);
        const auto log = std::make_shared<source_log>();
        log->obey(plan);
        if (undo_fails) log->refuse_all(source_log::call::decommit);
        try {
          pool tested(make_failing_source(log), options{.capacity = 2 * mib, .on_bad_free = on_bad_free::count});
          workout work(tested);
          work.run();
          plan.disarm();
          log->refuse_none();
          work.end();
          tested.trim();
          CHECK(log->committed() == 0);
        } catch (const out_of_memory&) {
          CHECK(log->seen(source_log::call::commit) == 0);  // the pool was not made
        }
        CHECK(log->reserved_ranges() == 0);
        ORDERLY_CHECK_CONTRACT(*log);
      });
    }
  }
  MESSAGE("calls of the source that failed: ", points);
  CHECK(points > 10);
}

TEST_CASE("whichever call of the source fails, a pool in stream order stays whole") {
  fault_plan plan;
  std::size_t points = 0;
  for (const manner& how : every_manner) {
    for (const std::size_t more : {std::size_t{0}, all_more}) {
      for (const bool undo_fails : {false, true}) {
        points += for_each_fault(plan, more, [&](std::size_t k) {
          CAPTURE(k);
          CAPTURE(more);
          CAPTURE(undo_fails);
          run_in_streams(how, software_schedule::lazy, 0, plan, true, false, undo_fails);
        });
      }
    }
  }
  MESSAGE("calls of the source that failed, in stream order: ", points);
  CHECK(points > 10);
}

TEST_CASE("whichever call of the stream driver fails, once or from then on: nothing is in two hands, nothing is lost") {
  fault_plan plan;
  std::size_t points = 0;
  const auto fail_each = [&](software_schedule schedule, std::size_t more, std::size_t stride) {
    for (const manner& how : every_manner) {
      points += for_each_fault(
          plan, more,
          [&](std::size_t k) {
            CAPTURE(k);
            CAPTURE(more);
            CAPTURE(static_cast<int>(schedule));
            run_in_streams(how, schedule, k, plan, false, true);
          },
          sanitized ? 8 * stride : stride);
    }
  };
  fail_each(software_schedule::lazy, 0, 1);
  fail_each(software_schedule::lazy, all_more, 1);
  fail_each(software_schedule::lazy, 3, 7);
  fail_each(software_schedule::random, 0, 7);
  fail_each(software_schedule::random, all_more, 7);
  fail_each(software_schedule::eager, 0, 7);
  MESSAGE("calls of the stream driver that failed: ", points);
  CHECK(points > 10);
}

}  // TEST_SUITE
