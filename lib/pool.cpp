#include "orderly/pool.hpp"

#include <stdexcept>
#include <utility>

#include "pool_state.hpp"

namespace orderly {

pool::pool(const options& settings) : pool(make_host_source(), settings) {}

pool::pool(std::unique_ptr<memory_source> source, const options& settings)
    : state_(new state(std::move(source), settings)) {}

pool::pool(pool&& other) noexcept : state_(std::exchange(other.state_, nullptr)) {}

pool& pool::operator=(pool&& other) noexcept {
  if (this != &other) delete std::exchange(state_, std::exchange(other.state_, nullptr));
  return *this;
}

pool::~pool() { delete state_; }

void* pool::allocate(std::size_t bytes) {
  if (state_ == nullptr) [[unlikely]]
    return allocate_cold(bytes, 1);
  return state_->allocate_hot(bytes, [bytes, at = state_] { return at->allocate_or_throw(bytes, 1); });
}

void* pool::allocate(std::size_t bytes, std::size_t alignment) {
  if (state_ != nullptr && state_->aligned_by_granule(alignment)) [[likely]]
    return allocate(bytes);
  return allocate_cold(bytes, alignment);
}

void* pool::try_allocate(std::size_t bytes) noexcept {
  if (state_ == nullptr) [[unlikely]]
    return nullptr;
  return state_->allocate_hot(bytes, [bytes, at = state_]() noexcept { return at->allocate_or_null(bytes, 1); });
}

void* pool::try_allocate(std::size_t bytes, std::size_t alignment) noexcept {
  if (state_ == nullptr) return nullptr;
  return state_->aligned_by_granule(alignment) ? try_allocate(bytes) : state_->allocate_or_null(bytes, alignment);
}

void pool::deallocate(void* pointer, std::size_t bytes) noexcept {
  if (state_ == nullptr) [[unlikely]]
    return deallocate_gone(pointer, bytes);
  state_->deallocate_hot(pointer, bytes, [pointer, bytes, at = state_]() noexcept {
    return at->deallocate_or_report(pointer, bytes);
  });
}

void* pool::allocate_at_hand(std::size_t bytes) noexcept {
  return state_ == nullptr ? nullptr : state_->allocate_hot(bytes, []() noexcept -> void* { return nullptr; });
}

bool pool::deallocate_at_hand(void* pointer, std::size_t bytes) noexcept {
  // Which error makes no difference: the full path finds out.
  return state_ != nullptr &&
         state_->deallocate_hot(pointer, bytes, []() noexcept { return error::foreign_pointer; }) == error::none;
}

void* pool::allocate_cold(std::size_t bytes, std::size_t alignment) {
  if (state_ == nullptr) throw std::invalid_argument("orderly::pool: allocate on a pool that was moved from");
  return state_->allocate_or_throw(bytes, alignment);
}

[[gnu::noinline]] void pool::deallocate_gone(void* pointer, std::size_t bytes) noexcept {
  if (pointer != nullptr) on_bad_free::print({.code = error::pool_gone, .pointer = pointer, .bytes = bytes});
}

void pool::deallocate(void* pointer) noexcept { deallocate(pointer, 0); }

error pool::try_deallocate(void* pointer, std::size_t bytes, bad_free* report) noexcept {
  if (state_ != nullptr) [[likely]] {
    return state_->deallocate_hot(pointer, bytes,
                                  [&]() noexcept { return state_->deallocate_slow(pointer, bytes, report); });
  }
  if (pointer == nullptr) return error::none;
  if (report != nullptr) *report = {.code = error::pool_gone, .pointer = pointer, .bytes = bytes};
  return error::pool_gone;
}

void pool::deallocate_or_throw(void* pointer, std::size_t bytes) {
  bad_free report;
  if (try_deallocate(pointer, bytes, &report) != error::none) throw bad_free_error(report);
}

checked_block pool::allocate_checked(std::size_t bytes, std::size_t alignment) {
  if (state_ != nullptr && !state_->open_generations()) state_->throw_out_of_memory(bytes, alignment);
  void* const block = allocate(bytes, alignment);
  return state_->give_handle(block);
}

checked_block pool::try_allocate_checked(std::size_t bytes, std::size_t alignment) noexcept {
  if (state_ == nullptr || !state_->open_generations()) return {};
  return state_->give_handle(try_allocate(bytes, alignment));
}

error pool::try_deallocate(const checked_block& block, std::size_t bytes, bad_free* report) noexcept {
  if (state_ != nullptr) {
    if (const error code = state_->end_handle(block, bytes, report); code != error::none) return code;
  }
  return try_deallocate(block.address, bytes, report);
}

void pool::deallocate(const checked_block& block, std::size_t bytes) noexcept {
  if (state_ == nullptr) return deallocate_gone(block.address, bytes);
  bad_free report;
  if (try_deallocate(block, bytes, &report) != error::none) state_->call_handler(report);
}

void pool::deallocate_or_throw(const checked_block& block, std::size_t bytes) {
  bad_free report;
  if (try_deallocate(block, bytes, &report) != error::none) throw bad_free_error(report);
}

bool pool::owns(const void* pointer) const noexcept { return state_ != nullptr && state_->owns(pointer); }

std::size_t pool::block_size(const void* pointer) const noexcept {
  return state_ == nullptr ? 0 : state_->block_size(pointer);
}

std::size_t pool::trim(std::size_t keep_bytes) noexcept { return state_ == nullptr ? 0 : state_->trim(keep_bytes); }
std::size_t pool::reserve(std::size_t bytes) noexcept { return state_ == nullptr ? 0 : state_->reserve(bytes); }
std::size_t pool::defragment() noexcept { return state_ == nullptr ? 0 : state_->defragment(); }
std::vector<tag_statistics> pool::tags() const {
  return state_ == nullptr ? std::vector<tag_statistics>() : state_->tags();
}
memory_report pool::report(std::size_t bytes) const noexcept {
  return state_ == nullptr ? memory_report{} : state_->report(bytes);
}
statistics pool::stats() const noexcept { return state_ == nullptr ? statistics{} : state_->stats(); }

std::size_t pool::granule() const noexcept { return state_ == nullptr ? 0 : state_->shape().granule_bytes(); }
std::size_t pool::chunk() const noexcept {
  if (state_ == nullptr) return 0;
  return state_->shape().flat ? state_->shape().capacity : state_->shape().chunk_bytes();
}
std::size_t pool::capacity() const noexcept { return state_ == nullptr ? 0 : state_->shape().capacity; }
std::size_t pool::limit() const noexcept { return state_ == nullptr ? 0 : state_->shape().limit; }
std::size_t pool::rounded(std::size_t bytes) const noexcept { return state_ == nullptr ? 0 : state_->rounded(bytes); }

void pool::visit_blocks(void (*visit)(void*, const block_info&), void* context) const {
  if (state_ != nullptr) state_->visit(visit, context);
}

}  // namespace orderly
