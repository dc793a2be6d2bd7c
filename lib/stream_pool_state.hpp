/// \file
/// What is behind orderly::stream_pool: a pool with lanes, found by their streams' handles.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

#include "observed_blocks.hpp"
#include "orderly/stream_pool.hpp"
#include "pool_state.hpp"

namespace orderly {

class ORDERLY_LOCAL stream_pool::state {
 public:
  state(std::unique_ptr<memory_source> source, std::shared_ptr<stream_driver> driver, const stream_options& settings)
      : settings_(settings),
        observed_(observe(source.get())),
        seal_bytes_(settings.seal_bytes == 0 ? default_seal_bytes : settings.seal_bytes),
        core_(std::move(source), settings.memory,
              std::make_unique<detail::lanes>(std::move(driver),
                                              detail::lanes::manner{.may_wait = settings.wait_before_refusing,
                                                                    .marked = settings.safe_mode,
                                                                    .watched = watched()})) {}

  /// The lane of a stream; null: the handle names no stream, or there are too many.
  [[nodiscard]] detail::lane* find(stream_handle stream) noexcept {
    const detail::thread_lanes::entry* const known = detail::lanes::at_hand(core_.serial(), stream);
    return known != nullptr ? known->of : find_slowly(stream);
  }

  [[nodiscard, gnu::noinline]] detail::lane* find_slowly(stream_handle stream) noexcept {
    const detail::lanes& known_lanes = *core_.streams();
    if (detail::lane* const known = known_lanes.recall(core_.serial(), stream)) {
      if (!watched()) return known;
      // As at most times: it does not capture, and did not when it was asked last. Else bind() has to do something.
      if (known_lanes.driver().capture(stream) == 0 && !pool::state::captures(known)) return known;
    }
    return core_.bind(stream);
  }

  [[noreturn]] static void throw_unknown(stream_handle stream) {
    char text[128];
    std::snprintf(text, sizeof text, "orderly::stream_pool: %p is not a stream, or the pool has too many; release some",
                  stream);
    throw std::invalid_argument(text);
  }

  [[nodiscard, gnu::noinline]] void* allocate_slowly(std::size_t bytes, std::size_t alignment,
                                                     stream_handle stream) noexcept {
    detail::lane* const in = find(stream);
    if (in == nullptr) return nullptr;
    return observed(bytes, *in, [&] { return core_.allocate_or_null(bytes, alignment, in); });
  }

  [[nodiscard, gnu::noinline]] void* allocate_slowly_or_throw(std::size_t bytes, std::size_t alignment,
                                                              stream_handle stream) {
    detail::lane* const in = find(stream);
    if (in == nullptr) throw_unknown(stream);
    return allocate_in(*in, bytes, alignment);
  }

  [[nodiscard, gnu::noinline]] error deallocate_slowly(void* pointer, std::size_t bytes, stream_handle stream,
                                                       bad_free* report) noexcept {
    if (pointer == nullptr) return error::none;
    detail::lane* const in = find(stream);
    if (in == nullptr) {
      if (report != nullptr) *report = {.code = error::invalid_argument, .pointer = pointer, .bytes = bytes};
      return error::invalid_argument;
    }
    return deallocate_in(*in, pointer, bytes, report);
  }

  [[nodiscard]] void* allocate_in(detail::lane& in, std::size_t bytes, std::size_t alignment) {
    return observed(bytes, in, [&] { return core_.allocate_or_throw(bytes, alignment, &in); });
  }

  [[nodiscard]] error deallocate_in(detail::lane& in, void* pointer, std::size_t bytes, bad_free* report) noexcept {
    if (settings_.safe_mode) core_.streams()->mark(in);
    const error code = observed_ == nullptr ? core_.deallocate_slow(pointer, bytes, report, &in)
                                            : deallocate_observed(pointer, bytes, report, in);
    core_.seal_if_due(in, seal_bytes_);
    return code;
  }

  /// A place for a block that is to be moved there by work in the stream.
  [[nodiscard]] void* allocate_in_room(detail::node room, std::size_t bytes, const void* moving,
                                       detail::lane& in) noexcept {
    return observed(bytes, in, [&] { return core_.allocate_in_room(room, bytes, moving, &in); });
  }

  /// A block that no stream uses any more: it is everybody's at once.
  error deallocate_settled(void* pointer, std::size_t bytes) noexcept {
    if (observed_ == nullptr) return core_.deallocate_or_report(pointer, bytes);
    const std::lock_guard lock(observed_->mutex);
    const error code = core_.deallocate_or_report(pointer, bytes);
    if (code == error::none) observed_->take_back(pointer, is_settled(nullptr));
    return code;
  }

  /// Null for `in`: no stream uses it.
  [[nodiscard]] error divide(void* pointer, std::size_t part_bytes, std::span<const std::uint32_t> live,
                             detail::lane* in, std::string* why) noexcept {
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
  std::unique_ptr<detail::observed_blocks> observed_;  ///< null: nobody is to be told
  std::size_t seal_bytes_;
  pool::state core_;

 private:
  [[nodiscard]] static std::unique_ptr<detail::observed_blocks> observe(memory_source* source) {
    block_observer* const by = source == nullptr ? nullptr : source->observer();
    return by == nullptr ? nullptr : std::make_unique<detail::observed_blocks>(*by);
  }

  template <class Allocate>
  [[nodiscard]] void* observed(std::size_t bytes, detail::lane& in, const Allocate& allocate) {
    if (observed_ == nullptr) [[likely]] return allocate();
    const std::lock_guard lock(observed_->mutex);
    void* const block = allocate();
    if (block != nullptr) observed_->hand_out(block, std::max<std::size_t>(bytes, 1), captures(&in));
    return block;
  }

  [[nodiscard]] error deallocate_observed(void* pointer, std::size_t bytes, bad_free* report, detail::lane& in) noexcept {
    const std::lock_guard lock(observed_->mutex);
    const error code = core_.deallocate_slow(pointer, bytes, report, &in);
    if (code == error::none) observed_->take_back(pointer, is_settled(&in));
    return code;
  }

  [[nodiscard]] static bool captures(const detail::lane* in) noexcept {
    return in != nullptr && pool::state::captures(in);
  }

  /// True: no work of the device uses what was freed in the stream; waits for that.
  [[nodiscard]] bool is_settled(const detail::lane* in) const noexcept {
    if (captures(in)) return false;
    stream_driver& driver = core_.streams()->driver();
    return (in == nullptr || driver.capture(in->stream) == 0) && driver.synchronize_all();
  }

  static constexpr std::size_t default_seal_bytes = std::size_t{64} << 20;
};

}  // namespace orderly
