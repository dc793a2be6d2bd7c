/// \file
/// executor: what runs the items of software streams; one kind with threads, one without.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "event.hpp"
#include "orderly/software_stream.hpp"

namespace orderly::detail {

/// One entry of a stream's queue.
struct item {
  enum class kind { work, record, wait, stop };
  kind what = kind::work;
  std::function<void()> work;  ///< of `work`
  event* of = nullptr;         ///< of `record` and `wait`
};

/// The queue of one stream, and whatever takes items out of it.
class work_queue {
 public:
  work_queue() = default;
  work_queue(const work_queue&) = delete;
  work_queue& operator=(const work_queue&) = delete;
  virtual ~work_queue() = default;
};

/// Thread safety: any number of host threads, but one at a time for each work_queue.
/// Destruction: all queues are closed; returns when all items have run.
class executor {
 public:
  executor() = default;
  executor(const executor&) = delete;
  executor& operator=(const executor&) = delete;
  virtual ~executor() = default;

  /// Throws std::bad_alloc, std::system_error.
  [[nodiscard]] virtual work_queue& open() = 0;

  /// Nothing more will be put into the queue. Does not wait for what is in it; the queue goes when that has run.
  virtual void close(work_queue& closed) noexcept = 0;

  /// Throws std::bad_alloc; then nothing was put.
  virtual void put(work_queue& into, item&& entry) = 0;

  /// Returns when the event is complete.
  virtual void wait_for(event& awaited) noexcept = 0;

  /// Returns when all that was put into queues which are closed now has run. Throws std::bad_alloc. `last`: an event that is
  /// not in use.
  virtual void wait_for_closed(event& last) = 0;

  /// Called by every question to the device: a schedule may use it to make progress.
  virtual void look() noexcept {}
};

[[nodiscard]] std::unique_ptr<executor> make_workers();
[[nodiscard]] std::unique_ptr<executor> make_stepper(software_schedule schedule, std::uint64_t seed);

}  // namespace orderly::detail
