#include "kernel_handoff.hpp"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>

namespace orderly {

using detail::cuda_call;
using detail::kernel_loan;

namespace {

[[nodiscard]] std::shared_ptr<stream_driver> driver_of(int device) {
  const detail::failure_watch watch;
  auto driver = make_cuda_stream_driver(device);
  if (driver == nullptr)
    throw std::invalid_argument("orderly::kernel_handoff: there is no CUDA device " + std::to_string(device) +
                                watch.text());
  return driver;
}

[[nodiscard]] std::unique_ptr<memory_source> staging_source(std::size_t bytes) {
  const detail::failure_watch watch;
  auto source = make_cuda_pinned_source(std::max<std::size_t>(bytes, 64 * 1024));
  if (source == nullptr)
    throw std::invalid_argument("orderly::kernel_handoff: there is no page-locked memory to be had" + watch.text());
  return source;
}

[[nodiscard]] options staging_options() {
  options settings;
  settings.on_bad_free = on_bad_free::count;
  return settings;
}

}  // namespace

kernel_handoff::state::state(stream_pool& of, int device, std::size_t staging_bytes)
    : pool(of),
      driver(driver_of(device)),
      device_(device),
      staging_(staging_source(staging_bytes), staging_options()) {}

kernel_handoff::state::~state() {
  std::unique_ptr<kernel_loan> left = std::move(left_);
  while (left != nullptr) {
    const std::unique_ptr<kernel_loan> loan = std::exchange(left, std::move(left->next));
    if (loan->where() == kernel_loan::place::out) static_cast<void>(loan->give_back());
    if (!loan->wait()) loan->lose();
  }
}

std::byte* kernel_handoff::state::stage(std::size_t bytes) { return static_cast<std::byte*>(staging_.allocate(bytes)); }

bool kernel_handoff::state::copy(void* to, const void* from, std::size_t bytes, stream_handle stream) noexcept {
  const detail::device_guard guard(device_);
  const auto enqueue = [&] { return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, detail::named(stream)); };
  return guard.holds() && cuda_call("cudaMemcpyAsync", enqueue) == cudaSuccess;
}

bool kernel_handoff::state::clear(void* at, std::size_t bytes, stream_handle stream) noexcept {
  const detail::device_guard guard(device_);
  const auto enqueue = [&] { return cudaMemsetAsync(at, 0, bytes, detail::named(stream)); };
  return guard.holds() && cuda_call("cudaMemsetAsync", enqueue) == cudaSuccess;
}

void kernel_handoff::state::leave(std::unique_ptr<kernel_loan> loan) noexcept {
  const std::lock_guard lock(mutex_);
  loan->next = std::move(left_);
  left_ = std::move(loan);
}

std::size_t kernel_handoff::state::collect() noexcept {
  std::unique_ptr<kernel_loan> left;
  {
    const std::lock_guard lock(mutex_);
    left = std::move(left_);
  }
  std::size_t count = 0;
  while (left != nullptr) {
    std::unique_ptr<kernel_loan> loan = std::exchange(left, std::move(left->next));
    if (loan->where() == kernel_loan::place::out) static_cast<void>(loan->give_back());
    if (loan->collect()) continue;
    leave(std::move(loan));
    ++count;
  }
  return count;
}

kernel_handoff::kernel_handoff(stream_pool& pool, int device, std::size_t staging_bytes)
    : state_(std::make_unique<state>(pool, device, staging_bytes)) {}

kernel_handoff::~kernel_handoff() = default;

std::size_t kernel_handoff::collect() noexcept { return state_->collect(); }

