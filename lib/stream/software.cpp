#include "orderly/software_stream.hpp"

#include <cstring>
#include <deque>
#include <mutex>
#include <new>
#include <utility>

#include "executor.hpp"

namespace orderly {
namespace {

using namespace detail;

/// Numbers of streams and of captures: never 0, none used twice in the process.
std::uint64_t next_number() noexcept {
  static constinit atomic<std::uint64_t> last_number{0};
  return last_number.fetch_add(1, relaxed) + 1;
}

/// Tells somebody that it goes.
struct farewell {
  void (*gone)(void*) = nullptr;
  void* context = nullptr;

  farewell() = default;
  farewell(const farewell&) = delete;
  farewell& operator=(const farewell&) = delete;
  ~farewell() {
    if (gone != nullptr) gone(context);
  }
};

}  // namespace

namespace detail {

/// What a stream_handle points to. It stays mapped as long as the device, so that the handle of a destroyed stream can
/// be told; the next stream takes the slot, and so the handle, that was freed last.
struct stream_slot {
  const void* device = nullptr;
  mutex producers;                  ///< host threads among themselves; no worker takes it
  atomic<std::uint64_t> identity{0};     ///< 0: no stream. Written under `producers`
  atomic<std::uint64_t> capture{0};      ///< written under `producers`
  work_queue* line = nullptr;                  ///< this and the rest: guarded by `producers`
  std::vector<std::function<void()>> captured;
  std::vector<std::shared_ptr<void>> kept;  ///< of the graph that is captured
  stream_slot* next_free = nullptr;      ///< guarded by the device's mutex
};

}  // namespace detail

class software_device::state final : public stream_driver {
 public:
  state(software_schedule schedule, std::uint64_t seed)
      : executor_(schedule == software_schedule::workers ? make_workers() : make_stepper(schedule, seed)) {}

  // As a driver.

  [[nodiscard]] std::uint64_t identity(stream_handle stream) noexcept override {
    const stream_slot* const slot = slot_of(stream);
    return slot != nullptr ? slot->identity.load(relaxed) : 0;
  }

  [[nodiscard]] bool is_per_thread(stream_handle /*stream*/) noexcept override { return false; }

  [[nodiscard]] std::uint64_t capture(stream_handle stream) noexcept override {
    const stream_slot* const slot = slot_of(stream);
    return slot != nullptr ? slot->capture.load(relaxed) : 0;
  }

  [[nodiscard]] bool when_graph_is_gone(stream_handle stream, void (*gone)(void*), void* context) noexcept override {
    stream_slot* const slot = slot_of(stream);
    if (slot == nullptr) return false;
    const std::lock_guard hold(slot->producers);
    if (slot->capture.load(relaxed) == 0) return false;
    try {
      const auto told = std::make_shared<farewell>();
      slot->kept.push_back(told);
      told->gone = gone;
      told->context = context;
      return true;
    } catch (const std::bad_alloc&) {
      return false;
    }
  }

  [[nodiscard]] event_handle record(stream_handle stream) noexcept override {
    count(records_);
    return try_record(stream);
  }

  [[nodiscard]] bool wait(stream_handle stream, event_handle handle) noexcept override {
    count(waits_);
    stream_slot* const slot = slot_of(stream);
    auto* const awaited = static_cast<event*>(handle);
    if (slot == nullptr || awaited == nullptr) return false;
    const std::lock_guard hold(slot->producers);
    if (!takes_events(*slot)) return false;
    awaited->begin_wait();
    try {
      executor_->put(*slot->line, {item::kind::wait, nullptr, awaited});
    } catch (const std::bad_alloc&) {
      awaited->end_wait();
      return false;
    }
    return true;
  }

  [[nodiscard]] event_status query(event_handle handle) noexcept override {
    count(queries_);
    const auto* const asked = static_cast<const event*>(handle);
    if (asked == nullptr || origin_captures(*asked)) return event_status::failed;
    executor_->look();
    return asked->is_complete() ? event_status::complete : event_status::pending;
  }

  [[nodiscard]] bool synchronize(event_handle handle) noexcept override {
    count(synchronizations_);
    auto* const awaited = static_cast<event*>(handle);
    if (awaited == nullptr || origin_captures(*awaited)) return false;
    executor_->wait_for(*awaited);
    return true;
  }

