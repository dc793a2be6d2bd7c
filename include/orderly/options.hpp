/// \file
/// How a pool is set up. Every member has a default that suits most programs.
#pragma once

#include <cstddef>
#include <functional>

#include "orderly/error.hpp"
#include "orderly/export.h"

namespace orderly {

/// Called when an allocation would fail. Gets the bytes requested; returns true to have the pool try again (after
/// freeing something, say), false to let the allocation fail. Runs without any lock of the pool held, on the
/// allocating thread; it may allocate and free. An exception leaves pool::allocate, and is a plain failure in
/// pool::try_allocate.
using out_of_memory_handler = std::function<bool(std::size_t bytes)>;

/// Called for each refused free that has no other way to report: pool::deallocate, std::pmr. Runs on the freeing
/// thread, without any lock of the pool held. Must not throw: pool::deallocate is noexcept.
using bad_free_handler = std::function<void(const bad_free& report)>;

/// Ready-made handlers of bad frees. Whichever is set, stats().bad_frees counts every refused free.
namespace on_bad_free {
ORDERLY_API void print(const bad_free& report);  ///< one line on stderr (the default)
ORDERLY_API void abort(const bad_free& report);  ///< one line on stderr, then std::abort
ORDERLY_API void count(const bad_free& report);  ///< nothing more than the count
}  // namespace on_bad_free

struct options {
  /// Largest sum of memory that the pool may ever manage, in bytes; also the largest single request. Rounded up to
  /// whole chunks. 0: what the source can provide (host: the machine's physical memory), as far as addresses go: about
  /// 480 GiB with the default granule, twice as much with twice the granule.
  std::size_t capacity = 0;

  /// Smallest block in bytes, a power of two, 16 to 64 KiB. 0: 256.
  std::size_t granule = 0;

  /// Unit in which physical memory is committed and released, a power of two, at least the source's granularity and
  /// at least the granule. 0: the source's preference (host: 64 KiB).
  std::size_t chunk = 0;

  /// Upper bound on committed bytes at any instant, rounded down to whole chunks. 0: the capacity.
  std::size_t limit = 0;

  /// Committed bytes up to which the pool gives nothing back by itself, unless to commit it again where it is needed;
  /// trim() does. At most the limit. Where memory is short elsewhere, or growing costs much, this says how much of it is
  /// the pool's in any case. pool::reserve() commits it at once. (A large block that takes a larger one's place
  /// leaves no more committed there than it needs.)
  std::size_t release_threshold = 0;

  /// Committed bytes above which the pool gives back what lies idle before it commits more, whatever the slack allows;
  /// what is live may exceed it, up to the limit, and passes cost no more than a part of the time that commits and calls
  /// take: where these are many and small, some of what is idle may stay. At least the release threshold. 0: the slack
  /// alone decides.
  std::size_t soft_limit = 0;

  /// Free memory that the pool keeps committed before it moves memory from where it lies idle to where it is needed,
  /// as a fraction of the peak of requested bytes; at least 16 MiB and 4 MiB for each thread that uses the pool. Where
  /// sizes change so fast that what moves is wanted back at once, it keeps more, up to the soft limit or the limit, and of
  /// free chunks no more than the whole peak, or 64 MiB if that is more, and 32 MiB: there growth itself pays for passes.
  double slack = 0.2;

  /// True: the pool keeps account of tags; see tag.hpp and pool::tags(). Every call then takes its way past the hot path
  /// and writes some records of its thread's own: an allocation and a free cost a few times as much, lock-free as ever.
  bool account_tags = false;

  /// Called when an allocation would be refused, unless it exceeds the capacity or the limit by itself. Empty: fail at
  /// once. Allocations of the same pool inside the handler do not call it again; its report() there is of the request.
  /// Tensor caches over the pool have given up what they kept by then.
  out_of_memory_handler on_out_of_memory = nullptr;
  bad_free_handler on_bad_free = orderly::on_bad_free::print;
};

}  // namespace orderly
