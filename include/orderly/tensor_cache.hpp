/// \file
/// Tensors over a pool: a freed one is kept whole, memory and descriptor, for whoever asks for its like.
///
///   orderly::pool pool;
///   orderly::tensor_cache cache(pool);
///   const orderly::tensor_layout layout({64, 1024}, orderly::tensor_types::float32);
///   orderly::tensor x = cache.empty(layout);   // a miss: from the pool
///   cache.free(x);
///   orderly::tensor y = cache.empty(layout);   // a hit: the same memory, the same descriptor
///   cache.free(x);                             // refused: double_free; x is not y
///
/// Reuse.
///   exact       a tensor of the same layout that was freed in the same stream; the newest one that the calling thread
///               has freed, else one of another thread's. It costs three compare-and-swaps for the pair, whatever the size.
///   compatible  where there is none: a tensor of another layout, freed in the same stream, whose memory is large enough
///               and at most tensor_options::waste larger than needed. Its descriptor is written anew. Looked for among
///               the layouts whose bytes are about the same (the same eighth of a power of two, and the next): a bounded
///               number of looks, so one may be missed where more than eight such layouts are in use.
///   none        that is a miss: the memory comes from the pool.
///
/// Stream order. A tensor that was freed in a stream is the same stream's again at once. It is another's only by way of
/// the pool, which then orders the two. Over a pool whose streams are watched (safe mode, watch_captures, an observed
/// source), in a stream that captures, for what was allocated in a capture, for what was recorded for another stream,
/// and in per-thread streams nothing is kept: there each tensor's memory is the pool's at each free, as its rules want.
/// release_stream() and begin_capture() of the pool take the stream's tensors out of its caches first.
///
/// Bound. Let `held` be the bytes of all tensors of the cache, live and kept. A free keeps a tensor only while `held` is
/// at most tensor_options::limit. So what is kept never exceeds the limit, at any instant. A miss that takes `held` past
/// the limit gives up kept tensors until it is within it, or none is kept; unless another thread is giving up some just
/// then. Live tensors may exceed the limit.
///
/// Order of giving up. Time is counted in misses. Each layout (of one stream) has the time of its last use, a hit or a
/// free. The layout whose last use is oldest goes first, and of it the tensors which were freed first; of two with the
/// same time, the one with the lower place in the table. Exactly so while one thread works; a use that comes at the same
/// instant may be overlooked. A tensor that a request for another layout has found too large counts as freed just then;
/// without waste there is none. Where a table's row of eight layouts is full, a ninth of about the same bytes takes the
/// place of the one in the row that was used longest ago, and its tensors with it, where they are compatible.
///
/// Pressure. The pool asks its caches before it refuses an allocation, anybody's, and before it calls the out-of-memory
/// handler: they give up at least as many bytes as are wanted, in the order above, and the pool tries again; until none
/// is kept. So a cache never causes a refusal. pool::trim() asks them, too, for what it does not find otherwise. For the
/// pool's statistics, kept tensors are live blocks.
///
/// Thread safety: every function but construction and destruction may be called from any thread at any time. A tensor may
/// be freed by another thread than the one that allocated it. Progress: empty() and free() are lock-free as long as the
/// cache serves, and past it as the pool is; giving up takes a mutex, except for a miss at the limit, which leaves it to
/// whoever has the mutex. A thread has nothing of its own in a cache, so one that ends, or dies, loses nothing but what
/// it had in hand.
///
/// Memory: tensors' memory is never read or written. The records lie outside of it: some 700 bytes for each tensor that
/// there ever was at once, and tables of some 3 MiB, reserved and touched as they are used.
///
/// Destruction gives back what is kept, and frees what is live, but for exported tensors, which live until their owners
/// release them. No other thread is in a call for the cache; release_export() excepted. The pool may be moved; if it is
/// destroyed first, its tensors are gone with it: then every call is refused as error::pool_gone, and does nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>

#include "orderly/error.hpp"
#include "orderly/export.h"
#include "orderly/pool.hpp"
#include "orderly/stream.hpp"
#include "orderly/stream_pool.hpp"
#include "orderly/tensor.hpp"

