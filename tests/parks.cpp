// Lock-freedom on the real binary: threads are stopped at random instructions, and each of the others must finish many
// more operations before one of them goes on. What is left out is what pool.hpp and stream_pool.hpp name: a thread's first
// use of a pool or a stream, its end, memory that runs short, memory that changes streams, passes themselves, and frees of
// pointers that no block of the pool covers.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "orderly/pool.hpp"
#include "orderly/software_stream.hpp"
#include "orderly/source.hpp"
#include "orderly/stream_pool.hpp"
#include "support/audit.hpp"
#include "support/decorated_source.hpp"
#include "support/instructions.hpp"
#include "support/oracles.hpp"
#include "support/parks.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/stream_bench.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

/// How long nobody may get on before the others count as blocked. No measure of speed: each has a few milliseconds' work.
constexpr std::chrono::seconds patience(60);

enum operation : unsigned { none, allocates, frees, frees_badly, looks, passes };
constexpr const char* operation_names[] = {"between operations", "allocation", "free", "bad free", "look", "pass"};

/// All that was seen, over all cases.
struct census {
  std::vector<parking> places;
  std::size_t at_random = 0;  ///< inside an operation
  std::size_t in_turn = 0;    ///< from instruction to instruction
  std::chrono::steady_clock::duration longest{};
};

census& seen() {
  static census all;
  return all;
}

const instructions& program() {
  static const instructions all;
  return all;
}

/// How many of the threads that work are parked at a time, how often, and how many operations each of the others makes
/// meanwhile.
struct plan {
  std::size_t workers = 4;
  std::size_t victims = 1;
  std::size_t parks = 1000;
  std::uint64_t operations = 1000;
  bool beside = false;  ///< one more thread, which runs passes and is parked like others, but need not get on
  bool only_beside = false;  ///< it alone is parked, and not where others rightly wait for it; see watched_source
};

/// Threads at work, until it goes. Each makes what it needs, with a first step, before it may be parked.
class crowd {
 public:
  /// make(index) returns an object whose step(parkable&) is one operation or a few. The thread beside the workers is the
  /// last: beside(parkable&).
  template <class Make, class Beside>
  crowd(const plan& of, const Make& make, const Beside& beside) : plan_(of) {
    for (std::size_t index = 0; index < plan_.workers + plan_.beside; ++index) {
      parkable& self = threads_.emplace_back();
      running_.emplace_back([this, &self, index, &make, &beside] {
        if (index == plan_.workers) {
          self.enter();
          while (!over_.load(std::memory_order_relaxed)) beside(self);
        } else {
          auto worker = make(index);
          for (int step = 0; step < 1000; ++step) worker.step(self);
          self.enter();
          while (!over_.load(std::memory_order_relaxed)) worker.step(self);
          self.leave();
          worker.end();
        }
        self.leave();
      });
    }
    for (const parkable& each : threads_)
      while (!each.there()) std::this_thread::yield();
  }
  crowd(const crowd&) = delete;
  crowd& operator=(const crowd&) = delete;
  ~crowd() { stop(); }

  void stop() {
    over_.store(true, std::memory_order_relaxed);
    for (parkable& each : threads_) each.release_for_good();
    for (std::thread& each : running_)
      if (each.joinable()) each.join();
  }

  /// Parks those threads, sees whether the other workers get on, and lets them go. False: they did not, within `bound`.
  /// Where others may wait for one of them, nothing is seen, and where() tells of no operation.
  [[nodiscard]] bool park(const std::vector<std::size_t>& victims, unsigned steps, std::chrono::seconds bound) {
    for (const std::size_t victim : victims) threads_[victim].park(steps);
    return see(victims, bound);
  }

