/// \file
/// What a pool did with its memory over the course of a trace: which addresses were live, cached and committed, and
/// from which event to which.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "orderly/stats.hpp"
#include "peer/peer.hpp"
#include "replay.hpp"
#include "trace.hpp"

namespace orderly::bench {

/// A range of addresses that was in some state after the events from `from` on, and no longer after event `to`.
/// Events are counted from 0; `to` is the number of events if the state outlasted the trace.
struct memory_range {
  std::uint64_t address = 0;
  std::uint64_t bytes = 0;
  std::uint64_t from = 0;
  std::uint64_t to = 0;
};

/// A block while it was live.
struct live_range : memory_range {
  std::uint64_t requested = 0;
  std::uint16_t thread = 0;    ///< of the trace, which allocated it
  std::uint16_t lane = 0;      ///< the replaying thread that allocated it, and where there are streams its stream
  std::uint16_t freed_by = 0;  ///< the thread of the trace that freed it; if none did, the one that allocated it
  std::uint16_t tag = 0;       ///< what it was for, if the trace says that
};

/// An allocation that the pool refused.
struct refused_allocation {
  std::uint64_t at = 0;  ///< its event
  std::uint64_t requested = 0;
  std::uint16_t thread = 0;
};

struct memory_history {
  std::string allocator;
  std::uint64_t granule = 0;
  std::uint64_t chunk = 0;
  std::size_t interval = 1;                 ///< events to a sample of `statistics`
  std::vector<std::string> tags;            ///< of the trace; empty: it has none
  std::vector<live_range> live;             ///< in the order of allocation
  std::vector<memory_range> cached;         ///< freed, and kept for the next allocation; in the order of `from`
  std::vector<memory_range> committed;      ///< live, cached and free memory; in the order of `from`
  std::vector<refused_allocation> refused;  ///< in the order of the trace
  std::vector<statistics> samples;          ///< after the last event of each interval
};

/// Ranges that are in some state now, and all that have been.
class range_log {
 public:
  /// The range is in the state from event `at` on. Pre: no part of it is already.
  void open(std::uint64_t address, std::uint64_t bytes, std::uint64_t at) { open_[address] = {bytes, at}; }

  /// No part of the range is in the state any more.
  void close(std::uint64_t address, std::uint64_t bytes, std::uint64_t at);

  /// True, and the range is closed, if it was opened as such.
  [[nodiscard]] bool close_exactly(std::uint64_t address, std::uint64_t bytes, std::uint64_t at);

  /// From event `at` on, the ranges (address, bytes), in address order, are all there are.
  void replace(std::span<const std::pair<std::uint64_t, std::uint64_t>> now, std::uint64_t at);

  /// All ranges in the order of `from`, of a trace of so many events.
  [[nodiscard]] std::vector<memory_range> finish(std::uint64_t events) &&;

 private:
  struct opened {
    std::uint64_t bytes;
    std::uint64_t from;
  };
  using position = std::map<std::uint64_t, opened>::iterator;

  void note(std::uint64_t address, std::uint64_t bytes, std::uint64_t from, std::uint64_t to);
  position close(position range, std::uint64_t at);

  std::map<std::uint64_t, opened> open_;  // by address
  std::vector<memory_range> closed_;
};

/// Watches a pool during a replay in recorded order. The replay calls it in the turn of each event, so that one thread
/// at a time is here.
class history_recorder final : public memory_watcher, public replay_observer {
 public:
  explicit history_recorder(const replay_plan& plan, std::size_t interval);

  /// Pre: inside() of the pool is not null.
  void after(std::uint64_t position, const event& call, const void* block, const any_peer& peer) override;

  void committed(const void* address, std::size_t bytes) noexcept override;
  void decommitted(const void* address, std::size_t bytes) noexcept override;

  /// What was recorded. `live` lacks all that the trace knows: see complete().
  [[nodiscard]] memory_history finish() &&;

 private:
  void note_cached(const pool_view& pool);

  std::uint64_t events_;
  std::uint64_t now_ = 0;  // the event that is being executed
  std::vector<std::uint64_t> lengths_;  // by block, while it is live
  std::size_t cached_bytes_ = 0;
  range_log cached_;
  range_log committed_;
  memory_history result_;
};

/// Adds to `live` what the trace knows of it: sizes, threads, tags, and which event freed it.
void complete(memory_history& recorded, const trace& replayed, const replay_plan& plan);

/// A file without a name that a child writes and the parent reads.
class handed_over {
 public:
  handed_over();  ///< throws std::runtime_error
  handed_over(const handed_over&) = delete;
  handed_over& operator=(const handed_over&) = delete;
  ~handed_over() { std::fclose(file_); }

  void write(const memory_history& recorded);
  [[nodiscard]] memory_history read();

 private:
  std::FILE* file_;
};

}  // namespace orderly::bench
