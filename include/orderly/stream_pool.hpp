/// \file
/// A pool whose memory changes hands in stream order.
///
/// Freeing a block in a stream says: work that is in the stream now may still use it, work that comes later does not. The
/// pool then gives the block to the same stream again at once, without any stream operation; to another stream after it
/// has made that stream wait for an event; and to everybody when the event has passed. No thread ever waits for a stream
/// or a device, unless it says so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>
#if __cplusplus >= 202002L
#include <span>
#endif

#include "orderly/checked.hpp"
#include "orderly/error.hpp"
#include "orderly/export.h"
#include "orderly/options.hpp"
#include "orderly/source.hpp"
#include "orderly/stats.hpp"
#include "orderly/stream.hpp"

namespace orderly {

struct stream_options {
  /// As of a pool. The slack is less, since what streams have freed and not done with yet comes on top of it.
  options memory = with_slack(0.1);

  /// True: an event is recorded at every free, so that streams may be destroyed without release_stream(). Costs one event
  /// record for each free.
  bool safe_mode = false;

  /// True: each call asks whether its stream captures, so that captures need no begin_capture(). Costs a question to the
  /// driver for each call, and every call its way past the caches that a thread has at hand. In safe mode always so.
  bool watch_captures = false;

  /// True: before an allocation is refused, the calling thread waits until streams are done with what was freed in them.
  /// That helps where physical memory has to move, which cannot be done in stream order. It can deadlock where the work
  /// of streams waits for other processes, as collectives do.
  bool wait_before_refusing = false;

  /// Bytes freed in a stream that no event covers yet, above which the pool records one. 0: 64 MiB.
  std::size_t seal_bytes = 0;

 private:
  [[nodiscard]] static options with_slack(double slack) {
    options o;
    o.slack = slack;
    return o;
  }
};

/// Counters of a stream_pool.
struct stream_statistics {
  statistics memory;
  std::size_t streams = 0;            ///< known now
  std::size_t held = 0;               ///< bytes that belong to a stream or a graph: freed, and not yet everybody's
  std::uint64_t events_recorded = 0;
  std::uint64_t waits = 0;            ///< of streams for events
  std::uint64_t queries = 0;          ///< of events
};

/// Thread safety: as pool. Progress: allocate and deallocate in one stream are lock-free as long as caches serve; moving
/// memory between streams takes a mutex.
///
/// Streams: a stream is known by its handle from its first use until release_stream(). A program calls release_stream()
/// before it destroys a stream, or sets stream_options::safe_mode.
class ORDERLY_API stream_pool {
 public:
  /// Throws as pool's constructor; std::invalid_argument also for a null driver.
  stream_pool(std::unique_ptr<memory_source> source, std::shared_ptr<stream_driver> driver,
              const stream_options& settings = {});
  stream_pool(stream_pool&& other) noexcept;
  stream_pool& operator=(stream_pool&& other) noexcept;
  /// Work in streams that uses the pool's memory must be done.
  ~stream_pool();

  /// A block for work that enters `stream` from now on. Throws as pool::allocate; std::invalid_argument also for a handle
  /// that names no stream.
  [[nodiscard]] void* allocate(std::size_t bytes, stream_handle stream);
  [[nodiscard]] void* allocate(std::size_t bytes, std::size_t alignment, stream_handle stream);
  /// The same; null instead of an exception.
  [[nodiscard]] void* try_allocate(std::size_t bytes, stream_handle stream) noexcept;
  [[nodiscard]] void* try_allocate(std::size_t bytes, std::size_t alignment, stream_handle stream) noexcept;

  /// A block that is free of every stream's work, for use outside of streams or in any of them at once. `idle` is a
  /// stream in which the program puts no work, ever, and frees blocks only once nobody uses them. Waits if the pool has
  /// made `idle` wait for other streams and that is not over yet, for what it waits for; otherwise for nothing. No lock
  /// is held meanwhile. Throws as allocate(); std::runtime_error if the driver cannot tell, because the device has
  /// failed, say.
  [[nodiscard]] void* allocate_settled(std::size_t bytes, std::size_t alignment, stream_handle idle);

  /// Frees a block: work that is in `stream` now may still use it. The stream may be another than the one it was
  /// allocated for; that stream's use of it must then be ordered before by the program. Errors as pool::deallocate.
  void deallocate(void* pointer, std::size_t bytes, stream_handle stream) noexcept;
  [[nodiscard]] error try_deallocate(void* pointer, std::size_t bytes, stream_handle stream,
                                     bad_free* report = nullptr) noexcept;

  /// As pool's: only what this thread has at hand for the stream.
  [[nodiscard]] void* allocate_at_hand(std::size_t bytes, stream_handle stream) noexcept;
  [[nodiscard]] bool deallocate_at_hand(void* pointer, std::size_t bytes, stream_handle stream) noexcept;

  /// As pool's: a block with a handle, and its free.
  [[nodiscard]] checked_block allocate_checked(std::size_t bytes, std::size_t alignment, stream_handle stream);
  [[nodiscard]] checked_block try_allocate_checked(std::size_t bytes, std::size_t alignment,
                                                   stream_handle stream) noexcept;
  void deallocate(const checked_block& block, std::size_t bytes, stream_handle stream) noexcept;
  [[nodiscard]] error try_deallocate(const checked_block& block, std::size_t bytes, stream_handle stream,
                                     bad_free* report = nullptr) noexcept;

  /// Work in `stream` uses the live block too: when it is freed, it stays out of use until the work that is in `stream` at
  /// that time is done as well. In safe mode: the work that is in the stream at the time of this call.
  [[nodiscard]] error record_stream(void* pointer, stream_handle stream) noexcept;

