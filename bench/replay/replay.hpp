/// \file
/// Replays a trace against an allocator, on threads, and times every call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "peer/peer.hpp"
#include "trace.hpp"

namespace orderly::bench {

enum class replay_order {
  recorded,  ///< calls happen one after the other, as recorded; a thread waits for its turn
  free,      ///< threads run; a block is freed after it was allocated, and nothing else is ordered
};

/// A trace divided among threads. It refers to nothing outside.
struct replay_plan {
  /// Successive events of the trace that fall to one thread.
  struct turn {
    std::uint64_t first = 0;  ///< position in the trace of the first of them
    std::uint64_t count = 0;
  };
  struct thread {
    std::vector<event> events;
    std::vector<turn> turns;
  };

  std::vector<thread> threads;
  std::vector<std::uint16_t> stream_of;  ///< of each block: the number, in `threads`, of the thread that allocates it
  std::size_t blocks = 0;
  std::size_t events = 0;
};

/// Maps the threads of the trace onto at most `threads` threads, with about as many events each.
[[nodiscard]] replay_plan plan_replay(const trace& recorded, std::size_t threads);

struct replay_settings {
  replay_order order = replay_order::recorded;
  std::size_t copies = 1;        ///< instances of the trace at once, each on threads of its own
  bool touch = false;            ///< write a byte in each page of each block
  bool stop_at_refusal = false;  ///< the first refused allocation ends the replay
};

struct replay_outcome {
  std::vector<std::uint64_t> allocate_ticks;  ///< one for each allocation, refused ones included, in no order
  std::vector<std::uint64_t> free_ticks;      ///< one for each free of a block that was served
  std::size_t failures = 0;                   ///< allocations refused
  std::size_t refused_frees = 0;              ///< frees that the allocator called bad
  std::uint64_t peak_live_bytes = 0;          ///< highest sum of live sizes, over all copies
  std::size_t peak_committed_bytes = 0;       ///< as the allocator tells; 0: it cannot
  std::optional<stream_work> made;            ///< as the allocator tells
  std::optional<memory_moves> moved;          ///< as the allocator tells
};

/// Looks at the allocator after each event of a replay in recorded order, by the thread whose turn it is.
class replay_observer {
 public:
  virtual ~replay_observer() = default;
  /// `block`: what was allocated or freed; null: it was refused.
  virtual void after(std::uint64_t position, const event& call, const void* block, const any_peer& peer) = 0;
};

/// What a replay of one copy in recorded order writes down beside its measurements.
struct observation {
  std::size_t interval = 1;              ///< events to a sample
  std::vector<std::uint64_t> committed;  ///< the most after any event of each interval
  std::vector<std::uint64_t> addresses;  ///< of each block; 0: it was refused
  replay_observer* observer = nullptr;   ///< null: nobody looks
};

/// Replays, then frees what the trace leaves live. Throws std::system_error when threads cannot be started.
replay_outcome replay(any_peer& peer, const replay_plan& plan, const replay_settings& settings,
                      observation* seen = nullptr);

}  // namespace orderly::bench
