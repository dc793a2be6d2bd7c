/// \file
/// Runs the items of all streams on the threads that call, one at a time, in an order that the schedule and the calls
/// alone decide.
///
/// Everything is guarded by one mutex, which is held while an item runs.
#include "executor.hpp"

#include <algorithm>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

namespace orderly::detail {
namespace {

struct stepped_queue final : work_queue {
  std::deque<item> items;
  bool closed = false;

  [[nodiscard]] bool ready() const noexcept { return !items.empty() && blocker() == nullptr; }

  /// The event that the first item waits for; null: none.
  [[nodiscard]] event* blocker() const noexcept {
    const item& first = items.front();
    return first.what == item::kind::wait && !first.of->is_complete() ? first.of : nullptr;
  }

  void run_first() noexcept {
    item first = std::move(items.front());
    items.pop_front();
    if (first.what == item::kind::work) first.work();
    if (first.what == item::kind::record) first.of->complete();
    if (first.what == item::kind::wait) first.of->end_wait();
  }
};

/// Steele, Lea and Flood's splitmix64 (OOPSLA 2014): the same numbers with every compiler.
class seeded_numbers {
 public:
  explicit seeded_numbers(std::uint64_t seed) noexcept : state_(seed) {}
  [[nodiscard]] std::uint64_t below(std::uint64_t bound) noexcept {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return (z ^ (z >> 31)) % bound;
  }

 private:
  std::uint64_t state_;
};

class stepper final : public executor {
 public:
  stepper(software_schedule schedule, std::uint64_t seed) noexcept : schedule_(schedule), numbers_(seed) {}
  ~stepper() override { run_all(); }

  [[nodiscard]] work_queue& open() override {
    const std::lock_guard hold(mutex_);
    return *queues_.emplace_back(std::make_unique<stepped_queue>());
  }

  void close(work_queue& closed) noexcept override {
    const std::lock_guard hold(mutex_);
    static_cast<stepped_queue&>(closed).closed = true;
    drop_finished();
  }

  void put(work_queue& into, item&& entry) override {
    const std::lock_guard hold(mutex_);
    auto& line = static_cast<stepped_queue&>(into);
    if (entry.what == item::kind::record) entry.of->recorded_in = &line;
    line.items.push_back(std::move(entry));
    if (schedule_ == software_schedule::eager) run_all();
    if (schedule_ == software_schedule::random) run_some();
  }

  void wait_for(event& awaited) noexcept override {
    const std::lock_guard hold(mutex_);
    while (!awaited.is_complete()) {
      if (schedule_ == software_schedule::random) {
        run_one();
      } else {
        needed_by(awaited).run_first();
      }
    }
    drop_finished();
  }

  /// Runs whatever there is.
  void wait_for_closed(event& last) override {
    const std::lock_guard hold(mutex_);
    run_all();
    last.complete();
    drop_finished();
  }

  void look() noexcept override {
    if (schedule_ != software_schedule::random) return;
    const std::lock_guard hold(mutex_);
    run_some();
  }

 private:
  /// A queue whose first item is ready and has to run before the event. Ends, because an event is recorded before it is
  /// awaited: what blocks a queue entered some queue earlier.
  [[nodiscard]] static stepped_queue& needed_by(const event& awaited) noexcept {
    const event* last = &awaited;
    for (;;) {
      auto& line = static_cast<stepped_queue&>(*last->recorded_in);
      const event* const blocker = line.blocker();
      if (blocker == nullptr) return line;
      last = blocker;
    }
  }

  /// False: nothing is ready.
  bool run_one() noexcept {
    const auto ready = [](const auto& line) { return line->ready(); };
    const auto count = static_cast<std::uint64_t>(std::ranges::count_if(queues_, ready));
    if (count == 0) return false;
    auto chosen = std::ranges::find_if(queues_, ready);
    for (std::uint64_t skip = numbers_.below(count); skip != 0; --skip)
      chosen = std::find_if(chosen + 1, queues_.end(), ready);
    (*chosen)->run_first();
    return true;
  }

  void run_some() noexcept {
    for (std::uint64_t left = numbers_.below(most_at_once + 1); left != 0 && run_one(); --left) {
    }
    drop_finished();
  }

  void run_all() noexcept {
    for (bool ran = true; ran;) {
      ran = false;
      for (const auto& line : queues_) {
        for (; line->ready(); ran = true) line->run_first();
      }
    }
    drop_finished();
  }

  void drop_finished() noexcept {
    std::erase_if(queues_, [](const auto& line) { return line->closed && line->items.empty(); });
  }

  static constexpr std::uint64_t most_at_once = 3;

  mutex mutex_;
  const software_schedule schedule_;
  seeded_numbers numbers_;
  std::vector<std::unique_ptr<stepped_queue>> queues_;  // in the order in which they were opened
};

}  // namespace

std::unique_ptr<executor> make_stepper(software_schedule schedule, std::uint64_t seed) {
  return std::make_unique<stepper>(schedule, seed);
}

}  // namespace orderly::detail
