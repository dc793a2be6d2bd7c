/// \file
/// What a pool says of its memory when there is too little of it: figures, and lines that a person can act on.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "orderly/export.h"

namespace orderly {

/// Of one instant, as statistics are: exact at quiescence. All sizes in bytes. Plain data of a fixed size, so that it can
/// be made where there is no memory, and thrown.
///
///   committed = live + cached + scattered + idle, but for what is changing hands just now
struct memory_report {
  /// Of the request: what was asked for, and what a block for it takes of the limit if nothing for it is committed. 0: none
  /// was refused.
  std::size_t requested = 0;
  std::size_t needed = 0;

  std::size_t capacity = 0;
  std::size_t limit = 0;
  std::size_t committed = 0;
  std::size_t live = 0;            ///< length of live blocks
  std::size_t live_requested = 0;  ///< what was asked for of it
  std::uint64_t live_blocks = 0;
  std::size_t peak_requested = 0;
  std::size_t cached = 0;     ///< freed, and kept for a thread, a stream or a graph; lanes tell whose it is
  std::size_t scattered = 0;  ///< free, in pieces that serve small requests alone: smaller than a chunk; of memory that
                              ///< was there from the start, all but the largest
  std::size_t idle = 0;       ///< free, and of use for every request: whole chunks; or the largest piece
  std::size_t chunk = 0;      ///< 0: the memory was there from the start, in one piece

  /// The largest request that fits into what is free and committed, as it lies; and the largest that is served if memory is
  /// committed up to the limit, with that of whole free chunks moved to where it is needed. Neither counts what caches hold.
  std::size_t largest_now = 0;
  std::size_t largest_grown = 0;

  /// Free memory that lies in no usable piece, in per cent of what is committed: 100 * scattered / committed.
  double fragmentation = 0;

  /// What one lane keeps: a stream, or in a pool without streams all threads together.
  struct lane {
    const void* stream = nullptr;  ///< its handle; null: the pool's only lane, or the default stream
    bool released = false;         ///< the stream was released: the handle may be another's by now
    std::size_t cached = 0;        ///< in the caches of threads, and in those of the lane
    std::size_t held = 0;          ///< freed in the stream, and not everybody's before work in it is done
  };
  static constexpr std::size_t most_lanes = 8;
  std::array<lane, most_lanes> lanes{};  ///< those that keep most, the first of them first
  std::size_t lane_count = 0;            ///< in the array
  std::size_t more_lanes = 0;            ///< that keep something too
  lane rest{};                           ///< what those keep together
  std::size_t graphs = 0;                ///< freed, and captured graphs' until they are gone

  /// What was tried before the request was refused.
  struct attempts {
    bool by_limit = false;   ///< the limit kept it from committing more
    bool by_source = false;  ///< the source did
    bool by_order = false;   ///< a stream could not be made to wait for the last users of what is free
    std::uint32_t passes = 0;     ///< run for it, under the mutex
    bool shared_pass = false;     ///< the last one was another thread's, which was refused as much
    bool stopped_pass = false;    ///< it could not run one: a thread has been stopped for seconds inside of one
    bool stopped_thread = false;  ///< a thread that has been stopped for seconds in a call kept its caches from being looked at
    std::size_t reclaimed = 0;    ///< came out of caches
    std::size_t released = 0;     ///< decommitted, to commit it where it was needed
    bool waited = false;          ///< for streams
    std::uint32_t handler_calls = 0;
    char source_error[128] = {};  ///< what the source said
  };
  attempts tried{};

  /// What would help, as far as the figures tell.
  enum class remedy : unsigned char {
    raise_capacity,  ///< to `bytes`
    raise_limit,     ///< to `bytes`
    more_memory,     ///< the one piece that the pool is made of is short of `bytes`
    synchronize,     ///< up to `bytes` are streams'
    let_wait,        ///< stream_options::wait_before_refusing, for the same
    end_graphs,      ///< `bytes` are graphs'
    reclaim,         ///< trim() or defragment(): caches hold `bytes`
    relocate,        ///< `bytes` are free in pieces; at most `count` chunks come free if blocks move
    elsewhere,       ///< the limit leaves `bytes`, but the source refuses: somebody else has them
    resume_thread,   ///< one that is stopped inside of a call
    ask_for_less,    ///< at most `bytes` at once
  };
  struct advice {
    remedy what = remedy::raise_limit;
    std::size_t bytes = 0;
    std::size_t count = 0;
  };
  static constexpr std::size_t most_advice = 12;
  std::array<advice, most_advice> helps{};
  std::size_t help_count = 0;

  /// What one tag holds.
  struct tag_figures {
    char name[48] = {};  ///< as much of it as fits
    std::size_t requested = 0;
    std::size_t allocated = 0;
    std::size_t peak_requested = 0;
    std::uint64_t blocks = 0;
  };
  static constexpr std::size_t most_tags = 10;
  bool tags_accounted = false;              ///< options::account_tags
  std::array<tag_figures, most_tags> tags{};  ///< with the most requested bytes, the first of them first
  std::size_t tag_count = 0;                ///< in the array

  /// The advice of one kind; null: it is not given.
  [[nodiscard]] const advice* find(remedy what) const noexcept {
    for (std::size_t i = 0; i < help_count; ++i)
      if (helps[i].what == what) return &helps[i];
    return nullptr;
  }

  /// Some lines, each ended. Throws std::bad_alloc.
  [[nodiscard]] ORDERLY_API std::string message() const;

  /// The same into `text`, cut to `bytes` with the zero at its end; without memory of its own. Returns the length that all
  /// of it has, below most_text.
  ORDERLY_API std::size_t print(char* text, std::size_t bytes) const noexcept;
  static constexpr std::size_t most_text = 8192;
};

}  // namespace orderly
