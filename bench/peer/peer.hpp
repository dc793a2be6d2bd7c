/// \file
/// What the benchmarks and the replay compare: orderly and the allocators that it competes with, behind one interface.
/// A new peer is one file in this folder and one entry in the list of peers.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "orderly/software_stream.hpp"
#include "orderly/stats.hpp"

namespace orderly::bench {

/// Is told what memory a pool of orderly holds, by the threads that use the pool.
class memory_watcher {
 public:
  virtual ~memory_watcher() = default;
  virtual void committed(const void* address, std::size_t bytes) noexcept = 0;
  virtual void decommitted(const void* address, std::size_t bytes) noexcept = 0;
};

/// How a peer with an arena of its own is set up; general-purpose allocators ignore it.
struct arena_config {
  std::size_t capacity = std::size_t{16} << 30;  ///< bytes of addresses
  std::size_t limit = 0;                         ///< most bytes committed; 0: the capacity
  std::size_t chunk = 0;                         ///< unit of commitment; 0: the peer's default
  software_schedule schedule = software_schedule::workers;  ///< when streams work
  std::size_t run_ahead = 1024;                  ///< most pieces of work that wait in a stream, at least 1
  double slack = -1;                             ///< see orderly::options; negative: orderly's default
  memory_watcher* watcher = nullptr;             ///< outlives the peer; null: nobody
  bool pieces = false;                           ///< orderly's memory is committed as CUDA's would be; see pieces.hpp
};

/// What a peer has put into streams so far.
struct stream_work {
  std::uint64_t records = 0;  ///< events
  std::uint64_t waits = 0;    ///< of streams for events
};

/// What a pool had its source do so far.
struct memory_moves {
  std::uint64_t commits = 0;  ///< calls
  std::uint64_t decommits = 0;
  std::uint64_t committed_bytes = 0;
  std::uint64_t decommitted_bytes = 0;
  std::uint64_t committed_pieces = 0;    ///< each is a handle of CUDA's driver
  std::uint64_t decommitted_pieces = 0;
  double commit_seconds = 0;             ///< what the driver would take for the pieces
  double decommit_seconds = 0;

  /// Calls of CUDA's driver: three for a piece that is made, and one for each call.
  [[nodiscard]] std::uint64_t driver_calls() const noexcept { return 3 * committed_pieces + commits + decommits; }
};

/// The inside of a pool. At quiescence all of it is of one instant.
class pool_view {
 public:
  virtual ~pool_view() = default;
  [[nodiscard]] virtual statistics stats() const noexcept = 0;
  [[nodiscard]] virtual std::size_t granule() const noexcept = 0;
  /// Length of the live block that starts there.
  [[nodiscard]] virtual std::size_t block_size(const void* pointer) const noexcept = 0;
  /// Every block in address order, free and cached ones included.
  virtual void each_block(const std::function<void(const block_info&)>& visit) const = 0;
};

/// A peer for code that chooses at run time (the replay). Benchmarks use the peer's static type instead.
class any_peer {
 public:
  virtual ~any_peer() = default;
  /// Null: refused. Thread-safe.
  virtual void* allocate(std::size_t bytes) noexcept = 0;
  /// False: the peer noticed a bad free. Thread-safe.
  virtual bool deallocate(void* pointer, std::size_t bytes) noexcept = 0;
  /// Bytes that the peer holds now, and the most it ever held; 0: it cannot tell.
  [[nodiscard]] virtual std::size_t committed() const noexcept { return 0; }
  [[nodiscard]] virtual std::size_t peak_committed() const noexcept { return 0; }

  /// For peers that know streams, or keep memory of streams apart; others take all streams for one. Streams have small
  /// numbers, and each thread of the replay has one.
  virtual void* allocate_in(std::size_t, std::size_t bytes) noexcept { return allocate(bytes); }
  virtual bool deallocate_in(std::size_t, void* pointer, std::size_t bytes) noexcept {
    return deallocate(pointer, bytes);
  }
  /// Puts work into the stream that writes to the block.
  virtual void use_in(std::size_t, void*) {}
  /// None: the peer knows no streams.
  [[nodiscard]] virtual std::optional<stream_work> made() const noexcept { return std::nullopt; }

  /// None: not kept account of; see arena_config::pieces.
  [[nodiscard]] virtual std::optional<memory_moves> moved() const noexcept { return std::nullopt; }

  /// Null: the peer is no pool of orderly, or one that commits nothing piecewise. Then it has no use for a watcher
  /// either.
  [[nodiscard]] virtual const pool_view* inside() const noexcept { return nullptr; }
};

struct peer_entry {
  std::string_view name;                                             ///< as on the command line
  bool arena = false;                                                ///< honours arena_config
  std::unique_ptr<any_peer> (*make)(const arena_config&) = nullptr;  ///< null result: not available here
};

/// Every peer that serves all sizes, orderly first.
[[nodiscard]] std::span<const peer_entry> peers() noexcept;

/// The peers that know streams. Their streams are software streams.
[[nodiscard]] std::span<const peer_entry> stream_peers() noexcept;

/// The entry of that name in either list, or null.
[[nodiscard]] const peer_entry* find_peer(std::string_view name) noexcept;

/// Call it first in main. glibc keeps little room for the thread-local storage of libraries that are loaded later, and
/// jemalloc needs more. The room is fixed when a program starts, so the program restarts once, with it in the
/// environment.
void make_room_for_peers(char** argv);

}  // namespace orderly::bench
