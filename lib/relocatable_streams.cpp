/// \file
/// Moves in stream order. Where blocks lie and who may change that: R in relocatable_set.hpp. Who waits for whom:
///
///   uses     Each block has a set of streams, its users: those it was used in since its last move, a superset. A stream is
///            in it before the unpin() of its use; only who has marked the block as moving empties it.
///   step n   marks blocks, then makes the copying stream wait for (1) the copies of step n - 1 and (2) an event in each
///            user of a marked block, recorded behind the marks; then (3) copies, (4) records the event E of its copies and
///            notes n in the blocks, and (5) frees the old places in the copying stream.
///   next use pin() finds n in the block; if its stream has not waited for step n or a later one, it waits for the latest E.
///
/// Old address. A use of it is in its stream before the unpin() that step n's mark acquires (R), so before the event of
///   (2), so before the copy. What the pool makes of the old place comes behind (5) in the copying stream, by its own
///   order, so behind the copy, so behind the use. Nobody pins the old address after the mark.
/// New address. It was allocated for the copying stream before (3). Whoever gets it by pin() acquires n with the word (R), so
///   waits for an E of step n or later. E of step m covers the copies of all steps up to m, by (1) and induction.
///   deallocate() waits in the same way, so that the place is not used again before the copy.
/// W  One thread's wait is in the stream before the next one's work: `waited` of the stream is stored with release behind the
///    wait, and read with acquire by whoever goes on without a wait.
/// Failure. Copies may be in the stream also where the copier fails; they read the old places and write the new ones. So the
///   blocks stay, with their users, and n is noted all the same: their next use comes behind E. The new places are freed in
///   the copying stream. If E itself is refused, the move counts as failed, and E is owed: the next one to need it records
///   it, later in the same stream, which covers as much. If the stream ends before, its last event is E.
/// Streams that end. The last event of each takes its place among the users, until it has passed. Without such an event its
///   users' bit is lost: a block that has it stays until all is known to be idle. The event is the pool's; in safe mode, and
///   of per-thread streams, whose events only their own threads can record, it is the one that each unpin() records.
/// Captures. A stream that captures is not noted, so no block is pinned for it: what a graph uses is pinned before, and a
///   pinned block is never marked.
/// Linearization. pin(): its CAS. A move: the end of the mark. deallocate(): the store that ends the generation; between its
///   mark and that, others wait as for a step.
/// Order of mutexes: that of steps, those of the pool, that of events. Nothing is marked for long: between the marks and the
///   end of a step are (2) to (4), calls of the driver that wait for nothing.
#include "orderly/relocatable_streams.hpp"

#include <algorithm>
#include <mutex>
#include <new>
#include <stdexcept>
#include <utility>

#include "lanes.hpp"
#include "relocatable_set.hpp"
#include "reserved_array.hpp"
#include "stream_pool_state.hpp"

namespace orderly {

namespace detail {

struct used_record : relocatable_record {
  atomic<std::uint64_t> users{0};  ///< bits of streams, and unknown_user
  atomic<std::uint64_t> step{0};   ///< the last one that copied from or to the block; written while it is marked
};

}  // namespace detail

using namespace detail;

namespace {

/// A bit for each stream; streams share them where there are more than 63, so some are waited for in vain.
constexpr unsigned user_bits = 63;
constexpr std::uint64_t unknown_user = std::uint64_t{1} << user_bits;

[[nodiscard]] std::uint64_t user_bit(const lane& in) noexcept { return std::uint64_t{1} << in.number % user_bits; }

}  // namespace

class relocatable_stream_blocks::state final : public relocatable_set<pool::state, used_record>, public stream_watcher {
 public:
  state(stream_pool::state& of, stream_relocation_copier copy)
      : relocatable_set(of.core_), owner_(of), lanes_(*of.core_.streams()), copy_(std::move(copy)) {
    if (!known_.reserve(lanes::most_lanes)) throw std::bad_alloc();
    enroll();
    try {
      lanes_.watch(*this);
    } catch (...) {
      withdraw();
      throw;
    }
  }
  state(const state&) = delete;
  state& operator=(const state&) = delete;
  ~state() {
    lanes_.unwatch(*this);
    withdraw();
    each([&](std::uint32_t, used_record& r, std::uint64_t word) {
      if ((word & live) != 0) owner_.deallocate_settled(r.address.load(relaxed), r.requested.load(relaxed));
    });
  }

