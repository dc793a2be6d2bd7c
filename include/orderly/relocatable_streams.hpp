/// \file
/// Relocatable blocks (relocatable.hpp) of a pool in stream order: they move by copies in a stream, and no thread waits for
/// one.
///
///   orderly::relocatable_stream_blocks blocks(pool);
///   orderly::relocatable mesh = blocks.allocate(1'500'000, stream);
///   fill<<<…, stream>>>(blocks.pin(mesh, stream));  // an address for work that enters `stream` from now on
///   blocks.unpin(mesh, stream);                     // that work is in `stream`; it need not be done
///
///   blocks.begin({.bytes = 64 << 20});
///   while (!blocks.step(copies).empty()) render();  // each step puts copies into the stream `copies`
///   blocks.end();
///
/// What orders a move. Work that used the block is in its streams when the step comes, as the block is not pinned then; the
/// step makes the copying stream wait for those streams, one event each for all the moves, and frees the old place in the
/// copying stream, behind the copies. So the old address is right until that work has passed, whenever that is. The next
/// pin() makes its stream wait for the copies, once for each step and stream; so the new address is right for work that
/// enters that stream from then on.
///
/// What the program orders, as in the pool: its own work on a block in several streams; and work in other streams behind
/// the stream that a block was allocated in, and before the one that it is freed in.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "orderly/error.hpp"
#include "orderly/export.h"
#include "orderly/relocatable.hpp"
#include "orderly/stream.hpp"
#include "orderly/stream_pool.hpp"

namespace orderly {

/// Puts the copies of a step into a stream, or makes them in some other way, so that work in the stream from then on comes
/// behind them. Work that is in the stream comes before. False: it could not; then nothing of the step is moved.
using stream_relocation_copier = std::function<bool(std::span<const relocation> moves, stream_handle stream)>;

/// A set of relocatable blocks of one stream_pool.
///
/// Thread safety and progress: as of relocatable_blocks, and: pin() and unpin() are lock-free where the calling thread
/// knows the stream, but for what follows. pin() of a block that a step is just moving waits until the step has put its
/// copies into its stream. The first pin() in a stream after a step, and a set's first use of a stream, take a mutex. So
/// does each unpin() in a per-thread stream, and each call of a pool in safe mode: they record an event.
///
/// Captures. A graph uses its addresses again in each launch, so a block that it uses must not move: pin the block before
/// the capture begins, and unpin it when the graph is gone. In a stream that captures, each call but unpin() is refused.
///
/// Streams that end: as in the pool, by release_stream(), or in safe mode without a word, or with their threads. What used
/// blocks in them is known by then. Where no event can be recorded for a stream that ends, blocks that were used in it stay
/// where they are until stream_pool::synchronize().
class ORDERLY_API relocatable_stream_blocks {
 public:
  /// The pool must live longer. `copy`: by default stream_driver::copy(). As a relocation_copier, it must not fork.
  explicit relocatable_stream_blocks(stream_pool& of, stream_relocation_copier copy = nullptr);
  relocatable_stream_blocks(const relocatable_stream_blocks&) = delete;
  relocatable_stream_blocks& operator=(const relocatable_stream_blocks&) = delete;
  /// Frees every block, pinned or not. Work in streams that uses them, or copies them, must be done. No other thread is in
  /// a call.
  ~relocatable_stream_blocks();

  /// A block of at least `bytes` bytes, not pinned, for work that enters `stream` from now on. Throws as
  /// stream_pool::allocate; std::invalid_argument also if the stream captures; std::bad_alloc also when there are 2^26
  /// blocks.
  [[nodiscard]] relocatable allocate(std::size_t bytes, stream_handle stream);
  /// The same; `none` instead of an exception.
  [[nodiscard]] relocatable try_allocate(std::size_t bytes, stream_handle stream) noexcept;

  /// Frees a block as the pool does: work that is in `stream` now may still use it.
  /// stale_handle: the handle names no block; pinned; invalid_argument: not a stream, or it captures; stream_failed: the
  /// stream cannot be made to wait for the copies of a step; out_of_memory: none to note the stream. Then nothing happens.
  [[nodiscard]] error deallocate(relocatable block, stream_handle stream) noexcept;

  /// The block's address, for work that enters `stream` from now until unpin(). Null: refused, and `why`, if given, says
  /// why: as deallocate(), and pinned if it is so 2^24 times. stream_pool::record_stream() of the address holds for the
  /// place and does not go with the block when it moves: for work in a further stream, pin it for that one, too.
  [[nodiscard]] void* pin(relocatable block, stream_handle stream, error* why = nullptr) noexcept;
  /// Ends one pin(): the work that uses the address is in `stream`. If it is another stream than that of the pin(), the
  /// program has ordered it behind that one. Ignored if the block is not pinned. A block that is unpinned in what is no
  /// stream any more is not moved again.
  void unpin(relocatable block, stream_handle stream) noexcept;

  /// Bytes as given to allocate(); 0 if the handle names no block.
  [[nodiscard]] std::size_t size(relocatable block) const noexcept;

  /// As relocatable_blocks::begin(). Blocks go to memory that no stream uses any more, or for whose streams the copying one
  /// is made to wait.
  void begin(const relocation_limits& each_step = {});

  /// Moves blocks by copies in the stream, as many as the limits allow. The moves it has made, which the program must not
  /// copy again; none: there is no more to do, or no event or copy could be put into a stream, which last_step_failed()
  /// tells. The stream may be another one in each step. Blocks that were used in a stream in which no event can be recorded
  /// now (it captures, say, or is another thread's per-thread stream and unpin() could not record one) are skipped.
  /// Throws std::invalid_argument if it is not a stream, or captures; what the copier throws, and then nothing of the step
  /// is moved; std::bad_alloc.
  std::vector<relocation> step(stream_handle stream);
  [[nodiscard]] bool last_step_failed() const noexcept;

  /// Ends a run, finished or not. Chunks count as free when no stream uses them any more, so those of the last steps may not
  /// count yet. The pool has their memory in any case.
  relocation_statistics end() noexcept;

 private:
  class ORDERLY_LOCAL state;
  state* state_ = nullptr;
};

}  // namespace orderly
