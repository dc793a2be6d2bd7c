#include "lanes.hpp"

#include <algorithm>
#include <new>
#include <stdexcept>
#include <utility>

#include "registry.hpp"

namespace orderly::detail {

lanes::lanes(std::shared_ptr<stream_driver> driver, const manner& how) : driver_(std::move(driver)), how_(how) {
  if (!driver_) throw std::invalid_argument("orderly::stream_pool: the driver is null");
  if (!table_.reserve(most_lanes)) throw std::bad_alloc();
  touch_ahead(table_.data(), ready_lanes * sizeof(place));
}

lanes::~lanes() {
  each([](lane& of) { of.~lane(); });
}

shared_event lanes::record(stream_handle stream) noexcept {
  records.fetch_add(1, relaxed);  // a figure
  event_handle const event = driver_->record(stream);
  if (event == nullptr) return nullptr;
  try {
    return shared_event(event, [at = driver_.get()](event_handle done) { at->release(done); });
  } catch (const std::bad_alloc&) {  // it is released already
    return nullptr;
  }
}

event_status lanes::query(const shared_event& event) noexcept {
  queries.fetch_add(1, relaxed);  // a figure
  return driver_->query(event.get());
}

bool lanes::reaches(const lane& of) noexcept { return of.owner == 0 || of.owner == this_thread_number(); }

std::uint64_t lanes::owner_of(stream_handle stream) const noexcept {
  return driver_->is_per_thread(stream) ? this_thread_number() : 0;
}

void lanes::find_sealable() noexcept {
  each([&](lane& of) {
    of.sealable = how_.marked || of.released;
    if (of.sealable || of.serial.load(relaxed) == 0) return;
    if (reaches(of)) {
      of.sealable = driver_->capture(of.stream) == 0;
    } else if (of.graph.load(relaxed) == nullptr) {  // changed under the pass mutex
      of.sealable = true;  // by its own thread, which comes by when it finds its caches empty
      of.wanted.store(true, relaxed);  // seal_if_due()
    }
  });
}

lane* lanes::bound(stream_handle stream) noexcept {
  const std::uint64_t owner = owner_of(stream);
  const std::uint32_t count = count_.load(relaxed);  // changed under the pass mutex only, like the serials
  for (std::uint32_t i = 0; i < count; ++i) {
    lane& of = at(i);
    if (of.serial.load(relaxed) != 0 && of.stream == stream && of.owner == owner) return &of;
  }
  return nullptr;
}

lane* lanes::bind(std::uint64_t pool, stream_handle stream) noexcept {
  if (lane* const known = bound(stream)) {
    keep_at_hand({pool, stream, known->serial.load(relaxed), known, nullptr});
    return known;
  }
  const std::uint64_t identity = driver_->identity(stream);
  if (identity == 0) {  // no stream; or one that captures, whose identity some drivers cannot tell meanwhile
    const std::uint64_t capture = driver_->capture(stream);
    if (capture == 0 || capture == stream_driver::unknown_capture) return nullptr;
  }
  lane* chosen = nullptr;
  const std::uint32_t count = count_.load(relaxed);  // as above
  for (std::uint32_t i = 0; i < count && chosen == nullptr; ++i)
    if (at(i).serial.load(relaxed) == 0 && at(i).empty()) chosen = &at(i);
  if (chosen == nullptr) {
    if (count == most_lanes) return nullptr;
    chosen = new (&table_[count]) lane;
    chosen->number = count;
    writes_plain(chosen);
    count_.store(count + 1, release);  // each()
  }
  lane& of = *chosen;
  of.final_event = nullptr;
  of.released = false;
  of.withheld = false;
  {
    const std::lock_guard lock(barrier_mutex_);
    of.mark = nullptr;
    of.unmarked = false;
  }
  of.stream = stream;
  of.identity = identity;
  of.owner = owner_of(stream);
  // Published with the serial: the new stream has waited for nothing.
  of.seen.store(0, relaxed);
  of.over.store(0, relaxed);
  const std::uint64_t serial = next_serial();
  of.serial.store(serial, release);  // at_hand()
  keep_at_hand({pool, stream, serial, &of, nullptr});
  return &of;
}

bool lanes::wait_for_barriers(lane& of) noexcept {
  const std::lock_guard lock(barrier_mutex_);
  const std::uint64_t seen = of.seen.load(relaxed);  // changed under this mutex, but for bind()
  const std::uint64_t serial = of.serial.load(relaxed);
  for (const barrier& b : barriers_) {
    if (b.number <= seen || b.donor == serial) continue;
    waits.fetch_add(1, relaxed);  // a figure
    if (!driver_->wait(of.stream, b.event.get())) return false;
  }
  of.seen.store(published_.load(relaxed), release);  // (c) catch_up() of other threads in the same stream
  return true;
}

bool lanes::finish_waits(lane& of) noexcept {
  // The caller has a block, and with it what happened before the block came to the lane: (c) is no older than the waits
  // that the block needs, and the event below lies behind them.
  const std::uint64_t seen = of.seen.load(acquire);  // (c) wait_for_barriers()
  if (of.over.load(acquire) >= seen) return true;    // (d)
  const shared_event event = record(of.stream);
  if (event == nullptr || !driver_->synchronize(event.get())) return false;
  // (d) the work that was waited for is done for whoever reads this. Another thread may write an older number over it,
  // which costs one more wait.
  of.over.store(seen, release);
  return true;
}

bool lanes::add_barrier(const lane& donor, const shared_event& event) noexcept {
  const std::lock_guard lock(barrier_mutex_);
  // Of a released lane the same event may come again: whoever has seen it waits for it already.
  if (std::ranges::find(barriers_, event, &barrier::event) != barriers_.end()) return true;
  const std::uint64_t number = published_.load(relaxed) + 1;  // changed under this mutex
  const std::uint64_t serial = donor.serial.load(relaxed);    // as the lane was bound, under the pass mutex
  const auto older = std::ranges::find_if(barriers_, [&](const barrier& b) { return serial != 0 && b.donor == serial; });
  if (older != barriers_.end()) {  // the new event covers it
    *older = {number, serial, event};
  } else {
    if (barriers_.size() >= look_at_) {
      drop_passed();
      look_at_ = std::max<std::size_t>(16, 2 * barriers_.size());
    }
    try {
      barriers_.push_back({number, serial, event});
    } catch (const std::bad_alloc&) {
      return false;
    }
  }
  published_.store(number, release);  // (a)
  return true;
}

/// The event is recorded under the mutex, so that of two threads' marks the later one stays.
void lanes::mark(lane& of) noexcept {
  const std::lock_guard lock(barrier_mutex_);
  shared_event event = record(of.stream);
  of.unmarked = event == nullptr;
  if (event != nullptr) of.mark = std::move(event);
}

shared_event lanes::take_mark(lane& of) noexcept {
  const std::lock_guard lock(barrier_mutex_);
  return std::exchange(of.mark, nullptr);
}

bool lanes::is_unmarked(const lane& of) noexcept {
  const std::lock_guard lock(barrier_mutex_);
  return of.unmarked;
}

bool lanes::mark_passed(const lane& of) noexcept {
  const std::lock_guard lock(barrier_mutex_);
  return !of.unmarked && (of.mark == nullptr || query(of.mark) == event_status::complete);
}

void lanes::watch(stream_watcher& by) {
  const std::lock_guard lock(barrier_mutex_);
  watchers_.push_back(&by);
}

void lanes::unwatch(stream_watcher& by) noexcept {
  const std::lock_guard lock(barrier_mutex_);
  std::erase(watchers_, &by);
}

void lanes::tell_end(const lane& of, const shared_event& behind_all) noexcept {
  const std::lock_guard lock(barrier_mutex_);
  for (stream_watcher* const each : watchers_) each->stream_ends(of, behind_all);
}

std::uint64_t lanes::last_gap() noexcept {
  const std::lock_guard lock(barrier_mutex_);
  return std::ranges::any_of(watchers_, &stream_watcher::has_gap) ? gaps_ : 0;
}

void lanes::tell_idle(std::uint64_t up_to) noexcept {
  const std::lock_guard lock(barrier_mutex_);
  for (stream_watcher* const each : watchers_) each->streams_are_idle(up_to);
}

void lanes::copy_barriers(std::vector<shared_event>& to) {
  const std::lock_guard lock(barrier_mutex_);
  for (const barrier& b : barriers_) to.push_back(b.event);
}

void lanes::drop_passed() noexcept {
  std::erase_if(barriers_, [&](const barrier& b) { return query(b.event) == event_status::complete; });
}

bool lanes::barriers_passed() noexcept {
  const std::lock_guard lock(barrier_mutex_);
  drop_passed();
  return barriers_.empty();
}

}  // namespace orderly::detail