  [[nodiscard]] relocatable allocate(std::size_t bytes, stream_handle stream) {
    lane& in = enter_or_throw(stream);
    const std::uint32_t index = take_record();
    if (index == none) throw std::bad_alloc();
    void* block = nullptr;
    try {
      block = owner_.allocate_in(in, bytes, 1);
    } catch (...) {
      put_record(index);
      throw;
    }
    // What used the memory before may still be in the stream, and a copy must come behind it.
    used_record& r = at(index);
    r.users.store(user_bit(in), relaxed);  // published with the word, like the step
    r.step.store(0, relaxed);
    if (records_uses(in)) mark_use(in);
    return open(index, block, bytes);
  }

  [[nodiscard]] error deallocate(relocatable block, stream_handle stream) noexcept {
    lane* const in = owner_.find(stream);
    error code = enter(in);
    if (code != error::none) return code;
    used_record* const r = find(block);
    if (r == nullptr) return error::stale_handle;
    std::uint64_t seen = r->word.load(relaxed);  // a look; the CAS acquires
    for (;;) {
      if (!is_of(seen, block)) return error::stale_handle;
      if ((seen & pins) != 0) return error::pinned;
      if ((seen & moving) != 0)
        seen = settled(*r);
      else if (r->word.compare_exchange_weak(seen, seen | moving, acquire, relaxed))  // R
        break;
    }
    if (!comes_behind_copies(*in, *r)) {
      r->word.fetch_and(~moving, relaxed);  // as in skip()
      return error::stream_failed;
    }
    // R. Relaxed: the mutex of the table hands the record on.
    r->word.store(freed(block), relaxed);
    bad_free report;
    code = owner_.deallocate_in(*in, r->address.load(relaxed), r->requested.load(relaxed), &report);
    if (code != error::none) pool_.call_handler(report);
    put_record(index_of(block));
    return code;
  }

  [[nodiscard]] void* pin(relocatable block, stream_handle stream, error& why) noexcept {
    lane* const in = owner_.find(stream);
    why = enter(in);
    if (why != error::none) return nullptr;
    used_record* const r = find(block);
    std::uint64_t seen = r == nullptr ? 0 : r->word.load(relaxed);  // a look; the CAS acquires
    for (;;) {
      if (!is_of(seen, block)) {
        why = error::stale_handle;
        return nullptr;
      }
      if ((seen & pins) == pins) {
        why = error::pinned;
        return nullptr;
      }
      if ((seen & moving) != 0)
        seen = settled(*r);
      else if (r->word.compare_exchange_weak(seen, seen + one_pin, acquire, relaxed))  // R
        break;
    }
    if (!comes_behind_copies(*in, *r)) {
      drop_pin(*r, block);
      why = error::stream_failed;
      return nullptr;
    }
    add_user(*r, user_bit(*in));
    return r->address.load(relaxed);
  }

  void unpin(relocatable block, stream_handle stream) noexcept {
    used_record* const r = find(block);
    if (r == nullptr) return;
    const std::uint64_t seen = r->word.load(relaxed);  // the caller's own pin is in it
    if (!is_of(seen, block) || (seen & pins) == 0) return;
    lane* const in = owner_.find(stream);
    if (in == nullptr || (!is_noted(*in) && !note(*in))) {
      add_user(*r, unknown_user);
    } else {
      add_user(*r, user_bit(*in));
      if (records_uses(*in)) mark_use(*in);
    }
    drop_pin(*r, block);
  }

  std::vector<relocation> step(stream_handle stream) {
    const std::lock_guard lock(step_mutex_);
    failed_.store(false, relaxed);
    lane& in = enter_or_throw(stream);
    std::vector<relocation> moves = room_for_step();
    if (moves.capacity() == 0) return moves;
    if (!wait_for_copies(in)) {  // (1)
      failed_.store(true, relaxed);
      return moves;
    }
    collect(moves, [&](node room, std::size_t bytes, const void* from) { return owner_.allocate_in_room(room, bytes, from, in); });
    if (moves.empty()) return moves;
    keep_back(moves, wait_for_users(users_of(moves), in), in);  // (2)
    if (moves.empty()) {
      failed_.store(true, relaxed);
      return moves;
    }
    bool copied = false;
    try {
      copied = copy(moves, stream);  // (3)
    } catch (...) {
      static_cast<void>(settle(moves, false, in));
      throw;
    }
    if (!settle(moves, copied, in)) {
      failed_.store(true, relaxed);
      return {};
    }
    count(moves);
    return moves;
  }

