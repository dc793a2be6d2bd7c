/// \file
/// Passes over lanes: what was freed in a stream, on its way to every other.
#include "pool_state.hpp"

#include <algorithm>
#include <array>
#include <new>

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
    while (!depot_.send(in.open, of_class, part, nullptr)) {  // a million magazines are in use
      std::unique_lock<pass_mutex> lock;
      const bool in_pass = pass_mutex_.is_mine();
      if (!in_pass) lock = std::unique_lock(pass_mutex_, std::try_to_lock);
      if (in_pass || lock)
        settle_all(true);  // gives some back; a pass that is at a lane's batches itself takes none, so it never comes here
      else
        yield();
    }
    blocks = blocks.subspan(part.size());
  }
}

/// A block that other streams must be done with goes to them first, one after the other; to `in`, if it is given, last.
/// False: there is no other stream.
bool pool::state::hold_recorded(lane* in, node n, unsigned sixteenths) noexcept {
  lane* const first = next_recorded(shape().granule(n), in);
  if (first == nullptr) return false;
  hold(*first, direct, entry_of(n, sixteenths), store_.length(n, sixteenths));
  first->coming.fetch_sub(1, release);  // bind(): the lane has the block
  return true;
}

/// From now on whoever takes from the store waits for what is in the stream now. False: no event can be had there.
bool pool::state::add_barrier(lane& in) noexcept {
  const std::lock_guard lock(pass_mutex_);
  const shared_event event = lanes_->record(in.stream);
  if (event == nullptr || !lanes_->add_barrier(in, event)) return false;
  store_.memory().hold_back(true);  // before the blocks are given
  return true;
}

