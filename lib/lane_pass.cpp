/// \file
/// Passes over lanes: what was freed in a stream, on its way to every other.
#include <algorithm>
#include <array>
#include <new>
#include <thread>

#include "pool_state.hpp"

namespace orderly {

using namespace detail;

namespace {

/// Parcels of one block without a class: index of its node, order, sixteenths.
constexpr std::size_t direct = max_classes;

[[nodiscard]] node node_of(const depot::parcel& p) noexcept {
  return {p.blocks[0], static_cast<std::uint8_t>(p.blocks[1])};
}
[[nodiscard]] unsigned sixteenths_of(const depot::parcel& p) noexcept { return p.blocks[2]; }

[[nodiscard]] std::array<std::uint32_t, 3> entry_of(node n, unsigned sixteenths) noexcept {
  return {n.index, n.order, sixteenths};
}

/// A slot that has a little more than is wanted serves as well.
[[nodiscard]] bool close_enough(std::uint64_t present, std::uint64_t wanted) noexcept {
  return present >= wanted && present - wanted <= wanted / 8;
}

}  // namespace

// ------------------------------------------------------------------------------------------- frees, any thread

/// Puts blocks where nothing covers them yet.
void pool::state::hold(lane& in, std::size_t of_class, std::span<const std::uint32_t> blocks,
                       std::uint64_t bytes) noexcept {
  in.held.fetch_add(bytes, relaxed);       // a figure, and of bind(): it is above 0 while the lane has blocks
  in.open_bytes.fetch_add(bytes, relaxed);  // a figure
  while (!blocks.empty()) {
    const auto part = blocks.first(std::min(blocks.size(), max_magazine_blocks));
    // Without an empty magazine, others are about to give some back: there are a million.
    while (!depot_.send(in.open, of_class, part, nullptr)) std::this_thread::yield();
    blocks = blocks.subspan(part.size());
  }
}

void pool::state::give_direct(front* mine, lane* in, node n, unsigned sixteenths) noexcept {
  const std::uint64_t length = store_.length(n, sixteenths);
  if (in == nullptr) {
    count_taken(mine, 0 - length);
    return store_.give(n, sixteenths);
  }
  const auto entry = entry_of(n, sixteenths);
  lane* const first = next_recorded(shape().granule(n));
  if (first != nullptr) {  // other streams first, one after the other; this one last
    append_recorded(shape().granule(n), *in);
    hold(*first, direct, entry, length);
    first->coming.fetch_sub(1, release);  // bind(): the lane has the block
    return;
  }
  lane::large_list& same = in->large[n.order];
  if (length > shape().bytes(front_granules_)) {
    if (same.count.fetch_add(1, relaxed) < lane::most_large) {  // a bound
      in->held.fetch_add(length, relaxed);                      // as in hold()
      if (depot_.send(same, direct, entry, nullptr)) return;
      in->held.fetch_sub(length, relaxed);
    }
    same.count.fetch_sub(1, relaxed);
  }
  hold(*in, direct, entry, length);
}

/// A block without a class that was freed in the same stream.
std::optional<node> pool::state::take_large(const request& wanted) noexcept {
  if (wanted.in == nullptr || wanted.of_class != no_class) return std::nullopt;
  lane& in = *wanted.in;
  lane::large_list& same = in.large[wanted.shape.order];
  const bool in_tree = shape().in_tree(wanted.shape.order);
  const std::uint64_t chunks = (wanted.bytes + shape().chunk_bytes() - 1) / shape().chunk_bytes();
  std::array<depot::parcel, lane::most_large> others;
  std::size_t count = 0;
  std::optional<node> found;
  while (count < others.size()) {
    const depot::parcel p = depot_.receive(same);
    if (p.count == 0) break;
    const node n = node_of(p);
    const std::uint64_t length = store_.length(n, sixteenths_of(p));
    if (in_tree ? sixteenths_of(p) == wanted.shape.sixteenths
                : close_enough(length, chunks * shape().chunk_bytes())) {
      same.count.fetch_sub(1, relaxed);     // a bound
      in.held.fetch_sub(length, relaxed);   // a figure: the lane is in use, so bind() leaves it alone
      found = n;
      break;
    }
    others[count++] = p;
  }
  while (count != 0) {
    const depot::parcel& p = others[--count];
    while (!depot_.send(same, direct, std::span(p.blocks).first(p.count), nullptr)) std::this_thread::yield();
  }
  return found;
}

void pool::state::seal_if_due(lane& of, std::size_t due) noexcept {
  if (of.open_bytes.load(relaxed) < due) return;  // a figure
  const std::unique_lock lock(pass_mutex_, std::try_to_lock);
  if (!lock) return;
  seal(of);
  settle_passed(of);
}

// --------------------------------------------------------------------------------------------------------- passes

/// Records an event behind everything that is open. False: it cannot be recorded now.
bool pool::state::seal(lane& of) noexcept {
  if (of.released) empty_shelves(of);  // a thread may have been about to put something there
  if (!of.open.peek()) return true;
  if (!of.released && !lanes::reaches(of)) return false;
  depot::chain blocks = depot_.receive_all(of.open);
  const std::uint64_t bytes = of.open_bytes.exchange(0, relaxed);  // a figure
  // After the blocks were taken out: so the event lies behind everything that may use them.
  event_handle const event = lanes_->marked() ? lanes_->take_mark(of)
                             : of.released    ? of.final_event
                                              : lanes_->record(of.stream);
  // An earlier mark covers them: that of the newest batch; or one that has passed; or one in the barrier, for which
  // whoever takes from the store waits, or has waited.
  if (event == nullptr && lanes_->marked()) {
    if (of.sealed_count == 0)
      release_held(of, blocks);
    else
      depot_.join(of.sealed[(of.first_sealed + of.sealed_count - 1) % lane::most_sealed].blocks, blocks);
    return true;
  }
  if (event == nullptr) {
    depot_.give_back(blocks, of.open);
    of.open_bytes.fetch_add(bytes, relaxed);
    return false;
  }
  if (of.sealed_count == lane::most_sealed) settle_passed(of);
  if (of.sealed_count == lane::most_sealed) {  // the new event covers the last batch too
    lane::batch& newest = of.sealed[(of.first_sealed + of.sealed_count - 1) % lane::most_sealed];
    if (newest.event != of.final_event) lanes_->driver().release(newest.event);
    newest.event = event;
    depot_.join(newest.blocks, blocks);
    return true;
  }
  of.sealed[(of.first_sealed + of.sealed_count++) % lane::most_sealed] = {event, blocks};
  return true;
}

/// Gives blocks of a lane to the store; one that another stream may still use, to that stream's lane.
void pool::state::release_held(lane& from, depot::chain& blocks) noexcept {
  std::uint64_t bytes = 0;
  for (;;) {
    const depot::parcel p = depot_.receive(blocks);
    if (p.count == 0) break;
    if (p.of_class != direct) {
      bytes += p.count * rules_[p.of_class].bytes;
      settle(nullptr, p.of_class, std::span(p.blocks).first(p.count));
      continue;
    }
    const node n = node_of(p);
    const std::uint64_t length = store_.length(n, sixteenths_of(p));
    bytes += length;
    if (lane* const next = next_recorded(shape().granule(n))) {
      hold(*next, direct, std::span(p.blocks).first(p.count), length);
      next->coming.fetch_sub(1, release);  // as in give_direct()
      continue;
    }
    count_taken(nullptr, 0 - length);
    store_.give(n, sixteenths_of(p));
  }
  from.held.fetch_sub(bytes, relaxed);  // a figure; bind() runs under the same mutex
}

void pool::state::settle_passed(lane& of) noexcept {
  while (of.sealed_count != 0) {
    lane::batch& oldest = of.sealed[of.first_sealed];
    if (lanes_->query(oldest.event) != event_status::complete) return;
    if (oldest.event != of.final_event) lanes_->driver().release(oldest.event);
    release_held(of, oldest.blocks);
    of.first_sealed = (of.first_sealed + 1) % lane::most_sealed;
    --of.sealed_count;
  }
}

/// Everybody's: what has passed; with `by_barrier` also what has not. A block that several streams used goes from lane to
/// lane, so go round until none moves.
void pool::state::settle_all(bool by_barrier) noexcept {
  if (lanes_ == nullptr) return;
  for (bool again = true; again;) {
    again = false;
    lanes_->each([&](lane& of) {
      seal(of);
      settle_passed(of);
      if (!by_barrier || of.sealed_count == 0) return;
      lane::batch& newest = of.sealed[(of.first_sealed + of.sealed_count - 1) % lane::most_sealed];
      event_handle const event = newest.event;
      // A released lane's event is needed as long as blocks may still come.
      const bool final = event == of.final_event;  // in a pool with marks there is none
      if ((final && of.coming.load(acquire) != 0) || !lanes_->add_barrier(of, event)) return;
      if (final) of.final_event = nullptr;
      store_.memory().hold_back(true);  // before the blocks are given
      while (of.sealed_count != 0) {
        lane::batch& oldest = of.sealed[of.first_sealed];
        if (oldest.event != event && oldest.event != of.final_event) lanes_->driver().release(oldest.event);
        release_held(of, oldest.blocks);
        of.first_sealed = (of.first_sealed + 1) % lane::most_sealed;
        --of.sealed_count;
      }
      again = recorded_blocks_.load(relaxed) != 0;  // a figure
    });
  }
}

/// What a lane keeps for its own stream becomes open.
pool::state::haul pool::state::empty_shelves(lane& of) noexcept {
  std::array<std::uint32_t, max_magazine_blocks> blocks;
  haul reclaimed;
  for (std::size_t c = 0; c < classes_; ++c) {
    while (const std::size_t count = depot_.pop(of.shelves, c, blocks)) {
      put_back(nullptr, &of, c, std::span(blocks).first(count));
      reclaimed += {count, count * rules_[c].bytes};
    }
  }
  return reclaimed;
}

void pool::state::empty_large(lane& of) noexcept {
  for (lane::large_list& same : of.large) {
    depot::chain blocks = depot_.receive_all(same);
    of.open_bytes.fetch_add(std::uint64_t{!depot::empty(blocks)}, relaxed);  // a figure: there is something
    same.count.fetch_sub(depot_.give_back(blocks, of.open), relaxed);         // a bound
  }
}

/// Decommits, but nothing that a stream may still use.
std::size_t pool::state::trim_settled(std::size_t bytes) noexcept {
  if (lanes_ != nullptr) {
    if (!lanes_->barriers_passed()) return 0;
    store_.memory().hold_back(false);
  }
  return store_.trim(bytes);
}

// -------------------------------------------------------------------------------------------------------- streams

lane* pool::state::bind(stream_handle stream) noexcept {
  const std::lock_guard lock(pass_mutex_);
  return lanes_->bind(serial(), stream);
}

error pool::state::record_stream(void* pointer, lane& in) noexcept {
  const auto offset = store_.memory().offset(pointer);
  for (;;) {
    const block_store::found block = offset ? store_.find_live(*offset) : block_store::found{};
    if (!block.exists) return explain(pointer, 0).code;
    // From now on the block has no home, so that its free comes the slow way and looks here. The program orders this call
    // before the free.
    const block_word homeless = block_word::live(block.word.sixteenths(), block.word.unused(), 0);
    std::uint64_t expected = block.word.bits();
    if (!store_.word(block.n).compare_exchange_strong(expected, homeless.bits(), relaxed, relaxed)) continue;
    try {
      const std::lock_guard lock(recorded_mutex_);
      auto& lanes_of = recorded_[shape().granule(block.n)];
      if (std::ranges::find(lanes_of, &in) == lanes_of.end()) {
        lanes_of.push_back(&in);
        in.coming.fetch_add(1, relaxed);  // bind(): blocks will come
      }
      recorded_blocks_.store(recorded_.size(), relaxed);  // a figure
      return error::none;
    } catch (const std::bad_alloc&) {
      return error::out_of_memory;
    }
  }
}

/// The next stream that must be done with a block which is being freed, or null.
lane* pool::state::next_recorded(std::uint64_t granule) noexcept {
  if (recorded_blocks_.load(relaxed) == 0) return nullptr;  // the program orders record_stream() before the free
  const std::lock_guard lock(recorded_mutex_);
  const auto at = recorded_.find(granule);
  if (at == recorded_.end()) return nullptr;
  lane* next = nullptr;
  if (!at->second.empty()) {
    next = at->second.back();
    at->second.pop_back();
  }
  if (at->second.empty() && next == nullptr) recorded_.erase(at);
  recorded_blocks_.store(recorded_.size(), relaxed);  // a figure
  return next;
}

/// The stream in which a recorded block was freed comes last.
void pool::state::append_recorded(std::uint64_t granule, lane& in) noexcept {
  const std::lock_guard lock(recorded_mutex_);
  const auto at = recorded_.find(granule);
  if (at == recorded_.end()) return;
  at->second.insert(at->second.begin(), &in);  // the capacity is there: one was just taken out
  in.coming.fetch_add(1, relaxed);             // as in record_stream()
}

void pool::state::release_lane(lane& of) noexcept {
  const std::lock_guard lock(pass_mutex_);
  release_lane_locked(of);
}

/// The lane's handle is forgotten; what belongs to it waits for one last event.
void pool::state::release_lane_locked(lane& of) noexcept {
  if (of.released || !lanes::reaches(of)) return;
  const std::size_t count = front_count_.load(acquire);  // new_front()
  const auto mine = [&](const front& f) { return f.of_lane.load(relaxed) == &of; };  // the program orders their calls
  for (std::size_t i = 0; i < count; ++i)
    if (mine(fronts_[i])) fronts_[i].revoke();
  // Nobody is in a call for this stream; all of its calls happened before this one.
  for (std::size_t i = 0; i < count; ++i) {
    front& f = fronts_[i];
    if (!mine(f)) continue;
    post_returns(f);
    drain(f);
  }
  for (std::size_t i = 0; i < count; ++i)
    if (mine(fronts_[i])) fronts_[i].restore();
  empty_shelves(of);
  empty_large(of);
  event_handle const event = lanes_->marked() ? nullptr : lanes_->record(of.stream);
  if (event == nullptr && !lanes_->marked()) return;  // the stream captures, or is gone: the lane stays as it is
  of.final_event = event;
  of.released = true;
  of.serial.store(0, release);  // at_hand(), attach(): from now on threads do not find it
  seal(of);
  settle_passed(of);
}

/// Waits for the work that may use what was freed so far.
bool pool::state::synchronize(lane* only) noexcept {
  bool known = true;
  std::vector<event_handle> events;
  {
    const std::lock_guard lock(pass_mutex_);
    reclaim_caches(patience::long_one);
    settle_all(false);  // what was freed is sealed now; the events below come behind those of the seals
    try {
      lanes_->each([&](lane& of) {
        if (lanes_->marked() || (only != nullptr && only != &of) || of.serial.load(relaxed) == 0) return;
        if (!lanes::reaches(of)) return;
        events.reserve(events.size() + 1);
        if (event_handle const event = lanes_->record(of.stream))
          events.push_back(event);
        else
          known = false;
      });
    } catch (const std::bad_alloc&) {
      known = false;
    }
  }
  for (event_handle const event : events) {  // not under the mutex: other threads go on
    known = lanes_->driver().synchronize(event) && known;
    lanes_->driver().release(event);
  }
  const std::lock_guard lock(pass_mutex_);
  if (only == nullptr || lanes_->marked()) {  // streams that are gone, too: few, and their work is most likely done
    lanes_->each([&](const lane& of) {
      if ((only != nullptr && only != &of) || (!of.released && !lanes_->marked()) || of.sealed_count == 0) return;
      const lane::batch& newest = of.sealed[(of.first_sealed + of.sealed_count - 1) % lane::most_sealed];
      known = lanes_->driver().synchronize(newest.event) && known;
    });
    lanes_->wait_for_streams();
  }
  settle_all(false);
  if (lanes_->barriers_passed()) store_.memory().hold_back(false);
  return known;
}

std::size_t pool::state::held() const noexcept {
  std::uint64_t bytes = 0;
  lanes_->each([&](const lane& of) { bytes += of.held.load(relaxed); });  // figures
  return bytes;
}

}  // namespace orderly
