/// \file
/// Memory for kernels, from the host's side: hands blocks of a stream_pool to kernels and takes back what they did not
/// use or freed, both in stream order. Part of the library orderly_cuda; the kernels' side is orderly/cuda/kernel.hpp.
///
///   kernel_handoff by(pool, device);                      // one for a pool
///   kernel_lease lease(by, 64, 1 << 20, stream);          // a million items of 64 bytes
///   work<<<blocks, threads, 0, stream>>>(lease.view());   // lease.allocate(), lease.deallocate(pointer)
///   lease.give_back(stream);                              // at once: nobody waits
///   ...
///   lease.collect();                                      // once the stream has passed: the pool has its memory again
///
/// What a kernel allocated and no kernel freed stays live: each such item is from then on a block of the pool of
/// item_bytes() bytes, which the host or a later kernel frees. The rest goes back to the pool, of a lease in the
/// largest blocks that there are.
///
/// Calls of CUDA: a lease costs 3 to make, 6 to give back and 3 to look whether the stream has passed; of the 12, one
/// memset, one copy and one event enter the stream. A ring costs 2 more to make; a turn costs 3.
///
/// Streams: a handle as everywhere in orderly (cuda.hpp). Kernels in other streams than the one that a lease or a ring
/// was made for come after its making, and before its return, by events of the program. None may capture meanwhile.
///
/// Thread safety: a kernel_handoff is used by any threads at once, a lease or a ring by one at a time. No function
/// waits for a device, but for wait() and the handoff's destructor.
#pragma once

#include <cstddef>
#include <memory>

#include "orderly/cuda/kernel.hpp"
#include "orderly/export.h"
#include "orderly/stream_pool.hpp"

namespace orderly {

/// What all leases and rings of a pool share: page-locked memory for what comes back, and the care for those whose
/// owners are gone. It outlives them, and the pool outlives it.
class ORDERLY_API kernel_handoff {
 public:
  /// `pool`: of memory that the device reaches. `staging_bytes`: of page-locked memory; a lease holds a bit for each
  /// item there until it is collected, a ring that and more.
  /// Throws std::invalid_argument (CUDA or the device is missing), out_of_memory (no page-locked memory).
  kernel_handoff(stream_pool& pool, int device, std::size_t staging_bytes = std::size_t{32} << 20);
  kernel_handoff(const kernel_handoff&) = delete;
  kernel_handoff& operator=(const kernel_handoff&) = delete;
  /// Waits for what is still on the way. What does not come, since the device has failed or the stream captures, stays
  /// live in the pool.
  ~kernel_handoff();

  /// Takes back what has come home of leases and rings whose owners are gone; making a new one does it too. Returns how
  /// many are still on the way.
  std::size_t collect() noexcept;

  class ORDERLY_LOCAL state;

 private:
  friend class kernel_lease;
  friend class kernel_ring;
  std::unique_ptr<state> state_;
};

/// How a lease or a ring ended.
struct kernel_account {
  std::size_t handed_out = 0;  ///< items that kernels got, in a ring each time anew
  std::size_t kept = 0;        ///< of these, those that no kernel freed: live blocks of the pool now
  std::size_t returned = 0;    ///< blocks that are not the ring's, freed by kernels and passed on to the pool
};

/// One block of the pool, lent to kernels as items of one size.
///
/// Its destruction gives it back in the stream that it was made for, if that was not done, and leaves the rest to the
/// handoff: nothing is lost, whatever the state, and nobody waits.
class ORDERLY_API kernel_lease {
 public:
  /// `item_bytes` and `count` are rounded up to powers of two. Work that enters `stream` from now on may use it.
  /// Throws std::invalid_argument (a size that the pool does not have, or a stream that captures), out_of_memory.
  kernel_lease(kernel_handoff& by, std::size_t item_bytes, std::size_t count, stream_handle stream);
  kernel_lease(kernel_lease&& other) noexcept;
  kernel_lease& operator=(kernel_lease&& other) noexcept;
  ~kernel_lease();

  /// For kernels, by value. Once it is given back: a dry one.
  [[nodiscard]] cuda::lease view() const noexcept;
  [[nodiscard]] std::size_t item_bytes() const noexcept;
  [[nodiscard]] std::size_t count() const noexcept;

  /// Work that is in `stream` now may still use the lease; work that comes later may not, but for the items that it
  /// keeps. False: not possible now, since the stream captures or the device has failed; nothing has happened.
  bool give_back(stream_handle stream) noexcept;

  /// Takes back what has come home. True: done, now or before. False: not given back, or not there yet.
  bool collect() noexcept;
  /// The same; waits for the stream. False: not given back, or it will never come.
  bool wait() noexcept;

  /// After collect() or wait() have said true.
  [[nodiscard]] kernel_account account() const noexcept;

 private:
  class ORDERLY_LOCAL loan;
  kernel_handoff::state* by_ = nullptr;
  std::unique_ptr<loan> loan_;
};

/// Blocks that lie anywhere in the pool, lent to kernels as items of one size: for when no block is large enough for a
/// lease, and for memory that stays on the device while kernels allocate and free, one after the other.
///
/// Destruction: as of a lease.
class ORDERLY_API kernel_ring {
 public:
  /// Takes `count` blocks of `item_bytes` from the pool, one by one. `item_bytes` is rounded up to a power of two.
  /// `room`: for how many blocks that are not the ring's own kernels may free into it.
  /// Throws as a lease.
  kernel_ring(kernel_handoff& by, std::size_t item_bytes, std::size_t count, stream_handle stream,
              std::size_t room = 0);
  kernel_ring(kernel_ring&& other) noexcept;
  kernel_ring& operator=(kernel_ring&& other) noexcept;
  ~kernel_ring();

  [[nodiscard]] cuda::ring view() const noexcept;
  [[nodiscard]] std::size_t item_bytes() const noexcept;
  [[nodiscard]] std::size_t count() const noexcept;

  /// What work that is in `stream` now frees can be allocated by work that comes later. False: as give_back().
  bool turn(stream_handle stream) noexcept;

  bool give_back(stream_handle stream) noexcept;
  bool collect() noexcept;
  bool wait() noexcept;
  [[nodiscard]] kernel_account account() const noexcept;

 private:
  class ORDERLY_LOCAL loan;
  kernel_handoff::state* by_ = nullptr;
  std::unique_ptr<loan> loan_;
};

}  // namespace orderly
