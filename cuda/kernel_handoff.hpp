/// \file
/// What leases and rings have in common: a loan, from its making until the pool has its memory again.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <utility>

#include "orderly/cuda.hpp"
#include "orderly/cuda_kernel.hpp"
#include "orderly/pool.hpp"
#include "runtime.hpp"

namespace orderly {

namespace detail {
class kernel_loan;
}

class kernel_handoff::state {
 public:
  state(stream_pool& of, int device, std::size_t staging_bytes);
  ~state();

  /// Memory for the host's part of a loan. Throws out_of_memory.
  [[nodiscard]] std::byte* stage(std::size_t bytes);
  void unstage(std::byte* staged, std::size_t bytes) noexcept { staging_.deallocate(staged, bytes); }

  /// Puts a copy or a memset into a stream. False: refused.
  [[nodiscard]] bool copy(void* to, const void* from, std::size_t bytes, stream_handle stream) noexcept;
  [[nodiscard]] bool clear(void* at, std::size_t bytes, stream_handle stream) noexcept;

  /// Takes care of a loan whose owner is gone.
  void leave(std::unique_ptr<detail::kernel_loan> loan) noexcept;
  std::size_t collect() noexcept;

  stream_pool& pool;
  std::shared_ptr<stream_driver> driver;

 private:
  int device_;
  orderly::pool staging_;
  std::mutex mutex_;                           ///< serves the list, for a few instructions
  std::unique_ptr<detail::kernel_loan> left_;  ///< a list
};

namespace detail {

/// A block of the pool, until it is freed in a stream or released.
class pool_block {
 public:
  pool_block() = default;
  pool_block(stream_pool& of, std::size_t bytes, stream_handle stream)
      : pool_(&of), bytes_(bytes), stream_(stream), address_(of.allocate(bytes, stream)) {}
  pool_block(const pool_block&) = delete;
  pool_block& operator=(const pool_block&) = delete;
  ~pool_block() { free(stream_); }

  [[nodiscard]] void* get() const noexcept { return address_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  void free(stream_handle stream) noexcept {
    if (address_ != nullptr) pool_->deallocate(std::exchange(address_, nullptr), bytes_, stream);
  }
  /// It is not this object's any more.
  void release() noexcept { address_ = nullptr; }

 private:
  stream_pool* pool_ = nullptr;
  std::size_t bytes_ = 0;
  stream_handle stream_ = nullptr;
  void* address_ = nullptr;
};

class kernel_loan {
 public:
  kernel_loan(const kernel_loan&) = delete;
  kernel_loan& operator=(const kernel_loan&) = delete;
  virtual ~kernel_loan();

  /// Where it is: with kernels; on the way, behind an event; there, and not given to the pool yet; home in the pool; or
  /// nowhere any more: its memory stays live.
  enum class place { out, on_the_way, there, home, lost };
  [[nodiscard]] place where() const noexcept { return where_; }

  bool give_back(stream_handle stream) noexcept;
  /// In the stream that it was made for, if that can be named here.
  bool give_back() noexcept;
  bool collect() noexcept;
  bool wait() noexcept;
  void lose() noexcept { where_ = place::lost; }

  std::size_t item_bytes = 0;
  std::size_t count = 0;
  kernel_account account;
  std::unique_ptr<kernel_loan> next;  ///< of the handoff's list

 protected:
  /// Checks what was asked, and that the stream does not capture. `what`: the name of the class.
  kernel_loan(kernel_handoff::state& by, const char* what, std::size_t item_bytes, std::size_t count,
              stream_handle stream);

  /// Memory on the device for records, and on the host for what is copied back of them or to them.
  void make_records(std::size_t device_bytes, std::size_t staged_bytes);
  [[nodiscard]] std::byte* records() const noexcept;

  /// Puts the copies of the records into the stream. False: refused.
  [[nodiscard]] virtual bool copy_back(stream_handle stream) noexcept = 0;
  /// Gives the memory back, now that the copies are there. False: not possible now; nothing has happened.
  [[nodiscard]] virtual bool fold() noexcept = 0;

  kernel_handoff::state& by_;
  std::thread::id maker_ = std::this_thread::get_id();
  stream_handle stream_;  ///< that it was made for; later, that it was given back in
  std::byte* staged_ = nullptr;

 private:
  std::size_t staged_bytes_ = 0;
  std::optional<pool_block> records_;
  event_handle event_ = nullptr;
  place where_ = place::out;
};

/// The words of a loan's bits.
[[nodiscard]] constexpr std::size_t bit_words(std::size_t count) noexcept { return (count + 31) / 32; }

/// Of the items before `handed_out`, those whose bit is not set: into the same words. Returns how many.
std::size_t keep_unfreed(std::span<std::uint32_t> freed, std::uint64_t handed_out) noexcept;

/// At the end of an owner: whatever state a loan is in, nothing of it is lost.
template <class Loan>
void part_with(kernel_handoff::state* by, std::unique_ptr<Loan> loan) noexcept {
  if (loan == nullptr || loan->where() == kernel_loan::place::home) return;
  if (loan->where() == kernel_loan::place::out) static_cast<void>(loan->give_back());  // else the handoff tries again
  if (!loan->collect()) by->leave(std::move(loan));
}

}  // namespace detail
}  // namespace orderly
