#include "kernel_handoff.hpp"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>

namespace orderly {

/// Records: the counter, on a line of its own, then the bits.
class kernel_lease::loan final : public detail::kernel_loan {
 public:
  loan(kernel_handoff::state& by, std::size_t item, std::size_t items, stream_handle stream)
      : kernel_loan(by, "kernel_lease", item, items, stream) {
    count = std::bit_ceil(items);
    const std::size_t largest = by.pool.largest_divisible();
    if (count > largest / item_bytes)
      throw std::invalid_argument("orderly::kernel_lease: " + std::to_string(count) + " items of " +
                                  std::to_string(item_bytes) + " bytes: the largest block that the pool divides has " +
                                  std::to_string(largest) + " bytes; make several leases, or a kernel_ring");
    make_records(bytes_of_records(), bytes_of_records());
    block_.emplace(by.pool, count * item_bytes, stream);
    const detail::failure_watch watch;
    if (!by.clear(records(), bytes_of_records(), stream))
      throw std::invalid_argument("orderly::kernel_lease: the stream refuses a memset; is it one of the device?" +
                                  watch.text());
  }
  ~loan() override {
    if (block_ && where() == place::lost) block_->release();
  }

  [[nodiscard]] cuda::lease view() const noexcept {
    if (where() != place::out) return {};
    cuda::lease lent;
    lent.base = reinterpret_cast<std::uintptr_t>(block_->get());
    lent.tickets = reinterpret_cast<std::uint64_t*>(records());
    lent.freed = reinterpret_cast<std::uint32_t*>(records() + line);
    lent.count = static_cast<std::uint32_t>(count);
    lent.shift = static_cast<std::uint32_t>(std::countr_zero(item_bytes));
    return lent;
  }

 private:
  static constexpr std::size_t line = 128;

  [[nodiscard]] std::size_t bytes_of_records() const noexcept {
    return line + detail::bit_words(count) * sizeof(std::uint32_t);
  }

  [[nodiscard]] bool copy_back(stream_handle stream) noexcept override {
    return by_.copy(staged_, records(), bytes_of_records(), stream);
  }

  [[nodiscard]] bool fold() noexcept override {
    const std::uint64_t handed_out =
        std::min<std::uint64_t>(*reinterpret_cast<const std::uint64_t*>(staged_), count);  // more: dry attempts
    const std::span bits(reinterpret_cast<std::uint32_t*>(staged_ + line), detail::bit_words(count));
    if (!folded_) account = {.handed_out = handed_out, .kept = detail::keep_unfreed(bits, handed_out)};
    folded_ = true;  // the bits say now what is live; a division that is refused is tried again
    if (account.kept == 0)
      block_->free(stream_);
    else if (by_.pool.divide_settled(block_->get(), item_bytes, bits) != error::none)
      return false;
    block_->release();
    return true;
  }

  std::optional<detail::pool_block> block_;
  bool folded_ = false;
};

kernel_lease::kernel_lease(kernel_handoff& by, std::size_t item_bytes, std::size_t count, stream_handle stream)
    : by_(by.state_.get()), loan_(std::make_unique<loan>(*by_, item_bytes, count, stream)) {}

kernel_lease::kernel_lease(kernel_lease&& other) noexcept = default;

kernel_lease& kernel_lease::operator=(kernel_lease&& other) noexcept {
  if (this == &other) return *this;
  detail::part_with(by_, std::exchange(loan_, std::move(other.loan_)));
  by_ = other.by_;
  return *this;
}

kernel_lease::~kernel_lease() { detail::part_with(by_, std::move(loan_)); }

cuda::lease kernel_lease::view() const noexcept { return loan_ == nullptr ? cuda::lease{} : loan_->view(); }
std::size_t kernel_lease::item_bytes() const noexcept { return loan_ == nullptr ? 0 : loan_->item_bytes; }
std::size_t kernel_lease::count() const noexcept { return loan_ == nullptr ? 0 : loan_->count; }
bool kernel_lease::give_back(stream_handle stream) noexcept { return loan_ != nullptr && loan_->give_back(stream); }
bool kernel_lease::collect() noexcept { return loan_ != nullptr && loan_->collect(); }
bool kernel_lease::wait() noexcept { return loan_ != nullptr && loan_->wait(); }
kernel_account kernel_lease::account() const noexcept { return loan_ == nullptr ? kernel_account{} : loan_->account; }

}  // namespace orderly
