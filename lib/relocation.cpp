#include "relocation.hpp"

#include <algorithm>
#include <array>
#include <functional>
#include <mutex>
#include <numeric>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "pool_state.hpp"

namespace orderly {

using namespace detail;

namespace {

/// What counts as a chunk where memory is one plain allocation: freeing so much in one piece is worth the copies.
constexpr unsigned flat_chunk_log2 = 21;

/// One chunk in which blocks smaller than it exist.
struct chunk_view {
  std::uint64_t first_granule = 0;
  std::uint64_t free = 0;  ///< granules of free nodes
  std::size_t first_block = 0;
  std::size_t blocks = 0;  ///< that may be moved
  std::size_t rank = 0;    ///< in the row of all chunks, the one to be emptied first
  bool stays = false;      ///< another block lives in it, or a moved one will
};

/// A block that may be moved.
struct movable_block {
  std::size_t place = 0;
  unsigned order = 0;
};

/// Free nodes to be filled, by order; in each the last is to be filled first.
class free_room {
 public:
  void add(node n, std::size_t rank) { nodes_[n.order].push_back({n, rank}); }
  void sort() {
    for (auto& of_order : nodes_)
      std::stable_sort(of_order.begin(), of_order.end(), [](const entry& a, const entry& b) { return a.rank < b.rank; });
  }

  struct entry {
    node of;
    std::size_t rank = 0;
  };

  /// The smallest node of at least that order in the last chunk that has one behind a rank; what is left of it is there for
  /// others. Nothing: there is none.
  [[nodiscard]] std::optional<entry> take(unsigned order, std::size_t behind) {
    unsigned chosen = max_orders;
    for (unsigned k = order; k < max_orders; ++k) {
      if (nodes_[k].empty()) continue;
      const std::size_t rank = nodes_[k].back().rank;
      if (rank > behind && (chosen == max_orders || rank > nodes_[chosen].back().rank)) chosen = k;
    }
    if (chosen == max_orders) return std::nullopt;
    const entry found = nodes_[chosen].back();
    nodes_[chosen].pop_back();
    // Its chunk is the last one of all orders, so each list stays in order.
    for (node rest = found.of; rest.order > order; rest = rest.left()) add(rest.right(), found.rank);
    return found;
  }
  /// Undoes the last take() that is not undone.
  void put_back(const entry& taken, unsigned order) {
    for (node rest = taken.of; rest.order > order; rest = rest.left()) nodes_[rest.order - 1U].pop_back();
    nodes_[taken.of.order].push_back(taken);
  }