namespace orderly {

struct tensor_options {
  /// Bytes that all tensors may have together, live and kept, before kept ones are given up. 0: half of what the pool may
  /// commit. A program whose tensors alone fill the pool does well to give the pool's limit.
  std::size_t limit = 0;

  /// Each tensor's data is aligned so: a power of two up to the pool's chunk. 0: 256, what DLPack asks for.
  std::size_t alignment = 0;

  /// How much larger than needed the memory of a compatible tensor may be, as a fraction of what is needed. 0: only
  /// memory of exactly as many bytes is compatible. At most 0.125.
  double waste = 0.125;

  /// Most tensors at once, live and kept; up to 2^22. 0: 2^18.
  std::size_t tensors = 0;

  /// What tensors say where they are. The pool is asked nothing about it.
  tensor_device device = {};
};

/// A snapshot. At quiescence every figure is exact; while threads work, each is one of some recent instant.
///
///   hand-outs = hits + misses,  held = live bytes + kept bytes
struct tensor_statistics {
  std::uint64_t hits = 0;        ///< tensors that were handed out without the pool, compatible ones included
  std::uint64_t compatible = 0;  ///< of these, such with another layout's memory
  std::uint64_t misses = 0;      ///< tensors whose memory came from the pool; those of 0 bytes, too
  std::uint64_t evictions = 0;   ///< kept tensors that were given up
  std::uint64_t bad_frees = 0;   ///< frees and exports that were refused
  std::size_t held = 0;          ///< bytes of all tensors
  std::size_t kept = 0;          ///< of these, of tensors that nobody has
  std::size_t live_tensors = 0;  ///< exported ones included
  std::size_t kept_tensors = 0;
  std::size_t exported = 0;      ///< tensors
  std::size_t limit = 0;         ///< tensor_options::limit as it was set
};

/// A tensor that was given to somebody outside; see tensor_cache::give_out().
struct exported_tensor {
  tensor of;               ///< its spans are right until release_export()
  void* storage = nullptr; ///< export_bytes bytes of the tensor's record, aligned to 16, for the owner's use; never null
  static constexpr std::size_t export_bytes = 128;
};

/// The last act of an exported tensor's owner, by its storage: frees it, in the stream that was named for that. From any
/// thread; also when the cache is gone, and when the pool is, too: then the memory went with it, and this is all. A second
/// call for one export is refused (options::on_bad_free) as long as the cache is there, and the record not exported again.
/// If the stream was released since, and is gone, nobody can tell when its work is over, and the memory stays out of use
/// until the pool goes. Lock-free, as free(). No other thread may just be destroying the pool.
ORDERLY_API void release_export(void* storage) noexcept;

class ORDERLY_API tensor_cache {
 public:
  /// Throws std::invalid_argument: an option out of range, a pool that was moved from. std::bad_alloc.
  explicit tensor_cache(pool& of, const tensor_options& settings = {});
  /// The same. Its functions take streams of the pool's.
  explicit tensor_cache(stream_pool& of, const tensor_options& settings = {});
  tensor_cache(const tensor_cache&) = delete;
  tensor_cache& operator=(const tensor_cache&) = delete;
  ~tensor_cache();

  /// A tensor of that layout, whose elements have any value; of 0 bytes: without memory. Over a pool with streams it is
  /// for work that enters `stream` from now on, and a stream must be named; over one without, none may be.
  /// Throws as the pool's allocate(); std::invalid_argument also for a layout from a shape as tensor_layout's constructor,
  /// for a stream too many or too few, and where the pool is gone; std::bad_alloc also when there are as many tensors
  /// as there may be.
  /// Tags (tag.hpp): a tensor that was kept bears the tag under which its memory was first allocated, not the thread's.
  [[nodiscard]] tensor empty(const tensor_layout& layout);
  [[nodiscard]] tensor empty(const tensor_layout& layout, stream_handle stream);
  [[nodiscard]] tensor empty(std::span<const std::int64_t> shape, tensor_type type) {
    return empty(tensor_layout(shape, type));
  }
  [[nodiscard]] tensor empty(std::initializer_list<std::int64_t> shape, tensor_type type) {
    return empty(tensor_layout(shape, type));
  }
  [[nodiscard]] tensor empty(std::span<const std::int64_t> shape, tensor_type type, stream_handle stream) {
    return empty(tensor_layout(shape, type), stream);
  }
  [[nodiscard]] tensor empty(std::initializer_list<std::int64_t> shape, tensor_type type, stream_handle stream) {
    return empty(tensor_layout(shape, type), stream);
  }

