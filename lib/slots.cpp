#include "slots.hpp"

#include <algorithm>

namespace orderly::detail {

bool slots::open(arena& memory) noexcept {
  memory_ = &memory;
  const geometry& shape = memory.shape();
  std::size_t total = 0;
  for (unsigned order = shape.root_order + 1; order <= shape.top_order; ++order) {
    start_[order] = total;
    total += shape.slots[order];
  }
  return word_.reserve(total) && link_.reserve(total) && chunks_.reserve(total);
}

std::optional<node> slots::at_granule(std::uint64_t granule) const noexcept {
  const geometry& shape = memory_->shape();
  for (unsigned order = shape.top_order; order > shape.root_order; --order) {
    if (granule < shape.slot_granule[order]) continue;
    const std::uint64_t index = (granule - shape.slot_granule[order]) >> order;
    if (index >= shape.slots[order]) return std::nullopt;
    return node{static_cast<std::uint32_t>(index), static_cast<std::uint8_t>(order)};
  }
  return std::nullopt;
}

unsigned slots::list_of(unsigned order, std::uint64_t chunks) const noexcept {
  if (chunks == 0) return bare;
  const std::uint64_t eighth = std::uint64_t{1} << (order - memory_->shape().chunk_order - 4);
  const std::uint64_t filled = (chunks + eighth - 1) / eighth;  // sixteenths of the slot
  return static_cast<unsigned>(std::clamp<std::uint64_t>(filled, 9, 16) - 8);
}

std::optional<node> slots::pop(unsigned order, unsigned list) noexcept {
  atomic<link_code>* const links = link_.data() + start_[order];
  while (const auto index = lists_[order][list].try_pop(links)) {
    links[*index].store(unlinked, seq_cst);  // H: the first step of the popper; the CAS is the second
    const node n{*index, static_cast<std::uint8_t>(order)};
    std::uint64_t expected = block_word::free().bits();
    if (word(n).compare_exchange_strong(expected, block_word::owned().bits(), seq_cst, seq_cst)) return n;  // W, H
  }
  return std::nullopt;
}

std::optional<node> slots::untouched(unsigned order) noexcept {
  std::uint32_t next = next_[order].load(seq_cst);  // as in buddy::untouched_root
  while (next < memory_->shape().slots[order]) {
    if (next_[order].compare_exchange_weak(next, next + 1, seq_cst, seq_cst)) {
      const node n{next, static_cast<std::uint8_t>(order)};
      word(n).store(block_word::owned().bits(), relaxed);  // the counter gave it to this thread alone
      return n;
    }
  }
  return std::nullopt;
}

/// The slot that fits best: as many chunks as needed, else more (they are released), else fewer, else none.
std::optional<node> slots::claim(unsigned order, std::uint64_t chunks) noexcept {
  const unsigned wanted = list_of(order, chunks);
  for (unsigned list = wanted; list < lists_per_order; ++list)
    if (const auto n = pop(order, list)) return n;
  for (unsigned list = wanted - 1; list > bare; --list)
    if (const auto n = pop(order, list)) return n;
  if (const auto n = pop(order, bare)) return n;
  return untouched(order);
}

refusal slots::fit(node n, std::uint64_t wanted, ceiling up_to) noexcept {
  const std::uint64_t present = chunks(n);
  if (present < wanted) {
    const refusal refused = memory_->commit(n, present, wanted, up_to);
    if (refused != refusal::none) return refused;
    chunks_[at(n)].store(wanted, relaxed);  // the owner's record, published with the word
  } else if (present > wanted && !memory_->held_back()) {
    if (memory_->decommit(n, wanted, present)) {
      chunks_[at(n)].store(wanted, relaxed);  // as above
    } else if (memory_->decommit(n, 0, present)) {  // the end was not to be had without the rest
      chunks_[at(n)].store(0, relaxed);  // as above
      return fit(n, wanted, up_to);
    }
  }
  return refusal::none;
}

std::optional<node> slots::take(unsigned order, std::uint64_t chunks, ceiling up_to, refusal& why) noexcept {
  const auto n = claim(order, chunks);
  why = n ? fit(*n, chunks, up_to) : refusal::no_node;
  if (why == refusal::none) return n;
  if (n) give(*n);
  return std::nullopt;
}

void slots::give(node n) noexcept {
  const unsigned list = list_of(n.order, chunks(n));
  word(n).store(block_word::free().bits(), seq_cst);  // W, and the first step of H
  atomic<link_code>* const links = link_.data() + start_[n.order];
  link_code expected = unlinked;
  if (links[n.index].compare_exchange_strong(expected, last, seq_cst, seq_cst))  // H: the second step of the giver
    lists_[n.order][list].push(links, n.index);
}

void slots::trim(trimming& of) noexcept {
  const geometry& shape = memory_->shape();
  for (unsigned order = shape.top_order; order > shape.root_order; --order) {
    for (unsigned list = lists_per_order - 1; list > bare; --list) {
      while (!of.over()) {
        const auto n = pop(order, list);
        if (!n) break;
        const std::uint64_t present = chunks(*n);
        const std::uint64_t gone = std::min<std::uint64_t>(present, of.room() / shape.chunk_bytes());
        if (!memory_->decommit(*n, present - gone, present)) {
          of.refused[of.refused_count++] = *n;
          continue;
        }
        chunks_[at(*n)].store(present - gone, relaxed);  // the owner's record, published with the word
        of.released += gone * shape.chunk_bytes();
        give(*n);
      }
    }
  }
}

}  // namespace orderly::detail
