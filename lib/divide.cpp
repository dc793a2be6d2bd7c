/// \file
/// Division: one live block becomes live blocks of its own, and free memory. What a kernel was lent and handed out
/// piece by piece comes back to the pool in this way.
///
/// Order of the words. Observers find a block by the first word, from the smallest node upwards, that is neither none
/// nor split; walks go down from the root. So, with the node owned from the start:
///   1  the words in between: split, and the free pieces: owned   both ways lead to the node, or to an owned piece
///   2  the live parts, release                                   a part is there, with all above it in place
///   3  the node: split, release                                  walks see what searches see
///   4  the pieces are given, as any block is                     they merge with their buddies outside the block too
///   2 release -> acquire in block_store::find, or the program's own hand-over: whoever frees a part, even before the
///   division is over, sees the split words above it, and finds no free buddy that is not given yet.
/// Linearization   the live block ceases to be with live -> owned, a part is born with its word.
/// Progress        lock-free but for a block that a front handed out (take_from_home), a record of other streams, and
///                 an event: these take mutexes.
#include "pool_state.hpp"

#include <bit>
#include <cstdio>
#include <new>

namespace orderly {

using namespace detail;

namespace {

/// A block that other streams use too is divided into at most so many: each one's streams are noted.
constexpr std::uint64_t most_recorded = 65536;

[[nodiscard]] std::string printed(const void* pointer) {
  char text[2 + 2 * sizeof pointer + 1];
  std::snprintf(text, sizeof text, "%p", pointer);
  return text;
}

}  // namespace

/// A division, worked out.
struct pool::state::division {
  void* pointer = nullptr;
  std::size_t part_bytes = 0;
  std::span<const std::uint32_t> words;
  lane* in = nullptr;

  block_store::found block{};
  unsigned part_order = 0;
  std::uint64_t requested = 0;       ///< of the whole block
  std::vector<lane*> other_lanes{};  ///< that it is recorded for

