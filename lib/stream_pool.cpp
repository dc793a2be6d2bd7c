#include "orderly/stream_pool.hpp"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <utility>

#include "stream_pool_state.hpp"

namespace orderly {

using namespace detail;

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
  if (in == nullptr) state::throw_unknown(idle);
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
  if (state_ != nullptr && !state_->core_.open_generations()) state_->core_.throw_out_of_memory(bytes, alignment);
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

bool stream_pool::serves(stream_handle stream) noexcept { return state_ != nullptr && state_->find(stream) != nullptr; }

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

memory_report stream_pool::report(std::size_t bytes) const noexcept {
  return state_ == nullptr ? memory_report{} : state_->core_.report(bytes);
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