  /// The same for threads that park themselves.
  [[nodiscard]] bool see(const std::vector<std::size_t>& victims, std::chrono::seconds bound) {
    const auto is_victim = [&](std::size_t index) { return std::ranges::find(victims, index) != victims.end(); };
    bool all_on = comes_true(
        [&] {
          return std::ranges::all_of(victims, [&](std::size_t victim) { return threads_[victim].parked(); });
        },
        patience);
    text_ = "a thread never came to be parked";
    where_.assign(victims.size(), {});
    if (!all_on) return false;  // stop() releases those that did, and that may yet
    std::ranges::transform(victims, where_.begin(), [&](std::size_t victim) { return threads_[victim].where(); });
    if (std::ranges::any_of(where_, [&](const parking& at) { return may_be_awaited(at); })) {  // nobody has to get on
      for (parking& at : where_) at.operation = none;
      for (const std::size_t victim : victims) threads_[victim].release();
      return true;
    }
    const auto begin = std::chrono::steady_clock::now();
    const auto end = begin + bound;
    std::vector<std::uint64_t> before;
    for (const parkable& each : threads_) before.push_back(each.done());
    const auto made = [&](std::size_t index) { return threads_[index].done() - before[index]; };
    for (std::size_t index = 0; index < plan_.workers; ++index) {
      if (is_victim(index)) continue;
      all_on = comes_true([&] { return made(index) >= plan_.operations; }, end - std::chrono::steady_clock::now());
      if (all_on) continue;
      text_ = "thread " + std::to_string(index) + " made " + std::to_string(made(index)) + " operations while";
      for (const parking& at : where_)
        text_ += std::string(" [") + operation_names[at.operation] + ", " + program().name(at.instruction) + "]";
      text_ += victims.size() == 1 ? " was parked" : " were parked";
      break;
    }
    seen().longest = std::max(seen().longest, std::chrono::steady_clock::now() - begin);
    for (const std::size_t victim : victims) threads_[victim].release();
    return all_on;
  }

  [[nodiscard]] const std::vector<parking>& where() const noexcept { return where_; }
  [[nodiscard]] const std::string& text() const noexcept { return text_; }
  [[nodiscard]] parkable& thread(std::size_t index) { return threads_[index]; }

 private:
  /// May others wait for a thread that is there, and rightly?
  [[nodiscard]] bool may_be_awaited(const parking& at) const {
    if (!sanitized && !plan_.only_beside) return false;
    const std::string name = program().name(at.instruction);
    // A sanitizer's runtime has locks of its own, which a thread that is parked in it may hold.
    if (sanitized && name.find("__sanitizer::") != std::string::npos) return true;
    // In the source; which knows but for the few instructions between the count of who is in it and the call.
    return plan_.only_beside && (at.awaited || name.find("arena::") != std::string::npos);
  }

  plan plan_;
  std::atomic<bool> over_ = false;
  std::deque<parkable> threads_;
  std::vector<std::thread> running_;
  std::vector<parking> where_;
  std::string text_;
};

/// Parks random threads at random instructions. Stops at the first park in which the others did not get on.
template <class Make, class Beside>
void park_at_random(plan of, const Make& make, const Beside& beside) {
  of.parks = scaled(of.parks);
  of.operations = std::max<std::uint64_t>(1, of.operations / (sanitized ? 8 : 1));
  findings found;
  crowd at_work(of, make, beside);
  random_engine random = make_random(of.victims + 8 * of.workers);
  std::vector<std::size_t> order(of.workers + of.beside);
  for (std::size_t index = 0; index < order.size(); ++index) order[index] = index;
  for (std::size_t inside = 0; inside < of.parks && found.count() == 0;) {
    std::ranges::shuffle(order, random);
    // The thread that runs passes is among the victims every other time.
    if (of.beside && uniform(random, 0, 1) == 0) std::swap(order[0], *std::ranges::find(order, of.workers));
    if (of.only_beside) std::swap(order[0], *std::ranges::find(order, of.workers));
    const std::vector victims(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(of.victims));
    const bool stepped = !sanitized && uniform(random, 0, 1) == 0;
    const auto steps = static_cast<unsigned>(stepped ? uniform(random, 1, 150) : 0);
    found.expect(at_work.park(victims, steps, patience), at_work.text());
    const auto in_operation = std::ranges::count_if(at_work.where(), [](const parking& at) { return at.operation != none; });
    inside += in_operation != 0;
    if (of.only_beside && in_operation == 0) continue;  // nobody was waited for
    seen().at_random += static_cast<std::size_t>(in_operation);
    seen().places.insert(seen().places.end(), at_work.where().begin(), at_work.where().end());
  }
  ORDERLY_CHECK_FINDINGS(found);
}

void no_passes(parkable&) {}

/// A block, as its own bytes tell: the stamp of its address and size at both ends, the size behind the first.
struct held_block {
  static constexpr std::size_t least = 32;

  static std::uint64_t mark(const void* block, std::size_t bytes) {
    return reinterpret_cast<std::uintptr_t>(block) * 0x9e3779b97f4a7c15 + bytes;
  }
  static void sign(void* block, std::size_t bytes) {
    stamp(block, bytes).put(mark(block, bytes));
    static_cast<std::uint64_t*>(block)[1] = bytes;
  }
  static std::size_t bytes_of(const void* block) { return static_cast<const std::uint64_t*>(block)[1]; }
};

