/// \file
/// Blocks above a root: slots of a fixed power of two of addresses, neither split nor merged, each with as many chunks
/// committed as its block needs. A free slot keeps them, and waits in the list of their number (in eighths of the upper
/// half of the slot), so that the next request of about the same size commits next to nothing.
///
/// Words, links and hints work as in buddy.hpp (W and H there); a slot has no buddy.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "arena.hpp"
#include "atomic.hpp"
#include "block_word.hpp"
#include "free_list.hpp"
#include "reserved_array.hpp"

namespace orderly::detail {

class slots {
 public:
  /// False: the system refused the tables.
  [[nodiscard]] bool open(arena& memory) noexcept;

  /// Owns a slot of that order with exactly that many chunks committed. Pre: the chunks are more than half the slot.
  [[nodiscard]] std::optional<node> take(unsigned order, std::uint64_t chunks, ceiling up_to, refusal& why) noexcept;

  /// Gives an owned slot back; its chunks stay committed.
  void give(node n) noexcept;

  /// Owns the free slot that take() would take for as many chunks. Nothing is committed, and nothing released.
  [[nodiscard]] std::optional<node> claim(unsigned order, std::uint64_t chunks) noexcept;

  /// Decommits free slots, largest first; of the last one what lies within `most`, if the source can cut it.
  void trim(trimming& of) noexcept;

  [[nodiscard]] atomic<std::uint64_t>& word(node n) const noexcept { return word_[at(n)]; }
  [[nodiscard]] block_word look(node n) const noexcept { return block_word(word(n).load(acquire)); }  // W, as a look
  [[nodiscard]] std::uint64_t chunks(node n) const noexcept { return chunks_[at(n)].load(relaxed); }  // owner's, or a look

  /// Slots of an order that were ever used.
  [[nodiscard]] std::uint32_t used(unsigned order) const noexcept {
    const std::uint32_t next = next_[order].load(relaxed);  // a bound for walks; words tell the rest
    return next;
  }

  /// The slot that a granule outside the tree lies in. None: it lies between two orders' slots.
  [[nodiscard]] std::optional<node> at_granule(std::uint64_t granule) const noexcept;

 private:
  static constexpr unsigned bare = 0;
  static constexpr unsigned lists_per_order = 9;  ///< bare, then by committed chunks

  [[nodiscard]] std::size_t at(node n) const noexcept { return start_[n.order] + n.index; }
  [[nodiscard]] unsigned list_of(unsigned order, std::uint64_t chunks) const noexcept;
  [[nodiscard]] std::optional<node> pop(unsigned order, unsigned list) noexcept;
  [[nodiscard]] std::optional<node> untouched(unsigned order) noexcept;
  [[nodiscard]] refusal fit(node n, std::uint64_t chunks, ceiling up_to) noexcept;

  arena* memory_ = nullptr;
  std::array<std::size_t, max_orders> start_{};
  reserved_array<atomic<std::uint64_t>> word_;
  reserved_array<atomic<link_code>> link_;
  reserved_array<atomic<std::uint64_t>> chunks_;
  struct alignas(64) lone_list : free_list {};
  std::array<std::array<lone_list, lists_per_order>, max_orders> lists_{};
  std::array<atomic<std::uint32_t>, max_orders> next_{};
};

}  // namespace orderly::detail
