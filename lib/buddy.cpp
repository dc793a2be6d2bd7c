#include "buddy.hpp"

#include <algorithm>
#include <bit>
#include <utility>

#include "size_class.hpp"

namespace orderly::detail {

namespace {

/// From this size of a node on (log2 of bytes) each word of a table has a cache line to itself: such blocks are taken one
/// at a time, so that neighbours belong to different threads, and a line costs less than half a percent of the block.
constexpr unsigned spaced_from = 14;
constexpr unsigned words_per_line_log2 = 3;

}  // namespace

bool buddy::open(const geometry& shape, const chunk_table& chunks) noexcept {
  shape_ = shape;
  chunks_ = &chunks;
  const auto nodes = [&](unsigned order) { return shape.nodes(order) + 1; };  // the buddy of the last may lie past it
  const std::uint64_t grouped = 2 * nodes(0) + (std::uint64_t{4} << shape.group_order);  // in whole groups, and one more
  std::uint64_t words = grouped;
  std::uint64_t links = grouped * kinds;
  for (unsigned order = shape.group_order; order <= shape.root_order; ++order) {
    if (order + shape.granule_shift >= spaced_from && nodes(order) <= max_positions >> words_per_line_log2)
      spacing_[order] = words_per_line_log2;
    words += nodes(order) << spacing_[order];
    links += nodes(order) * kinds;
  }
  if (!word_table_.reserve(words) || !link_table_.reserve(links)) return false;
  atomic<std::uint64_t>* word = word_table_.data();
  atomic<link_code>* link = link_table_.data();
  for (unsigned order = 0; order < shape.group_order; ++order) {
    spacing_[order] = static_cast<std::uint8_t>(order + 1);
    const std::uint64_t first = (std::uint64_t{1} << order) - 1;
    words_[order] = word + first;
    for (std::size_t kind = 0; kind < kinds; ++kind)
      free_[order][kind].links = link_table(link + kind * grouped + first, order + 1);
  }
  word += grouped;
  link += grouped * kinds;
  for (unsigned order = shape.group_order; order <= shape.root_order; ++order) {
    words_[order] = std::exchange(word, word + (nodes(order) << spacing_[order]));
    for (hints& of : free_[order]) of.links = std::exchange(link, link + nodes(order));
  }
  if (shape.flat) {
    // The first blocks come out of splits through all orders: a page fault for each would cost more than the splits.
    for (unsigned order = shape.group_order; order <= shape.root_order; ++order) {
      touch_ahead(words_[order], sizeof(words_[order][0]));
      for (const hints& of : free_[order]) touch_ahead(&of.links[0], sizeof(link_code));
    }
    next_root_.store(1, relaxed);  // no other thread yet
    for (std::uint64_t granule = 0; granule < shape.tree_granules;) {
      const auto order = static_cast<unsigned>(std::bit_width(shape.tree_granules - granule) - 1);
      const node n{static_cast<std::uint32_t>(granule >> order), static_cast<std::uint8_t>(order)};
      for (node above = n.parent(); above.order <= shape.root_order; above = above.parent())
        this->word(above).store(block_word::split().bits(), relaxed);  // no other thread yet
      publish(n);
      hint(n);
      granule += std::uint64_t{1} << order;
    }
  }
  return true;
}

std::uint64_t buddy::used_granules() const noexcept {
  if (shape_.flat) return shape_.tree_granules;
  return std::uint64_t{next_root_.load(relaxed)} << shape_.root_order;  // a bound for walks; words tell the rest
}

bool buddy::claim_word(node n) noexcept {
  std::uint64_t expected = block_word::free().bits();
  // W: acquires what the last owner published. seq_cst for H: ordered after the link's release in claim(order, kind).
  return word(n).compare_exchange_strong(expected, block_word::owned().bits(), seq_cst, seq_cst);
}

void buddy::publish(node n) noexcept {
  word(n).store(block_word::free().bits(), seq_cst);  // W, and the first step of H and M
}

void buddy::hint(node n) noexcept {
  // If the node is not ours any more, the kind may be wrong: a hint out of date, no worse than others.
  backing kind = chunks_->look(n);
  if (n.order < shape_.chunk_order && chunks_->is_small(n)) kind = backing::partial;  // the list of small blocks' nodes
  hints& of = free_nodes(n.order, kind);
  link_code expected = unlinked;
  // H: the second step of the giver. Winning the link makes this thread the only one to push the node.
  if (of.links[n.index].compare_exchange_strong(expected, last, seq_cst, seq_cst)) of.list.push(of.links, n.index);
}

std::optional<node> buddy::claim(unsigned order, backing kind) noexcept {
  hints& of = free_nodes(order, kind);
  while (const auto index = of.list.try_pop(of.links)) {
    of.links[*index].store(unlinked, seq_cst);  // H: the first step of the popper; claim_word is the second
    const node n{*index, static_cast<std::uint8_t>(order)};
    if (claim_word(n)) return n;
    // A hint out of date: the node was claimed past the list. Whoever frees it again finds the link clear.
  }
  return std::nullopt;
}

void buddy::touch_tables(unsigned order, backing kind, std::uint32_t root, std::uint32_t count) noexcept {
  const unsigned shift = shape_.root_order - order;
  const std::size_t first = std::size_t{root} << shift;
  const std::size_t nodes = std::size_t{count} << shift;
  if (kind != backing::bare)
    touch_ahead(words_[order] + (first << spacing_[order]), (nodes << spacing_[order]) * sizeof(words_[order][0]));
  touch_ahead(&free_nodes(order, kind).links[static_cast<std::uint32_t>(first)], nodes * sizeof(link_code));
}

/// The tables of new roots are touched in growing steps: a page fault here and there would be most of the tail of
/// allocate's times.
void buddy::touch_tables_ahead(std::uint32_t root) noexcept {
  std::uint32_t seen = touched_roots_.load(relaxed);  // a bound of what was asked for; nothing depends on it
  const std::uint32_t count = std::clamp(root / 4, least_roots_ahead, most_roots_ahead);
  if (root < seen || !touched_roots_.compare_exchange_strong(seen, root + count, relaxed, relaxed)) return;
  const auto roots = static_cast<std::uint32_t>(shape_.tree_granules >> shape_.root_order);
  const std::uint32_t present = std::min(count, roots - root);
  for (unsigned order = shape_.group_order; order <= shape_.root_order; ++order)
    for (const backing kind : {backing::full, backing::partial, backing::bare})
      if (kind != backing::bare || order >= shape_.chunk_order) touch_tables(order, kind, root, present);
}

std::optional<node> buddy::untouched_root() noexcept {
  if (shape_.flat) return std::nullopt;
  const auto roots = static_cast<std::uint32_t>(shape_.tree_granules >> shape_.root_order);
  std::uint32_t next = next_root_.load(seq_cst);  // seq_cst for press(): who finds none left sees who took the last busy
  while (next < roots) {
    if (next_root_.compare_exchange_weak(next, next + 1, seq_cst, seq_cst)) {  // the root's records are still zero
      const node n{next, static_cast<std::uint8_t>(shape_.root_order)};
      touch_tables_ahead(next);
      word(n).store(block_word::owned().bits(), relaxed);  // B1: the counter gave it to this thread alone
      return n;
    }
  }
  return std::nullopt;
}

std::optional<node> buddy::claim_below_chunk(unsigned order, bool small) noexcept {
  for (unsigned k = order; k < shape_.chunk_order && k <= shape_.root_order; ++k)
    if (const auto n = claim(k, small ? backing::partial : backing::full)) return n;
  return std::nullopt;
}

std::optional<node> buddy::claim_among_others(unsigned order) noexcept {
  if (shape_.flat) return std::nullopt;
  return claim_below_chunk(order, order >= shape_.small_order);
}

std::optional<node> buddy::claim(unsigned order) noexcept {
  if (const auto n = claim_below_chunk(order, !shape_.flat && order < shape_.small_order)) return n;
  const unsigned least = std::max(order, shape_.chunk_order);
  // For less than a chunk the smallest node that has a committed chunk, for more one that has all committed.
  for (unsigned k = least; k <= shape_.root_order; ++k) {
    if (const auto n = claim(k, backing::full)) return n;
    if (order >= shape_.chunk_order) continue;
    if (const auto n = claim(k, backing::partial)) return n;
  }
  for (const backing kind : {backing::partial, backing::bare})
    for (unsigned k = least; k <= shape_.root_order; ++k)
      if (const auto n = claim(k, kind)) return n;
  return untouched_root();
}

node buddy::split(node n, unsigned order) noexcept {
  while (n.order > order) {
    word(n).store(block_word::split().bits(), relaxed);  // seen with the half that publish() releases
    const bool keep_right = n.order > shape_.chunk_order && chunks_->count(n.left()) < chunks_->count(n.right());
    const node kept = keep_right ? n.right() : n.left();
    word(kept).store(block_word::owned().bits(), relaxed);  // ours already, by B1
    publish(kept.buddy());
    hint(kept.buddy());
    n = kept;
  }
  return n;
}

std::uint32_t buddy::shatter(node n, unsigned order) noexcept {
  // All below an owned node is this thread's (B1), so relaxed stores; hand-over of the blocks publishes them.
  std::uint32_t first = n.index;
  std::uint32_t count = 1;
  for (unsigned k = n.order; k > order; --k) {
    for (std::uint32_t i = first; i < first + count; ++i)
      word({i, static_cast<std::uint8_t>(k)}).store(block_word::split().bits(), relaxed);
    first *= 2;
    count *= 2;
  }
  for (std::uint32_t i = first; i < first + count; ++i)
    word({i, static_cast<std::uint8_t>(order)}).store(block_word::owned().bits(), relaxed);
  return first;
}

void buddy::carve(node n, unsigned sixteenths) noexcept {
  std::uint64_t left = granules_of(n.order, sixteenths);
  while (left < std::uint64_t{1} << n.order) {
    const std::uint64_t half = std::uint64_t{1} << (n.order - 1);
    if (left <= half) {
      publish(n.right());
      hint(n.right());
      n = n.left();
    } else {
      left -= half;
      n = n.right();
    }
    // The nodes on the way are neither free nor blocks; the last one is covered whole. Seen with the next publish, or,
    // for the last, with the block itself.
    word(n).store((left < std::uint64_t{1} << n.order ? block_word::split() : block_word::none()).bits(), relaxed);
  }
}

void buddy::give(node n, unsigned sixteenths) noexcept {
  if (sixteenths == whole) return give_whole(n);
  std::uint64_t left = granules_of(n.order, sixteenths);
  word(n).store(block_word::split().bits(), relaxed);  // seen with the pieces; the nodes below are as carve() left them
  while (left < std::uint64_t{1} << n.order) {
    const std::uint64_t half = std::uint64_t{1} << (n.order - 1);
    if (left <= half) {
      n = n.left();
    } else {
      left -= half;
      const node covered = n.left();
      n = n.right();
      give_whole(covered);
    }
  }
  give_whole(n);
}

void buddy::give_whole(node n) noexcept {
  while (n.order < shape_.root_order) {
    if (!claim_word(n.buddy())) {
      publish(n);
      // M: the second step. A buddy that is not free now can become free only by a later publish, whose giver sees us.
      if (look_seq_cst(n.buddy()) != block_word::free()) return hint(n);
      const node lower{n.index & ~1U, n.order};
      if (!claim_word(lower)) return hint(n);
      // Both halves looked free and the lower one is ours: claim the upper, or publish again and look again. If the upper
      // is gone by then, whoever has it gives it back with a hint of its own.
      n = lower;
      continue;
    }
    word(n).store(block_word::none().bits(), relaxed);  // both halves are ours; seen with the parent's publish
    word(n.buddy()).store(block_word::none().bits(), relaxed);
    n = n.parent();
    word(n).store(block_word::owned().bits(), relaxed);  // was split: nobody else may touch it
  }
  publish(n);
  hint(n);
}

}  // namespace orderly::detail
