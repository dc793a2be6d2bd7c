#include "kernel_handoff.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace orderly {

/// Records: the runs and the state go to the device; state, bits and returns come back; places stay there.
class kernel_ring::loan final : public detail::kernel_loan {
 public:
  loan(kernel_handoff::state& by, std::size_t item, std::size_t items, stream_handle stream, std::size_t room)
      : kernel_loan(by, "kernel_ring", item, items, stream), room_(room) {
    if (room > most_room || items > most_items)
      throw std::invalid_argument("orderly::kernel_ring: at most 2^30 items and room for 2^31 returns");
    try {
      take_items();
      find_runs();
      lay_out();
      make_records(bytes_, std::max(freed_, bytes_back()));
      cuda::ring_state start;
      start.put = start.end = count;
      std::memcpy(staged_, runs_.data(), runs_.size() * sizeof(cuda::ring_run));
      std::memcpy(staged_ + state_, &start, sizeof start);
      const detail::failure_watch watch;
      if (!by.copy(records(), staged_, freed_, stream) || !by.clear(records() + freed_, returns_ - freed_, stream))
        throw std::invalid_argument("orderly::kernel_ring: the stream refuses a copy; is it one of the device?" +
                                    watch.text());
    } catch (...) {
      free_items();
      throw;
    }
  }

  [[nodiscard]] cuda::ring view() const noexcept {
    if (where() != place::out) return {};
    std::byte* const at = records();
    cuda::ring lent;
    lent.state = reinterpret_cast<cuda::ring_state*>(at + state_);
    lent.runs = reinterpret_cast<const cuda::ring_run*>(at);
    lent.freed = reinterpret_cast<std::uint32_t*>(at + freed_);
    lent.places = reinterpret_cast<std::uint32_t*>(at + places_);
    lent.returns = reinterpret_cast<void**>(at + returns_);
    lent.place_mask = static_cast<std::uint32_t>(places() - 1);
    lent.room = static_cast<std::uint32_t>(room_);
    lent.run_count = static_cast<std::uint32_t>(runs_.size());
    lent.count = static_cast<std::uint32_t>(count);
    lent.shift = static_cast<std::uint32_t>(std::countr_zero(item_bytes));
    return lent;
  }

  bool turn(stream_handle stream) noexcept {
    if (where() != place::out || by_.driver->capture(stream) != 0) return false;
    auto* const state = reinterpret_cast<cuda::ring_state*>(records() + state_);
    return by_.copy(&state->end, &state->put, sizeof state->put, stream);
  }

 private:
  static constexpr std::size_t most_items = std::size_t{1} << 30;
  static constexpr std::size_t most_room = std::size_t{1} << 31;

  [[nodiscard]] std::size_t places() const noexcept { return std::bit_ceil(2 * count); }  // see cuda::ring
  [[nodiscard]] std::size_t bytes_back() const noexcept { return places_ - state_; }

  void take_items() {
    items_.reserve(count);
    while (items_.size() != count) items_.push_back(by_.pool.allocate(item_bytes, stream_));
    // So neighbours make a run, and a number says what address.
    if (!std::ranges::is_sorted(items_)) std::ranges::sort(items_);
  }

  void free_items() noexcept {
    for (void* const item : items_) by_.pool.deallocate(item, item_bytes, stream_);
  }

  void find_runs() {
    for (std::size_t at = 0; at < count; ++at) {
      const auto address = reinterpret_cast<std::uintptr_t>(items_[at]);
      if (!runs_.empty() && address == runs_.back().base + runs_.back().count * item_bytes)
        ++runs_.back().count;
      else
        runs_.push_back({address, static_cast<std::uint32_t>(at), 1});
    }
  }

  void lay_out() noexcept {
    const auto up = [](std::size_t bytes) {
      constexpr std::size_t line = alignof(cuda::ring_state);
      return (bytes + line - 1) / line * line;
    };
    state_ = up(runs_.size() * sizeof(cuda::ring_run));
    freed_ = state_ + sizeof(cuda::ring_state);
    returns_ = freed_ + up(detail::bit_words(count) * sizeof(std::uint32_t));
    places_ = returns_ + up(room_ * sizeof(void*));
    bytes_ = places_ + places() * sizeof(std::uint32_t);
  }

  [[nodiscard]] bool copy_back(stream_handle stream) noexcept override {
    return by_.copy(staged_, records() + state_, bytes_back(), stream);
  }

  [[nodiscard]] bool fold() noexcept override {
    const auto& state = *reinterpret_cast<const cuda::ring_state*>(staged_);
    const std::span bits(reinterpret_cast<std::uint32_t*>(staged_ + (freed_ - state_)), detail::bit_words(count));
    account.handed_out = state.taken;
    account.kept = detail::keep_unfreed(bits, std::min<std::uint64_t>(state.taken, count));
    for (std::size_t at = 0; at < count; ++at)
      if ((bits[at / 32] >> at % 32 & 1) == 0) by_.pool.deallocate(items_[at], item_bytes, stream_);
    const auto* const returns = reinterpret_cast<void* const*>(staged_ + (returns_ - state_));
    account.returned = std::min<std::uint64_t>(state.returned, room_);
    for (std::size_t at = 0; at < account.returned; ++at) by_.pool.deallocate(returns[at], 0, stream_);
    return true;
  }

  std::size_t room_;
  std::vector<void*> items_;
  std::vector<cuda::ring_run> runs_;
  // Where in the records.
  std::size_t state_ = 0;
  std::size_t freed_ = 0;
  std::size_t returns_ = 0;
  std::size_t places_ = 0;
  std::size_t bytes_ = 0;
};

kernel_ring::kernel_ring(kernel_handoff& by, std::size_t item_bytes, std::size_t count, stream_handle stream,
                         std::size_t room)
    : by_(by.state_.get()), loan_(std::make_unique<loan>(*by_, item_bytes, count, stream, room)) {}

kernel_ring::kernel_ring(kernel_ring&& other) noexcept = default;

kernel_ring& kernel_ring::operator=(kernel_ring&& other) noexcept {
  if (this == &other) return *this;
  detail::part_with(by_, std::exchange(loan_, std::move(other.loan_)));
  by_ = other.by_;
  return *this;
}

kernel_ring::~kernel_ring() { detail::part_with(by_, std::move(loan_)); }

cuda::ring kernel_ring::view() const noexcept { return loan_ == nullptr ? cuda::ring{} : loan_->view(); }
std::size_t kernel_ring::item_bytes() const noexcept { return loan_ == nullptr ? 0 : loan_->item_bytes; }
std::size_t kernel_ring::count() const noexcept { return loan_ == nullptr ? 0 : loan_->count; }
bool kernel_ring::turn(stream_handle stream) noexcept { return loan_ != nullptr && loan_->turn(stream); }
bool kernel_ring::give_back(stream_handle stream) noexcept { return loan_ != nullptr && loan_->give_back(stream); }
bool kernel_ring::collect() noexcept { return loan_ != nullptr && loan_->collect(); }
bool kernel_ring::wait() noexcept { return loan_ != nullptr && loan_->wait(); }
kernel_account kernel_ring::account() const noexcept { return loan_ == nullptr ? kernel_account{} : loan_->account; }

}  // namespace orderly