  void after_fork(bool child) noexcept override {
    // No step is under way; who was about to free a block is not here.
    if (child) each([](std::uint32_t, used_record& r, std::uint64_t) { r.word.fetch_and(~moving, relaxed); });
    relocatable_set::after_fork(child);
  }

  // As a watcher. The mutex of events is held.

  void stream_ends(const lane& of, const shared_event& behind_all) noexcept override {
    if (copies_.owed == &of) {
      copies_.owed = nullptr;
      copies_.event = behind_all;
      copies_.lost = behind_all == nullptr;
      if (copies_.lost) gap_ = lanes_.number_gap();
    }
    const auto at = std::ranges::find(streams_, &of, &user_stream::of);
    if (at == streams_.end()) return;
    const bool by_mark = behind_all == nullptr && records_uses(of) && !at->unmarked;
    if (const shared_event& event = by_mark ? at->mark : behind_all; event != nullptr) {
      ended_.push_back({user_bit(of), event});  // is_noted() has made room
    } else if (!by_mark) {
      lost_users_ |= user_bit(of);
      gap_ = lanes_.number_gap();
    }
    known_[of.number].serial.store(0, relaxed);  // no thread is in a call for the stream
    streams_.erase(at);
  }
  [[nodiscard]] bool has_gap() const noexcept override {
    return lost_users_ != 0 || copies_.lost || copies_.owed != nullptr;
  }
  void streams_are_idle(std::uint64_t up_to) noexcept override {
    if (gap_ > up_to) return;
    lost_users_ = 0;
    if (copies_.lost || copies_.owed != nullptr) copies_.event = nullptr;  // there is nothing to wait for
    copies_.lost = false;
    copies_.owed = nullptr;
  }

 private:
  /// What every pin() looks at, by the number of the stream's lane.
  struct known_stream {
    atomic<std::uint64_t> serial;  ///< of the lane that is noted; another one's: it is not
    atomic<std::uint64_t> waited;  ///< the stream has waited for the copies of all steps up to this one
  };
  /// A stream in which blocks were used.
  struct user_stream {
    lane* of = nullptr;
    shared_event mark;      ///< where uses are recorded: behind the last one
    bool unmarked = false;  ///< it could not be had
  };
  struct ended_stream {
    std::uint64_t bit = 0;
    shared_event behind_all;
  };

  /// Before a stream uses a block. Null: it is no stream.
  [[nodiscard]] error enter(lane* in) noexcept {
    if (in == nullptr) return error::invalid_argument;
    if (is_noted(*in)) [[likely]] return error::none;
    if (pool::state::captures(in)) return error::invalid_argument;
    return note(*in) ? error::none : error::out_of_memory;
  }
  [[nodiscard]] lane& enter_or_throw(stream_handle stream) {
    lane* const in = owner_.find(stream);
    if (in == nullptr) stream_pool::state::throw_unknown(stream);
    switch (enter(in)) {
      case error::none:
        return *in;
      case error::out_of_memory:
        throw std::bad_alloc();
      default:
        throw std::invalid_argument(
            "orderly::relocatable_stream_blocks: the stream captures, or its driver cannot tell; pin blocks before the "
            "capture, allocate, free and move them after it");
    }
  }

  /// False also while the stream captures: the capture has given its lane another number.
  [[nodiscard]] bool is_noted(const lane& in) noexcept {
    // acquire: note(), so that `waited` is this stream's. Relaxed: the pool's look at the lane has acquired its number.
    return known_[in.number].serial.load(acquire) == in.serial.load(relaxed);
  }
  /// False: there is no memory.
  [[nodiscard, gnu::noinline]] bool note(lane& in) noexcept {
    const std::lock_guard lock(lanes_.event_mutex());
    known_stream& known = known_[in.number];
    const std::uint64_t serial = in.serial.load(relaxed);  // as above
    if (std::ranges::find(streams_, &in, &user_stream::of) == streams_.end()) {
      std::erase_if(ended_, [&](const ended_stream& each) { return lanes_.query(each.behind_all) == event_status::complete; });
      try {
        streams_.push_back({&in, nullptr, false});
        ended_.reserve(ended_.size() + streams_.size());  // each of them will end
      } catch (const std::bad_alloc&) {
        if (!streams_.empty() && streams_.back().of == &in) streams_.pop_back();
        return false;
      }
      known.waited.store(0, relaxed);  // a new stream has waited for nothing
    }
    if (!pool::state::captures(&in)) known.serial.store(serial, release);  // is_noted()
    return true;
  }