  /// What is allocated in `stream` from now on belongs to the graph that the stream captures, or is about to capture: it
  /// stays out of other use until the graph is gone, with all that was made of it. Blocks that the capture frees serve the
  /// same capture again; those freed later are kept, too. What was allocated before and is freed meanwhile belongs to the
  /// stream as ever, once the capture is over.
  ///
  /// Call it before the capture begins, and end_capture() before it ends; each stream that takes part calls both. Another
  /// thread must not be inside a call for the stream. A capture gets only memory that no stream may still use, since it
  /// cannot be made to wait: where streams are short of memory, synchronize() before.
  /// invalid_argument: not a stream, or it was begun already; of end_capture(): it was not begun, or the capture was over
  /// already and no block was allocated inside it, so that what was allocated is not kept for it. out_of_memory.
  [[nodiscard]] error begin_capture(stream_handle stream) noexcept;
  [[nodiscard]] error end_capture(stream_handle stream) noexcept;

  /// Divides a live block into parts of `part_bytes`. Each part whose bit in `live` is set (part i: bit i % 32 of word
  /// i / 32) is from now on a live block of its own, which anybody frees with that size; the rest is freed in `stream`,
  /// as few and large blocks as there are. With no bit set, that is a free of the block. Streams that the block was
  /// recorded for are those of each part, too.
  ///
  /// The block must have been allocated with a power of two of bytes up to largest_divisible(), and `part_bytes` be one
  /// of at least the granule; `live` has a bit for each part, in `words` words, rounded up. Refused, with nothing changed:
  /// invalid_argument; as deallocate; out_of_memory where no event can be recorded in the stream, where a block that was
  /// recorded for other streams would become more than 65536, or where the thread that allocated the block has been stopped
  /// for seconds in the middle of a call. `why`, if given, gets a line that says so.
  /// Progress: takes a mutex. In statistics the parts are allocations in place of the block's.
  [[nodiscard]] error divide(void* pointer, std::size_t part_bytes, const std::uint32_t* live, std::size_t words,
                             stream_handle stream, std::string* why = nullptr) noexcept;
  /// The same where no work uses the rest any more: it is everybody's at once, without an event.
  [[nodiscard]] error divide_settled(void* pointer, std::size_t part_bytes, const std::uint32_t* live, std::size_t words,
                                     std::string* why = nullptr) noexcept;
#if defined(__cpp_lib_span)  // this header serves C++17, too
  [[nodiscard]] error divide(void* pointer, std::size_t part_bytes, std::span<const std::uint32_t> live,
                             stream_handle stream, std::string* why = nullptr) noexcept {
    return divide(pointer, part_bytes, live.data(), live.size(), stream, why);
  }
  [[nodiscard]] error divide_settled(void* pointer, std::size_t part_bytes, std::span<const std::uint32_t> live,
                                     std::string* why = nullptr) noexcept {
    return divide_settled(pointer, part_bytes, live.data(), live.size(), why);
  }
#endif
  /// Bytes of the largest block that divides.
  [[nodiscard]] std::size_t largest_divisible() const noexcept;

  /// The stream will be destroyed: what was freed in it is sealed by an event, and its handle is forgotten. Another
  /// thread must not be inside a call for this stream. False: no event could be recorded, since the stream captures, say;
  /// then what was freed in it stays out of use until synchronize().
  bool release_stream(stream_handle stream) noexcept;

  /// Waits until all work is done that may use blocks freed so far, in one stream or in all. Then they are everybody's.
  /// False: that cannot be told of all of them: a stream captures, a device has failed, or a per-thread stream holds blocks
  /// that change hands only when its own thread allocates something once more.
  bool stream_synchronize(stream_handle stream) noexcept;
  bool synchronize() noexcept;

  /// As pool::trim; only memory that no stream may still use.
  std::size_t trim(std::size_t keep_bytes = 0) noexcept;

  /// As pool::reserve.
  std::size_t reserve(std::size_t bytes) noexcept;
  /// As pool::defragment; blocks that a stream may still use do not merge.
  std::size_t defragment() noexcept;

  /// The handle names a stream, and there is room for it among the pool's streams. False: allocate() in it would throw
  /// std::invalid_argument.
  [[nodiscard]] bool serves(stream_handle stream) noexcept;

  [[nodiscard]] std::size_t granule() const noexcept;
  [[nodiscard]] std::size_t capacity() const noexcept;
  [[nodiscard]] bool owns(const void* pointer) const noexcept;
  [[nodiscard]] std::size_t block_size(const void* pointer) const noexcept;
  [[nodiscard]] stream_statistics stats() const noexcept;
  /// As pool's. What streams have freed is no tag's, whether it is everybody's yet or not.
  [[nodiscard]] std::vector<tag_statistics> tags() const;
  /// As pool's; takes the mutex of passes.
  [[nodiscard]] memory_report report(std::size_t bytes = 0) const noexcept;

  /// As pool::for_each_block.
  template <class Visitor, class = std::enable_if_t<std::is_invocable_v<Visitor&, const block_info&>>>
  void for_each_block(Visitor&& visit) const {
    visit_blocks([](void* context, const block_info& block) { (*static_cast<std::remove_reference_t<Visitor>*>(context))(block); },
                 const_cast<void*>(static_cast<const void*>(std::addressof(visit))));
  }

 private:
  static void deallocate_gone(void* pointer, std::size_t bytes) noexcept;
  void visit_blocks(void (*visit)(void*, const block_info&), void* context) const;

  friend class relocatable_stream_blocks;
  friend class tensor_cache;
  class ORDERLY_LOCAL state;
  state* state_;
};

}  // namespace orderly