/// What differs between a pool and a pool with streams.
struct plain_calls {
  pool& of;
  void* allocate(std::size_t bytes, std::size_t alignment, std::uint64_t) const { return of.try_allocate(bytes, alignment); }
  error deallocate(void* block, std::size_t bytes, std::uint64_t, bad_free* report = nullptr) const {
    return of.try_deallocate(block, bytes, report);
  }
  pool& looked_at() const { return of; }
};

struct stream_calls {
  stream_pool& of;
  std::array<stream_handle, 2> streams;  ///< shared with the next thread, and with the one before
  void* allocate(std::size_t bytes, std::size_t alignment, std::uint64_t draw) const {
    return of.try_allocate(bytes, alignment, streams[draw % 2]);
  }
  error deallocate(void* block, std::size_t bytes, std::uint64_t draw, bad_free* report = nullptr) const {
    return of.try_deallocate(block, bytes, streams[draw % 2], report);
  }
  stream_pool& looked_at() const { return of; }
};

using places = std::array<std::atomic<void*>, 16>;

/// One thread's work: blocks of every shape, others' blocks, bad frees, looks.
template <class Calls>
class worker {
 public:
  worker(const Calls& calls, places& shared, findings& found, std::uint64_t stream, bool short_of_memory = false)
      : calls_(calls), shared_(shared), found_(found), random_(make_random(stream)), short_(short_of_memory) {
    held_.reserve(most);
  }

  void step(parkable& self) {
    const std::uint64_t draw = random_();
    const auto kind = static_cast<unsigned>(draw % 64);
    if (held_.size() == most || (!held_.empty() && kind < 24)) return give(self, draw);
    if (kind < 52 || held_.empty()) return take(self, draw);
    if (kind < 58) return swap(self, draw);
    if (kind < 62) return free_badly(self, draw);
    look(self, draw);
  }

  /// Everything back, when nobody parks any more.
  void end() {
    for (void* const block : held_) static_cast<void>(calls_.deallocate(block, held_block::bytes_of(block), 0));
  }

 private:
  static constexpr std::size_t most = 24;

  void take(parkable& self, std::uint64_t draw) {
    const std::uint64_t shape = draw >> 8;
    std::size_t bytes = 0, alignment = 1;
    switch (shape % 64) {
      case 0:  // a slot
        bytes = mib + mib * (shape / 64 % 4) / 2 + 1;
        break;
      case 1: case 2:  // few to a front. Few sizes, for a stopped pass leaves to caches what they hold of each
        bytes = (100 * kib) << (shape / 64 % 4);
        break;
      case 3: case 4: case 5:  // past fronts
        alignment = std::size_t{512} << (shape / 64 % 8);
        bytes = alignment / 2;
        break;
      case 6: case 7: case 8:
        bytes = held_block::least + shape / 64 % (64 * kib);
        break;
      default:
        bytes = held_block::least + 250 * (shape / 64 % 16);
        break;
    }
    if (short_) bytes = std::min(bytes, 200 * kib);
    self.begin(allocates);
    void* const block = calls_.allocate(bytes, alignment, draw >> 60);
    self.end();
    found_.expect(block != nullptr || short_, "refused ", bytes, " bytes while there was room");
    if (block == nullptr) return;
    found_.expect(reinterpret_cast<std::uintptr_t>(block) % alignment == 0, block, " is not aligned to ", alignment);
    held_block::sign(block, bytes);
    held_.push_back(block);
  }

  void give(parkable& self, std::uint64_t draw) {
    std::swap(held_[(draw >> 8) % held_.size()], held_.back());
    free(self, held_.back(), draw);
    held_.pop_back();
  }

  void free(parkable& self, void* block, std::uint64_t draw) {
    const std::size_t bytes = held_block::bytes_of(block);
    found_.expect(stamp(block, bytes).remove(held_block::mark(block, bytes)), block, " was written by another owner");
    self.begin(frees);
    const error code = calls_.deallocate(block, draw >> 62 == 0 ? 0 : bytes, draw >> 60);
    self.end();
    found_.expect(code == error::none, block, ": ", to_string(code));
  }

  /// Leaves a block for another thread, and frees what another left.
  void swap(parkable& self, std::uint64_t draw) {
    void* const theirs = shared_[(draw >> 8) % shared_.size()].exchange(held_.back(), std::memory_order_acq_rel);
    held_.pop_back();
    if (theirs != nullptr) free(self, theirs, draw);
  }

