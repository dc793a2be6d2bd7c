/// \file
/// Passes: what is done under the mutex. Other threads allocate and free all the while.
#include "pool_state.hpp"

#include <algorithm>
#include <bit>
#include <bitset>
#include <chrono>
#include <new>
#include <utility>
#include <vector>

#include "uncancelled.hpp"

namespace orderly {

using namespace detail;

namespace {

/// The slack is at least this much, and this much for each front: what caches hold in a program whose blocks are few.
constexpr std::size_t least_slack = std::size_t{16} << 20;
constexpr std::size_t least_slack_per_front = std::size_t{4} << 20;

/// What passes that relieve the soft limit may cost. Each operation earns one credit; a pass costs a fixed number, and some
/// for each block that it takes out of a cache, since a cache that lost it must be filled again: about a tenth of a
/// program's time where blocks change hands as fast as they can. Savings carry a program through changes of phase. A pass
/// releases at least a part of what is committed, so that the next is some way off. Without credit, or where idle memory
/// does not suffice, the limit gives way by a part instead: memory pays only where sizes change so fast that what is
/// released is wanted again at once.
constexpr std::int64_t credit_per_pass = 32768;
constexpr std::int64_t credit_per_block = 256;
constexpr std::int64_t most_credit = std::int64_t{8} << 20;
constexpr std::size_t part_released = 8;
constexpr std::size_t part_given_way = 16;
/// Where the limit may not give way, growth earns credit, too: a commit takes about an operation's time for each KiB. In a
/// program of few and large blocks growth is all that could pay for passes. A soft limit that the program sets never gives
/// way; the automatic one does until as much lies idle as was live at the peak, or `most_idle`, if that is more.
constexpr std::size_t bytes_per_credit = 1024;
constexpr std::size_t most_idle = std::size_t{64} << 20;

/// Rounds of press() in each of which other threads got on. Each such round is progress of the pool as a whole, so their
/// number bounds nothing but this thread's patience.
constexpr int most_rounds = 1000;

/// Waits until `done()` holds, but not for ever: a thread that the system has stopped may never get there. False: given
/// up. `brief` bears a thread that is running; `long_one` one that is descheduled, for some seconds.
template <class Patience, class Done>
bool wait_for(Patience of, Done done) {
  for (int i = 0; i < bounds::spins; ++i)
    if (done()) return true;
  for (int i = 0; i < bounds::yields; ++i) {
    yield();
    if (done()) return true;
  }
  if (of == Patience::brief) return false;
  const uncancelled here;
  deadline end(std::chrono::seconds(3));
  while (!end.over()) {
    rest(std::chrono::microseconds(100));
    if (done()) return true;
  }
  return false;
}

}  // namespace

/// Bytes that must be committed for a request if none of its chunks is.
std::size_t pool::state::commitment(const request& wanted) const noexcept {
  if (!shape().in_tree(wanted.shape.order))
    return (wanted.bytes + shape().chunk_bytes() - 1) & ~(shape().chunk_bytes() - 1);
  const std::size_t length = shape().bytes(granules_of(wanted.shape.order, wanted.shape.sixteenths));
  if (shape().flat) return length;
  return (length + shape().chunk_bytes() - 1) & ~(shape().chunk_bytes() - 1);
}

/// As far as the options allow. Above what is kept there is room for a part, so that a pass has something to release.
void pool::state::set_soft_limit(std::size_t bytes) noexcept {
  const std::size_t kept = kept_committed_.load(relaxed);  // changed under the mutex
  const std::size_t wanted = std::max(bytes, kept + kept / part_released);
  const std::size_t most = settings_.soft_limit == 0 ? wanted : std::min(wanted, settings_.soft_limit);
  store_.memory().set_soft_limit(std::max(most, kept));
}

/// Bytes that may be given back for a commit of `bytes` that comes at once: with them what is kept is there again.
std::size_t pool::state::spare(std::size_t bytes) const noexcept {
  const std::size_t reached = store_.memory().committed() + bytes;
  const std::size_t kept = kept_committed_.load(relaxed);  // a figure
  return reached > kept ? reached - kept : 0;
}

/// A commit for the request would exceed the soft limit: releases idle memory, but not what the request is about to take.
void pool::state::relieve(const request& wanted) noexcept {
  const std::unique_lock lock(pass_mutex_, std::try_to_lock);
  if (!lock) return;  // another pass is at it; this thread takes what the hard limit allows
  const auto next = store_.next(wanted.shape, wanted.granules);
  if (const std::size_t missing = next ? next->missing : commitment(wanted); missing != 0) relieve_for(missing);
  if (next) store_.give(next->n, whole);
}

/// The soft limit would be exceeded by `bytes`: sets it anew from what is live now, and if that does not do, releases idle
/// memory: first what is free, then what depots hold, then what fronts hold.
void pool::state::relieve_for(std::size_t bytes) noexcept {
  arena& memory = store_.memory();
  raise_peak_requested(requested_now());
  const auto peak = static_cast<std::size_t>(std::max<std::int64_t>(peak_requested_.load(relaxed), 0));  // a figure
  const std::size_t least = least_slack + front_count_.load(relaxed) * least_slack_per_front;  // a figure
  const auto slack = std::max(static_cast<std::size_t>(static_cast<double>(peak) * settings_.slack), least);
  const std::size_t most = peak + std::max({slack, peak, most_idle});
  const bool at_most = settings_.soft_limit == 0 && memory.committed() + bytes > most;
  // Streams give memory back late, and the limit gives way to that. So here it comes back again.
  const bool in_streams = lanes_ != nullptr;
  const bool comes_back = in_streams && credit_ > 0;
  earn(bytes, at_most || settings_.soft_limit != 0);
  set_soft_limit(comes_back ? peak + slack : std::clamp(memory.soft_limit(), peak + slack, most));
  const auto excess = [&] {
    const std::size_t wanted = memory.committed() + bytes;
    return wanted > memory.soft_limit() ? wanted - memory.soft_limit() : 0;
  };
  if (excess() == 0) return;
  if (credit_ > 0) {
    passes_.fetch_add(1, relaxed);  // as in collect()
    settle_all(false);
    const auto release_some = [&] {
      trim_settled(std::max(excess(), memory.committed() / part_released), spare(bytes));
    };
    std::size_t blocks = 0;
    const auto release_with = [&](haul reclaimed) {
      blocks += reclaimed.blocks;
      settle_all(false);
      if (reclaimed.blocks != 0) release_some();
    };
    release_some();
    if (excess() != 0) {
      if (lanes_ != nullptr) lanes_->find_sealable();
      release_with(reclaim_depots());
    }
    if (excess() != 0) release_with(reclaim_fronts(patience::brief));
    credit_ -= credit_per_pass + credit_per_block * static_cast<std::int64_t>(blocks);
    grown_to_ = memory.committed() + bytes;
    if (excess() == 0) return;
  }
  if (in_streams) settle_all(true);  // what is free behind events serves where it lies
  const std::size_t reached = memory.soft_limit() + excess();
  const std::size_t part = in_streams ? 0 : memory.committed() / part_given_way;
  set_soft_limit(reached < most ? std::min(reached + part, most) : reached);
}

/// Credit for what was done since the last time: operations, and if it counts, the growth, that by `bytes` included.
void pool::state::earn(std::size_t bytes, bool by_growth) noexcept {
  const std::uint64_t done = operations();
  std::uint64_t earned = done - std::exchange(credited_operations_, done);
  const std::size_t reached = store_.memory().committed() + bytes;
  const std::size_t before = std::exchange(grown_to_, reached);
  if (by_growth && reached > before) earned += (reached - before) / bytes_per_credit;
  credit_ = std::min(credit_ + static_cast<std::int64_t>(earned), most_credit);
}

/// Takes the mutex for a request that would be refused. False: its holder has not moved for seconds, nor waited for the
/// source. With streams a pass may wait for the driver, however long, and so does this.
bool pool::state::reach_pass(std::unique_lock<pass_mutex>& lock) noexcept {
  if (lanes_ != nullptr) {
    lock.lock();
    return true;
  }
  for (;;) {
    if (lock.try_lock()) return true;
    const std::uint64_t seen = pass_mutex_.beats();
    if (stopped_at_.load(relaxed) == seen) return false;  // a look: this holder, at this beat, has been waited for
    bool in_source = false;
    const bool moved = wait_for(patience::long_one, [&] {
      in_source = in_source || store_.memory().in_source();
      return lock.try_lock() || pass_mutex_.beats() != seen;
    });
    if (lock.owns_lock()) return true;
    if (moved || in_source) continue;
    stopped_at_.store(seen, relaxed);
    return false;
  }
}

/// From the store, up to the hard limit; for that what lies idle elsewhere is released. Lock-free, as its parts are.
void* pool::state::allocate_or_trim(const request& wanted, front* mine, refusal& why) noexcept {
  void* block = allocate_direct(mine, wanted, ceiling::hard, why);
  if (block != nullptr) return block;
  const std::size_t bytes = commitment(wanted);
  const std::size_t reached = store_.memory().committed() + bytes;
  // At the limit what exceeds it has to go. A source that refuses does not say how much it lacks.
  const std::size_t excess = reached > shape().limit ? reached - shape().limit : 0;
  const std::size_t missing = why == refusal::hard_limit ? excess : bytes;
  if (why != refusal::no_node) {
    std::size_t released = trim_settled(missing, std::max(missing, spare(bytes)));
    // What is kept goes only where it must: where the source cannot cut what lies idle, say.
    if (released < missing) released += trim_settled(missing - released);
    if (wanted.tried != nullptr) wanted.tried->released += released;
    if (missing == 0 || released != 0) block = allocate_direct(mine, wanted, ceiling::hard, why);
  }
  if (block == nullptr) tell(wanted, why);
  return block;
}

/// Null: refused, and rightly: at some instant since the call no memory for the request existed outside live blocks, and
/// what threads held that have not moved for seconds. Where one of those is in a pass, nobody can look into fronts, and
/// what they hold counts as held by it.
void* pool::state::press(const request& wanted, front* mine) noexcept {
  const std::uint64_t arrived = passes_.load(seq_cst);  // before the lock: a pass with a higher number began later
  std::unique_lock lock(pass_mutex_, std::defer_lock);
  if (!reach_pass(lock)) {
    if (wanted.tried != nullptr) wanted.tried->stopped_pass = true;
    const slow_section marked(*this, mine);
    reclaim_depots();
    refusal why = refusal::none;
    return allocate_or_trim(wanted, mine, why);
  }
  // A pass that began after this request and refused no more than it asks for has refused it too. So of many threads
  // that queue up at the limit, few run a pass.
  if (refused_.pass > arrived && refused_.granules <= wanted.granules && refused_.order <= wanted.shape.order &&
      refused_.in == wanted.in) {  // a stream that captures is refused what another may have
    if (wanted.tried != nullptr) wanted.tried->shared_pass = true;
    return nullptr;
  }
  if (wanted.tried != nullptr) ++wanted.tried->passes;
  const std::uint64_t number = passes_.fetch_add(1, seq_cst) + 1;
  void* const block = press_locked(wanted, mine, lock);
  if (block == nullptr) refused_ = {number, wanted.granules, wanted.shape.order, wanted.in};
  return block;
}

void* pool::state::press_locked(const request& wanted, front* mine, std::unique_lock<pass_mutex>& pass) noexcept {
  refusal why = refusal::none;
  const auto attempt = [&] { return allocate_or_trim(wanted, mine, why); };
  if (void* const block = attempt()) return block;
  for (int round = 0; round < most_rounds; ++round) {
    const activity before = watch(mine);
    const haul reclaimed = reclaim_caches(patience::brief);
    if (wanted.tried != nullptr) wanted.tried->reclaimed += reclaimed.bytes;
    // What would go to a capture behind events can go nowhere before they have passed; unless this thread waits for them.
    settle_all(!captures(wanted.in) || lanes_->how().may_wait);
    if (void* const block = attempt()) return block;
    if (lanes_ != nullptr && lanes_->how().may_wait) {
      wait_for_streams(pass);
      if (wanted.tried != nullptr) wanted.tried->waited = true;
      if (void* const block = attempt()) return block;
    }
    const activity after = watch(mine);
    // Nobody was at work while we looked everywhere: what was not found is live.
    if (!before.inside && !after.inside && reclaimed.complete && before.steps == after.steps) return nullptr;
    if (!after.inside) continue;  // on the way out just now
    // Leaving is no step of its own: who was seen inside may have counted its last call already.
    const auto got_on = [&] {
      pass_mutex_.beat();
      const activity now = watch(mine);
      return now.steps != after.steps || !now.inside;
    };
    while (!wait_for(patience::long_one, got_on)) {
      if (store_.memory().in_source()) continue;
      if (wanted.tried != nullptr) wanted.tried->stopped_thread = true;
      return nullptr;  // stopped threads hold what they hold
    }
  }
  return nullptr;
}

/// Allocations and frees through fronts so far, all threads'.
std::uint64_t pool::state::operations() const noexcept {
  std::uint64_t sum = 0;
  for (const front& each : made_fronts()) sum += each.watch().calls;
  return sum;
}

/// The sum of all threads' steps, this thread's left out: it holds the mutex, not memory.
pool::state::activity pool::state::watch(const front* mine) const noexcept {
  activity sum;
  for (const front& each : made_fronts()) {
    if (mine == &each) continue;
    const front::activity of = each.watch();
    sum.steps += of.calls + of.slow;
    sum.inside = sum.inside || !of.idle();
  }
  const std::uint64_t ended = frontless_ended_.load(seq_cst);
  const std::uint64_t begun = frontless_begun_.load(seq_cst);
  sum.steps += begun + ended;
  sum.inside = sum.inside || begun != ended;
  return sum;
}

pool::state::haul pool::state::reclaim_caches(patience with) noexcept {
  if (lanes_ != nullptr) lanes_->find_sealable();
  haul all = reclaim_depots();
  all += reclaim_fronts(with);
  return all;
}

pool::state::haul pool::state::reclaim_depots() noexcept {
  std::array<std::uint32_t, max_magazine_blocks> blocks;
  haul reclaimed;
  for (std::size_t c = 0; c < classes_; ++c) {
    while (const std::size_t count = depot_.pop(shelves_, c, blocks)) {
      settle(nullptr, c, std::span(blocks).first(count));
      reclaimed += {count, count * rules_[c].bytes};
    }
  }
  if (lanes_ != nullptr) {
    lanes_->each([&](lane& of) {
      if (!of.sealable) return;
      reclaimed += empty_shelves(of);
      empty_large(of);
    });
  }
  return reclaimed;
}

/// A pass looks whether an owner has left its front, and says that it is still looking itself.
bool pool::state::is_outside(const front& of) noexcept {
  pass_mutex_.beat();
  return of.outside();
}

/// Of all fronts, or of one lane's. Not complete: some fronts were passed over, because their owners are inside and do not
/// get on. Where the lane's number has changed before, its fronts are left to other lanes: nobody comes by that number any
/// more, so each is one that attach() showed before it looked at the number, and that is seen here.
pool::state::haul pool::state::reclaim_fronts(patience with, const lane* only) noexcept {
  const std::span<front> fronts = made_fronts();
  haul reclaimed;
  std::bitset<most_fronts> chosen;
  std::bitset<most_fronts> outside;
  for (std::size_t i = 0; i < fronts.size(); ++i) {
    chosen[i] = only == nullptr || fronts[i].of_lane.load(seq_cst) == only;  // attach()
    if (chosen[i]) fronts[i].revoke();
  }
  const bool ordered = asymmetric_barrier::heavy();  // else nobody can be known to be outside
  for (std::size_t i = 0; i < fronts.size(); ++i) {
    if (!chosen[i]) continue;
    front& f = fronts[i];
    outside[i] = ordered && wait_for(with, [&] { return is_outside(f); });
    if (outside[i])
      post_returns(f);
    else
      reclaimed.complete = false;
  }
  // Now every return that could be posted is in its home's inbox.
  for (std::size_t i = 0; i < fronts.size(); ++i) {
    front& f = fronts[i];
    if (!outside[i] || (only == nullptr && !can_seal(f))) continue;
    reclaimed += drain(f);
    if (only == nullptr) continue;
    if (f.holds_returns()) {  // for lack of magazines
      reclaimed.complete = false;
      continue;
    }
    f.retire();
    if (f.of_lane.load(relaxed) != only) f.renew();  // retire() saw the new owner's renew(), or that comes
  }
  for (std::size_t i = 0; i < fronts.size(); ++i)
    if (chosen[i]) fronts[i].restore();
  // Whoever sent a parcel to a front without a thread while it was revoked has left it to this pass; see adopt().
  for (front& each : fronts)
    if (!each.attached()) adopt(each);
  return reclaimed;
}

/// A pass takes nothing from a stream's cache that it could not pass on: the stream itself still can use it.
bool pool::state::can_seal(const front& of) noexcept {
  const lane* const in = of.of_lane.load(relaxed);  // ordered by outside()
  return in == nullptr || in->sealable;
}

/// Puts a revoked front's returns into their homes' inboxes. Pre: as drain().
void pool::state::post_returns(front& of) noexcept {
  for (std::size_t c = 0; c < classes_; ++c) {
    front_returns& r = of.returns[c];
    const std::uint32_t count = r.count.load(relaxed);  // ordered by outside()
    if (count == 0) continue;
    front& home = fronts_[r.home - 1];
    lane* const in = of.of_lane.load(relaxed);  // ordered by outside()
    if (in != nullptr) in->coming.fetch_add(1, relaxed);  // as in deliver()
    const std::uint64_t bytes = count * rules_[c].bytes;
    home.inbox_bytes.fetch_add(bytes, relaxed);  // a figure, never below what is there
    if (!depot_.send(home.inbox, c, {r.blocks, count}, r.unused, in)) {  // no magazine left; the next pass has one
      home.inbox_bytes.fetch_sub(bytes, relaxed);
      if (in != nullptr) in->coming.fetch_sub(1, relaxed);
      continue;
    }
    r.count.store(0, relaxed);
  }
}

/// Gives all that a front holds, and what came home to it, back to the store. Pre: its owner is outside and stays there,
/// or is the caller, inside.
pool::state::haul pool::state::drain(front& of) noexcept {
  haul drained;
  for (std::size_t c = 0; c < classes_; ++c) {
    front_magazine& m = of.magazines[c];
    const std::uint32_t held = m.count.load(relaxed);  // ordered by the stay or by outside()
    if (held == 0) continue;
    m.count.store(0, relaxed);
    put_back(nullptr, of.of_lane.load(relaxed), c, {m.blocks, held});
    drained += {held, held * rules_[c].bytes};
  }
  for (;;) {
    depot::parcel p = depot_.receive(of.inbox);
    if (p.count == 0) return drained;
    arrive(of, p);
    auto* const in = static_cast<lane*>(p.note);
    put_back(nullptr, in, p.of_class, std::span(p.blocks).first(p.count));
    if (in != nullptr) in->coming.fetch_sub(1, release);  // as in unpack()
    drained += {p.count, p.count * rules_[p.of_class].bytes};
  }
}

/// Empties the inbox of a front whose thread does not come to look. Skipped if a pass is under way, or if the thread is
/// stopped inside.
void pool::state::collect(front& home) noexcept {
  const std::unique_lock lock(pass_mutex_, std::try_to_lock);
  if (!lock) return;
  passes_.fetch_add(1, relaxed);  // a figure: only passes of press() refuse, and it compares theirs
  home.revoke();
  if (asymmetric_barrier::heavy() && wait_for(patience::brief, [&] { return is_outside(home); })) empty_inbox(home);
  home.restore();
  if (!home.attached()) adopt(home);  // as in reclaim_fronts()
}

/// live -> owned for a block that a front handed out: with its home kept outside, so that none of its steps is under way.
/// Changed: the block is no longer as it was found. Out of reach: a thread is stopped inside that front, or the system refuses
/// the barrier.
pool::state::taking pool::state::take_from_home(const block_store::found& block) noexcept {
  const std::lock_guard lock(pass_mutex_);
  front& home = fronts_[block.word.home() - 1];
  home.revoke();
  std::uint64_t expected = block.word.bits();
  // Relaxed: outside() has ordered the home's last step, and the program's own order says who frees or divides.
  const bool outside = asymmetric_barrier::heavy() && wait_for(patience::long_one, [&] { return is_outside(home); });
  const bool taken =
      outside && store_.word(block.n).compare_exchange_strong(expected, block_word::owned().bits(), relaxed, relaxed);
  home.restore();
  if (!home.attached()) adopt(home);  // as in reclaim_fronts()
  if (!outside) return taking::out_of_reach;
  return taken ? taking::taken : taking::changed;
}

std::size_t pool::state::trim(std::size_t keep_bytes) noexcept {
  std::size_t released = 0;
  for (;;) {
    released += trim_once(keep_bytes);
    const std::size_t committed = store_.memory().committed();
    if (committed <= keep_bytes || keepers_.give_up(committed - keep_bytes) == 0) return released;
  }
}

std::size_t pool::state::trim_once(std::size_t keep_bytes) noexcept {
  const std::lock_guard lock(pass_mutex_);
  passes_.fetch_add(1, relaxed);  // as in collect()
  reclaim_caches(patience::long_one);
  settle_all(false);
  const std::size_t kept = std::max(keep_bytes, settings_.release_threshold);
  kept_committed_.store(std::min(kept_committed_.load(relaxed), kept), relaxed);  // a figure; ends reserve()
  set_soft_limit(store_.memory().soft_limit());
  const std::size_t committed = store_.memory().committed();
  return committed > keep_bytes ? trim_settled(committed - keep_bytes) : 0;
}

/// Takes what is free, the largest first, and what is not committed with it, until enough is; then gives it back.
std::size_t pool::state::reserve(std::size_t bytes) noexcept {
  const std::lock_guard lock(pass_mutex_);
  passes_.fetch_add(1, relaxed);  // as in collect()
  arena& memory = store_.memory();
  const std::size_t wanted = std::min<std::size_t>(bytes, shape().limit);
  std::vector<node> taken;
  unsigned largest = shape().root_order;
  try {
    while (memory.committed() < wanted) {
      const std::uint64_t chunks = (wanted - memory.committed() + shape().chunk_bytes() - 1) / shape().chunk_bytes();
      const auto log2 = static_cast<unsigned>(std::bit_width(chunks) - 1);
      const unsigned order = std::min(shape().chunk_order + log2, largest);
      taken.reserve(taken.size() + 1);
      refusal why = refusal::none;
      const block_shape part{static_cast<std::uint8_t>(order), whole};
      const auto n = store_.take_one(part, std::uint64_t{1} << order, ceiling::hard, why);
      if (n) {
        taken.push_back(*n);
        continue;
      }
      // Where others have grown since the look, so much does not fit below the limit any more, but less may.
      if (why == refusal::source || order == shape().chunk_order) break;
      largest = order - 1;
    }
  } catch (const std::bad_alloc&) {  // what is taken by now is committed
  }
  for (const node n : taken) store_.give(n, whole);
  const std::size_t kept = std::min<std::size_t>(wanted, memory.committed());
  kept_committed_.store(std::max(kept_committed_.load(relaxed), kept), relaxed);  // a figure
  set_soft_limit(memory.soft_limit());
  return memory.committed();
}

std::size_t pool::state::defragment() noexcept {
  const std::lock_guard lock(pass_mutex_);
  passes_.fetch_add(1, relaxed);  // as in collect()
  const std::size_t reclaimed = reclaim_caches(patience::long_one).bytes;
  settle_all(false);
  return reclaimed;
}

}  // namespace orderly