  [[nodiscard]] unsigned levels() const noexcept { return block.n.order - part_order; }
  [[nodiscard]] part_map live() const noexcept { return {words, std::uint32_t{1} << levels()}; }
  [[nodiscard]] node node_at(std::uint32_t part, unsigned order) const noexcept {
    return {((block.n.index << levels()) + part) >> order, static_cast<std::uint8_t>(part_order + order)};
  }
};

/// Looks the block up and checks what was asked. Changes nothing.
error pool::state::plan_division(division& of, std::string* why) const noexcept {
  const auto refuse = [&](error code, const auto& reason) {
    if (why == nullptr) return code;
    try {
      *why = "orderly: cannot divide " + printed(of.pointer) + " into parts of " + std::to_string(of.part_bytes) +
             " bytes: " + reason();
    } catch (const std::bad_alloc&) {  // then the code has to do
    }
    return code;
  };
  const auto number = [](std::uint64_t n) { return std::to_string(n); };
  const auto offset = store_.memory().offset(of.pointer);
  of.block = offset ? store_.find_live(*offset) : block_store::found{};
  if (!of.block.exists) {
    const bad_free found = explain(of.pointer, 0);
    return refuse(found.code, [&] { return std::string(to_string(found.code)); });
  }
  const std::size_t granule = shape().granule_bytes();
  if (!std::has_single_bit(of.part_bytes) || of.part_bytes < granule || of.part_bytes > of.block.length) {
    return refuse(error::invalid_argument, [&] {
      return "not a power of two from the granule, " + number(granule) + ", to the block's length, " +
             number(of.block.length);
    });
  }
  if (!shape().in_tree(of.block.n.order)) {
    return refuse(error::invalid_argument, [&] {
      return "the block of " + number(of.block.length) + " bytes is larger than this pool divides; allocate at most " +
             number(shape().bytes(std::uint64_t{1} << shape().root_order));
    });
  }
  if (of.block.word.sixteenths() != whole) {
    return refuse(error::invalid_argument, [&] {
      return "the block's length of " + number(of.block.length) +
             " bytes is not a power of two; allocate one, without an alignment above the granule";
    });
  }
  of.part_order = static_cast<unsigned>(std::countr_zero(of.part_bytes)) - granule_shift_;
  of.requested = of.block.length - of.block.word.unused();
  const std::uint64_t parts = std::uint64_t{1} << of.levels();
  if (of.levels() > 31 || of.words.size() != part_map::words_of(parts) || !of.live().valid()) {
    return refuse(error::invalid_argument, [&] {
      return "there are " + number(parts) + " parts, and " + number(of.words.size() * part_map::word_bits) +
             " bits to say which are live; give whole words of 32 for at most 2^31 parts, with no bit set past the "
             "last";
    });
  }
  return error::none;
}

/// live -> owned. Changed: the block is no longer as it was found.
pool::state::taking pool::state::take_live(const block_store::found& block) noexcept {
  if (block.word.home() != 0) return take_from_home(block);
  std::uint64_t expected = block.word.bits();
  // The check, as of a free without a home. Relaxed: the parts' words and give() publish.
  return store_.word(block.n).compare_exchange_strong(expected, block_word::owned().bits(), relaxed, relaxed)
             ? taking::taken
             : taking::changed;
}

/// Notes for each part and piece which streams must be done with it. False: too many, or no memory; nothing has
/// happened.
bool pool::state::record_parts(const division& of) noexcept {
  const std::uint64_t first = shape().granule(of.block.n);
  const part_map live = of.live();
  std::uint64_t count = live.count_live();
  live.each_free([&](std::uint32_t, unsigned) { ++count; });
  if (count > most_recorded) return false;
  std::vector<std::uint64_t> added;
  const std::lock_guard lock(notes_.mutex);
  try {
    added.reserve(static_cast<std::size_t>(count));
    const auto note = [&](std::uint32_t part) {
      const std::uint64_t granule = first + (std::uint64_t{part} << of.part_order);
      if (granule == first) return;  // has the whole block's note
      notes_.by_granule[granule].streams = of.other_lanes;
      added.push_back(granule);
    };
    live.each_live(note);
    live.each_free([&](std::uint32_t part, unsigned) { note(part); });
  } catch (const std::bad_alloc&) {
    for (const std::uint64_t granule : added) notes_.by_granule.erase(granule);
    return false;
  }
  for (lane* const each : of.other_lanes)
    each->coming.fetch_add(static_cast<std::uint32_t>(added.size()), relaxed);  // as in record_stream()
  notes_.recount();
  return true;
}

/// An owned piece: to the store, or first to the streams that it is recorded for.
void pool::state::give_piece(const division& of, node n) noexcept {
  if (!of.other_lanes.empty()) {
    store_.word(n).store(block_word::cached(whole).bits(), relaxed);  // owned: still ours
    if (hold_recorded(of.in, n, whole)) return;
  }
  count_taken(nullptr, 0 - store_.length(n, whole));
  store_.give(n, whole);
}

/// No part is live, and no stream uses the block. Pre: owned.
void pool::state::free_whole(const division& of) noexcept {
  const slow_section marked(*this, nullptr);
  store_.memory().tools().taken_back(of.pointer, of.requested, of.block.length);
  if (tags_.on()) tags_.taken_back(0, shape().granule(of.block.n), of.requested, of.block.length);
  count_free(nullptr, of.requested);
  give_piece(of, of.block.n);
}

/// Pre: owned; some parts are live, and there are several.
void pool::state::part(const division& of) noexcept {
  const slow_section marked(*this, nullptr);
  const part_map live = of.live();
  const std::uint64_t count = live.count_live();
  const auto requested = static_cast<std::int64_t>(count * of.part_bytes) - static_cast<std::int64_t>(of.requested);
  raise_peak_requested(published_requested_.fetch_add(requested, relaxed) + requested);  // a figure
  allocations_.fetch_add(count - 1, relaxed);      // a figure: the parts are in the block's place
  generations_.end_any(shape().granule(of.block.n));
  store_.divide(of.block.n, of.part_order, live);  // 1
  const std::uint64_t word = block_word::live(whole, 0, 0).bits();
  store_.memory().tools().taken_back(of.pointer, of.requested, of.block.length);
  const std::uint16_t tag = tags_.on() ? tags_.at(shape().granule(of.block.n)) : std::uint16_t{0};
  if (tags_.on()) {
    const std::uint64_t freed = of.block.length - count * of.part_bytes;
    tags_.divided(tag, requested, -static_cast<std::int64_t>(freed), count - 1);
  }
  live.each_live([&](std::uint32_t part) {
    const node n = of.node_at(part, 0);
    if (tags_.on()) tags_.inherit(tag, n.granule());
    store_.memory().tools().handed_out(store_.memory().address(n.granule()), of.part_bytes, of.part_bytes);
    store_.word(n).store(word, release);  // 2
  });
  store_.word(of.block.n).store(block_word::split().bits(), release);                                    // 3
  live.each_free([&](std::uint32_t part, unsigned order) { give_piece(of, of.node_at(part, order)); });  // 4
}

error pool::state::divide(void* pointer, std::size_t part_bytes, std::span<const std::uint32_t> live, lane* in,
                          std::string* why) noexcept {
  division of{.pointer = pointer, .part_bytes = part_bytes, .words = live, .in = in};
  for (;;) {
    if (const error code = plan_division(of, why); code != error::none) return code;
    const part_map parts = of.live();
    const bool frees_all = parts.next_live(0) == parts.parts();
    if (frees_all && in != nullptr) {
      const error code = deallocate_slow(pointer, 0, nullptr, in);
      if (code != error::none) continue;  // changed since: the plan says why
      return code;
    }
    if (parts.parts() == 1 && !frees_all) return error::none;  // it is a block of its own already
    const auto refuse = [&](const char* reason, error code = error::out_of_memory) {
      if (why != nullptr) {
        try {
          *why = reason;
        } catch (const std::bad_alloc&) {  // as above
        }
      }
      return code;
    };
    const taking step = take_live(of.block);
    if (step == taking::changed) continue;  // look again
    if (step == taking::out_of_reach)
      return refuse(
          "orderly: the block came from the cache of a thread that is stopped in the middle of a call, or the system "
          "refuses barriers between threads; try again");
    const auto give_up = [&](const char* reason, error code = error::out_of_memory) {
      // Still ours, so the word goes back as it was.
      store_.word(of.block.n).store(of.block.word.bits(), relaxed);
      return refuse(reason, code);
    };
    if (notes_.count.load(relaxed) != 0) {  // the program orders what notes a block before this
      const std::lock_guard lock(notes_.mutex);
      const auto at = notes_.by_granule.find(shape().granule(of.block.n));
      try {
        if (at != notes_.by_granule.end()) {
          if (at->second.graph != nullptr)
            return give_up("orderly: the block is a graph's, which uses it as a whole; divide it when the graph is gone",
                           error::invalid_argument);
          of.other_lanes = at->second.streams;
        }
      } catch (const std::bad_alloc&) {
        return give_up("orderly: no memory to note the streams of the parts; try again");
      }
    }
    if (frees_all) {
      free_whole(of);
      return error::none;
    }
    if (!of.other_lanes.empty()) {
      if (!record_parts(of))
        return give_up(
            "orderly: a block that several streams use divides into 65536 blocks at most, and takes memory to "
            "note them; synchronize the streams instead of recording them");
    } else if (in != nullptr && !add_barrier(*in)) {
      return give_up("orderly: no event can be recorded in the stream, which captures perhaps; divide the block later");
    }
    part(of);
    return error::none;
  }
}

}  // namespace orderly
