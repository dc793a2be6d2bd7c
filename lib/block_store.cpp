#include "block_store.hpp"

#include <algorithm>
#include <bit>

namespace orderly::detail {
namespace {

/// A trim takes no more of a node in the tree than is missing, or this much: a source that pays for the piece makes one of
/// each chunk there, so the rest would cost as much again; but where chunks are small it is calls that cost.
constexpr std::size_t least_of_node = std::size_t{1} << 20;

}  // namespace

bool block_store::open() noexcept {
  return memory_.open() && tree_.open(shape(), memory_.chunks()) && slots_.open(memory_);
}

/// Turns an owned node of at least the shape's order into blocks and gives the rest away. Whole blocks come as many at
/// once as the node and `out` have room for.
std::size_t block_store::take_from(node n, block_shape block, std::span<std::uint32_t> out) noexcept {
  unsigned order = block.order;
  if (block.sixteenths == whole)
    order = std::min<unsigned>(n.order, order + static_cast<unsigned>(std::bit_width(out.size()) - 1));
  n = tree_.split(n, order);
  if (block.sixteenths != whole) {
    tree_.carve(n, block.sixteenths);
    out[0] = n.index;
    return 1;
  }
  const std::uint32_t first = tree_.shatter(n, block.order);
  const std::size_t count = std::size_t{1} << (n.order - block.order);
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<std::uint32_t>(first + i);
  return count;
}

/// Granules of a node that are committed for a block in it. A chunk is, before anything smaller than it exists; see
/// chunk_table.
std::uint64_t block_store::to_commit(block_shape block) const noexcept {
  const unsigned chunk_order = shape().chunk_order;
  return block.order < chunk_order ? std::uint64_t{1} << chunk_order : granules_of(block.order, block.sixteenths);
}

std::uint64_t block_store::chunks_of(std::uint64_t granules) const noexcept {
  return (granules + (std::uint64_t{1} << shape().chunk_order) - 1) >> shape().chunk_order;
}

std::size_t block_store::take(block_shape block, std::span<std::uint32_t> out, ceiling up_to, refusal& why) noexcept {
  const unsigned chunk_order = shape().chunk_order;
  std::size_t count = 0;
  why = refusal::none;
  while (count < out.size()) {
    auto n = tree_.claim(block.order);
    if (n && n->order >= chunk_order) {
      *n = tree_.split(*n, std::max<unsigned>(block.order, chunk_order));
      why = memory_.commit(*n, to_commit(block), up_to);
      if (why != refusal::none) {
        tree_.give(*n, whole);
        n.reset();
      } else if (block.order < chunk_order) {
        memory_.set_small(*n, block.order < shape().small_order);
      }
    } else if (!n) {
      why = refusal::no_node;
    }
    if (!n) n = tree_.claim_among_others(block.order);
    if (!n) break;
    count += take_from(*n, block, out.subspan(count));
  }
  if (count != 0) why = refusal::none;
  return count;
}

std::optional<node> block_store::take_one(block_shape block, std::uint64_t granules, ceiling up_to,
                                          refusal& why) noexcept {
  if (shape().in_tree(block.order)) {
    std::uint32_t index = 0;
    if (take(block, {&index, 1}, up_to, why) == 0) return std::nullopt;
    return node{index, block.order};
  }
  return slots_.take(block.order, chunks_of(granules), up_to, why);
}

std::optional<block_store::prospect> block_store::next(block_shape block, std::uint64_t granules) noexcept {
  auto n = shape().in_tree(block.order) ? tree_.claim(block.order) : slots_.claim(block.order, chunks_of(granules));
  if (!n) return std::nullopt;
  std::uint64_t missing = 0;
  if (!shape().in_tree(block.order)) {
    missing = chunks_of(granules) - std::min(chunks_of(granules), slots_.chunks(*n));
  } else if (n->order >= shape().chunk_order) {
    *n = tree_.split(*n, std::max<unsigned>(block.order, shape().chunk_order));
    const chunk_mask wanted = memory_.chunks().bits(*n, to_commit(block));
    missing = static_cast<std::uint64_t>(std::popcount(wanted & ~memory_.chunks().committed(*n, wanted)));
  }
  return prospect{*n, missing * shape().chunk_bytes()};
}

std::optional<node> block_store::take_out_of(node free, block_shape shape) noexcept {
  if (!tree_.claim(free)) return std::nullopt;
  std::uint32_t index = 0;
  take_from(free, shape, {&index, 1});
  return node{index, shape.order};
}

void block_store::give(node n, unsigned sixteenths) noexcept {
  if (shape().in_tree(n.order))
    tree_.give(n, sixteenths);
  else
    slots_.give(n);
}

void block_store::divide(node n, unsigned part_order, const part_map& live) noexcept {
  // All below an owned node is this thread's (B1), so relaxed stores; whoever gets a part sees them with its word.
  const unsigned levels = n.order - part_order;
  const std::uint32_t first = n.index << levels;
  std::uint32_t before = live.parts();  // the live part before; at first none, which shares no node with any
  live.each_live([&](std::uint32_t part) {
    for (unsigned level = 1; level < levels && part >> level != before >> level; ++level) {
      const node above{(first + part) >> level, static_cast<std::uint8_t>(part_order + level)};
      tree_.word(above).store(block_word::split().bits(), relaxed);
      // A chunk is set aside, as by take(), while all of it is still owned.
      if (above.order == shape().chunk_order) memory_.set_small(above, part_order < shape().small_order);
    }
    before = part;
  });
  if (n.order == shape().chunk_order) memory_.set_small(n, part_order < shape().small_order);
  live.each_free([&](std::uint32_t part, unsigned order) {
    const node piece{(first + part) >> order, static_cast<std::uint8_t>(part_order + order)};
    tree_.word(piece).store(block_word::owned().bits(), relaxed);
  });
}

std::size_t block_store::trim(std::size_t bytes, std::size_t most) noexcept {
  if (shape().flat) return 0;
  const std::size_t chunk = shape().chunk_bytes();
  trimming of;
  of.most = most / chunk * chunk;
  of.bytes = std::min(bytes, of.most);
  // Slots cost least: what was committed together is given back together, in few large pieces, and a source takes its
  // time for the piece (what that is on recorded traces ./bench/run --memory prints). Then nodes that are committed in
  // part, which are worth least, then whole ones, the largest first. What is given back bare may merge with its buddy into
  // a node that was looked for before, so go round again.
  for (std::size_t before = ~std::size_t{0}; !of.over() && of.released != before;) {
    before = of.released;
    slots_.trim(of);
    trim_tree(backing::partial, of);
    trim_tree(backing::full, of);
  }
  for (std::size_t i = 0; i < of.refused_count; ++i) give(of.refused[i], whole);
  return of.released;
}

void block_store::trim_tree(backing kind, trimming& of) noexcept {
  for (unsigned order = shape().root_order + 1; order-- > shape().chunk_order;) {
    while (!of.over()) {
      const auto n = tree_.claim(order, kind);
      if (!n) break;
      const std::size_t missing = std::max(of.bytes - of.released, least_of_node);
      const std::size_t room = std::min(of.room(), missing + shape().chunk_bytes() - 1) / shape().chunk_bytes();
      const auto chunks = std::min<std::size_t>(memory_.chunks().count(*n), room);
      const std::size_t gone = memory_.decommit(*n, chunks);
      of.released += gone;
      if (gone != chunks * shape().chunk_bytes()) {
        of.refused[of.refused_count++] = *n;
        continue;
      }
      tree_.give(*n, whole);
    }
  }
}

block_store::found block_store::describe(node n, block_word word) const noexcept {
  const bool trimmed = word.sixteenths() != 0;
  return {n, word, shape().bytes(shape().granule(n)), length(n, trimmed ? word.sixteenths() : whole), true};
}

block_store::found block_store::find(std::uint64_t offset) const noexcept {
  const std::uint64_t granule = offset >> shape().granule_shift;
  if (granule >= shape().tree_granules) {
    const auto n = slots_.at_granule(granule);
    const block_word seen = n ? slots_.look(*n) : block_word::none();
    if (seen.state() == block_state::none) return {};
    return describe(*n, seen);
  }
  for (unsigned order = 0; order <= shape().root_order; ++order) {
    const node n{static_cast<std::uint32_t>(granule >> order), static_cast<std::uint8_t>(order)};
    const block_word seen = tree_.look(n);
    if (seen.state() != block_state::none && seen.state() != block_state::split) return describe(n, seen);
  }
  return {};
}

block_store::found block_store::find_live(std::uint64_t offset) const noexcept {
  const found at = find(offset);
  return at.exists && at.word.state() == block_state::live && at.offset == offset ? at : found{};
}

}  // namespace orderly::detail