  static void add_user(used_record& r, std::uint64_t bit) noexcept {
    // Relaxed, both: the caller has the block pinned, and the unpin's CAS publishes it.
    if ((r.users.load(relaxed) & bit) == 0) r.users.fetch_or(bit, relaxed);
  }
  void drop_pin(used_record& r, relocatable block) noexcept {
    std::uint64_t seen = r.word.load(relaxed);
    while (is_of(seen, block) && (seen & pins) != 0 &&
           !r.word.compare_exchange_weak(seen, seen - one_pin, release, relaxed)) {  // R
    }
  }

  /// Does each use leave an event, since nobody may record one in the stream later?
  [[nodiscard]] bool records_uses(const lane& in) const noexcept { return lanes_.how().marked || in.owner != 0; }
  /// The event is recorded under the mutex, so that of two threads' marks the later one stays.
  void mark_use(lane& in) noexcept {
    const std::lock_guard lock(lanes_.event_mutex());
    const auto at = std::ranges::find(streams_, &in, &user_stream::of);
    shared_event event = record(in);
    at->unmarked = event == nullptr;
    if (event != nullptr) at->mark = std::move(event);
  }
  [[nodiscard]] shared_event record(const lane& in) noexcept {
    return lanes_.driver().capture(in.stream) == 0 ? lanes_.record(in.stream) : nullptr;
  }
  [[nodiscard]] bool wait(const lane& in, const shared_event& event) noexcept {
    lanes_.waits.fetch_add(1, relaxed);  // a figure
    return lanes_.driver().wait(in.stream, event.get());
  }

  /// Does work that enters the stream from now on come behind the copies from and to the block? Pre: it is pinned or marked
  /// by the caller.
  [[nodiscard]] bool comes_behind_copies(lane& in, const used_record& r) noexcept {
    const std::uint64_t step = r.step.load(relaxed);                                  // acquired with the word
    return step <= known_[in.number].waited.load(acquire) || wait_for_copies(in);  // W
  }
  [[nodiscard, gnu::noinline]] bool wait_for_copies(lane& in) noexcept {
    const std::lock_guard lock(lanes_.event_mutex());
    atomic<std::uint64_t>& waited = known_[in.number].waited;
    if (waited.load(relaxed) >= copies_.latest) return true;  // changed under this mutex
    if (!has_event(in) || (copies_.event != nullptr && !wait(in, copies_.event))) return false;
    waited.store(copies_.latest, release);  // W
    return true;
  }
  /// Pre: the mutex of events. `by`: a stream that is known to be there.
  [[nodiscard]] bool has_event(const lane& by) noexcept {
    if (copies_.owed == nullptr) return !copies_.lost;
    const lane& in = *copies_.owed;
    if (&in != &by && (lanes_.how().marked || !lanes::reaches(in))) return false;
    shared_event event = record(in);
    if (event == nullptr) return false;
    copies_.event = std::move(event);
    copies_.owed = nullptr;
    return true;
  }

  [[nodiscard]] std::uint64_t users_of(const std::vector<relocation>& moves) const noexcept {
    std::uint64_t all = 0;
    for (const relocation& each : moves) all |= at(index_of(each.block)).users.load(relaxed);  // acquired by the mark
    return all;
  }

  /// (2) Returns the users that the stream cannot be made to wait for.
  [[nodiscard]] std::uint64_t wait_for_users(std::uint64_t users, const lane& in) noexcept {
    const std::lock_guard lock(lanes_.event_mutex());
    std::uint64_t refused = users & (lost_users_ | unknown_user);
    for (const user_stream& each : streams_) {
      const std::uint64_t bit = users & user_bit(*each.of);
      if (bit == 0 || each.of == &in) continue;
      const bool by_mark = records_uses(*each.of);
      if (by_mark && !each.unmarked && each.mark == nullptr) continue;  // it was pinned for, and unpinned in another
      const shared_event event = !by_mark ? record(*each.of) : each.unmarked ? nullptr : each.mark;
      if (event == nullptr || !wait(in, event)) refused |= bit;
    }
    std::erase_if(ended_, [&](const ended_stream& each) {
      if ((users & each.bit) == 0) return false;
      if (lanes_.query(each.behind_all) == event_status::complete) return true;
      if (!wait(in, each.behind_all)) refused |= each.bit;
      return false;
    });
    return refused;
  }