  [[nodiscard]] bool synchronize_all() noexcept override {
    count(synchronizations_);
    std::vector<event*> ends;
    bool known = true;
    try {
      std::vector<stream_slot*> slots;
      {
        const std::lock_guard hold(mutex_);
        for (stream_slot& each : slots_) slots.push_back(&each);
      }
      ends.reserve(slots.size() + 1);
      event& buried = events_.take();
      try {
        executor_->wait_for_closed(buried);
      } catch (const std::bad_alloc&) {
        events_.give_back_unused(buried);  // it would never be complete
        throw;
      }
      ends.push_back(&buried);
      for (stream_slot* const each : slots) {
        const std::lock_guard hold(each->producers);
        if (each->line == nullptr) continue;
        event& end = events_.take();  // also of a stream that captures: of the work before
        end.origin = each;
        end.origin_identity = each->identity.load(relaxed);
        try {
          executor_->put(*each->line, {item::kind::record, nullptr, &end});
        } catch (const std::bad_alloc&) {
          events_.give_back_unused(end);
          throw;
        }
        ends.push_back(&end);
      }
    } catch (const std::bad_alloc&) {
      known = false;
    }
    for (event* const each : ends) {
      executor_->wait_for(*each);
      events_.give_back(*each);
    }
    return known;
  }

  void release(event_handle handle) noexcept override {
    count(releases_);
    if (handle != nullptr) events_.give_back(*static_cast<event*>(handle));
  }

  [[nodiscard]] bool copy(stream_handle stream, void* to, const void* from, std::size_t bytes) noexcept override {
    stream_slot* const slot = slot_of(stream);
    if (slot == nullptr) return false;
    const std::lock_guard hold(slot->producers);
    if (!takes_events(*slot)) return false;  // nor copies that a graph would repeat
    try {
      executor_->put(*slot->line, {item::kind::work, [=] { std::memcpy(to, from, bytes); }, nullptr});
    } catch (const std::bad_alloc&) {
      return false;
    }
    return true;
  }

  // For software_stream.

  [[nodiscard]] stream_handle open() {
    stream_slot& slot = take_slot();
    const std::lock_guard hold(slot.producers);
    try {
      slot.line = &executor_->open();
    } catch (...) {
      give_slot_back(slot);
      throw;
    }
    slot.identity.store(next_number(), relaxed);
    return &slot;
  }

  void close(stream_handle stream) noexcept {
    stream_slot& slot = *static_cast<stream_slot*>(stream);
    {
      const std::lock_guard hold(slot.producers);
      slot.identity.store(0, relaxed);
      slot.capture.store(0, relaxed);
      slot.captured.clear();
      slot.kept.clear();
      executor_->close(*std::exchange(slot.line, nullptr));
    }
    give_slot_back(slot);
  }

  void enqueue(stream_handle stream, std::function<void()>&& work) {
    stream_slot& slot = *static_cast<stream_slot*>(stream);
    const std::lock_guard hold(slot.producers);
    if (slot.capture.load(relaxed) != 0) {
      slot.captured.push_back(std::move(work));
    } else {
      executor_->put(*slot.line, {item::kind::work, std::move(work), nullptr});
    }
  }

  [[nodiscard]] bool synchronize_stream(stream_handle stream) {
    if (capture(stream) != 0) return false;
    auto* const all = static_cast<event*>(try_record(stream));
    if (all == nullptr) {
      if (capture(stream) != 0) return false;
      throw std::bad_alloc();
    }
    executor_->wait_for(*all);
    events_.give_back(*all);
    return true;
  }

  [[nodiscard]] bool begin_capture(stream_handle stream) noexcept {
    stream_slot& slot = *static_cast<stream_slot*>(stream);
    const std::lock_guard hold(slot.producers);
    if (slot.capture.load(relaxed) != 0) return false;
    slot.capture.store(next_number(), relaxed);
    return true;
  }

  void end_capture(stream_handle stream, std::vector<std::function<void()>>& work,
                   std::vector<std::shared_ptr<void>>& kept) noexcept {
    stream_slot& slot = *static_cast<stream_slot*>(stream);
    const std::lock_guard hold(slot.producers);
    slot.capture.store(0, relaxed);
    work = std::exchange(slot.captured, {});
    kept = std::exchange(slot.kept, {});
  }

