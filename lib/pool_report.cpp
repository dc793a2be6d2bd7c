/// \file
/// A pool's report: figures of one look at everything, into a record of a fixed size. Nothing here takes memory.
#include "pool_state.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <mutex>

namespace orderly {

using namespace detail;

namespace {

/// Keeps the greatest of what it is shown, in order.
template <class T, std::size_t Size, class Greater>
void keep_greatest(std::array<T, Size>& kept, std::size_t& count, const T& shown, const Greater& greater) {
  if (count == Size && !greater(shown, kept[Size - 1])) return;
  std::size_t at = count < Size ? count++ : Size - 1;
  for (; at != 0 && greater(shown, kept[at - 1]); --at) kept[at] = kept[at - 1];
  kept[at] = shown;
}

}  // namespace

/// The largest request whose block fits into so many granules in one piece.
std::uint64_t pool::state::largest_fit(std::uint64_t granules) const noexcept {
  if (granules == 0) return 0;
  const std::uint64_t root = std::uint64_t{1} << shape().root_order;
  if (granules >= root) {
    if (shape().flat) return shape().bytes(root);
    return shape().bytes(granules >> shape().chunk_order << shape().chunk_order);  // a slot
  }
  const std::size_t least = class_of(granules);
  if (class_granules(least) == granules) return shape().bytes(granules);
  return least == 0 ? 0 : shape().bytes(class_granules(least - 1));
}

/// What is free, as it lies: a walk over all blocks.
void pool::state::add_free(memory_report& to) const noexcept {
  std::uint64_t scattered = 0;  // granules
  std::uint64_t idle = 0;       // bytes
  std::uint64_t largest = 0;    // granules
  store_.each_block([&](node n, block_word word) {
    if (word.state() != block_state::free) return;
    const std::uint64_t length = std::uint64_t{1} << n.order;
    if (!shape().in_tree(n.order)) {
      const std::uint64_t bytes = store_.length(n, whole);
      idle += bytes;
      const std::uint64_t present = bytes >> granule_shift_;
      if (present > length / 2) largest = std::max(largest, present);  // less has slots, or nodes, of another order
      return;
    }
    if (n.order < shape().chunk_order) {
      scattered += length;
      largest = std::max(largest, length);
      return;
    }
    const chunk_table& chunks = store_.memory().chunks();
    idle += std::uint64_t{chunks.count(n)} * shape().chunk_bytes();
    // A request of more than half a node takes its chunks from the start on; one of less gets the half that buddy::split
    // keeps.
    for (node at = n;; at = chunks.count(at.left()) < chunks.count(at.right()) ? at.right() : at.left()) {
      const chunk_mask all = chunks.bits(at, std::uint64_t{1} << at.order);
      const chunk_mask committed = chunks.committed(at, all);
      const auto run = static_cast<unsigned>(std::countr_one(committed >> std::countr_zero(all)));
      const std::uint64_t granules = std::uint64_t{run} << shape().chunk_order;
      if (granules > (std::uint64_t{1} << at.order) / 2) largest = std::max(largest, granules);
      if (at.order == shape().chunk_order) break;
    }
  });
  to.largest_now = static_cast<std::size_t>(largest_fit(largest));
  if (shape().flat) {
    to.idle = static_cast<std::size_t>(shape().bytes(largest));
    to.scattered = static_cast<std::size_t>(shape().bytes(scattered - std::min(scattered, largest)));
  } else {
    to.idle = static_cast<std::size_t>(idle);
    to.scattered = static_cast<std::size_t>(shape().bytes(scattered));
  }
}

/// What the caches of each lane hold. Pre: pass, in a pool with lanes.
void pool::state::add_lanes(memory_report& to) const noexcept {
  const auto in_front = [&](const front& f) {
    std::uint64_t bytes = f.inbox_bytes.load(relaxed);  // figures, all of them
    for (std::size_t c = 0; c < classes_; ++c)
      bytes += std::uint64_t{f.magazines[c].count.load(relaxed) + f.returns[c].count.load(relaxed)} * rules_[c].bytes;
    return bytes;
  };
  const auto on_shelves = [&](const depot::shelves& of) {
    std::uint64_t bytes = 0;
    for (std::size_t c = 0; c < classes_; ++c)
      bytes += std::uint64_t{of.height(c)} * rules_[c].batch * rules_[c].bytes;
    return bytes;
  };
  if (lanes_ == nullptr) {
    std::uint64_t bytes = on_shelves(shelves_);
    for (const front& f : made_fronts()) bytes += in_front(f);
    to.lanes[0].cached = static_cast<std::size_t>(bytes);
    to.lane_count = 1;
    return;
  }
  std::array<std::uint64_t, lanes::most_lanes> in_fronts{};
  for (const front& f : made_fronts())
    if (const lane* const of = f.of_lane.load(relaxed); of != nullptr) in_fronts[lanes_->index_of(*of)] += in_front(f);
  std::size_t count = 0;
  memory_report::lane all;
  lanes_->each([&](const lane& of) {
    memory_report::lane each;
    each.stream = of.stream;
    each.released = of.serial.load(relaxed) == 0;
    each.cached = static_cast<std::size_t>(in_fronts[lanes_->index_of(of)] + on_shelves(of.shelves));
    each.held = static_cast<std::size_t>(of.held.load(relaxed));
    if (each.cached + each.held == 0) return;
    ++count;
    all.cached += each.cached;
    all.held += each.held;
    keep_greatest(to.lanes, to.lane_count, each, [](const memory_report::lane& a, const memory_report::lane& b) {
      return a.cached + a.held > b.cached + b.held;
    });
  });
  for (std::size_t i = 0; i < to.lane_count; ++i) {
    all.cached -= to.lanes[i].cached;
    all.held -= to.lanes[i].held;
  }
  to.more_lanes = count - to.lane_count;
  to.rest = all;
  to.graphs = static_cast<std::size_t>(kept_bytes_.load(relaxed));  // a figure
}

void pool::state::add_tags(memory_report& to) const noexcept {
  to.tags_accounted = tags_.on();
  if (!tags_.on()) return;
  const std::size_t fronts = made_fronts().size();
  for (std::uint32_t number = 0; number < all_tag_names.count(); ++number) {
    const auto of = tags_.look(static_cast<std::uint16_t>(number), fronts);
    if (of.requested == 0) continue;
    memory_report::tag_figures each;
    each.requested = of.requested;
    each.allocated = of.allocated;
    each.peak_requested = of.peak_requested;
    each.blocks = of.allocations - of.frees;
    std::snprintf(each.name, sizeof each.name, "%s", all_tag_names.name_of(static_cast<std::uint16_t>(number)));
    keep_greatest(to.tags, to.tag_count, each, [](const memory_report::tag_figures& a, const memory_report::tag_figures& b) {
      return a.requested > b.requested;
    });
  }
}

/// What would help, by the figures that are there. Only what does; of several, that which changes least comes first.
void pool::state::advise(memory_report& to) const noexcept {
  using remedy = memory_report::remedy;
  const auto advise = [&](remedy what, std::size_t bytes, std::size_t count = 0) {
    to.helps[to.help_count++] = {what, bytes, count};
  };
  const bool refused = to.tried.passes != 0 || to.tried.shared_pass || to.tried.stopped_pass;
  const bool too_large = to.requested > to.capacity || to.needed > to.limit;
  const bool missing = to.requested != 0 && (refused || to.requested > std::max(to.largest_now, to.largest_grown));
  // What is free behind streams' work, or kept for some thread, can be had without giving anything up.
  if (!too_large) {
    std::size_t of_streams = to.rest.cached + to.rest.held;
    for (std::size_t i = 0; i < to.lane_count; ++i) of_streams += to.lanes[i].cached + to.lanes[i].held;
    const bool behind_events = lanes_ != nullptr && (of_streams != 0 || store_.memory().held_back());
    if (behind_events) {
      advise(remedy::synchronize, of_streams + (store_.memory().held_back() ? to.idle : 0));
      if (refused && !lanes_->how().may_wait) advise(remedy::let_wait, of_streams);
    }
    if (lanes_ == nullptr && to.cached != 0) advise(remedy::reclaim, to.cached);
    if (to.graphs != 0) advise(remedy::end_graphs, to.graphs);
    if (to.tried.stopped_pass || to.tried.stopped_thread) advise(remedy::resume_thread, 0);
    if (shape().flat && to.scattered != 0 && to.idle + to.scattered >= to.requested)
      advise(remedy::relocate, to.idle + to.scattered);
    if (!shape().flat && to.scattered >= to.chunk) advise(remedy::relocate, to.scattered, to.scattered / to.chunk);
  }
  if (!missing) return;
  if (to.tried.by_source) advise(remedy::elsewhere, to.limit - std::min(to.limit, to.committed));
  const std::size_t servable = std::max(to.largest_now, to.largest_grown);
  if (servable != 0 && servable < to.requested) advise(remedy::ask_for_less, servable);
  if (shape().flat) return advise(remedy::more_memory, to.needed - std::min(to.needed, to.idle));
  const std::size_t movable = store_.memory().held_back() ? 0 : to.idle;
  const std::size_t limit = to.committed - std::min(movable, to.committed) + to.needed;
  if (limit > to.capacity) advise(remedy::raise_capacity, limit);
  if (limit > to.limit) advise(remedy::raise_limit, limit);
}

memory_report pool::state::report(std::size_t bytes, std::size_t alignment,
                                  const memory_report::attempts* tried) noexcept {
  memory_report r;
  const statistics now = stats();
  if (tried != nullptr) r.tried = *tried;
  r.capacity = now.capacity;
  r.limit = now.limit;
  r.committed = now.committed;
  r.live = now.allocated;
  r.live_requested = now.requested;
  r.live_blocks = now.allocations - std::min(now.frees, now.allocations);
  r.peak_requested = now.peak_requested;
  r.cached = now.cached;
  r.chunk = shape().flat ? 0 : shape().chunk_bytes();
  if (lanes_ == nullptr) {
    add_lanes(r);
  } else {
    const std::lock_guard pass(pass_mutex_);  // handles are read that a pass may give to others
    add_lanes(r);
  }
  add_free(r);
  add_tags(r);
  if (r.committed != 0) r.fragmentation = 100.0 * static_cast<double>(r.scattered) / static_cast<double>(r.committed);
  r.largest_grown = r.largest_now;
  if (!shape().flat) {
    const std::size_t movable = store_.memory().held_back() ? 0 : r.idle;
    const std::size_t free = std::min(r.limit - std::min(r.limit, r.committed) + movable, r.capacity);
    const std::uint64_t whole_chunks = free >> granule_shift_ >> shape().chunk_order << shape().chunk_order;
    r.largest_grown = std::max(r.largest_now, static_cast<std::size_t>(largest_fit(whole_chunks)));
  }
  if (bytes != 0) {
    r.requested = bytes;
    r.needed = bytes > shape().capacity ? bytes : commitment(work_out(bytes, aligns(alignment) ? alignment : 1, nullptr));
  }
  advise(r);
  return r;
}

}  // namespace orderly
