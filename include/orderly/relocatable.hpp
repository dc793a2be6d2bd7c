/// \file
/// Blocks that a pool may move to where they leave whole chunks free. A program holds a handle, and an address only
/// while it has the block pinned.
///
///   orderly::relocatable_blocks blocks(pool);
///   orderly::relocatable mesh = blocks.allocate(1'500'000);
///   fill(blocks.pin(mesh));
///   blocks.unpin(mesh);
///
///   blocks.begin({.bytes = 64 << 20});          // at most that much in each step
///   while (!blocks.step().empty()) render();    // moved, and copied
///   orderly::relocation_statistics done = blocks.end();
///
/// Fragmentation inside chunks is what remains where memory is virtual: a chunk is given back, or moved to a large
/// block, only if no small block lives in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "orderly/error.hpp"
#include "orderly/export.h"
#include "orderly/pool.hpp"

namespace orderly {

/// Names a block that may be moved. `none` names no block. A handle that was freed names no block any more; it is told
/// from later ones until 2^32 blocks have had its place.
enum class relocatable : std::uint64_t { none = 0 };

/// What one step may do.
struct relocation_limits {
  std::size_t bytes = SIZE_MAX;  ///< copied; a larger block is moved alone
  std::size_t moves = SIZE_MAX;
};

/// One block's move: the contents are at `from` and are to be at `to`.
struct relocation {
  relocatable block = relocatable::none;
  void* from = nullptr;
  void* to = nullptr;
  std::size_t bytes = 0;
};

struct relocation_statistics {
  std::size_t moves = 0;
  std::size_t bytes = 0;   ///< copied
  std::size_t skipped = 0;  ///< blocks that were to be moved, but were pinned or freed when their turn came, or their place taken
  std::size_t planned = 0;  ///< chunks that were to be emptied
  std::size_t chunks = 0;   ///< of these, that hold no block now
};

/// Copies what a step moves, in whatever way suits the memory. False: it could not; then nothing of the step is moved. It
/// must not fork, not make or destroy a pool, and not call begin(), step() or end() of the set.
using relocation_copier = std::function<bool(std::span<const relocation> moves)>;

/// A set of relocatable blocks of one pool; of a stream_pool: relocatable_streams.hpp.
///
/// Thread safety: all functions but construction and destruction may be called at any time from any thread. begin(),
/// step() and end() exclude each other; other functions of the set and of the pool go on meanwhile. Progress: pin and
/// unpin are lock-free, except that pin() and deallocate() of a block that a step is just copying wait for the copy.
/// allocate and deallocate take a mutex for the handle, and are otherwise as the pool's.
class ORDERLY_API relocatable_blocks {
 public:
  /// The pool must live longer. `copy`: by default std::memcpy, for memory of the host.
  explicit relocatable_blocks(pool& of, relocation_copier copy = nullptr);
  relocatable_blocks(const relocatable_blocks&) = delete;
  relocatable_blocks& operator=(const relocatable_blocks&) = delete;
  /// Frees every block, pinned or not. No other thread is in a call.
  ~relocatable_blocks();

  /// A block of at least `bytes` bytes, not pinned. Throws as pool::allocate; std::bad_alloc also when there are 2^26
  /// blocks.
  [[nodiscard]] relocatable allocate(std::size_t bytes);
  /// The same; `none` instead of an exception.
  [[nodiscard]] relocatable try_allocate(std::size_t bytes) noexcept;

  /// error::stale_handle for a handle that names no block; error::pinned while the block is pinned. Then nothing
  /// happens.
  [[nodiscard]] error deallocate(relocatable block) noexcept;

  /// The block's address, which is right until the last unpin(). A block may be pinned up to 2^24 times at once. Null:
  /// the handle names no block.
  [[nodiscard]] void* pin(relocatable block) noexcept;
  /// Ends one pin(). Ignored if the block is not pinned.
  void unpin(relocatable block) noexcept;

  /// Bytes as given to allocate(); 0 if the handle names no block.
  [[nodiscard]] std::size_t size(relocatable block) const noexcept;

  /// Plans which chunks are emptied into which: those with the most free bytes whose blocks are all of this set, and
  /// not pinned now, and fit elsewhere. Runs a pass of the pool. Ends a run that is under way. Throws std::bad_alloc,
  /// and nothing has begun then.
  void begin(const relocation_limits& each_step = {});

  /// Moves blocks, as many as the limits allow, and copies them. The moves it has made; none: there is no more to do,
  /// or copying failed, which last_step_failed() tells. What is seen in the result is over: the handles have their new
  /// addresses, and the old ones are free.
  /// Throws what the copier throws, and then nothing of the step is moved; std::bad_alloc.
  std::vector<relocation> step();
  [[nodiscard]] bool last_step_failed() const noexcept;

  /// Ends a run, finished or not. The memory of the chunks that came free is the pool's, for whatever is needed next;
  /// pool::trim() gives it back.
  relocation_statistics end() noexcept;

 private:
  class ORDERLY_LOCAL state;
  state* state_ = nullptr;
};

}  // namespace orderly
