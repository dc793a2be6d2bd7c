/// \file
/// The one door to atomics: every atomic object, every barrier, every mutex and every pause of the library is named here,
/// so that a build can replace them all. It names a header of its own, which declares the same names.
#pragma once

#ifdef ORDERLY_ATOMIC_HEADER
#include ORDERLY_ATOMIC_HEADER
#else

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>

namespace orderly::detail {

template <class T>
using atomic = std::atomic<T>;

using mutex = std::mutex;
using recursive_mutex = std::recursive_mutex;
using condition_variable = std::condition_variable;

/// Lets other threads run.
inline void yield() noexcept { std::this_thread::yield(); }
inline void rest(std::chrono::microseconds time) noexcept { std::this_thread::sleep_for(time); }

/// How long a thread bears with others that may have been stopped.
class deadline {
 public:
  explicit deadline(std::chrono::seconds from_now) noexcept : end_(std::chrono::steady_clock::now() + from_now) {}
  [[nodiscard]] bool over() noexcept { return std::chrono::steady_clock::now() >= end_; }

 private:
  std::chrono::steady_clock::time_point end_;
};

/// Said where plain data that a protocol hands over is read or written, to a build that looks for data races there.
inline void reads_plain(const void* /*data*/) noexcept {}
inline void writes_plain(const void* /*data*/) noexcept {}

/// Figures that a build may choose smaller, so that few steps reach what they bound.
namespace bounds {
inline constexpr std::uint64_t tags = std::uint64_t{1} << 32;   ///< of a list's head; a power of two
inline constexpr std::size_t magazine_blocks = 32;
inline constexpr std::uint32_t magazines = std::uint32_t{1} << 20;
inline constexpr std::size_t fronts = 4096;                     ///< of a pool
inline constexpr unsigned least_root_chunks_log2 = 4;           ///< chunks of a root of the buddy tree
inline constexpr unsigned most_root_chunks_log2 = 6;
inline constexpr std::uint64_t spare_roots = 64;
inline constexpr std::uint32_t relocatable_pages = 16384;        ///< of records, and
inline constexpr std::uint32_t relocatable_records = 4096;       ///< how many on each
inline constexpr std::uint32_t tag_names = 65536;                ///< with the two that are there from the start
inline constexpr std::uint32_t tensor_rows = 256;                ///< of shelves
inline constexpr std::uint32_t tensor_stripes = 16;              ///< lists of a shelf, at most
inline constexpr std::size_t tensors = std::size_t{1} << 18;     ///< of a cache, by default
inline constexpr int spins = 64;                                ///< looks of a pass at a thread that is inside its front,
inline constexpr int yields = 256;                              ///< and then so many with a pause before
}  // namespace bounds

inline constexpr auto relaxed = std::memory_order_relaxed;
inline constexpr auto acquire = std::memory_order_acquire;
inline constexpr auto release = std::memory_order_release;
inline constexpr auto acq_rel = std::memory_order_acq_rel;
inline constexpr auto seq_cst = std::memory_order_seq_cst;

/// Bytes that one core's writes take from the others: a cache line, and the neighbour that processors fetch with it.
inline constexpr std::size_t interference = 128;

static_assert(atomic<std::uint64_t>::is_always_lock_free);
static_assert(atomic<std::uint32_t>::is_always_lock_free);

/// Two threads that each write one word and then read the other's must not both read the old value. When one side runs
/// often and the other hardly ever, the rare side can pay for both: it makes every running thread of the process execute
/// a full barrier (membarrier, Linux 4.14), and the frequent side only keeps the compiler from reordering. This is the
/// asymmetric barrier of P1202. Where the system call is missing, the frequent side pays with an atomic exchange.
class asymmetric_barrier {
 public:
  /// True: light() suffices on the frequent side. Decided once per process, before the first pool exists.
  [[nodiscard]] static bool available() noexcept { return available_; }

  /// Frequent side, between its write and its read.
  static void light() noexcept { std::atomic_signal_fence(seq_cst); }

  /// Rare side, between its write and its read: on return, each other thread's program order has a point at which it
  /// executed a full barrier during this call. False: the system refused, and nothing is ordered.
  [[nodiscard]] static bool heavy() noexcept;

  /// Asks the system once. Called by each pool's construction.
  static void prepare() noexcept;

  /// From now on as on a system without the call. For tests; before the first prepare().
  static void forgo() noexcept;

 private:
  static bool available_;
  static bool forgone_;
};

}  // namespace orderly::detail

#endif