namespace detail {

namespace {

constexpr std::size_t record_alignment = alignof(cuda::ring_state);

}  // namespace

kernel_loan::kernel_loan(kernel_handoff::state& by, const char* what, std::size_t item_size, std::size_t items,
                         stream_handle stream)
    : by_(by), stream_(stream) {
  by.collect();
  const auto refuse = [&](const std::string& why) {
    throw std::invalid_argument(std::string("orderly::") + what + ": " + std::to_string(items) + " items of " +
                                std::to_string(item_size) + " bytes: " + why);
  };
  constexpr std::size_t most = std::size_t{1} << 31;
  if (items == 0 || items > most) refuse("a number from 1 to 2^31 is needed");
  const std::size_t largest = by.pool.largest_divisible();
  if (item_size > largest) refuse("the pool has no blocks of a power of two above " + std::to_string(largest));
  item_bytes = std::bit_ceil(std::max<std::size_t>(item_size, 1));
  count = items;
  if (item_bytes < by.pool.granule())
    refuse("smaller than the pool's granule of " + std::to_string(by.pool.granule()) +
           "; make the pool with a granule of at most " + std::to_string(std::max<std::size_t>(item_bytes, 16)) +
           ", or ask for larger items");
  const failure_watch watch;
  if (by.driver->capture(stream) != 0)
    refuse("the stream captures, or there is none; kernels are lent memory outside" + watch.text());
}

kernel_loan::~kernel_loan() {
  if (event_ != nullptr) by_.driver->release(event_);
  if (where_ == place::lost) {  // the device may yet use all of it
    if (records_) records_->release();
  } else if (staged_ != nullptr) {
    by_.unstage(staged_, staged_bytes_);
  }
}

void kernel_loan::make_records(std::size_t device_bytes, std::size_t staged_bytes) {
  staged_ = by_.stage(staged_bytes);
  staged_bytes_ = staged_bytes;
  records_.emplace(by_.pool, device_bytes + record_alignment, stream_);
}

std::byte* kernel_loan::records() const noexcept {
  // On a line of its own, whatever the granule.
  auto* const start = static_cast<std::byte*>(records_->get());
  return start + (0 - reinterpret_cast<std::uintptr_t>(start)) % record_alignment;
}

bool kernel_loan::give_back() noexcept {
  // The handle of a per-thread stream means another one in another thread.
  if (by_.driver->is_per_thread(stream_) && maker_ != std::this_thread::get_id()) return false;
  return give_back(stream_);
}

bool kernel_loan::give_back(stream_handle stream) noexcept {
  if (where_ != place::out || by_.driver->capture(stream) != 0 || !copy_back(stream)) return false;
  event_ = by_.driver->record(stream);
  if (event_ == nullptr) return false;
  records_->free(stream);  // in stream order: behind the copies
  stream_ = stream;
  where_ = place::on_the_way;
  return true;
}

bool kernel_loan::collect() noexcept {
  if (where_ == place::on_the_way && by_.driver->query(event_) == event_status::complete) where_ = place::there;
  if (where_ == place::there && fold()) {
    by_.driver->release(std::exchange(event_, nullptr));
    by_.unstage(std::exchange(staged_, nullptr), staged_bytes_);
    where_ = place::home;
  }
  return where_ == place::home;
}

bool kernel_loan::wait() noexcept {
  if (where_ == place::on_the_way && !by_.driver->synchronize(event_)) return false;
  if (where_ == place::on_the_way) where_ = place::there;
  return collect();
}

std::size_t keep_unfreed(std::span<std::uint32_t> freed, std::uint64_t handed_out) noexcept {
  std::size_t kept = 0;
  for (std::size_t at = 0; at < freed.size(); ++at) {
    const std::uint64_t before = std::uint64_t{at} * 32;
    const std::uint64_t of_word = handed_out > before ? std::min<std::uint64_t>(handed_out - before, 32) : 0;
    const auto out = static_cast<std::uint32_t>((std::uint64_t{1} << of_word) - 1);
    freed[at] = out & ~freed[at];
    if (freed[at] != 0) kept += static_cast<std::size_t>(std::popcount(freed[at]));
  }
  return kept;
}

}  // namespace detail
}  // namespace orderly