  /// Of a live block, and so without a look at other pools.
  void free_badly(parkable& self, std::uint64_t draw) {
    auto* const block = static_cast<std::byte*>(held_[(draw >> 8) % held_.size()]);
    const std::size_t bytes = held_block::bytes_of(block);
    bad_free report;
    const bool misaligned = draw >> 63 != 0;
    self.begin(frees_badly);
    const error code = calls_.deallocate(block + (misaligned ? 1 : 0), misaligned ? bytes : 3 * bytes + 256, draw >> 60, &report);
    self.end();
    found_.expect(code == (misaligned ? error::misaligned_pointer : error::size_mismatch), block, ": ", to_string(code));
  }

  void look(parkable& self, std::uint64_t draw) {
    void* const block = held_[(draw >> 8) % held_.size()];
    self.begin(looks);
    bool good = true;
    switch (draw >> 62) {
      case 0: static_cast<void>(calls_.looked_at().stats()); break;
      case 1: good = calls_.looked_at().owns(block); break;
      default: good = calls_.looked_at().block_size(block) >= held_block::bytes_of(block); break;
    }
    self.end();
    found_.expect(good, block, " is not the pool's any more");
  }

  Calls calls_;
  places& shared_;
  findings& found_;
  random_engine random_;
  bool short_;
  std::vector<void*> held_;
};

/// The host's memory. Whoever calls it, and is parked before the end of its operation, may be what others wait for: the
/// library bears a thread that is in the source for as long as that takes.
class watched_source final : public decorated_source {
 public:
  [[nodiscard]] bool is_host_memory() const noexcept override { return true; }
  [[nodiscard]] bool commit(void* address, std::size_t bytes) noexcept override {
    parkable::await();
    return decorated_source::commit(address, bytes);
  }
  [[nodiscard]] bool decommit(void* address, std::size_t bytes) noexcept override {
    parkable::await();
    return decorated_source::decommit(address, bytes);
  }
};

/// A pool, and work on it while threads are parked.
void park_in_pool(const plan& of, std::size_t capacity = 8192 * mib, bool short_of_memory = false) {
  findings found;
  pool tested(std::make_unique<watched_source>(), options{.capacity = capacity, .on_bad_free = on_bad_free::count});
  places shared{};
  random_engine random = make_random(99);  // of the passes
  park_at_random(
      of,
      [&](std::size_t index) {
        return worker<plain_calls>({tested}, shared, found, index, short_of_memory);
      },
      [&](parkable& self) {
        const std::size_t which = uniform(random, 0, 3);
        self.begin(passes);
        if (which == 0)
          tested.defragment();
        else
          tested.trim(which * mib);
        self.end();
        std::this_thread::yield();
      });
  for (std::atomic<void*>& place : shared)
    if (void* const block = place.load()) tested.deallocate(block, held_block::bytes_of(block));
  ORDERLY_CHECK_FINDINGS(found);
  check_idle(tested);
}

/// The same in streams. They never run short, so that no memory has to change streams.
void park_in_streams(const plan& of) {
  findings found;
  stream_options settings;
  settings.memory.slack = 16;
  bench b(of.workers, 8192 * mib, software_schedule::workers, settings);
  // With a high peak the soft limit is out of reach, behind which memory would change streams.
  void* const peak = b.tested->allocate(1024 * mib, b[0]);
  places shared{};
  random_engine random = make_random(98);  // of the passes
  park_at_random(
      of,
      [&](std::size_t index) {
        return worker<stream_calls>({*b.tested, {b[index], b[(index + 1) % of.workers]}}, shared, found, index);
      },
      [&](parkable& self) {
        const std::size_t which = uniform(random, 0, 3);
        self.begin(passes);
        if (which == 0)
          static_cast<void>(b.tested->synchronize());
        else if (which == 1)
          b.tested->defragment();
        else
          b.tested->trim(which * mib);
        self.end();
        std::this_thread::yield();
      });
  for (std::atomic<void*>& place : shared)
    if (void* const block = place.load()) b.tested->deallocate(block, held_block::bytes_of(block), b[0]);
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(b.tested->stats().waits == 0);  // no memory has changed streams
  b.tested->deallocate(peak, 1024 * mib, b[0]);
  check_idle(*b.tested);
}

