/// \file
/// Where a pool's memory comes from. A new kind of memory is one class that implements this interface.
#pragma once

#include <cstddef>
#include <memory>

#include "orderly/block_observer.hpp"
#include "orderly/export.h"

namespace orderly {

/// A source reserves one address range for a pool and commits physical memory inside it by chunk.
///
/// Pre, for every call: addresses and lengths are multiples of granularity(), inside a range that reserve() returned.
/// Thread safety: the pool calls commit() and decommit() from several threads at once, never twice at once on one
/// chunk. Progress: a source may take locks and make system calls; the pool calls it off its hot path only.
/// Inside a call it must not fork, and not make or destroy a pool; nor may it use the pool that calls, whose mutex of passes
/// may be held: that would wait for itself. It may use another, as long as that one's source does not use this pool.
/// The pool never reads or writes the memory itself.
class ORDERLY_API memory_source {
 public:
  memory_source() = default;
  memory_source(const memory_source&) = delete;
  memory_source& operator=(const memory_source&) = delete;
  virtual ~memory_source();

  /// Smallest unit of commit(), a power of two.
  [[nodiscard]] virtual std::size_t granularity() const noexcept = 0;

  /// The unit of commit() that suits this source, a power of two, at least granularity().
  [[nodiscard]] virtual std::size_t preferred_chunk() const noexcept { return granularity(); }

  /// Most bytes that the source can provide. 0: unknown, the pool's capacity must be given.
  [[nodiscard]] virtual std::size_t capacity() const noexcept { return 0; }

  /// True: addresses are plentiful, physical memory is committed by chunk, and reserve() may be asked for many times
  /// the pool's capacity. False: reserve() hands out memory that is there already (one plain allocation); commit() and
  /// decommit() are not called, and the pool splits and merges across the whole range.
  [[nodiscard]] virtual bool is_virtual() const noexcept = 0;

  /// True: what is committed is memory of this process like any other, which the host may touch. In a build for
  /// AddressSanitizer or Memcheck these are told of it: what is no live block's, no access is right to. False: they are
  /// told nothing.
  [[nodiscard]] virtual bool is_host_memory() const noexcept { return false; }

  /// Who is to be told of the blocks that a pool in stream order has in this memory; see block_observer.hpp for what
  /// that costs. Null: nobody. Asked once, when the pool is made; it lives as long as the source.
  [[nodiscard]] virtual block_observer* observer() noexcept { return nullptr; }

  /// Reserves `bytes` of addresses aligned to `alignment`. In a virtual source that is the pool's chunk: what it commits
  /// and decommits there are whole ones. Null: refused.
  [[nodiscard]] virtual void* reserve(std::size_t bytes, std::size_t alignment) noexcept = 0;

  /// Gives a range of reserve() back, committed or not.
  virtual void release(void* address, std::size_t bytes) noexcept = 0;

  /// Makes the range usable. False: refused, and nothing of the range is committed.
  [[nodiscard]] virtual bool commit(void* address, std::size_t bytes) noexcept = 0;

  /// The same for a range that comes back as a whole, mostly: a source that pays for the piece rather than for the byte
  /// makes few large ones of it. It may refuse a decommit() that would cut one.
  [[nodiscard]] virtual bool commit_together(void* address, std::size_t bytes) noexcept {
    return commit(address, bytes);
  }

  /// Why the last commit() of this thread was refused: one line into `text`, cut to `bytes`, a zero at its end. Asked on
  /// the thread that was refused, right afterwards, for a report; sources that know nothing need not implement it.
  virtual void why_refused(char* text, std::size_t bytes) const noexcept;

  /// Returns the range's physical memory. The contents are lost. False: refused, and the range stays committed.
  [[nodiscard]] virtual bool decommit(void* address, std::size_t bytes) noexcept = 0;
};

/// Anonymous host memory: commits by first touch, decommits with MADV_DONTNEED. Granularity: the page size.
[[nodiscard]] ORDERLY_API std::unique_ptr<memory_source> make_host_source();

/// The same, and what is not committed cannot be touched: an access to memory that the pool has given back ends the
/// process (SIGSEGV). Costs two more system calls for each range that is committed or given back, and the system bounds
/// the number of such ranges (Linux: vm.max_map_count, 65,530): beyond it commits are refused. For finding errors.
[[nodiscard]] ORDERLY_API std::unique_ptr<memory_source> make_guarded_host_source();

/// One buffer that the caller owns and keeps alive longer than the pool. The buffer must be aligned to the granule;
/// blocks are aligned within it as far as its own alignment goes.
[[nodiscard]] ORDERLY_API std::unique_ptr<memory_source> make_fixed_buffer_source(void* buffer, std::size_t bytes);

}  // namespace orderly
