#include "orderly/stream_pool.hpp"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <stdexcept>
#include <utility>

#include "observed_blocks.hpp"
#include "pool_state.hpp"

namespace orderly {

using namespace detail;

namespace {

[[noreturn]] void throw_unknown(stream_handle stream) {
  char text[128];
  std::snprintf(text, sizeof text, "orderly::stream_pool: %p is not a stream, or the pool has too many; release some",
                stream);
  throw std::invalid_argument(text);
}

}  // namespace

class stream_pool::state {
 public:
  state(std::unique_ptr<memory_source> source, std::shared_ptr<stream_driver> driver, const stream_options& settings)
      : settings_(settings),
        observed_(observe(source.get())),
        seal_bytes_(settings.seal_bytes == 0 ? default_seal_bytes : settings.seal_bytes),
        core_(std::move(source), settings.memory,
              std::make_unique<lanes>(std::move(driver), lanes::manner{.may_wait = settings.wait_before_refusing,
                                                                       .marked = settings.safe_mode,
                                                                       .watched = watched()})) {}

  /// The lane of a stream; null: the handle names no stream, or there are too many.
  [[nodiscard]] lane* find(stream_handle stream) noexcept {
    const thread_lanes::entry* const known = lanes::at_hand(core_.serial(), stream);
    return known != nullptr ? known->of : find_slowly(stream);
  }

  [[nodiscard, gnu::noinline]] lane* find_slowly(stream_handle stream) noexcept {
    const lanes& known_lanes = *core_.streams();
    if (lane* const known = known_lanes.recall(core_.serial(), stream)) {
      if (!watched()) return known;
      // As at most times: it does not capture, and did not when it was asked last. Else bind() has to do something.
      if (known_lanes.driver().capture(stream) == 0 && !pool::state::captures(known)) return known;
    }
    return core_.bind(stream);
  }

  [[nodiscard, gnu::noinline]] void* allocate_slowly(std::size_t bytes, std::size_t alignment,
                                                     stream_handle stream) noexcept {
    lane* const in = find(stream);
    if (in == nullptr) return nullptr;
    return observed(bytes, *in, [&] { return core_.allocate_or_null(bytes, alignment, in); });
  }

  [[nodiscard, gnu::noinline]] void* allocate_slowly_or_throw(std::size_t bytes, std::size_t alignment,
                                                              stream_handle stream) {
    lane* const in = find(stream);
    if (in == nullptr) throw_unknown(stream);
    return allocate_in(*in, bytes, alignment);
  }

  [[nodiscard, gnu::noinline]] error deallocate_slowly(void* pointer, std::size_t bytes, stream_handle stream,
                                                       bad_free* report) noexcept {
    if (pointer == nullptr) return error::none;
    lane* const in = find(stream);
    if (in == nullptr) {
      if (report != nullptr) *report = {.code = error::invalid_argument, .pointer = pointer, .bytes = bytes};
      return error::invalid_argument;
    }
    return deallocate_in(*in, pointer, bytes, report);
  }

  [[nodiscard]] void* allocate_in(lane& in, std::size_t bytes, std::size_t alignment) {
    return observed(bytes, in, [&] { return core_.allocate_or_throw(bytes, alignment, &in); });
  }

  [[nodiscard]] error deallocate_in(lane& in, void* pointer, std::size_t bytes, bad_free* report) noexcept {
    if (settings_.safe_mode) core_.streams()->mark(in);
    const error code = observed_ == nullptr ? core_.deallocate_slow(pointer, bytes, report, &in)
                                            : deallocate_observed(pointer, bytes, report, in);
    core_.seal_if_due(in, seal_bytes_);
    return code;
  }

  /// Null for `in`: no stream uses it.
  [[nodiscard]] error divide(void* pointer, std::size_t part_bytes, std::span<const std::uint32_t> live, lane* in,
                             std::string* why) noexcept {
    if (observed_ == nullptr) return core_.divide(pointer, part_bytes, live, in, why);
    const std::lock_guard lock(observed_->mutex);
    const error code = core_.divide(pointer, part_bytes, live, in, why);
    if (code != error::none) return code;
    observed_->take_back(pointer, is_settled(in));
    for (std::size_t part = 0; part < live.size() * 32; ++part)
      if ((live[part / 32] >> part % 32 & 1) != 0)
        observed_->hand_out(static_cast<std::byte*>(pointer) + part * part_bytes, part_bytes, captures(in));
    return code;
  }

  [[gnu::noinline]] error deallocate_or_report(void* pointer, std::size_t bytes, stream_handle stream) noexcept {
    bad_free report;
    const error code = deallocate_slowly(pointer, bytes, stream, &report);
    if (code != error::none) core_.call_handler(report);
    return code;
  }