/// Parks a thread at each instruction of an operation in turn, from the first on, until the operation has ended before.
/// Worker 0 parks itself; the others are at work as always.
template <class Prepare, class Operate>
std::size_t park_at_each(pool& tested, unsigned kind, const Prepare& prepare, const Operate& operate) {
  findings found;
  places shared{};
  const plan of{.workers = 2, .operations = 100};
  struct sweeper {
    const Prepare& prepare;
    const Operate& operate;
    unsigned kind;
    std::optional<worker<plain_calls>> other;
    unsigned steps = 0;
    void step(parkable& self) {
      if (other) return other->step(self);
      prepare();
      self.begin(kind);
      // From here on, instruction by instruction; and on past the end, if there are not so many.
      if (self.there() && (steps == 0 || self.parked())) self.park(++steps);
      operate();
      self.end();
    }
    void end() {
      if (other) other->end();
    }
  };
  std::size_t parks = 0;
  crowd at_work(
      of,
      [&](std::size_t index) {
        sweeper made{prepare, operate, kind, std::nullopt};
        if (index != 0) made.other.emplace(plain_calls{tested}, shared, found, 50 + index);
        return made;
      },
      no_passes);
  for (; found.count() == 0; ++parks) {
    found.expect(at_work.see({0}, patience), at_work.text());
    const bool inside = at_work.where().front().operation != none;
    if (!inside) break;
    seen().places.push_back(at_work.where().front());
    ++seen().in_turn;
  }
  at_work.stop();
  std::printf("parked at the first to the %zuth instruction of a call: %s\n", parks, operation_names[kind]);
  for (std::atomic<void*>& place : shared)
    if (void* const block = place.load()) tested.deallocate(block, held_block::bytes_of(block));
  ORDERLY_CHECK_FINDINGS(found);
  return parks;
}

class spin_lock {
 public:
  void lock() noexcept {
    while (held_.exchange(true, std::memory_order_acquire)) std::this_thread::yield();
  }
  void unlock() noexcept { held_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool> held_ = false;
};

/// Parks until the others are blocked, in a pool with a lock around each operation. Returns the parks inside operations
/// that it took; 0: they never were.
template <class Lock>
std::size_t parks_until_blocked() {
  pool tested(options{.capacity = 64 * mib});
  Lock lock;
  struct guilty {
    pool& tested;
    Lock& lock;
    void step(parkable& self) {
      self.begin(allocates);
      {
        const std::lock_guard hold(lock);
        tested.deallocate(tested.allocate(1000), 1000);
      }
      self.end();
    }
    void end() {}
  };
  const plan of{.workers = 3, .operations = 1000 / (sanitized ? 8 : 1)};
  crowd at_work(of, [&](std::size_t) { return guilty{tested, lock}; }, no_passes);
  random_engine random = make_random(0);
  for (std::size_t parks = 0; parks < 200;) {
    const std::size_t victim = uniform(random, 0, of.workers - 1);
    const bool got_on = at_work.park({victim}, 0, std::chrono::seconds(2));
    parks += at_work.where().front().operation != none;
    if (got_on) continue;
    // Blocked, and by nothing else: it was in an operation, and they go on when the lock is free.
    CHECK(at_work.where().front().operation == allocates);
    std::vector<std::uint64_t> before;
    for (std::size_t index = 0; index < of.workers; ++index) before.push_back(at_work.thread(index).done());
    CHECK(comes_true(
        [&] {
          for (std::size_t index = 0; index < of.workers; ++index)
            if (at_work.thread(index).done() == before[index]) return false;
          return true;
        },
        patience));
    return parks;
  }
  return 0;
}

/// The library's own: not the tests', and not what the standard library makes for it.
bool is_library(const std::string& name) {
  return name.find("orderly::") != std::string::npos && name.find("orderly::test") == std::string::npos &&
         name.find("std::") != 0 && name.find("doctest") == std::string::npos;
}

}  // namespace