  /// The same; no tensor (false as a bool) instead of an exception.
  [[nodiscard]] tensor try_empty(const tensor_layout& layout) noexcept;
  [[nodiscard]] tensor try_empty(const tensor_layout& layout, stream_handle stream) noexcept;

  /// Only what the cache can do by itself at once, as pool::allocate_at_hand(): a kept tensor, and a free that keeps the
  /// tensor, in the stream that it was allocated for. No tensor, or false: nothing has happened, and one of the other
  /// functions does it.
  [[nodiscard]] tensor empty_at_hand(const tensor_layout& layout) noexcept;
  [[nodiscard]] tensor empty_at_hand(const tensor_layout& layout, stream_handle stream) noexcept;
  [[nodiscard]] bool free_at_hand(const tensor& of) noexcept;

  /// Frees a tensor, in the stream that it was allocated for, or in another: work that is in `stream` now may still use
  /// it; use by the stream that it was allocated for must then be ordered before by the program. No tensor is ignored.
  ///
  /// Only the handle and the address of `of` count. Of any number of frees of one handle exactly one succeeds. A bad free
  /// changes nothing, is counted, and goes to options::on_bad_free of the pool:
  ///   double_free       it was freed, or exported, and its record not handed out since
  ///   stale_handle      it was freed, and its record handed out again
  ///   wrong_pool        it is another cache's
///   foreign_pointer   no cache handed it out: made up, or the address is another tensor's
  ///   invalid_argument  the stream is none of the pool's, or was released; the tensor is as it was
  ///   pool_gone         the pool was destroyed
  void free(const tensor& of) noexcept;
  void free(const tensor& of, stream_handle stream) noexcept;

  /// The same; the outcome is returned and the handler is not called. `*report`, if given, tells what was found.
  [[nodiscard]] error try_free(const tensor& of, bad_free* report = nullptr) noexcept;
  [[nodiscard]] error try_free(const tensor& of, stream_handle stream, bad_free* report = nullptr) noexcept;

  /// The same; throws bad_free_error.
  void free_or_throw(const tensor& of);
  void free_or_throw(const tensor& of, stream_handle stream);

  /// As stream_pool::record_stream(), which must not be called for a tensor's memory itself: work in `stream` uses the
  /// tensor, too. invalid_argument also over a pool without streams. Else as free(); nothing is reported to the handler.
  [[nodiscard]] error record_stream(const tensor& of, stream_handle stream) noexcept;

  /// True: the handle names a tensor of this cache that is live, and not exported.
  [[nodiscard]] bool owns(const tensor& of) const noexcept;

  /// Makes the tensor somebody else's, to whom its handle means nothing: an adapter's, which gets storage for what it
  /// hands on and calls release_export() in the end. From now on the handle is that of a freed tensor. `stream`: where
  /// it will be freed; by default the one it was allocated for. Throws bad_free_error, as free_or_throw().
  /// One atomic addition more than free(), on a counter that all threads share.
  [[nodiscard]] exported_tensor give_out(const tensor& of);
  [[nodiscard]] exported_tensor give_out(const tensor& of, stream_handle stream);

  /// Gives up kept tensors, in the order above, until at most `keep_bytes` are kept. Returns the bytes given up. Under
  /// the mutex. The pool has them then, and trims as it sees fit.
  std::size_t trim(std::size_t keep_bytes = 0) noexcept;

  /// Walks over all records.
  [[nodiscard]] tensor_statistics stats() const noexcept;

  /// State of a cache, which outlives it while tensors are exported.
  class ORDERLY_LOCAL state;

 private:
  state* state_;
};

}  // namespace orderly