  /// Whose memory is observed, of those threads keep none at hand.
  [[nodiscard]] bool watched() const noexcept {
    return settings_.safe_mode || settings_.watch_captures || observed_ != nullptr;
  }

  stream_options settings_;
  std::unique_ptr<observed_blocks> observed_;  ///< null: nobody is to be told
  std::size_t seal_bytes_;
  pool::state core_;

 private:
  [[nodiscard]] static std::unique_ptr<observed_blocks> observe(memory_source* source) {
    block_observer* const by = source == nullptr ? nullptr : source->observer();
    return by == nullptr ? nullptr : std::make_unique<observed_blocks>(*by);
  }

  template <class Allocate>
  [[nodiscard]] void* observed(std::size_t bytes, lane& in, const Allocate& allocate) {
    if (observed_ == nullptr) [[likely]] return allocate();
    const std::lock_guard lock(observed_->mutex);
    void* const block = allocate();
    if (block != nullptr) observed_->hand_out(block, std::max<std::size_t>(bytes, 1), captures(&in));
    return block;
  }

  [[nodiscard]] error deallocate_observed(void* pointer, std::size_t bytes, bad_free* report, lane& in) noexcept {
    const std::lock_guard lock(observed_->mutex);
    const error code = core_.deallocate_slow(pointer, bytes, report, &in);
    if (code == error::none) observed_->take_back(pointer, is_settled(&in));
    return code;
  }

  [[nodiscard]] static bool captures(const lane* in) noexcept { return in != nullptr && pool::state::captures(in); }

  /// True: no work of the device uses what was freed in the stream; waits for that.
  [[nodiscard]] bool is_settled(const lane* in) const noexcept {
    if (captures(in)) return false;
    stream_driver& driver = core_.streams()->driver();
    return (in == nullptr || driver.capture(in->stream) == 0) && driver.synchronize_all();
  }

