/// \file
/// The pool: the one class that most programs need.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <type_traits>
#include <vector>

#include "orderly/checked.hpp"
#include "orderly/error.hpp"
#include "orderly/export.h"
#include "orderly/options.hpp"
#include "orderly/source.hpp"
#include "orderly/stats.hpp"

namespace orderly {

/// A memory pool that any number of threads use at once.
///
/// Thread safety: every member function except construction, destruction and move may be called from any thread at any
/// time. A block may be freed by another thread than the one that allocated it.
///
/// Progress: allocate and deallocate are lock-free, with these exceptions by name: an allocation that would otherwise
/// be refused waits for the pass that reclaims memory, and for threads that hold memory in the middle of a call (as
/// long as they wait for the memory source; else for some seconds); a thread's first use of a pool obtains memory from
/// the system; growth calls the memory source; and now and then a call that finds much memory idle runs a pass itself,
/// when no other thread does. trim, defragment and destruction run a pass under a mutex.
///
/// Fork: in the child the pool goes on; what other threads had in hand at that instant is lost to it. A handler may
/// fork; a memory source, a stream driver, and a signal handler that has interrupted a call may not.
///
/// Threads that die: one that ends between two calls loses nothing, even if no destructor of its runs; then passes take
/// back what it cached. One that dies in the middle of a call takes with it what it had in hand: the blocks of that
/// call, and a batch of cached ones or a node of at most 16 chunks. If it was inside its cache, also what that holds,
/// and what it has allocated, as that is freed. If it held a mutex, calls that need that mutex wait for ever. A thread
/// that is to be cancelled ends outside of the library, or in a handler that allows it; asynchronous cancellation is
/// death.
///
/// Memory: the pool never reads or writes the memory that it manages; all its records lie elsewhere.
///
/// Destruction: blocks still live are released with the pool. No other thread may be inside a call; threads that used
/// the pool may exit later, in any order.
class ORDERLY_API pool {
 public:
  /// Host memory. Throws std::invalid_argument (an option out of range), out_of_memory (the source refused).
  explicit pool(const options& settings = {});

  /// Memory from `source`. Throws as above.
  explicit pool(std::unique_ptr<memory_source> source, const options& settings = {});

  pool(pool&& other) noexcept;
  pool& operator=(pool&& other) noexcept;
  ~pool();

  /// A block of at least `bytes` bytes (0 counts as 1), aligned to `alignment` (a power of two, at most the chunk
  /// size) and never less than to the granule.
  /// Throws out_of_memory, which looks at each block of the pool, as report() does; std::invalid_argument when the
  /// alignment is not a power of two or above the chunk size; whatever the out-of-memory handler throws.
  [[nodiscard]] void* allocate(std::size_t bytes);
  [[nodiscard]] void* allocate(std::size_t bytes, std::size_t alignment);

  /// The same; null instead of an exception.
  [[nodiscard]] void* try_allocate(std::size_t bytes) noexcept;
  [[nodiscard]] void* try_allocate(std::size_t bytes, std::size_t alignment) noexcept;

  /// Frees a block. `bytes` as given to allocate. A null pointer is ignored. A bad free changes nothing, is counted,
  /// and goes to options::on_bad_free. Of two threads that free one block at the same instant, with nothing ordering
  /// them, one may be told so by statistics::bad_frees alone, later; the block is freed once all the same.
  void deallocate(void* pointer, std::size_t bytes) noexcept;
  void deallocate(void* pointer) noexcept;

  /// The same; the outcome is returned and the handler is not called. `bytes` 0: unknown. On a bad free `*report`, if
  /// given, tells what was found.
  [[nodiscard]] error try_deallocate(void* pointer, std::size_t bytes = 0, bad_free* report = nullptr) noexcept;

  /// The same; throws bad_free_error.
  void deallocate_or_throw(void* pointer, std::size_t bytes = 0);

  /// Only what this thread can do by itself at once: allocate from, or free into, what it has at hand. Null, or false:
  /// nothing has happened, and one of the functions above does it. These two never wait, take no lock, make no system
  /// call and call no handler: for callers with a lock that they give up before they may wait, as interpreters have.
  [[nodiscard]] void* allocate_at_hand(std::size_t bytes) noexcept;
  [[nodiscard]] bool deallocate_at_hand(void* pointer, std::size_t bytes) noexcept;