void pool::state::give_direct(front* mine, lane* in, node n, unsigned sixteenths) noexcept {
  const std::uint64_t length = store_.length(n, sixteenths);
  if (in == nullptr) {
    count_taken(mine, 0 - length);
    return store_.give(n, sixteenths);
  }
  if (keep_for_graph(*in, n, sixteenths, length)) return;
  if (hold_recorded(in, n, sixteenths)) return;
  // One without a home, a part of a divided block say: there may be a million of them.
  if (mine != nullptr && shape().in_tree(n.order) && keep_in_front(*mine, n, sixteenths)) return;
  const auto entry = entry_of(n, sixteenths);
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

/// Is a block of the order wanted as long as a new one would be?
bool pool::state::serves(const request& wanted, node n, unsigned sixteenths) const noexcept {
  if (shape().in_tree(wanted.shape.order)) return sixteenths == wanted.shape.sixteenths;
  const std::uint64_t chunks = (wanted.bytes + shape().chunk_bytes() - 1) / shape().chunk_bytes();
  return close_enough(store_.length(n, sixteenths), chunks * shape().chunk_bytes());
}

/// A block without a class that was freed in the same stream.
std::optional<node> pool::state::take_large(const request& wanted) noexcept {
  if (wanted.in == nullptr || wanted.of_class != no_class) return std::nullopt;
  lane& in = *wanted.in;
  lane::large_list& same = in.large[wanted.shape.order];
  std::array<depot::parcel, lane::most_large> others;
  std::size_t count = 0;
  std::optional<node> found;
  while (count < others.size()) {
    const depot::parcel p = depot_.receive(same);
    if (p.count == 0) break;
    const node n = node_of(p);
    const std::uint64_t length = store_.length(n, sixteenths_of(p));
    if (serves(wanted, n, sixteenths_of(p))) {
      same.count.fetch_sub(1, relaxed);     // a bound
      in.held.fetch_sub(length, relaxed);   // a figure: the lane is in use, so bind() leaves it alone
      found = n;
      break;
    }
    others[count++] = p;
  }
  while (count != 0) {
    const depot::parcel& p = others[--count];
    while (!depot_.send(same, direct, std::span(p.blocks).first(p.count), nullptr)) yield();
  }
  return found;
}

/// What a lane needs of a thread that comes by: an event when much is open, or when a pass wants one that only this thread
/// can record.
void pool::state::seal_if_due(lane& of, std::size_t due) noexcept {
  if (of.open_bytes.load(relaxed) < due && !of.wanted.load(relaxed)) return;  // a figure, and a hint
  const std::unique_lock lock(pass_mutex_, std::try_to_lock);
  if (!lock) return;
  of.wanted.store(false, relaxed);
  seal(of);
  settle_passed(of);
}

// --------------------------------------------------------------------------------------------------------- passes

/// May an event be put behind what is open in the lane?
bool pool::state::can_record(lane& of) noexcept {
  if (lanes_->how().marked) return !lanes_->is_unmarked(of);
  if (of.released) return !of.withheld;
  if (lanes::reaches(of)) return lanes_->driver().capture(of.stream) == 0;
  of.wanted.store(true, relaxed);  // seal_if_due() of its own thread
  return false;
}

/// Records an event behind everything that is open. False: it cannot be recorded now.
bool pool::state::seal(lane& of) noexcept {
  if (of.released) empty_shelves(of);  // a thread may have been about to put something there
  if (!of.open.peek()) return true;
  if (!can_record(of)) return false;
  depot::chain blocks = depot_.receive_all(of.open);
  const std::uint64_t bytes = of.open_bytes.exchange(0, relaxed);  // a figure
  const auto give_back = [&] {
    depot_.give_back(blocks, of.open);
    of.open_bytes.fetch_add(bytes, relaxed);  // a figure
    return false;
  };
  // A block may have come without a mark since. Asked after the blocks were taken out: what covers all of them now, covers
  // them for ever.
  if (lanes_->how().marked && lanes_->is_unmarked(of)) return give_back();
  // After the blocks were taken out: so the event lies behind everything that may use them.
  shared_event event = lanes_->how().marked ? lanes_->take_mark(of)
                       : of.released        ? of.final_event
                                            : lanes_->record(of.stream);
  const auto newest = [&]() -> lane::batch& {
    return of.sealed[(of.first_sealed + of.sealed_count - 1) % lane::most_sealed];
  };
  // An earlier mark covers them: that of the newest batch; or one that has passed; or one in the barrier, for which
  // whoever takes from the store waits, or has waited.
  if (event == nullptr && lanes_->how().marked) {
    if (of.sealed_count == 0)
      release_held(of, blocks);
    else
      depot_.join(newest().blocks, blocks);
    return true;
  }
  if (event == nullptr) return give_back();
  if (of.sealed_count == lane::most_sealed) settle_passed(of);
  if (of.sealed_count == lane::most_sealed) {  // the new event covers the last batch too
    newest().event = std::move(event);
    depot_.join(newest().blocks, blocks);
    return true;
  }
  ++of.sealed_count;
  newest() = {std::move(event), blocks};
  return true;
}

/// Gives blocks of a lane to the store; one that another stream may still use, to that stream's lane.
void pool::state::release_held(lane& from, depot::chain& blocks) noexcept {
  std::uint64_t bytes = 0;
  for (;;) {
    const depot::parcel p = depot_.look(blocks);
    if (p.count == 0) break;
    if (p.of_class == direct) {
      const node n = node_of(p);
      if (lane* const next = next_recorded(shape().granule(n))) {
        const std::uint64_t length = store_.length(n, sixteenths_of(p));
        ++passed_on_;
        bytes += length;
        next->held.fetch_add(length, relaxed);        // as in hold()
        next->open_bytes.fetch_add(length, relaxed);  // a figure
        depot_.forward(blocks, next->open);
        next->coming.fetch_sub(1, release);  // as in give_direct()
        continue;
      }
    }
    static_cast<void>(depot_.receive(blocks));
    if (p.of_class != direct) {
      bytes += p.count * rules_[p.of_class].bytes;
      settle(nullptr, p.of_class, std::span(p.blocks).first(p.count));
      continue;
    }
    const node n = node_of(p);
    const std::uint64_t length = store_.length(n, sixteenths_of(p));
    bytes += length;
    count_taken(nullptr, 0 - length);
    store_.give(n, sixteenths_of(p));
  }
  from.held.fetch_sub(bytes, relaxed);  // a figure; bind() runs under the same mutex
}

/// The oldest sealed batch goes to the store.
void pool::state::release_oldest(lane& of) noexcept {
  lane::batch oldest = std::exchange(of.sealed[of.first_sealed], {});
  of.first_sealed = (of.first_sealed + 1) % lane::most_sealed;
  --of.sealed_count;
  release_held(of, oldest.blocks);
}

void pool::state::settle_passed(lane& of) noexcept {
  while (of.sealed_count != 0 && lanes_->query(of.sealed[of.first_sealed].event) == event_status::complete)
    release_oldest(of);
}

/// Gives what was freed of graphs that are gone to the streams it was freed in.
void pool::state::settle_graphs() noexcept {
  auto freed = notes_.take_gone();
  while (!freed.empty()) {
    const auto at = freed.begin();
    lane& in = *at->second.freed_in;
    const node n = at->second.at;
    const unsigned sixteenths = at->second.sixteenths;
    const std::uint64_t length = store_.length(n, sixteenths);
    kept_bytes_.fetch_sub(length, relaxed);  // a figure
    if (at->second.streams.empty()) {
      hold(in, direct, entry_of(n, sixteenths), length);
      freed.erase(at);
    } else {  // give_direct() looks at its note
      {
        const std::lock_guard lock(notes_.mutex);
        notes_.by_granule.insert(freed.extract(at));
        notes_.recount();
      }
      give_direct(nullptr, &in, n, sixteenths);
    }
    in.coming.fetch_sub(1, release);  // as in give_direct()
  }
}

/// A capture that a watching pool saw in a stream, and that is over, ends here where the stream is not used again: its memory
/// would lie idle for ever if no graph came of it. In safe mode nobody may be asked: the stream may be gone.
void pool::state::end_watched_captures() noexcept {
  if (!lanes_->how().watched || lanes_->how().marked) return;
  lanes_->each([&](lane& of) {
    graph_memory* const memory = of.graph.load(relaxed);  // changed under the pass mutex
    if (memory == nullptr || memory->number == 0 || of.serial.load(relaxed) == 0 || !lanes::reaches(of)) return;
    const std::uint64_t capture = lanes_->driver().capture(of.stream);
    if (capture != memory->number && capture != stream_driver::unknown_capture)
      static_cast<void>(end_capture_locked(of));
  });
}

/// Everybody's: what has passed; with `by_barrier` also what has not. A block that several streams used goes from lane to
/// lane, so go round until none moves.
void pool::state::settle_all(bool by_barrier) noexcept {
  if (lanes_ == nullptr) return;
  end_watched_captures();
  settle_graphs();
  for (bool again = true; again;) {
    const std::uint64_t before = passed_on_;
    lanes_->each([&](lane& of) {
      seal(of);
      settle_passed(of);
      if (!by_barrier || of.sealed_count == 0) return;
      const shared_event event = of.sealed[(of.first_sealed + of.sealed_count - 1) % lane::most_sealed].event;
      if (!lanes_->add_barrier(of, event)) return;
      store_.memory().hold_back(true);  // before the blocks are given
      while (of.sealed_count != 0) release_oldest(of);
    });
    again = passed_on_ != before && by_barrier;
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
std::size_t pool::state::trim_settled(std::size_t bytes, std::size_t most) noexcept {
  if (lanes_ != nullptr) {
    if (!lanes_->barriers_passed()) return 0;
    store_.memory().hold_back(false);
  }
  return store_.trim(bytes, most);
}

// -------------------------------------------------------------------------------------------------------- streams

lane* pool::state::bind(stream_handle stream) noexcept {
  const std::lock_guard lock(pass_mutex_);
  lane* known = bind_locked(stream);
  if (known == nullptr || !lanes_->how().watched) return known;
  stream_driver& driver = lanes_->driver();
  if (const std::uint64_t capture = driver.capture(stream); capture != 0) {  // its identity cannot be told meanwhile
    if (graph_memory* const memory = known->graph.load(relaxed); memory != nullptr) {  // changed under the pass mutex
      if (memory->number == 0) memory->number = capture;  // begin_capture() was called before there was one
      if (memory->number == capture) return known;
      static_cast<void>(end_capture_locked(*known));  // another followed at once
    }
    if (begin_capture_locked(*known) != error::none) return nullptr;
    known->graph.load(relaxed)->number = capture;
    return known;
  }
  if (captures(known)) static_cast<void>(end_capture_locked(*known));
  if (!lanes_->how().marked) return known;
  if (known->identity == 0) known->identity = driver.identity(stream);  // it was first met in a capture
  if (known->identity == driver.identity(stream)) {
    if (lanes_->is_unmarked(*known)) lanes_->mark(*known);
    return known;
  }
  static_cast<void>(release_lane_locked(*known));  // of a stream that is gone, whose handle is another's now
  return bind_locked(stream);
}

lane* pool::state::bind_locked(stream_handle stream) noexcept {
  if (lane* const known = lanes_->bind(serial(), stream)) return known;
  // There may be no place because nobody has looked after streams that are gone.
  lanes_->each([&](lane& of) {
    if (!of.released) return;
    seal(of);
    settle_passed(of);
    forget_if_passed(of);
  });
  return lanes_->bind(serial(), stream);
}

/// A released stream whose work is done need not be waited for any more, whatever block it was recorded for.
void pool::state::forget_if_passed(lane& of) noexcept {
  if (of.sealed_count != 0 || of.withheld || of.coming.load(relaxed) == 0) return;  // a figure: worth a look
  // With marks there is no last event: those before the lane's own were sealed, so they have passed or are in the barrier.
  const bool passed = of.final_event != nullptr ? lanes_->query(of.final_event) == event_status::complete
                                                : lanes_->mark_passed(of) && lanes_->barriers_passed();
  if (!passed) return;
  const std::lock_guard lock(notes_.mutex);
  for (auto at = notes_.by_granule.begin(); at != notes_.by_granule.end();) {
    auto& streams = at->second.streams;
    const auto gone = std::erase(streams, &of);
    of.coming.fetch_sub(static_cast<std::uint32_t>(gone), release);  // nothing will come
    const bool empty = gone != 0 && streams.empty() && at->second.graph == nullptr;
    at = empty ? notes_.by_granule.erase(at) : std::next(at);
  }
  notes_.recount();
}

error pool::state::record_stream(void* pointer, lane& in) noexcept {
  // A per-thread stream ends with its thread: the front is what tells the pool of it.
  if (in.owner != 0) static_cast<void>(this_front(&in));
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
      const std::lock_guard lock(notes_.mutex);
      auto& streams = notes_.by_granule[shape().granule(block.n)].streams;
      if (std::ranges::find(streams, &in) == streams.end()) {
        streams.push_back(&in);
        in.coming.fetch_add(1, relaxed);  // bind(): blocks will come
      }
      notes_.recount();
      return error::none;
    } catch (const std::bad_alloc&) {
      return error::out_of_memory;
    }
  }
}

/// The next stream that must be done with a block which is being freed, or null: there is none. If there is one, the stream
/// `freed_in` comes last: noted in the same step, for a note without streams may go at any time.
lane* pool::state::next_recorded(std::uint64_t granule, lane* freed_in) noexcept {
  if (notes_.count.load(relaxed) == 0) return nullptr;  // the program orders record_stream() before the free
  const std::lock_guard lock(notes_.mutex);
  const auto at = notes_.by_granule.find(granule);
  if (at == notes_.by_granule.end()) return nullptr;
  auto& streams = at->second.streams;
  lane* next = nullptr;
  if (!streams.empty()) {
    next = streams.back();
    streams.pop_back();
    if (freed_in != nullptr) {
      streams.insert(streams.begin(), freed_in);  // the capacity is there
      freed_in->coming.fetch_add(1, relaxed);     // as in record_stream()
    }
  }
  if (next == nullptr) notes_.by_granule.erase(at);
  notes_.recount();
  return next;
}

bool pool::state::release_stream(stream_handle stream) noexcept {
  give_up_kept(stream);
  const std::lock_guard lock(pass_mutex_);
  lane* const of = lanes_->bound(stream);
  if (of == nullptr) return true;
  if (lanes_->how().marked && lanes_->is_unmarked(*of) && of->identity == lanes_->driver().identity(stream))
    lanes_->mark(*of);
  return release_lane_locked(*of);
}

/// What is kept for a stream comes back before the stream's lane changes. Nobody else is in a call for it.
void pool::state::give_up_kept(stream_handle stream) noexcept {
  std::uint64_t serial = 0;
  {
    const std::lock_guard lock(pass_mutex_);
    if (const lane* const of = lanes_->bound(stream)) serial = of->serial.load(relaxed);  // changed under the mutex
  }
  if (serial != 0) keepers_.give_up_lane(serial);
}

/// The lane's handle is forgotten; what belongs to it waits for one last event. False: none could be had.
bool pool::state::release_lane_locked(lane& of) noexcept {
  // All calls for this stream happened before this one.
  if (captures(&of)) static_cast<void>(end_capture_locked(of));
  const bool marked = lanes_->how().marked;
  of.final_event = marked ? nullptr : lanes_->record(of.stream);
  of.withheld = !marked && of.final_event == nullptr;
  lanes_->tell_end(of, of.final_event);
  of.serial.store(0, seq_cst);  // at_hand(), attach(): from now on threads do not find it
  of.occupied = !reclaim_fronts(patience::long_one, &of).complete;
  empty_shelves(of);
  empty_large(of);
  of.released = true;
  seal(of);
  settle_passed(of);
  return !of.withheld && !(marked && lanes_->is_unmarked(of));
}

// --------------------------------------------------------------------------------------------------------- graphs

error pool::state::begin_capture(lane& in) noexcept {
  keepers_.give_up_lane(in.serial.load(relaxed));  // nobody else is in a call for the stream
  const std::lock_guard lock(pass_mutex_);
  return begin_capture_locked(in);
}

/// From now on what the stream gets is a graph's. Its caches are put aside: they hold what work outside the capture uses.
error pool::state::begin_capture_locked(lane& in) noexcept {
  try {
    auto memory = std::make_shared<graph_memory>();
    if (in.serial.load(relaxed) == 0 || captures(&in)) return error::invalid_argument;
    {
      const std::lock_guard noted(notes_.mutex);
      notes_.graphs.push_back(memory);
    }
    in.graph.store(memory.get(), release);        // captures(): a thread that knows the new number knows this
    in.serial.store(next_serial(), seq_cst);      // at_hand(), attach(): no thread has a front under this number
    static_cast<void>(reclaim_fronts(patience::long_one, &in));
    settle_all(false);  // a capture gets only what no stream may still use
    return error::none;
  } catch (const std::bad_alloc&) {
    return error::out_of_memory;
  }
}

error pool::state::end_capture(lane& in) noexcept {
  const std::lock_guard lock(pass_mutex_);
  return end_capture_locked(in);
}

error pool::state::end_capture_locked(lane& in) noexcept {
  graph_memory* const memory = in.graph.load(relaxed);  // changed under the pass mutex
  if (memory == nullptr) return error::invalid_argument;
  tie(in);
  in.graph.store(nullptr, release);  // as in begin_capture()
  const std::lock_guard lock(notes_.mutex);
  memory->open = false;
  for (auto& idle : memory->idle) idle.clear();
  if (memory->tied) return error::none;
  memory->gone.store(true, relaxed);  // no graph was seen: take_gone(), under this mutex
  return memory->used ? error::invalid_argument : error::none;
}

/// Finds the graph that the stream captures into, so that its end is told.
void pool::state::tie(const lane& of) noexcept {
  std::shared_ptr<graph_memory> memory;
  {
    const std::lock_guard lock(notes_.mutex);
    const auto known = std::ranges::find(notes_.graphs, of.graph.load(relaxed), &std::shared_ptr<graph_memory>::get);
    if (known == notes_.graphs.end() || (*known)->tied) return;
    memory = *known;
  }
  auto* const told = new (std::nothrow) std::shared_ptr<graph_memory>(memory);  // the pool may go first
  if (told == nullptr) return;
  const auto tell = [](void* context) {
    const std::unique_ptr<std::shared_ptr<graph_memory>> graph(static_cast<std::shared_ptr<graph_memory>*>(context));
    (*graph)->gone.store(true, release);  // take_gone()
  };
  if (!lanes_->driver().when_graph_is_gone(of.stream, tell, told)) {
    delete told;
    return;
  }
  const std::lock_guard lock(notes_.mutex);
  memory->tied = true;
}

/// A block is the graph's from now on. False: no memory; nothing has happened. A capture's record stays as long as its lane
/// shows it to whoever holds the notes' mutex.
bool pool::state::note_for_graph(const request& wanted, node n) noexcept {
  try {
    const std::lock_guard lock(notes_.mutex);
    graph_memory* const memory = wanted.in->graph.load(relaxed);
    if (memory == nullptr) return true;  // it ends just now
    note& made = notes_.by_granule[shape().granule(n)];
    made.graph = memory;
    made.at = n;
    made.sixteenths = static_cast<std::uint8_t>(wanted.shape.sixteenths);
    memory->used = true;
    notes_.recount();
  } catch (const std::bad_alloc&) {
    return false;
  }
  tie(*wanted.in);
  return true;
}

/// A block that the same capture has freed: its next user comes behind the last one in every replay.
std::optional<node> pool::state::take_from_graph(const request& wanted) noexcept {
  const std::lock_guard lock(notes_.mutex);
  graph_memory* const memory = wanted.in->graph.load(relaxed);  // as in note_for_graph()
  if (memory == nullptr) return std::nullopt;
  auto& idle = memory->idle[wanted.shape.order];
  const auto fit = std::find_if(idle.rbegin(), idle.rend(), [&](const graph_memory::idle_block& block) {
    return serves(wanted, {block.index, wanted.shape.order}, block.sixteenths);
  });
  if (fit == idle.rend()) return std::nullopt;
  const node n{fit->index, wanted.shape.order};
  const std::uint64_t length = store_.length(n, fit->sixteenths);
  idle.erase(std::next(fit).base());
  note& known = notes_.by_granule.find(shape().granule(n))->second;
  known.freed_in->coming.fetch_sub(1, release);  // nothing will come of it
  known.freed_in = nullptr;
  kept_bytes_.fetch_sub(length, relaxed);  // a figure
  return n;
}

/// Keeps a block that is being freed if it is a graph's.
bool pool::state::keep_for_graph(lane& in, node n, unsigned sixteenths, std::uint64_t length) noexcept {
  if (notes_.count.load(relaxed) == 0) return false;  // the program orders the allocation before the free
  const std::lock_guard lock(notes_.mutex);
  const auto at = notes_.by_granule.find(shape().granule(n));
  if (at == notes_.by_granule.end() || at->second.graph == nullptr) return false;
  graph_memory& memory = *at->second.graph;
  at->second.freed_in = &in;
  in.coming.fetch_add(1, relaxed);         // bind(): it will come when the graph is gone
  kept_bytes_.fetch_add(length, relaxed);  // a figure
  if (memory.over || in.graph.load(relaxed) != &memory || !at->second.streams.empty()) return true;
  try {
    memory.idle[n.order].push_back({n.index, static_cast<std::uint8_t>(sixteenths)});
  } catch (const std::bad_alloc&) {  // it serves nobody until the graph is gone
  }
  return true;
}

/// May a block just taken from the store be handed out in the stream? Makes the stream wait for what it must; a capture
/// cannot, so for it everything must have passed.
bool pool::state::may_serve(const request& wanted) noexcept {
  if (wanted.in == nullptr) return true;
  return captures(wanted.in) ? lanes_->barriers_passed() : lanes_->catch_up(*wanted.in);
}

/// Waits for the work that may use what was freed so far, of one stream or of all. The mutex is not held meanwhile.
bool pool::state::synchronize(lane* only) noexcept {
  struct withheld {
    lane* of;
    depot::chain blocks;
    std::uint64_t bytes;
  };
  bool known = true;
  bool first = true;
  // A block that several streams used takes a round for each. Others may free more all the while, so there is a bound.
  for (std::uint32_t round = 0; round <= lanes::most_lanes; ++round) {
    std::vector<shared_event> events;
    std::vector<withheld> without_event;
    std::uint64_t before = 0;
    std::uint64_t gap = 0;
    {
      const std::lock_guard lock(pass_mutex_);
      before = passed_on_;
      if (only == nullptr) gap = lanes_->last_gap();
      if (std::exchange(first, false)) reclaim_caches(patience::long_one);
      settle_all(false);  // what was freed is sealed now; the events below come behind those of the seals
      try {
        if (only == nullptr) lanes_->copy_barriers(events);
        lanes_->each([&](lane& of) {
          if (only != nullptr && only != &of) return;
          if (of.sealed_count != 0)
            events.push_back(of.sealed[(of.first_sealed + of.sealed_count - 1) % lane::most_sealed].event);
          const bool uncovered = of.withheld || (lanes_->how().marked && lanes_->is_unmarked(of));
          if (uncovered && of.open.peek()) {
            without_event.reserve(without_event.size() + 1);
            without_event.push_back({&of, depot_.receive_all(of.open), of.open_bytes.exchange(0, relaxed)});  // a figure
          }
          known = known && !awaits_a_graph(of);
          if (lanes_->how().marked || of.serial.load(relaxed) == 0) return;
          if (!lanes::reaches(of)) {  // its own thread must seal it
            known = known && nothing_left(of);
          } else if (shared_event event = lanes_->record(of.stream)) {
            events.push_back(std::move(event));
          } else {
            known = false;
          }
        });
      } catch (const std::bad_alloc&) {
        known = false;
      }
    }
    for (const shared_event& event : events) known = lanes_->driver().synchronize(event.get()) && known;
    const bool must_be_idle = !without_event.empty() || gap != 0;
    const bool idle = must_be_idle && lanes_->driver().synchronize_all();
    known = known && (idle || !must_be_idle);
    if (idle) lanes_->tell_idle(gap);
    const std::lock_guard lock(pass_mutex_);
    for (withheld& each : without_event) {
      if (idle) {
        release_held(*each.of, each.blocks);
      } else {
        depot_.give_back(each.blocks, each.of->open);
        each.of->open_bytes.fetch_add(each.bytes, relaxed);  // a figure
      }
    }
    settle_all(false);
    lanes_->each([&](lane& of) {
      if (of.released) forget_if_passed(of);
    });
    if (lanes_->barriers_passed()) store_.memory().hold_back(false);
    if (passed_on_ == before && without_event.empty()) break;
  }
  return known;
}

/// Has a watching pool handed out blocks for a capture of which it does not know whether it is one? Only the next use of the
/// stream tells.
bool pool::state::awaits_a_graph(const lane& of) noexcept {
  if (!lanes_->how().watched) return false;
  const std::lock_guard lock(notes_.mutex);
  const graph_memory* const memory = of.graph.load(relaxed);  // changed under the pass mutex
  return memory != nullptr && memory->used && !memory->tied;
}

/// Does no block belong to a lane, as far as can be seen from another thread?
bool pool::state::nothing_left(const lane& of) const noexcept {
  if (!of.empty()) return false;
  for (const front& each : made_fronts()) {
    if (each.of_lane.load(relaxed) != &of) continue;  // a look
    for (std::size_t c = 0; c < classes_; ++c)
      if (each.magazines[c].count.load(relaxed) != 0) return false;  // a figure
  }
  return true;
}

/// Waits for every barrier; not under the mutex, so that others go on.
void pool::state::wait_for_streams(std::unique_lock<pass_mutex>& pass) noexcept {
  std::vector<shared_event> events;
  try {
    lanes_->copy_barriers(events);
  } catch (const std::bad_alloc&) {
    return;
  }
  pass.unlock();
  for (const shared_event& event : events) static_cast<void>(lanes_->driver().synchronize(event.get()));
  pass.lock();
}

std::size_t pool::state::held() const noexcept {
  std::uint64_t bytes = 0;
  lanes_->each([&](const lane& of) { bytes += of.held.load(relaxed); });  // figures
  return bytes + kept_bytes_.load(relaxed);
}

}  // namespace orderly