  static constexpr std::size_t default_seal_bytes = std::size_t{64} << 20;
};

stream_pool::stream_pool(std::unique_ptr<memory_source> source, std::shared_ptr<stream_driver> driver,
                         const stream_options& settings)
    : state_(new state(std::move(source), std::move(driver), settings)) {}

stream_pool::stream_pool(stream_pool&& other) noexcept : state_(std::exchange(other.state_, nullptr)) {}

stream_pool& stream_pool::operator=(stream_pool&& other) noexcept {
  if (this != &other) delete std::exchange(state_, std::exchange(other.state_, nullptr));
  return *this;
}

stream_pool::~stream_pool() { delete state_; }

void* stream_pool::allocate(std::size_t bytes, stream_handle stream) {
  if (state_ == nullptr) throw std::invalid_argument("orderly::stream_pool: allocate on a pool that was moved from");
  state* const at = state_;
  const thread_lanes::entry* const known = lanes::at_hand(at->core_.serial(), stream);
  const auto otherwise = [=] { return at->allocate_slowly_or_throw(bytes, 1, stream); };
  if (known == nullptr || known->mine == nullptr) [[unlikely]] return otherwise();
  return at->core_.allocate_hot(*known->mine, bytes, otherwise);
}

void* stream_pool::allocate(std::size_t bytes, std::size_t alignment, stream_handle stream) {
  if (state_ == nullptr || state_->core_.aligned_by_granule(alignment)) return allocate(bytes, stream);
  return state_->allocate_slowly_or_throw(bytes, alignment, stream);
}

void* stream_pool::allocate_settled(std::size_t bytes, std::size_t alignment, stream_handle idle) {
  if (state_ == nullptr) throw std::invalid_argument("orderly::stream_pool: allocate on a pool that was moved from");
  lane* const in = state_->find(idle);  // before: a driver that tells now need not tell later
  if (in == nullptr) throw_unknown(idle);
  const thread_lanes::entry* const known = lanes::at_hand(state_->core_.serial(), idle);
  const auto otherwise = [=, at = state_] { return at->allocate_in(*in, bytes, alignment); };
  const bool at_hand = known != nullptr && known->of == in && known->mine != nullptr &&
                       state_->core_.aligned_by_granule(alignment);
  void* const block = at_hand ? state_->core_.allocate_hot(*known->mine, bytes, otherwise) : otherwise();
  if (state_->core_.streams()->finish_waits(*in)) [[likely]] return block;
  // The work may go on, so the block is the stream's again, behind it.
  static_cast<void>(state_->deallocate_in(*in, block, bytes == 0 ? 1 : bytes, nullptr));
  throw std::runtime_error(
      "orderly::stream_pool: the driver cannot tell when other streams' work on freed memory is done; the device has "
      "failed, or the idle stream captures");
}

void* stream_pool::try_allocate(std::size_t bytes, std::size_t alignment, stream_handle stream) noexcept {
  if (state_ == nullptr || state_->core_.aligned_by_granule(alignment)) return try_allocate(bytes, stream);
  return state_->allocate_slowly(bytes, alignment, stream);
}

void* stream_pool::try_allocate(std::size_t bytes, stream_handle stream) noexcept {
  if (state_ == nullptr) [[unlikely]] return nullptr;
  state* const at = state_;
  const thread_lanes::entry* const known = lanes::at_hand(at->core_.serial(), stream);
  const auto otherwise = [=]() noexcept { return at->allocate_slowly(bytes, 1, stream); };
  if (known == nullptr || known->mine == nullptr) [[unlikely]] return otherwise();
  return at->core_.allocate_hot(*known->mine, bytes, otherwise);
}

void* stream_pool::allocate_at_hand(std::size_t bytes, stream_handle stream) noexcept {
  if (state_ == nullptr) return nullptr;
  const thread_lanes::entry* const known = lanes::at_hand(state_->core_.serial(), stream);
  if (known == nullptr || known->mine == nullptr) return nullptr;
  return state_->core_.allocate_hot(*known->mine, bytes, []() noexcept -> void* { return nullptr; });
}

bool stream_pool::deallocate_at_hand(void* pointer, std::size_t bytes, stream_handle stream) noexcept {
  if (state_ == nullptr) return false;
  const thread_lanes::entry* const known = lanes::at_hand(state_->core_.serial(), stream);
  if (known == nullptr || known->mine == nullptr) return false;
  const auto otherwise = []() noexcept { return error::foreign_pointer; };  // which error makes no difference
  return state_->core_.deallocate_hot(*known->mine, pointer, bytes, otherwise) == error::none;
}

void stream_pool::deallocate(void* pointer, std::size_t bytes, stream_handle stream) noexcept {
  if (state_ == nullptr) [[unlikely]] return deallocate_gone(pointer, bytes);
  state* const at = state_;
  const thread_lanes::entry* const known = lanes::at_hand(at->core_.serial(), stream);
  const auto otherwise = [=]() noexcept { return at->deallocate_or_report(pointer, bytes, stream); };
  if (known == nullptr || known->mine == nullptr) [[unlikely]]
    otherwise();
  else
    at->core_.deallocate_hot(*known->mine, pointer, bytes, otherwise);
}

error stream_pool::try_deallocate(void* pointer, std::size_t bytes, stream_handle stream, bad_free* report) noexcept {
  if (state_ == nullptr) [[unlikely]] {
    if (pointer == nullptr) return error::none;
    if (report != nullptr) *report = {.code = error::pool_gone, .pointer = pointer, .bytes = bytes};
    return error::pool_gone;
  }
  state* const at = state_;
  const thread_lanes::entry* const known = lanes::at_hand(at->core_.serial(), stream);
  const auto otherwise = [=]() noexcept { return at->deallocate_slowly(pointer, bytes, stream, report); };
  if (known == nullptr || known->mine == nullptr) [[unlikely]] return otherwise();
  return at->core_.deallocate_hot(*known->mine, pointer, bytes, otherwise);
}

checked_block stream_pool::allocate_checked(std::size_t bytes, std::size_t alignment, stream_handle stream) {
  if (state_ != nullptr && !state_->core_.open_generations()) state_->core_.throw_out_of_memory(bytes);
  void* const block = allocate(bytes, alignment, stream);
  return state_->core_.give_handle(block);
}

checked_block stream_pool::try_allocate_checked(std::size_t bytes, std::size_t alignment,
                                                stream_handle stream) noexcept {
  if (state_ == nullptr || !state_->core_.open_generations()) return {};
  return state_->core_.give_handle(try_allocate(bytes, alignment, stream));
}

error stream_pool::try_deallocate(const checked_block& block, std::size_t bytes, stream_handle stream,
                                  bad_free* report) noexcept {
  // A handle that names no stream is refused before the block's handle ends.
  if (state_ != nullptr && block && state_->find(stream) != nullptr) {
    if (const error code = state_->core_.end_handle(block, bytes, report); code != error::none) return code;
  }
  return try_deallocate(block.address, bytes, stream, report);
}

void stream_pool::deallocate(const checked_block& block, std::size_t bytes, stream_handle stream) noexcept {
  if (state_ == nullptr) return deallocate_gone(block.address, bytes);
  bad_free report;
  if (try_deallocate(block, bytes, stream, &report) != error::none) state_->core_.call_handler(report);
}

[[gnu::noinline]] void stream_pool::deallocate_gone(void* pointer, std::size_t bytes) noexcept {
  if (pointer != nullptr) on_bad_free::print({.code = error::pool_gone, .pointer = pointer, .bytes = bytes});
}

error stream_pool::record_stream(void* pointer, stream_handle stream) noexcept {
  if (state_ == nullptr) return error::pool_gone;
  lane* const in = state_->find(stream);
  if (in == nullptr) return error::invalid_argument;
  const error code = state_->core_.record_stream(pointer, *in);
  if (code == error::none && state_->settings_.safe_mode) state_->core_.streams()->mark(*in);
  return code;
}

error stream_pool::begin_capture(stream_handle stream) noexcept {
  if (state_ == nullptr) return error::pool_gone;
  lane* const in = state_->core_.bind(stream);
  return in == nullptr ? error::invalid_argument : state_->core_.begin_capture(*in);
}

error stream_pool::end_capture(stream_handle stream) noexcept {
  if (state_ == nullptr) return error::pool_gone;
  lane* const in = state_->core_.bind(stream);
  return in == nullptr ? error::invalid_argument : state_->core_.end_capture(*in);
}

error stream_pool::divide(void* pointer, std::size_t part_bytes, const std::uint32_t* live, std::size_t words,
                          stream_handle stream, std::string* why) noexcept {
  if (state_ == nullptr) return error::pool_gone;
  lane* const in = state_->find(stream);
  if (in == nullptr) return error::invalid_argument;
  if (state_->settings_.safe_mode) state_->core_.streams()->mark(*in);
  const error code = state_->divide(pointer, part_bytes, {live, words}, in, why);
  state_->core_.seal_if_due(*in, state_->seal_bytes_);
  return code;
}

error stream_pool::divide_settled(void* pointer, std::size_t part_bytes, const std::uint32_t* live, std::size_t words,
                                  std::string* why) noexcept {
  return state_ == nullptr ? error::pool_gone : state_->divide(pointer, part_bytes, {live, words}, nullptr, why);
}

bool stream_pool::release_stream(stream_handle stream) noexcept {
  return state_ == nullptr || state_->core_.release_stream(stream);
}

bool stream_pool::stream_synchronize(stream_handle stream) noexcept {
  if (state_ == nullptr) return false;
  lane* const in = state_->find(stream);
  return in != nullptr && state_->core_.synchronize(in);
}

bool stream_pool::synchronize() noexcept { return state_ != nullptr && state_->core_.synchronize(nullptr); }

std::size_t stream_pool::trim(std::size_t keep_bytes) noexcept {
  return state_ == nullptr ? 0 : state_->core_.trim(keep_bytes);
}
std::size_t stream_pool::reserve(std::size_t bytes) noexcept {
  return state_ == nullptr ? 0 : state_->core_.reserve(bytes);
}
std::size_t stream_pool::defragment() noexcept { return state_ == nullptr ? 0 : state_->core_.defragment(); }
std::size_t stream_pool::granule() const noexcept {
  return state_ == nullptr ? 0 : state_->core_.shape().granule_bytes();
}
std::size_t stream_pool::largest_divisible() const noexcept {
  if (state_ == nullptr) return 0;
  const geometry& shape = state_->core_.shape();
  const std::uint64_t granules = std::min(std::uint64_t{1} << shape.root_order, std::bit_floor(shape.tree_granules));
  return static_cast<std::size_t>(shape.bytes(granules));
}
std::size_t stream_pool::capacity() const noexcept { return state_ == nullptr ? 0 : state_->core_.shape().capacity; }
bool stream_pool::owns(const void* pointer) const noexcept { return state_ != nullptr && state_->core_.owns(pointer); }
std::size_t stream_pool::block_size(const void* pointer) const noexcept {
  return state_ == nullptr ? 0 : state_->core_.block_size(pointer);
}

void stream_pool::visit_blocks(void (*visit)(void*, const block_info&), void* context) const {
  if (state_ != nullptr) state_->core_.visit(visit, context);
}

std::vector<tag_statistics> stream_pool::tags() const {
  return state_ == nullptr ? std::vector<tag_statistics>() : state_->core_.tags();
}

stream_statistics stream_pool::stats() const noexcept {
  stream_statistics s;
  if (state_ == nullptr) return s;
  const lanes& known = *state_->core_.streams();
  s.memory = state_->core_.stats();
  s.held = state_->core_.held();
  known.each([&](const lane& of) { s.streams += of.serial.load(relaxed) != 0; });  // figures
  s.events_recorded = known.records.load(relaxed);
  s.waits = known.waits.load(relaxed);
  s.queries = known.queries.load(relaxed);
  return s;
}

}  // namespace orderly