  [[nodiscard]] software_calls calls() const noexcept {
    return {.records = records_.load(relaxed),
            .waits = waits_.load(relaxed),
            .queries = queries_.load(relaxed),
            .synchronizations = synchronizations_.load(relaxed),
            .releases = releases_.load(relaxed),
            .events = events_.made()};
  }

 private:
  using counter = atomic<std::uint64_t>;
  static void count(counter& calls) noexcept { calls.fetch_add(1, relaxed); }

  /// Null: the handle is null or another device's.
  [[nodiscard]] stream_slot* slot_of(stream_handle stream) const noexcept {
    auto* const slot = static_cast<stream_slot*>(stream);
    return slot != nullptr && slot->device == this ? slot : nullptr;
  }

  /// Under slot.producers.
  [[nodiscard]] static bool takes_events(const stream_slot& slot) noexcept {
    return slot.line != nullptr && slot.capture.load(relaxed) == 0;
  }

  [[nodiscard]] static bool origin_captures(const event& of) noexcept {
    return of.origin->identity.load(relaxed) == of.origin_identity && of.origin->capture.load(relaxed) != 0;
  }

  [[nodiscard]] event_handle try_record(stream_handle stream) noexcept {
    stream_slot* const slot = slot_of(stream);
    if (slot == nullptr) return nullptr;
    const std::lock_guard hold(slot->producers);
    if (!takes_events(*slot)) return nullptr;
    event* taken = nullptr;
    try {
      taken = &events_.take();
      taken->origin = slot;
      taken->origin_identity = slot->identity.load(relaxed);
      executor_->put(*slot->line, {item::kind::record, nullptr, taken});
    } catch (const std::bad_alloc&) {
      if (taken != nullptr) events_.give_back_unused(*taken);
      return nullptr;
    }
    return taken;
  }

  [[nodiscard]] stream_slot& take_slot() {
    const std::lock_guard hold(mutex_);
    if (free_ != nullptr) return *std::exchange(free_, free_->next_free);
    stream_slot& made = slots_.emplace_back();
    made.device = this;
    return made;
  }

  void give_slot_back(stream_slot& slot) noexcept {
    const std::lock_guard hold(mutex_);
    slot.next_free = std::exchange(free_, &slot);
  }

  mutex mutex_;  // of the slots, not of what is in them
  std::deque<stream_slot> slots_;
  stream_slot* free_ = nullptr;
  counter records_{0};
  counter waits_{0};
  counter queries_{0};
  counter synchronizations_{0};
  counter releases_{0};
  event_store events_;
  std::unique_ptr<executor> executor_;  // last: the first to go, with the items that use the events
};

software_device::software_device(software_schedule schedule, std::uint64_t seed)
    : state_(std::make_shared<state>(schedule, seed)) {}
software_device::software_device(software_device&& other) noexcept = default;
software_device& software_device::operator=(software_device&& other) noexcept = default;
software_device::~software_device() = default;

std::shared_ptr<stream_driver> software_device::driver() const noexcept { return state_; }

software_calls software_device::calls() const noexcept { return state_->calls(); }

software_stream::software_stream(const software_device& device)
    : state_(device.state_), handle_(state_->open()) {}

software_stream::software_stream(software_stream&& other) noexcept
    : state_(std::move(other.state_)), handle_(std::exchange(other.handle_, nullptr)) {}

software_stream& software_stream::operator=(software_stream&& other) noexcept {
  software_stream taken(std::move(other));
  std::swap(state_, taken.state_);
  std::swap(handle_, taken.handle_);
  return *this;
}

software_stream::~software_stream() {
  if (handle_ != nullptr) state_->close(handle_);
}

void software_stream::enqueue(std::function<void()> work) { state_->enqueue(handle_, std::move(work)); }

bool software_stream::synchronize() { return state_->synchronize_stream(handle_); }

bool software_stream::begin_capture() noexcept { return state_->begin_capture(handle_); }

software_graph software_stream::end_capture() noexcept {
  software_graph graph;
  state_->end_capture(handle_, graph.work_, graph.kept_);
  return graph;
}

void software_stream::launch(const software_graph& graph) {
  enqueue([work = graph.work_, kept = graph.kept_] {
    for (const auto& piece : work) piece();
  });
}

}  // namespace orderly