  /// Takes out what was used by any of `users`: it stays where it is.
  void keep_back(std::vector<relocation>& moves, std::uint64_t users, lane& in) noexcept {
    if (users == 0) return;
    std::erase_if(moves, [&](const relocation& each) {
      used_record& r = at(index_of(each.block));
      if ((r.users.load(relaxed) & users) == 0) return false;  // as in users_of()
      skip(r);
      free_in(in, each.to, each.bytes);
      return true;
    });
  }

  [[nodiscard]] bool copy(const std::vector<relocation>& moves, stream_handle stream) {
    if (copy_) return copy_(moves, stream);
    return std::ranges::all_of(moves, [&](const relocation& each) {
      return lanes_.driver().copy(stream, each.to, each.from, each.bytes);
    });
  }

  /// (4), (5): ends the moves, at their new places, or where they were. False: the latter.
  [[nodiscard]] bool settle(const std::vector<relocation>& moves, bool copied, lane& in) noexcept {
    std::uint64_t number = 0;
    {
      const std::lock_guard lock(lanes_.event_mutex());
      number = ++copies_.latest;
      shared_event event = record(in);
      copies_.owed = event == nullptr ? &in : nullptr;
      if (event == nullptr) gap_ = lanes_.number_gap();
      copied = copied && event != nullptr;
      if (event != nullptr) copies_.event = std::move(event);
      known_[in.number].waited.store(number, release);  // W: it is the stream itself
    }
    for (const relocation& each : moves) {
      used_record& r = at(index_of(each.block));
      r.step.store(number, relaxed);
      if (copied) {
        r.address.store(each.to, relaxed);
        r.users.store(0, relaxed);
      }
      r.word.fetch_and(~moving, release);  // R: pin()
      free_in(in, copied ? each.from : each.to, each.bytes);
    }
    return copied;
  }

  void free_in(lane& in, void* block, std::size_t bytes) noexcept {
    bad_free report;
    if (owner_.deallocate_in(in, block, bytes, &report) != error::none) pool_.call_handler(report);
  }

  stream_pool::state& owner_;
  lanes& lanes_;
  stream_relocation_copier copy_;
  reserved_array<known_stream> known_;
  // Guarded by the mutex of events.
  std::vector<user_stream> streams_;
  std::vector<ended_stream> ended_;  ///< whose last events may not have passed yet
  std::uint64_t lost_users_ = 0;     ///< bits of streams that ended without an event
  std::uint64_t gap_ = 0;            ///< number of the last gap: lost users, or copies without an event
  struct {
    std::uint64_t latest = 0;  ///< number of the last step
    shared_event event;        ///< of its copies; null: there are none, or they are over
    lane* owed = nullptr;      ///< the stream in which the event could not be recorded yet; null: it was
    bool lost = false;         ///< that stream has ended without one
  } copies_;
};

relocatable_stream_blocks::relocatable_stream_blocks(stream_pool& of, stream_relocation_copier copy) {
  if (of.state_ == nullptr) throw std::invalid_argument("orderly::relocatable_stream_blocks: the pool was moved from");
  state_ = new state(*of.state_, std::move(copy));
}
relocatable_stream_blocks::~relocatable_stream_blocks() { delete state_; }

relocatable relocatable_stream_blocks::allocate(std::size_t bytes, stream_handle stream) {
  return state_->allocate(bytes, stream);
}
relocatable relocatable_stream_blocks::try_allocate(std::size_t bytes, stream_handle stream) noexcept {
  try {
    return state_->allocate(bytes, stream);
  } catch (...) {  // out of memory, no stream, or the handler's
    return relocatable::none;
  }
}

error relocatable_stream_blocks::deallocate(relocatable block, stream_handle stream) noexcept {
  return state_->deallocate(block, stream);
}
void* relocatable_stream_blocks::pin(relocatable block, stream_handle stream, error* why) noexcept {
  error code = error::none;
  void* const address = state_->pin(block, stream, code);
  if (why != nullptr) *why = code;
  return address;
}
void relocatable_stream_blocks::unpin(relocatable block, stream_handle stream) noexcept { state_->unpin(block, stream); }
std::size_t relocatable_stream_blocks::size(relocatable block) const noexcept { return state_->size(block); }
void relocatable_stream_blocks::begin(const relocation_limits& each_step) { state_->begin(each_step); }
std::vector<relocation> relocatable_stream_blocks::step(stream_handle stream) { return state_->step(stream); }
bool relocatable_stream_blocks::last_step_failed() const noexcept { return state_->failed(); }
relocation_statistics relocatable_stream_blocks::end() noexcept { return state_->end(); }

}  // namespace orderly