  /// A block with a handle that is told from those of the block's earlier and later owners; see checked.hpp. Errors as
  /// allocate; out_of_memory also when there are no addresses left for the generations.
  [[nodiscard]] checked_block allocate_checked(std::size_t bytes, std::size_t alignment = 1);
  [[nodiscard]] checked_block try_allocate_checked(std::size_t bytes, std::size_t alignment = 1) noexcept;

  /// Frees a block by its handle. Of several frees of one handle exactly one succeeds. Errors as above, and
  /// stale_handle.
  void deallocate(const checked_block& block, std::size_t bytes = 0) noexcept;
  [[nodiscard]] error try_deallocate(const checked_block& block, std::size_t bytes = 0,
                                     bad_free* report = nullptr) noexcept;
  void deallocate_or_throw(const checked_block& block, std::size_t bytes = 0);

  /// True if the address lies in a live block of this pool.
  [[nodiscard]] bool owns(const void* pointer) const noexcept;

  /// Usable bytes of the live block that starts at `pointer`; 0 if none does.
  [[nodiscard]] std::size_t block_size(const void* pointer) const noexcept;

  /// Reclaims what caches hold, tensor caches too where need be, and decommits free chunks until at most `keep_bytes` are
  /// committed, or nothing more can be released. Returns the bytes decommitted.
  std::size_t trim(std::size_t keep_bytes = 0) noexcept;

  /// Commits memory until at least `bytes` are committed, or the limit is reached, or the source refuses, or the system
  /// has no memory for the list of what is taken; so that later allocations need not. And keeps it: until trim(), the pool
  /// gives back by itself only what exceeds that. What other threads commit meanwhile counts, with what the source is just
  /// being asked for. To large blocks (of more than 16 chunks, mostly), which have addresses of their own, the memory moves
  /// when they need it: as much is given back as they commit. Returns the bytes committed. A pass under the mutex; other
  /// threads go on, but for those that would be refused.
  std::size_t reserve(std::size_t bytes) noexcept;

  /// A coalescing pass: reclaims what caches hold and merges every pair of free buddies. Returns the bytes that came
  /// back from caches.
  std::size_t defragment() noexcept;

  [[nodiscard]] statistics stats() const noexcept;

  /// What each tag holds, of those that were ever used here; the one with most requested bytes first. Empty unless
  /// options::account_tags. Throws std::bad_alloc.
  [[nodiscard]] std::vector<tag_statistics> tags() const;

  /// What a person needs who wants to know where the memory is, and what would make room for a request of `bytes`. Inside of
  /// the out-of-memory handler, with 0 or the bytes that it was called for: of that request, with what was tried for it.
  /// Takes no memory. Looks at each block, so it is not for every second.
  [[nodiscard]] memory_report report(std::size_t bytes = 0) const noexcept;

  /// Calls `visit(const block_info&)` for every block in address order, free and cached ones included. Each block is
  /// reported as it was at some instant of the call; at quiescence the blocks tile the pool's used range. `visit` must
  /// not call into the pool.
  template <class Visitor>
    requires std::is_invocable_v<Visitor&, const block_info&>
  void for_each_block(Visitor&& visit) const {
    visit_blocks([](void* context, const block_info& block) { (*static_cast<std::remove_reference_t<Visitor>*>(context))(block); },
                 const_cast<void*>(static_cast<const void*>(std::addressof(visit))));
  }

  [[nodiscard]] std::size_t granule() const noexcept;
  [[nodiscard]] std::size_t chunk() const noexcept;
  [[nodiscard]] std::size_t capacity() const noexcept;
  [[nodiscard]] std::size_t limit() const noexcept;

  /// Length of the block that a request of `bytes` gets; 0 if it is above the capacity.
  [[nodiscard]] std::size_t rounded(std::size_t bytes) const noexcept;

 private:
  [[nodiscard]] void* allocate_cold(std::size_t bytes, std::size_t alignment);
  static void deallocate_gone(void* pointer, std::size_t bytes) noexcept;
  void visit_blocks(void (*visit)(void*, const block_info&), void* context) const;

  friend class relocatable_blocks;
  friend class relocatable_stream_blocks;
  friend class stream_pool;
  friend class tensor_cache;
  class ORDERLY_LOCAL state;
  state* state_;
};

}  // namespace orderly