TEST_SUITE("stress") {

TEST_CASE("with a lock planted around the operation, the others are blocked") {
  const std::size_t spin = parks_until_blocked<spin_lock>();
  const std::size_t mutex = parks_until_blocked<std::mutex>();
  std::printf("control: blocked in park %zu inside an operation behind a spin lock, %zu behind a mutex\n", spin, mutex);
  CHECK(spin != 0);
  CHECK(mutex != 0);
}

TEST_CASE("a thread is parked anywhere, and the others allocate and free") {
  park_in_pool({.workers = 3, .parks = 1000});
}

TEST_CASE("two are parked at once") {
  park_in_pool({.victims = 2, .parks = 600});
}

TEST_CASE("all but one are parked") {
  park_in_pool({.victims = 3, .parks = 1000});
}

TEST_CASE("a thread is parked in the middle of a pass, or while passes run") {
  park_in_pool({.workers = 3, .parks = 500, .beside = true});
}

TEST_CASE("a pass is parked while memory is short: the others are refused what is not to be had, and are not kept waiting") {
  park_in_pool({.parks = 8, .operations = 200, .beside = true, .only_beside = true}, 2 * mib, true);
}

TEST_CASE("a thread is parked in a stream, and the others allocate and free in theirs") {
  park_in_streams({.workers = 3, .parks = 400});
  park_in_streams({.victims = 2, .parks = 150});
  park_in_streams({.victims = 3, .parks = 200});
}

TEST_CASE("a thread is parked in a pass over streams, or while passes run") {
  park_in_streams({.workers = 3, .parks = 250, .beside = true});
}

#if defined(__x86_64__)
TEST_CASE("a thread is parked at each instruction of the ways that most calls take") {
  if (sanitized) return;
  pool tested(options{.capacity = 256 * mib, .on_bad_free = on_bad_free::count});
  void* block = nullptr;
  const auto nothing = [] {};
  std::size_t parks = 0;
  // The block goes back and forth between the thread and its front.
  parks += park_at_each(tested, allocates, [&] { if (block != nullptr) tested.deallocate(block, 1000); },
                        [&] { block = tested.allocate(1000); });
  tested.deallocate(std::exchange(block, nullptr), 1000);
  parks += park_at_each(tested, frees, [&] { block = tested.allocate(1000); }, [&] { tested.deallocate(block, 1000); });
  // A live block, and a size that it has not.
  block = tested.allocate(1000);
  parks += park_at_each(tested, frees_badly, nothing,
                        [&] { static_cast<void>(tested.try_deallocate(block, 5000)); });
  parks += park_at_each(tested, looks, nothing, [&] { static_cast<void>(tested.owns(block)); });
  // Blocks of another thread's front.
  std::vector<void*> others(scaled(20000));
  for (void*& each : others) each = tested.allocate(1000);
  std::size_t next = 0;
  parks += park_at_each(tested, frees, nothing, [&] {
    if (next < others.size()) tested.deallocate(others[next++], 1000);
  });
  while (next < others.size()) tested.deallocate(others[next++], 1000);
  tested.deallocate(block, 1000);
  std::printf("parked at each instruction of five operations: %zu parks\n", parks);
  check_idle(tested);
}
#endif

TEST_CASE("what was hit") {
  const census& all = seen();
  instructions code = program();
  std::map<std::uintptr_t, std::size_t> distinct;
  std::array<std::size_t, std::size(operation_names)> by_operation{};
  for (const parking& at : all.places) {
    ++by_operation[at.operation];
    if (at.operation == none) continue;
    ++distinct[at.instruction];
    code.hit(at.instruction);
  }
  std::printf("%zu parks, inside an operation %zu at random and %zu in turn, at %zu instructions; the longest wait for the "
              "others took %lld ms\n",
              all.places.size(), all.at_random, all.in_turn, distinct.size(),
              static_cast<long long>(std::chrono::duration_cast<std::chrono::milliseconds>(all.longest).count()));
  for (std::size_t kind = 0; kind < by_operation.size(); ++kind)
    std::printf("  %-20s %6zu\n", operation_names[kind], by_operation[kind]);
  if (!sanitized) CHECK(all.at_random >= 5000);
  if (sanitized || !code.known()) return;
  std::vector<std::pair<std::string, const instructions::function*>> hit;
  std::size_t instructions_hit = 0, instructions_there = 0;
  for (const auto& [name, function] : code.functions()) {
    if (!is_library(name) || function.hits == 0) continue;
    hit.emplace_back(name, &function);
    instructions_hit += function.hit.size();
    instructions_there += function.count;
  }
  std::ranges::sort(hit, std::greater(), [](const auto& each) { return each.second->hits; });
  std::printf("%zu functions of the library, %zu of their %zu instructions:\n", hit.size(), instructions_hit,
              instructions_there);
  std::printf("  parks  instructions hit  of  function\n");
  for (const auto& [name, function] : hit)
    std::printf("  %5zu  %5zu of %5zu %3zu %%  %s\n", function->hits, function->hit.size(), function->count,
                100 * function->hit.size() / function->count, name.substr(0, 96).c_str());
}

}  // TEST_SUITE