 private:
  std::array<std::vector<entry>, max_orders> nodes_;
};

}  // namespace

relocation_plan pool::state::plan_relocation(std::span<void* const> movable) {
  const std::lock_guard lock(pass_mutex_);
  passes_.fetch_add(1, relaxed);  // as in collect()
  reclaim_caches(patience::brief);
  settle_all(false);

  const unsigned chunk_order =
      shape().flat ? std::min(shape().root_order, std::max(flat_chunk_log2, granule_shift_) - granule_shift_)
                   : shape().chunk_order;
  std::vector<chunk_view> chunks;
  const auto view_of = [&](std::uint64_t granule) -> chunk_view& {  // the walk is in the order of addresses
    const std::uint64_t first = granule >> chunk_order << chunk_order;
    if (chunks.empty() || chunks.back().first_granule != first) chunks.push_back({.first_granule = first});
    return chunks.back();
  };
  std::vector<node> free_nodes;
  std::vector<movable_block> blocks;
  std::size_t place = 0;
  store_.each_block([&](node n, block_word word) {
    if (!shape().in_tree(n.order)) return;
    const std::uint64_t start = n.granule();
    const std::uint64_t length = granules_of(n.order, word.sixteenths() == 0 ? whole : word.sixteenths());
    if (n.order >= chunk_order) {
      if (word.state() != block_state::free && length >> chunk_order << chunk_order != length)
        view_of(start + length).stays = true;  // its end lies in a chunk whose rest others have
      return;
    }
    chunk_view& in = view_of(start);
    if (word.state() == block_state::free) {
      in.free += length;
      free_nodes.push_back(n);
    } else if (word.state() == block_state::live) {
      void* const address = store_.memory().address(start);
      while (place < movable.size() && std::less<>()(movable[place], address)) ++place;
      if (place == movable.size() || movable[place] != address) {
        in.stays = true;
        return;
      }
      if (in.blocks++ == 0) in.first_block = blocks.size();
      blocks.push_back({place, n.order});
    } else if (word.state() == block_state::owned) {
      in.stays = true;  // it is changing hands
    }
    // What is cached comes back by the next pass.
  });

  // The row: the emptiest first; in a plain allocation the last first, so that what comes free lies together.
  std::vector<std::size_t> row(chunks.size());
  std::iota(row.begin(), row.end(), std::size_t{0});
  std::reverse(row.begin(), row.end());
  if (!shape().flat)
    std::stable_sort(row.begin(), row.end(), [&](std::size_t a, std::size_t b) { return chunks[a].free > chunks[b].free; });
  for (std::size_t rank = 0; rank < row.size(); ++rank) chunks[row[rank]].rank = rank;
  free_room room;
  for (const node n : free_nodes) {
    const std::uint64_t first = n.granule() >> chunk_order << chunk_order;
    const auto of = std::lower_bound(chunks.begin(), chunks.end(), first,
                                     [](const chunk_view& c, std::uint64_t granule) { return c.first_granule < granule; });
    room.add(n, of->rank);
  }
  room.sort();

  relocation_plan plan;
  plan.chunk_order = chunk_order;
  for (std::size_t rank = 0; rank < row.size(); ++rank) {
    const chunk_view& from = chunks[row[rank]];
    if (from.stays || from.blocks == 0 || from.free == 0) continue;
    const std::span leaving = std::span(blocks).subspan(from.first_block, from.blocks);
    std::vector<free_room::entry> taken;
    for (const movable_block& each : leaving) {
      const auto to = room.take(each.order, rank);
      if (!to) break;
      taken.push_back(*to);
    }
    if (taken.size() != leaving.size()) {  // to move some of them would be for nothing
      for (std::size_t i = taken.size(); i-- > 0;) room.put_back(taken[i], leaving[i].order);
      continue;
    }
    for (std::size_t i = 0; i < taken.size(); ++i) {
      plan.moves.push_back({leaving[i].place, taken[i].of});
      chunks[row[taken[i].rank]].stays = true;
    }
    plan.emptied.push_back(from.first_granule);
  }
  return plan;
}

void* pool::state::allocate_in_room(node room, std::size_t bytes, const void* moving, lane* in) noexcept {
  request wanted = work_out(bytes, 1, in);
  if (tags_.on()) wanted.tag = tags_.at(*store_.memory().offset(moving) >> granule_shift_);
  wanted.of_class = no_class;  // no front hands it out, so none is its home
  if (wanted.shape.order > room.order) return nullptr;
  const slow_section marked(*this, nullptr);
  const auto block = store_.take_out_of(room, wanted.shape);
  if (!block) return nullptr;
  if (!may_serve(wanted)) {
    store_.give(*block, wanted.shape.sixteenths);
    return nullptr;
  }
  count_taken(nullptr, store_.length(*block, wanted.shape.sixteenths));
  return hand_out(nullptr, wanted, *block);
}

std::size_t pool::state::count_emptied(const relocation_plan& plan) const noexcept {
  return static_cast<std::size_t>(std::count_if(plan.emptied.begin(), plan.emptied.end(), [&](std::uint64_t granule) {
    const block_store::found at = store_.find(shape().bytes(granule));
    return at.exists && at.word.state() == block_state::free && at.n.order >= plan.chunk_order;
  }));
}

}  // namespace orderly
