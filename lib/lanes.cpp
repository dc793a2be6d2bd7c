#include "lanes.hpp"

#include <algorithm>
#include <new>
#include <stdexcept>
#include <utility>

#include "registry.hpp"

namespace orderly::detail {
namespace {

/// A number that no other thread of the process ever has.
[[nodiscard]] std::uint64_t this_thread_number() noexcept {
  thread_local constinit std::uint64_t number = 0;
  if (number == 0) number = next_serial();
  return number;
}

}  // namespace

lanes::lanes(std::shared_ptr<stream_driver> driver, const manner& how) : driver_(std::move(driver)), how_(how) {
  if (!driver_) throw std::invalid_argument("orderly::stream_pool: the driver is null");
  if (!table_.reserve(most_lanes)) throw std::bad_alloc();
}

lanes::~lanes() {
  for (const barrier& b : barriers_) driver_->release(b.event);
  each([&](lane& of) {
    for (; of.sealed_count != 0; --of.sealed_count) {
      lane::batch& b = of.sealed[of.first_sealed++ % lane::most_sealed];
      if (b.event != of.final_event) driver_->release(b.event);
    }
    if (of.final_event != nullptr) driver_->release(of.final_event);
    if (of.mark != nullptr) driver_->release(of.mark);
  });
}

event_handle lanes::record(stream_handle stream) noexcept {
  records.fetch_add(1, relaxed);  // a figure
  return driver_->record(stream);
}

event_status lanes::query(event_handle event) noexcept {
  queries.fetch_add(1, relaxed);  // a figure
  return driver_->query(event);
}

bool lanes::reaches(const lane& of) noexcept { return of.owner == 0 || of.owner == this_thread_number(); }

void lanes::find_sealable() noexcept {
  each([&](lane& of) {
    of.sealable = how_.marked || of.released ||
                  (of.serial.load(relaxed) != 0 && reaches(of) && driver_->capture(of.stream) == 0);
  });
}

lane* lanes::bind(std::uint64_t pool, stream_handle stream) noexcept {
  const std::uint64_t owner = driver_->is_per_thread(stream) ? this_thread_number() : 0;
  lane* free_place = nullptr;
  const std::uint32_t count = count_.load(relaxed);  // changed under the pass mutex only
  for (std::uint32_t i = 0; i < count; ++i) {
    lane& of = table_[i];
    const std::uint64_t serial = of.serial.load(relaxed);  // as above
    if (serial == 0) {
      if (free_place == nullptr && of.empty()) free_place = &of;
    } else if (of.stream == stream && of.owner == owner) {
      keep_at_hand({pool, stream, serial, &of});
      return &of;
    }
  }
  const std::uint64_t identity = driver_->identity(stream);
  if (identity == 0) return nullptr;
  if (free_place == nullptr) {
    if (count == most_lanes) return nullptr;
    free_place = new (&table_[count]) lane;
    free_place->number = count;
    count_.store(count + 1, release);  // each()
  }
  lane& of = *free_place;
  if (of.final_event != nullptr) driver_->release(std::exchange(of.final_event, nullptr));
  of.released = false;
  of.stream = stream;
  of.identity = identity;
  of.owner = owner;
  of.seen.store(0, relaxed);  // published with the serial: the new stream has waited for nothing
  const std::uint64_t serial = next_serial();
  of.serial.store(serial, release);  // at_hand()
  keep_at_hand({pool, stream, serial, &of});
  return &of;
}

bool lanes::wait_for_barriers(lane& of) noexcept {
  const std::lock_guard lock(barrier_mutex_);
  const std::uint64_t seen = of.seen.load(relaxed);  // changed under this mutex, but for bind()
  const std::uint64_t serial = of.serial.load(relaxed);
  for (const barrier& b : barriers_) {
    if (b.number <= seen || b.donor == serial) continue;
    waits.fetch_add(1, relaxed);  // a figure
    if (!driver_->wait(of.stream, b.event)) return false;
  }
  of.seen.store(published_.load(relaxed), release);  // catch_up() of other threads in the same stream
  return true;
}

bool lanes::add_barrier(const lane& donor, event_handle event) noexcept {
  const std::lock_guard lock(barrier_mutex_);
  const std::uint64_t number = published_.load(relaxed) + 1;  // changed under this mutex
  const std::uint64_t serial = donor.serial.load(relaxed);    // as the lane was bound, under the pass mutex
  const auto older = std::ranges::find_if(barriers_, [&](const barrier& b) { return serial != 0 && b.donor == serial; });
  if (older != barriers_.end()) {  // the new event covers it
    driver_->release(older->event);
    *older = {number, serial, event};
  } else {
    try {
      barriers_.push_back({number, serial, event});
    } catch (const std::bad_alloc&) {
      return false;
    }
  }
  published_.store(number, release);  // (a)
  return true;
}

void lanes::mark(lane& of) noexcept {
  event_handle const event = record(of.stream);
  const std::lock_guard lock(barrier_mutex_);
  of.unmarked = event == nullptr;  // the stream captures
  if (event == nullptr) return;
  if (event_handle const older = std::exchange(of.mark, event)) driver_->release(older);
}

event_handle lanes::take_mark(lane& of) noexcept {
  const std::lock_guard lock(barrier_mutex_);
  return std::exchange(of.mark, nullptr);
}

bool lanes::is_unmarked(const lane& of) noexcept {
  const std::lock_guard lock(barrier_mutex_);
  return of.unmarked;
}

void lanes::wait_for_streams() noexcept {
  const std::lock_guard lock(barrier_mutex_);
  for (const barrier& b : barriers_) static_cast<void>(driver_->synchronize(b.event));  // failed: it stays
}

bool lanes::barriers_passed() noexcept {
  const std::lock_guard lock(barrier_mutex_);
  std::erase_if(barriers_, [&](const barrier& b) {
    if (query(b.event) != event_status::complete) return false;
    driver_->release(b.event);
    return true;
  });
  return barriers_.empty();
}

}  // namespace orderly::detail
