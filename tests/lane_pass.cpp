// The order in which memory changes streams, at its edges: threads and streams that end at the same time, drivers that
// refuse, marks, captures, and how much is kept of what is gone.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <shared_mutex>
#include <thread>
#include <utility>
#include <vector>

#include "front.hpp"
#include "orderly/software_stream.hpp"
#include "orderly/stream_pool.hpp"
#include "support/double_driver.hpp"
#include "support/last_uses.hpp"
#include "support/lockstep_threads.hpp"
#include "support/paper_source.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/stream_bench.hpp"
#include "support/threads.hpp"
#include "thread_fronts.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

struct double_bench : bench {
  explicit double_bench(std::size_t streams, std::size_t capacity, software_schedule schedule = software_schedule::lazy,
                        const stream_options& settings = {}, std::uint64_t seed = 0, bool flat = false)
      : bench(streams, capacity, schedule, settings, seed, flat,
              [](std::shared_ptr<stream_driver> inner) -> std::shared_ptr<stream_driver> {
                return std::make_shared<double_driver>(std::move(inner));
              }) {}

  double_driver* const driver = static_cast<double_driver*>(bench::driver.get());
};

[[nodiscard]] stream_options safe() {
  stream_options settings;
  settings.safe_mode = true;
  return settings;
}

/// Waits for a flag; not for ever, so that a test which waits for what never happens ends.
bool comes(const std::atomic<bool>& flag, std::chrono::milliseconds within = std::chrono::seconds(30)) {
  const auto end = std::chrono::steady_clock::now() + within;
  while (!flag.load()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return true;
}

/// Waits in the middle of something for what another thread may do meanwhile, or may have to wait with.
void give_way(const std::atomic<bool>& flag) { static_cast<void>(comes(flag, std::chrono::milliseconds(50))); }

/// A little time.
void linger() noexcept {
  static std::atomic<unsigned> turns = 0;
  turns.fetch_add(1, std::memory_order_relaxed);
}

/// Work on a block that has run or not.
struct piece {
  std::shared_ptr<std::atomic<bool>> done = std::make_shared<std::atomic<bool>>(false);
  void enter(software_stream& in) const {
    in.enqueue([flag = done] { flag->store(true); });
  }
};

/// Runs what `in` needs to be done, and says whether `before` had run by the time that work of `in` ran.
[[nodiscard]] bool ordered(software_stream& in, const piece& before) {
  auto seen = std::make_shared<bool>(false);
  in.enqueue([seen, flag = before.done] { *seen = flag->load(); });
  in.synchronize();
  return *seen;
}

/// A pool whose streams come and go, and threads that use blocks in them, hand them on, free them in other streams and
/// record them. Work runs late, when somebody waits for it, so that an order which is missing is seen. In its calls the
/// driver lets others in.
class traffic {
 public:
  /// `bytes` draws the length of a block; `visits` of a hundred steps bring another stream for a moment.
  traffic(std::size_t capacity, bool flat, std::size_t streams, std::size_t visits,
          std::function<std::size_t(random_engine&)> bytes)
      : visits_(visits),
        bytes_(std::move(bytes)),
        driver_(std::make_shared<double_driver>(device_.driver())),
        buffer_(flat ? new (std::align_val_t{4096}) std::byte[capacity] : nullptr),
        places_(streams) {
    driver_->recorded = [](stream_handle) { let_others_in(); };
    driver_->asked = [] { let_others_in(); };
    driver_->let_go = [] { let_others_in(); };
    stream_options settings;
    settings.memory.capacity = capacity;
    settings.memory.on_bad_free = on_bad_free::count;
    tested_.emplace(flat ? make_fixed_buffer_source(buffer_.get(), capacity)
                         : std::make_unique<last_uses_source>(
                               make_paper_source(64 * kib, std::make_shared<paper_map>(), log_), uses_),
                    driver_, settings);
    for (place& each : places_) each.stream.emplace(device_);
  }

  void run(std::size_t threads, std::size_t steps) {
    run_threads(threads, [&](std::size_t self) {
      random_engine random = make_random(self);
      std::vector<block> own;
      for (std::size_t step = 0; step < steps; ++step) {
        const std::size_t kind = uniform(random, 0, 99);
        if (uniform(random, 0, 99) < visits_) {
          if (own.size() < 12) visit(random, own);
        } else if (kind < 50) {
          if (own.size() < 12) allocate(random, own);
        } else if (kind < 94) {
          if (!own.empty()) free(random, own);
        } else if (kind < 97) {
          replace(places_[uniform(random, 0, places_.size() - 1)]);
        } else if (kind < 99) {
          place& at = places_[uniform(random, 0, places_.size() - 1)];
          const std::shared_lock used(at.mutex);
          at.stream->synchronize();
        } else if (uniform(random, 0, 3) == 0) {
          static_cast<void>(tested_->trim());
        } else if (uniform(random, 0, 9) == 0) {
          found_.expect(tested_->synchronize(), "a driver could not tell");
        }
      }
      while (!own.empty()) free(random, own);
    });
    random_engine random = make_random(threads);
    while (!passed_on_.empty()) free(random, passed_on_);
    ORDERLY_CHECK_FINDINGS(found_);
    CHECK(uses_.torn_away() == 0);
    CHECK(tested_->stats().memory.bad_frees == 0);
    for (int i = 0; i < 4; ++i) CHECK(tested_->synchronize());
    CHECK(tested_->stats().held == 0);
    check_sound(*tested_);
    ORDERLY_CHECK_CONTRACT(*log_);
  }

  [[nodiscard]] const stream_pool& tested() const noexcept { return *tested_; }

 private:
  struct place {
    std::shared_mutex mutex;  ///< shared: the stream stays
    std::optional<software_stream> stream;
  };
  struct block {
    void* address = nullptr;
    std::size_t bytes = 0;
    std::vector<last_uses::work> by{};
    std::shared_ptr<void> event = nullptr;  ///< behind its use in the stream that it was allocated in
  };

  static void let_others_in() {
    for (int i = 0; i < 3; ++i) std::this_thread::yield();
  }

  /// Work in the stream that must come after `before`.
  [[nodiscard]] last_uses::work enqueue(software_stream& in, std::vector<last_uses::work> before) {
    auto done = std::make_shared<std::atomic<bool>>(false);
    in.enqueue([this, done, before = std::move(before)] {
      for (const last_uses::work& each : before)
        found_.expect(each->load(), "memory was given away while it was in use");
      *done = true;
    });
    return done;
  }

  void allocate(random_engine& random, std::vector<block>& own) {
    place& at = places_[uniform(random, 0, places_.size() - 1)];
    const std::shared_lock used(at.mutex);
    allocate(random, own, *at.stream);
  }
  void allocate(random_engine& random, std::vector<block>& own, software_stream& stream) {
    const stream_handle in = stream.handle();
    block next{nullptr, bytes_(random)};
    const std::size_t alignment = uniform(random, 0, 2) == 0 ? 512 : 1;  // of such no cache holds small ones
    next.address = tested_->try_allocate(next.bytes, alignment, in);
    if (next.address == nullptr) return;
    next.by.push_back(enqueue(stream, uses_.take(next.address, next.bytes)));
    const std::shared_ptr<stream_driver> inner = device_.driver();
    next.event = {inner->record(in), [inner](event_handle event) { inner->release(event); }};
    own.push_back(std::move(next));
  }

  /// One of them, or one that another thread has handed on, in whatever stream.
  void free(random_engine& random, std::vector<block>& own) {
    std::swap(own[uniform(random, 0, own.size() - 1)], own.back());
    block last = std::move(own.back());
    own.pop_back();
    if (&own != &passed_on_ && uniform(random, 0, 1) == 0) {
      const std::lock_guard hold(passing_);
      passed_on_.push_back(std::move(last));
      if (passed_on_.size() < 12) return;
      std::swap(passed_on_[uniform(random, 0, passed_on_.size() - 1)], passed_on_.back());
      last = std::move(passed_on_.back());
      passed_on_.pop_back();
    }
    const auto behind_its_use = [&](const place& at) {
      found_.expect(device_.driver()->wait(at.stream->handle(), last.event.get()), "a wait was refused");
    };
    if (uniform(random, 0, 3) == 0) {
      place& other = places_[uniform(random, 0, places_.size() - 1)];
      const std::shared_lock used(other.mutex);
      found_.expect(tested_->record_stream(last.address, other.stream->handle()) == error::none,
                    "a record was refused");
      behind_its_use(other);
      last.by.push_back(enqueue(*other.stream, last.by));
    }
    place& at = places_[uniform(random, 0, places_.size() - 1)];
    const std::shared_lock used(at.mutex);
    behind_its_use(at);
    last.by.push_back(enqueue(*at.stream, {last.by.front()}));
    uses_.leave(last.address, last.bytes, last.by);
    found_.expect(tested_->try_deallocate(last.address, last.bytes, at.stream->handle()) == error::none,
                  "a good free was refused");
  }

  /// A stream that takes a block and goes: its lane is soon another's.
  void visit(random_engine& random, std::vector<block>& own) {
    software_stream passing(device_);
    allocate(random, own, passing);
    found_.expect(tested_->release_stream(passing.handle()), "a last event was refused");
    if (uniform(random, 0, 1) == 0) passing.synchronize();
  }

  /// The stream goes, with work in it, and another comes.
  void replace(place& of) {
    const std::unique_lock alone(of.mutex, std::try_to_lock);
    if (!alone) return;
    found_.expect(tested_->release_stream(of.stream->handle()), "a last event was refused");
    of.stream.reset();
    of.stream.emplace(device_);
  }

  const std::size_t visits_;
  const std::function<std::size_t(random_engine&)> bytes_;
  findings found_;
  last_uses uses_;
  std::shared_ptr<source_log> log_ = std::make_shared<source_log>();
  software_device device_{software_schedule::lazy};
  std::shared_ptr<double_driver> driver_;
  std::unique_ptr<std::byte[], bench::aligned_delete> buffer_;
  std::optional<stream_pool> tested_;
  std::vector<place> places_;
  std::mutex passing_;
  std::vector<block> passed_on_;  ///< guarded by passing_
};

}  // namespace

TEST_SUITE("unit") {
  // ------------------------------------------------------------------------------------------------------ safe mode

  TEST_CASE("safe mode: of two threads that free in one stream, the later mark stays") {
    double_bench b(2, 4 * mib, software_schedule::lazy, safe());
    void* const x = b.tested->allocate(2 * mib, b[0]);
    void* const y = b.tested->allocate(2 * mib, b[0]);
    std::atomic<std::thread::id> stopped;
    std::atomic<bool> recorded = false;
    std::atomic<bool> other_done = false;
    b.driver->recorded = [&](stream_handle) {
      if (std::this_thread::get_id() != stopped.load()) return;
      recorded = true;
      give_way(other_done);
    };
    const piece last_use;
    std::thread other([&] {
      static_cast<void>(comes(recorded));  // the first thread has recorded its mark, and has not kept it yet
      last_use.enter(b.stream[0]);
      b.tested->deallocate(y, 2 * mib, b[0]);
      other_done = true;
    });
    stopped = std::this_thread::get_id();
    b.tested->deallocate(x, 2 * mib, b[0]);
    stopped = std::thread::id();
    other.join();
    CHECK(recorded);
    void* const first = b.tested->try_allocate(2 * mib, b[1]);
    void* const second = b.tested->try_allocate(2 * mib, b[1]);
    REQUIRE(first != nullptr);
    REQUIRE(second != nullptr);
    CHECK(ordered(b.stream[1], last_use));
  }

  TEST_CASE("safe mode: a free without a mark is covered by no earlier one, and by the next") {
    double_bench b(2, 6 * mib, software_schedule::lazy, safe());
    bool captures = false;
    SUBCASE("the stream captures") { captures = true; }
    SUBCASE("the driver has no event") {
      b.driver->refuse_record = [](stream_handle) { return true; };
    }
    void* const small = b.tested->allocate(1000, b[0]);
    void* const block = b.tested->allocate(4 * mib, b[0]);
    const piece last_use;
    last_use.enter(b.stream[0]);
    if (captures) REQUIRE(b.stream[0].begin_capture());
    CHECK(b.tested->try_deallocate(block, 4 * mib, b[0]) == error::none);
    static_cast<void>(b.stream[0].end_capture());
    CHECK(b.tested->try_allocate(4 * mib, b[1]) == nullptr);
    b.driver->refuse_record = nullptr;
    b.tested->deallocate(small, 1000, b[0]);
    REQUIRE(b.tested->try_allocate(4 * mib, b[1]) != nullptr);
    CHECK(ordered(b.stream[1], last_use));
  }

  TEST_CASE("safe mode: a recorded stream is waited for, up to the record") {
    double_bench b(3, 4 * mib, software_schedule::lazy, safe());
    void* const block = b.tested->allocate(4 * mib, b[0]);
    const piece last_use;
    last_use.enter(b.stream[1]);
    CHECK(b.tested->record_stream(block, b[1]) == error::none);
    b.tested->deallocate(block, 4 * mib, b[0]);
    void* const again = b.tested->try_allocate(4 * mib, b[2]);
    REQUIRE(again != nullptr);
    CHECK(ordered(b.stream[2], last_use));
  }

  TEST_CASE("safe mode: a free without a mark in the middle of a pass is not covered by the mark before") {
    // Aligned beyond the granule: no cache holds such blocks, so a free puts them where passes look.
    constexpr std::size_t bytes = 256;
    constexpr std::size_t alignment = 512;
    double_bench b(2, 128 * kib, software_schedule::lazy, safe());
    std::atomic<bool> refuse = false;
    b.driver->refuse_record = [&](stream_handle) { return refuse.load(); };
    for (std::size_t round = 0; round < scaled(200); ++round) {
      void* const x = b.tested->allocate(bytes, alignment, b[0]);
      void* const y = b.tested->allocate(bytes, alignment, b[0]);
      b.tested->deallocate(x, bytes, b[0]);  // with a mark
      const piece last_use;
      last_use.enter(b.stream[0]);
      refuse = true;
      run_threads(2, [&](std::size_t self) {
        if (self == 0)
          static_cast<void>(b.tested->trim());
        else
          b.tested->deallocate(y, bytes, b[0]);
      });
      refuse = false;
      std::vector<void*> others;
      while (void* const block = b.tested->try_allocate(bytes, alignment, b[1])) others.push_back(block);
      if (std::ranges::count(others, y) != 0) CHECK(ordered(b.stream[1], last_use));
      for (void* const block : others) b.tested->deallocate(block, bytes, b[1]);
      REQUIRE(b.tested->synchronize());
    }
    check_idle(*b.tested);
  }

  TEST_CASE("safe mode: a recorded stream that is gone is waited for until its mark has passed") {
    bench b(2, 6 * mib, software_schedule::lazy, safe());
    void* const block = b.tested->allocate(4 * mib, b[0]);
    const piece last_use;
    stream_handle handle = nullptr;
    {
      software_stream passing(b.device);
      handle = passing.handle();
      last_use.enter(passing);
      CHECK(b.tested->record_stream(block, handle) == error::none);
    }
    software_stream next(b.device);
    REQUIRE(next.handle() == handle);
    b.tested->deallocate(b.tested->allocate(1000, handle), 1000, handle);  // the pool learns that the first is gone
    CHECK(b.tested->synchronize());
    CHECK_FALSE(last_use.done->load());
    b.tested->deallocate(block, 4 * mib, b[0]);
    REQUIRE(b.tested->try_allocate(4 * mib, b[1]) != nullptr);
    CHECK(ordered(b.stream[1], last_use));
  }

  TEST_CASE("safe mode: a release says whether a mark covers what was freed") {
    double_bench b(1, 6 * mib, software_schedule::lazy, safe());
    software_stream passing(b.device);
    void* const block = b.tested->allocate(4 * mib, passing.handle());
    const piece last_use;
    last_use.enter(passing);
    b.driver->refuse_record = [](stream_handle) { return true; };
    b.tested->deallocate(block, 4 * mib, passing.handle());
    bool refused = true;
    SUBCASE("still without") {}
    SUBCASE("one can be had now") { refused = false; }
    if (!refused) b.driver->refuse_record = nullptr;
    CHECK(b.tested->release_stream(passing.handle()) == !refused);
    b.driver->refuse_record = nullptr;
    CHECK((b.tested->try_allocate(4 * mib, b[0]) == nullptr) == refused);
    if (refused) {
      CHECK(b.tested->synchronize());
      CHECK(b.tested->try_allocate(4 * mib, b[0]) != nullptr);
    }
    CHECK(ordered(b.stream[0], last_use));
  }

  TEST_CASE("safe mode: two threads meet the next stream of a handle at once") {
    double_bench b(1, 16 * mib, software_schedule::eager, safe());
    for (std::size_t round = 0; round < scaled(4000); ++round) {
      {
        software_stream passing(b.device);
        void* const block = b.tested->allocate(1000, passing.handle());
        b.tested->deallocate(block, 1000, passing.handle());
        CHECK(b.tested->synchronize());  // nothing is left of it: its place is the next stream's
      }
      software_stream next(b.device);
      run_threads(2, [&](std::size_t) {
        void* const block = b.tested->allocate(1000, next.handle());
        b.tested->deallocate(block, 1000, next.handle());
      });
    }
    check_idle(*b.tested);
  }

  TEST_CASE("safe mode: a thread that is late to meet the next stream of a handle releases it for nobody") {
    double_bench b(0, 16 * mib, software_schedule::lazy, safe());
    std::optional<software_stream> passing(std::in_place, b.device);
    b.tested->deallocate(b.tested->allocate(1000, passing->handle()), 1000, passing->handle());
    REQUIRE(b.tested->synchronize());
    passing.reset();
    software_stream next(b.device);  // has the handle, and the lane's place
    std::atomic<std::thread::id> late_id;
    std::atomic<std::thread::id> freeing_id;
    std::atomic<bool> late = false;
    std::atomic<bool> go_on = false;
    std::atomic<bool> over = false;
    b.driver->identified = [&] {
      if (std::this_thread::get_id() == late_id.load() && !late.exchange(true)) give_way(go_on);
    };
    b.driver->recorded = [&](stream_handle) {  // inside a free, on the new stream's lane
      if (std::this_thread::get_id() != freeing_id.load()) return;
      go_on = true;
      give_way(over);
    };
    std::thread slow([&] {
      late_id = std::this_thread::get_id();
      void* const block = b.tested->allocate(1000, next.handle());
      over = true;
      b.tested->deallocate(block, 1000, next.handle());
    });
    CHECK(comes(late));  // it has found the old stream's lane
    void* const x = b.tested->allocate(1000, next.handle());
    void* const y = b.tested->allocate(2 * mib, next.handle());
    b.tested->deallocate(y, 2 * mib, next.handle());
    std::thread([&] {
      freeing_id = std::this_thread::get_id();
      b.tested->deallocate(x, 1000, next.handle());
    }).join();
    slow.join();
    CHECK(b.tested->stats().streams == 1);
    check_idle(*b.tested);
  }

  TEST_CASE("safe mode: a free in a stream that captures is served where a driver cannot tell identities then") {
    double_bench b(1, 4 * mib, software_schedule::lazy, safe());
    b.driver->unknown_while_capturing = true;  // as CUDA's
    void* const block = b.tested->allocate(mib, b[0]);
    REQUIRE(b.stream[0].begin_capture());
    CHECK(b.tested->try_deallocate(block, mib, b[0]) == error::none);
    CHECK(b.tested->try_allocate(mib, b[0]) != nullptr);
    static_cast<void>(b.stream[0].end_capture());
  }

  TEST_CASE("a stream may be met first while it captures, also where a driver cannot tell identities then") {
    for (const bool safe_mode : {false, true}) {
      CAPTURE(safe_mode);
      stream_options settings;
      settings.safe_mode = safe_mode;
      settings.watch_captures = true;
      double_bench b(1, 4 * mib, software_schedule::lazy, settings);
      b.driver->unknown_while_capturing = true;
      REQUIRE(b.stream[0].begin_capture());
      void* const inside = b.tested->try_allocate(mib, b[0]);
      REQUIRE(inside != nullptr);
      CHECK(b.tested->try_deallocate(inside, mib, b[0]) == error::none);
      software_graph graph = b.stream[0].end_capture();
      void* const after = b.tested->try_allocate(mib, b[0]);
      CHECK(after != nullptr);
      CHECK(after != inside);  // the graph's
      CHECK(b.tested->try_deallocate(after, mib, b[0]) == error::none);
      graph = {};
      check_idle(*b.tested);
      CHECK(b.tested->try_allocate(mib, nullptr) == nullptr);  // no stream
    }
  }

  // ------------------------------------------------------------------------------- streams and threads that end

  TEST_CASE("a stream is released while a thread that has used it ends: no block is in two hands") {
    constexpr std::size_t sizes = 64;
    const auto size = [](std::size_t i) { return 256 + 256 * i; };
    random_engine random = make_random(1);
    std::size_t overlaps = 0;
    std::size_t drifts = 0;
    std::optional<bench> fresh;
    for (std::size_t round = 0; round < scaled(1500) && overlaps == 0; ++round) {
      if (round % 512 == 0 || drifts != 0) fresh.emplace(1, 64 * mib, software_schedule::eager);
      bench& b = *fresh;
      software_stream passing(b.device);
      std::atomic<bool> used = false;
      std::thread user([&] {
        void* blocks[sizes];
        for (std::size_t i = 0; i < sizes; ++i) blocks[i] = b.tested->allocate(size(i), passing.handle());
        for (std::size_t i = 0; i < sizes; ++i) b.tested->deallocate(blocks[i], size(i), passing.handle());
        used = true;  // all calls of this thread for the stream happen before the release
      });
      while (!used.load()) std::this_thread::yield();
      for (std::uint64_t i = uniform(random, 0, 20000); i != 0; --i) linger();
      b.tested->release_stream(passing.handle());
      std::vector<std::pair<char*, std::size_t>> all;
      const auto take = [&] {
        for (std::size_t i = 0; i < sizes; ++i)
          for (int k = 0; k < 4; ++k) all.emplace_back(static_cast<char*>(b.tested->allocate(size(i), b[0])), size(i));
      };
      take();
      user.join();
      static_cast<void>(b.tested->synchronize());
      take();
      std::ranges::sort(all);
      for (std::size_t i = 1; i < all.size(); ++i) overlaps += all[i - 1].first + all[i - 1].second > all[i].first;
      for (const auto& [block, bytes] : all) b.tested->deallocate(block, bytes, b[0]);
      static_cast<void>(b.tested->synchronize());
      const stream_statistics stats = b.tested->stats();
      drifts += stats.held != 0 || stats.memory.cached != 0 || stats.memory.allocated != 0;
    }
    CHECK(overlaps == 0);
    CHECK(drifts == 0);
  }

  TEST_CASE("a stream is released while a thread that has freed another's blocks in it ends: its work is waited for") {
    constexpr std::size_t bytes = 4 * kib;
    random_engine random = make_random(3);
    for (std::size_t round = 0; round < scaled(300); ++round) {
      bench b(2, mib);
      std::vector<void*> blocks;
      while (void* const block = b.tested->try_allocate(bytes, b[0])) blocks.push_back(block);
      std::optional<software_stream> passing(std::in_place, b.device);
      const piece last_use;
      last_use.enter(*passing);
      std::atomic<bool> used = false;
      std::thread user([&] {
        b.tested->deallocate(blocks.back(), bytes, passing->handle());  // this thread's block: to be sent home
        used = true;
      });
      while (!used.load()) std::this_thread::yield();
      for (std::uint64_t i = uniform(random, 0, 20000); i != 0; --i) linger();
      CHECK(b.tested->release_stream(passing->handle()));
      passing.reset();
      const software_stream next(b.device);  // may have the lane's place
      b.tested->deallocate(blocks.front(), bytes, next.handle());
      user.join();
      std::vector<void*> others;
      while (void* const block = b.tested->try_allocate(bytes, b[1])) others.push_back(block);
      REQUIRE(others.size() == 2);
      CHECK(ordered(b.stream[1], last_use));
    }
  }

  TEST_CASE("a stream is released while a thread takes over a front that has served it: the front is opened again") {
    double_bench b(1, 64 * mib);
    random_engine random = make_random(2);
    bool hung = false;
    std::atomic<std::size_t> closed = 0;
    for (std::size_t round = 0; round < scaled(400) && !hung; ++round) {
      software_stream passing(b.device);
      run_threads(12, [&](std::size_t) {  // leave fronts of that stream without a thread
        void* const block = b.tested->allocate(1000, passing.handle());
        b.tested->deallocate(block, 1000, passing.handle());
      });
      std::atomic<bool> ready = false;
      std::atomic<bool> start = false;
      std::atomic<bool> gone = false;
      std::atomic<bool> released = false;
      std::thread next([&] {
        ready = true;
        while (!start.load()) std::this_thread::yield();
        void* const block = b.tested->allocate(1000, b[0]);
        b.tested->deallocate(block, 1000, b[0]);
        static_cast<void>(comes(released));
        closed += detail::this_thread_fronts.latest.of->retired();
      });
      while (!ready.load()) std::this_thread::yield();
      start = true;
      for (std::uint64_t i = uniform(random, 0, 3000); i != 0; --i) linger();
      b.tested->release_stream(passing.handle());
      released = true;
      std::thread joiner([&] {
        next.join();
        gone = true;
      });
      hung = !comes(gone);
      if (hung) b.tested->defragment();  // opens all fronts
      joiner.join();
    }
    CHECK_FALSE(hung);
    CHECK(closed == 0);
  }

  TEST_CASE("what comes home to a released stream while its last event goes to the barrier is not lost") {
    double_bench b(2, 16 * mib);
    constexpr std::size_t bytes = 512;
    std::vector<void*> blocks;
    std::atomic<bool> allocated = false;
    std::atomic<bool> asked = false;
    std::atomic<bool> arrived = false;
    std::atomic<bool> leave = false;
    std::thread home([&] {
      for (int i = 0; i < 48; ++i) blocks.push_back(b.tested->allocate(bytes, b[0]));
      allocated = true;
      static_cast<void>(comes(asked));
      void* const block = b.tested->allocate(bytes, b[0]);  // looks at what came home
      arrived = true;
      static_cast<void>(comes(leave));
      b.tested->deallocate(block, bytes, b[0]);
    });
    CHECK(comes(allocated));
    std::vector<void*> rest;
    {
      software_stream passing(b.device);
      void* const large = b.tested->allocate(2 * mib, passing.handle());
      passing.enqueue([] {});
      for (void* const block : blocks) b.tested->deallocate(block, bytes, passing.handle());  // parcels for home
      b.tested->deallocate(large, 2 * mib, passing.handle());
      while (rest.size() < 6) {
        void* const block = b.tested->try_allocate(2 * mib, b[1]);
        if (block == nullptr) break;
        rest.push_back(block);
      }
      b.tested->release_stream(passing.handle());
    }
    b.driver->asked = [&] {  // in a pass
      if (!asked.exchange(true)) give_way(arrived);
    };
    static_cast<void>(b.tested->try_allocate(4 * mib, b[1]));
    CHECK(asked);
    asked = true;
    leave = true;
    home.join();
    for (void* const block : rest) b.tested->deallocate(block, 2 * mib, b[1]);
    CHECK(b.tested->synchronize());
    CHECK(b.tested->stats().held == 0);
  }

  // ------------------------------------------------------------------------------------------------------- one step

  TEST_CASE("what is freed while a pass records its event is not covered by it") {
    // Aligned beyond the granule, as above.
    constexpr std::size_t bytes = 256;
    constexpr std::size_t alignment = 512;
    double_bench b(2, 64 * kib, software_schedule::lazy, {}, 0, true);
    lockstep_threads threads(2);
    std::vector<void*> blocks;
    threads.run(1, [&] { blocks.push_back(b.tested->allocate(bytes, alignment, b[0])); });  // it has met the stream
    while (void* const block = b.tested->try_allocate(bytes, alignment, b[0])) blocks.push_back(block);
    REQUIRE(blocks.size() > 2);
    b.stream[0].enqueue([] {});
    b.tested->deallocate(blocks[0], bytes, b[0]);
    const piece last_use;
    bool freed = false;
    b.driver->recorded = [&](stream_handle stream) {  // the event is behind what is in the stream so far
      if (stream != b[0] || std::exchange(freed, true)) return;
      threads.run(1, [&] {
        last_use.enter(b.stream[0]);
        b.tested->deallocate(blocks[1], bytes, b[0]);
      });
    };
    void* const other = b.tested->try_allocate(bytes, alignment, b[1]);
    void* const another = b.tested->try_allocate(bytes, alignment, b[1]);
    CHECK(freed);
    REQUIRE(other != nullptr);
    REQUIRE(another != nullptr);
    const bool has_both = std::minmax(other, another) == std::minmax(blocks[0], blocks[1]);
    CHECK(has_both);
    CHECK(ordered(b.stream[1], last_use));
  }

  TEST_CASE("no block is free before the barrier names its event") {
    constexpr std::size_t bytes = 256;
    constexpr std::size_t alignment = 512;
    constexpr std::size_t donors = 17;  // one more than the barrier holds before it is looked through
    double_bench b(donors + 1, 64 * kib, software_schedule::lazy, {}, 0, true);
    std::vector<void*> blocks;
    for (std::size_t i = 0; i < donors; ++i) blocks.push_back(b.tested->allocate(bytes, alignment, b[i]));
    while (b.tested->try_allocate(bytes, alignment, b[donors]) != nullptr) {
    }
    for (std::size_t i = 0; i < donors; ++i) {
      b.stream[i].enqueue([] {});
      b.tested->deallocate(blocks[i], bytes, b[i]);
    }
    std::size_t asked = 0;
    std::size_t early = 0;
    b.driver->asked = [&] {  // last of all while the last donor's event joins the barrier
      ++asked;
      b.tested->for_each_block([&](const block_info& block) {
        const std::less_equal<const void*> not_above;
        const bool covers = not_above(block.address, blocks.back()) &&
                            !not_above(static_cast<std::byte*>(block.address) + block.bytes, blocks.back());
        early += covers && block.state == block_state::free;
      });
    };
    void* const other = b.tested->try_allocate(bytes, alignment, b[donors]);
    b.driver->asked = nullptr;
    CHECK(other != nullptr);
    CHECK(asked >= 2 * donors - 1);  // each batch's event, and those in the barrier
    CHECK(early == 0);
  }

  TEST_CASE("a new stream has waited for nothing, whatever the last one in its place has waited for") {
    bench b(1, 4 * mib, software_schedule::lazy, {}, 0, true);
    void* const x = b.tested->allocate(2 * mib, b[0]);
    void* const y = b.tested->allocate(2 * mib, b[0]);
    const piece last_use;
    last_use.enter(b.stream[0]);
    b.tested->deallocate(x, 2 * mib, b[0]);
    b.tested->deallocate(y, 2 * mib, b[0]);
    software_stream passing(b.device);
    REQUIRE(b.tested->try_allocate(2 * mib, passing.handle()) != nullptr);  // behind the first stream's event
    CHECK(b.tested->release_stream(passing.handle()));
    software_stream next(b.device);
    REQUIRE(b.tested->try_allocate(2 * mib, next.handle()) != nullptr);
    CHECK_FALSE(last_use.done->load());
    CHECK(ordered(next, last_use));
  }

  TEST_CASE("what another stream may still use is not cut off a slot that is longer than wanted") {
    bench b(2, 16 * mib);
    void* const block = b.tested->allocate(14 * mib, b[0]);
    const piece last_use;
    last_use.enter(b.stream[0]);
    b.tested->deallocate(block, 14 * mib, b[0]);
    const std::size_t committed = b.tested->stats().memory.committed;
    CHECK(committed >= 14 * mib);
    REQUIRE(b.tested->try_allocate(9 * mib, b[1]) == block);
    CHECK_FALSE(last_use.done->load());
    CHECK(b.tested->stats().memory.committed == committed);
    CHECK(ordered(b.stream[1], last_use));
  }

  TEST_CASE("what comes home to a thread while it ends is not left lying") {
    constexpr std::size_t bytes = 4 * kib;
    double_bench b(1, 64 * mib);
    b.tested->deallocate(b.tested->allocate(64, b[0]), 64, b[0]);  // this thread has a front, and takes no other's
    software_stream own(b.device);
    std::vector<void*> blocks(24);
    std::atomic<bool> emptied = false;
    std::atomic<bool> sent = false;
    // A thread that ends empties its fronts, the oldest first. Before it lets go of one it records what is its own.
    b.driver->recorded = [&](stream_handle stream) {
      if (stream == b.driver->per_thread() && !emptied.exchange(true)) static_cast<void>(comes(sent));
    };
    std::thread home([&] {
      double_driver::own = &own;
      for (void*& block : blocks) block = b.tested->allocate(bytes, b[0]);
      b.tested->deallocate(b.tested->allocate(64, b.driver->per_thread()), 64, b.driver->per_thread());
    });
    CHECK(comes(emptied));
    for (void* const block : blocks) b.tested->deallocate(block, bytes, b[0]);  // parcels for home
    sent = true;
    home.join();
    std::size_t again = 0;
    for (std::size_t i = 0; i < blocks.size(); ++i)
      again += static_cast<std::size_t>(std::ranges::count(blocks, b.tested->allocate(bytes, b[0])));
    CHECK(again == blocks.size());
  }

  TEST_CASE("a thousand streams come and go, each with work in flight at its release") {
    double_bench b(1, 256 * mib);
    void* const block = b.tested->allocate(1000, b[0]);
    std::size_t refused = 0;
    for (int round = 0; round < 1100; ++round) {
      software_stream passing(b.device);
      void* const mine = b.tested->try_allocate(4 * kib, passing.handle());
      if (mine == nullptr) {
        ++refused;
        continue;
      }
      passing.enqueue([] {});
      b.tested->deallocate(mine, 4 * kib, passing.handle());
      b.tested->release_stream(passing.handle());
      CHECK(passing.synchronize());  // and its work is done
    }
    CHECK(refused == 0);
    software_stream another(b.device);
    CHECK(b.tested->try_deallocate(block, 1000, another.handle()) == error::none);
  }

  TEST_CASE("a thousand streams come and go that a block in long use was recorded for") {
    double_bench b(1, 16 * mib);
    void* const weights = b.tested->allocate(mib, b[0]);
    std::size_t refused = 0;
    for (int round = 0; round < 1100; ++round) {
      software_stream passing(b.device);
      refused += b.tested->record_stream(weights, passing.handle()) != error::none;
      CHECK(b.tested->release_stream(passing.handle()));
      CHECK(passing.synchronize());  // its work is done
    }
    CHECK(refused == 0);
    software_stream another(b.device);
    CHECK(b.tested->try_allocate(1000, another.handle()) != nullptr);
    b.tested->deallocate(weights, mib, b[0]);
    CHECK(b.tested->synchronize());
    CHECK(b.tested->stats().held == 0);
  }

  TEST_CASE("a release that the driver refuses gives nothing to anybody before the device is idle") {
    double_bench b(1, 4 * mib);
    const piece last_use;
    stream_handle handle = nullptr;
    {
      software_stream passing(b.device);
      handle = passing.handle();
      void* const block = b.tested->allocate(4 * mib, handle);
      last_use.enter(passing);
      b.tested->deallocate(block, 4 * mib, handle);
      b.driver->refuse_record = [](stream_handle) { return true; };  // no event can be had
      CHECK_FALSE(b.tested->release_stream(handle));
      b.driver->refuse_record = nullptr;
    }
    software_stream next(b.device);
    REQUIRE(next.handle() == handle);
    CHECK(b.tested->try_allocate(4 * mib, next.handle()) == nullptr);
    CHECK(b.tested->try_allocate(4 * mib, b[0]) == nullptr);
    CHECK_FALSE(last_use.done->load());
    CHECK(b.tested->synchronize());
    CHECK(last_use.done->load());
    CHECK(b.tested->try_allocate(4 * mib, next.handle()) != nullptr);
  }

  TEST_CASE("a per-thread stream that a block was only recorded for ends with its thread") {
    double_bench b(1, 4 * mib);
    void* const block = b.tested->allocate(4 * mib, b[0]);
    software_stream own(b.device);
    std::thread([&] {
      double_driver::own = &own;
      CHECK(b.tested->record_stream(block, b.driver->per_thread()) == error::none);
      own.synchronize();
    }).join();
    b.tested->deallocate(block, 4 * mib, b[0]);
    CHECK(b.tested->synchronize());
    CHECK(b.tested->synchronize());
    CHECK(b.tested->stats().held == 0);
    CHECK(b.tested->stats().streams == 1);
    CHECK(b.tested->try_allocate(4 * mib, b[0]) != nullptr);
  }

  TEST_CASE("a per-thread stream ends with its thread, also where the thread's caches are another stream's by then") {
    double_bench b(1, 4 * mib);
    software_stream own(b.device);
    std::thread([&] {
      double_driver::own = &own;
      stream_handle const mine = b.driver->per_thread();
      b.tested->deallocate(b.tested->allocate(1000, mine), 1000, mine);
      CHECK(b.tested->begin_capture(mine) == error::none);
      b.tested->deallocate(b.tested->allocate(1000, b[0]), 1000, b[0]);
      CHECK(b.tested->end_capture(mine) == error::none);
    }).join();
    CHECK(b.tested->stats().streams == 1);
    check_idle(*b.tested);
  }

  TEST_CASE("what comes home to a thread that is gone is its stream's again, also where the thread's stream is gone too") {
    bench b(1, 64 * mib);
    constexpr std::size_t bytes = 4096;
    std::vector<void*> blocks(64);
    software_stream passing(b.device);
    b.tested->deallocate(b.tested->allocate(bytes, b[0]), bytes, b[0]);  // this thread has a front, and looks for no other
    std::thread([&] {
      for (void*& block : blocks) block = b.tested->allocate(bytes, passing.handle());
    }).join();
    CHECK(b.tested->release_stream(passing.handle()));
    for (void* const block : blocks) b.tested->deallocate(block, bytes, b[0]);
    std::size_t again = 0;
    for (std::size_t i = 0; i < blocks.size(); ++i)
      again += static_cast<std::size_t>(std::ranges::count(blocks, b.tested->allocate(bytes, b[0])));
    CHECK(again > 0);
  }

  TEST_CASE("what a thread has freed in its per-thread stream changes hands when it allocates something once more") {
    for (const std::size_t small : {std::size_t{1000}, 2 * mib}) {
      CAPTURE(small);
      double_bench b(1, 8 * mib);
      std::atomic<bool> freed = false;
      std::atomic<bool> go_on = false;
      std::atomic<bool> came_by = false;
      std::atomic<bool> leave = false;
      software_stream own(b.device);
      const piece last_use;
      std::thread owner([&] {
        double_driver::own = &own;
        stream_handle const mine = b.driver->per_thread();
        b.tested->deallocate(b.tested->allocate(small, mine), small, mine);
        void* const block = b.tested->allocate(6 * mib, mine);
        last_use.enter(own);
        b.tested->deallocate(block, 6 * mib, mine);
        freed = true;
        static_cast<void>(comes(go_on));
        b.tested->deallocate(b.tested->allocate(small, mine), small, mine);
        came_by = true;
        static_cast<void>(comes(leave));
      });
      CHECK(comes(freed));
      CHECK_FALSE(b.tested->synchronize());  // the stream's own thread has to say when
      CHECK(b.tested->stats().held != 0);
      CHECK(b.tested->try_allocate(6 * mib, b[0]) == nullptr);
      go_on = true;
      CHECK(comes(came_by));
      CHECK(b.tested->try_allocate(6 * mib, b[0]) != nullptr);
      CHECK(ordered(b.stream[0], last_use));
      leave = true;
      owner.join();
    }
  }

  // ------------------------------------------------------------------------------------------------- what is kept

  TEST_CASE("events that have passed leave the barrier of a pool in one piece of memory") {
    bench b(1, 16 * mib, software_schedule::lazy, {}, 0, true);
    constexpr std::size_t rounds = 200;
    for (std::size_t round = 0; round < rounds; ++round) {
      software_stream passing(b.device);
      for (const stream_handle in : {passing.handle(), b[0]}) {  // from one stream to the other
        std::vector<void*> blocks;
        for (int i = 0; i < 12; ++i) blocks.push_back(b.tested->allocate(mib, in));
        for (void* const block : blocks) b.tested->deallocate(block, mib, in);
      }
      b.tested->release_stream(passing.handle());
      CHECK(passing.synchronize());
      CHECK(b.stream[0].synchronize());  // all that was recorded so far has passed
    }
    CHECK(b.device.calls().events <= 32);
    CHECK(b.device.calls().waits <= 16 * rounds);  // a stream that is new waits for all that the barrier holds
  }

  TEST_CASE("a thread that frees does not hang when a million freed blocks wait for a stream") {
    if (sanitized) return;  // takes a minute, and all happens in one thread
    bench b(2, std::size_t{2} << 30);
    constexpr std::size_t magazines = 1U << 20;
    std::vector<void*> blocks(magazines + 1000);
    for (void*& block : blocks) block = b.tested->allocate(256, 512, b[0]);  // aligned beyond the granule: of no class
    bool by_passes = false;
    SUBCASE("its own") {}
    SUBCASE("another that they were recorded for") {
      for (void* const block : blocks) REQUIRE(b.tested->record_stream(block, b[1]) == error::none);
    }
    SUBCASE("and passes empty caches") { by_passes = true; }
    void* const large = b.tested->allocate(2 * mib, b[0]);
    void* const small = b.tested->allocate(1000, b[0]);
    b.tested->deallocate(large, 2 * mib, b[0]);
    b.tested->deallocate(small, 1000, b[0]);
    b.stream[0].enqueue([] {});
    std::atomic<std::size_t> freed = 0;
    std::atomic<bool> done = false;
    std::thread freeing([&] {
      for (void* const block : blocks) {
        b.tested->deallocate(block, 256, b[0]);
        if (freed.fetch_add(1, std::memory_order_relaxed) + 1 == magazines - 1 && by_passes) {
          for (int i = 0; i < 20; ++i) static_cast<void>(b.tested->trim());
        }
      }
      done = true;
    });
    bool hung = false;
    for (std::size_t before = 0; !hung && !comes(done, std::chrono::seconds(10));) {
      const std::size_t now = freed.load(std::memory_order_relaxed);
      hung = now == before;
      before = now;
    }
    CHECK_FALSE(hung);
    if (hung) std::abort();  // nothing ends that thread
    freeing.join();
    CHECK(b.tested->synchronize());
    CHECK(b.tested->stats().held == 0);
  }

  // -------------------------------------------------------------------------------------------- who waits for whom

  TEST_CASE("while a thread waits for all streams, others go on") {
    bench b(1, 16 * mib, software_schedule::workers);
    std::atomic<bool> gate = false;
    std::optional<software_stream> passing(std::in_place, b.device);
    void* const block = b.tested->allocate(2 * mib, passing->handle());
    passing->enqueue([&] { static_cast<void>(comes(gate, std::chrono::minutes(2))); });
    b.tested->deallocate(block, 2 * mib, passing->handle());
    b.tested->release_stream(passing->handle());
    passing.reset();
    std::atomic<bool> served = false;
    std::thread waiting([&] { static_cast<void>(b.tested->synchronize()); });
    while (b.device.calls().synchronizations == 0) std::this_thread::yield();  // it waits for an event
    std::thread other([&] {
      static_cast<void>(b.tested->try_allocate(1000, b[0]));  // meets the stream: takes the mutex
      served = true;
    });
    CHECK(comes(served));  // as it must be where the gate opens only after this
    gate = true;
    waiting.join();
    other.join();
  }

  TEST_CASE("an allocation that the stream's own caches serve waits for no pass") {
    double_bench b(1, 16 * mib);
    std::atomic<bool> known = false;
    std::atomic<bool> in_a_pass = false;
    std::atomic<bool> served = false;
    std::thread other([&] {
      b.tested->deallocate(b.tested->allocate(2 * mib, b[0]), 2 * mib, b[0]);
      known = true;
      static_cast<void>(comes(in_a_pass));
      b.tested->deallocate(b.tested->allocate(2 * mib, b[0]), 2 * mib, b[0]);
      b.tested->deallocate(b.tested->try_allocate(2 * mib, b[0]), 2 * mib, b[0]);
      served = true;
    });
    CHECK(comes(known));
    bool meanwhile = false;
    b.driver->capture_asked = [&] {  // in a pass, which has taken nothing yet
      if (!in_a_pass.exchange(true)) meanwhile = comes(served);
    };
    static_cast<void>(b.tested->trim());
    other.join();
    CHECK(in_a_pass);
    CHECK(meanwhile);
  }

  TEST_CASE("synchronize() makes a recorded block everybody's") {
    double_bench b(4, 4 * mib);
    void* const block = b.tested->allocate(4 * mib, b[3]);
    for (const std::size_t i : {0U, 1U, 2U}) CHECK(b.tested->record_stream(block, b[i]) == error::none);
    b.tested->deallocate(block, 4 * mib, b[3]);
    CHECK(b.tested->synchronize());
    CHECK(b.tested->stats().held == 0);
  }

  TEST_CASE("a recorded block's own stream is waited for, also where another is forgotten while the block is freed") {
    for (std::size_t round = 0; round < scaled(200); ++round) {
      bench b(3, 4 * mib);
      void* const block = b.tested->allocate(4 * mib, b[0]);
      software_stream passing(b.device);
      for (const stream_handle stream : {passing.handle(), b[1]})
        CHECK(b.tested->record_stream(block, stream) == error::none);
      CHECK(b.tested->release_stream(passing.handle()));
      CHECK(passing.synchronize());
      const piece last_use;
      last_use.enter(b.stream[0]);
      run_threads(2, [&](std::size_t self) {
        if (self == 0)
          b.tested->deallocate(block, 4 * mib, b[0]);
        else
          static_cast<void>(b.tested->stream_synchronize(b[1]));
      });
      REQUIRE(b.tested->try_allocate(4 * mib, b[2]) != nullptr);
      CHECK(ordered(b.stream[2], last_use));
    }
  }

  TEST_CASE("a released stream that a live block was recorded for keeps nobody from what was freed in it") {
    double_bench b(2, 16 * mib);
    void* const live = b.tested->allocate(mib, b[0]);
    std::vector<void*> blocks;
    software_stream passing(b.device);
    CHECK(b.tested->record_stream(live, passing.handle()) == error::none);
    while (void* const block = b.tested->try_allocate(mib, passing.handle())) blocks.push_back(block);
    const piece last_use;
    last_use.enter(passing);
    for (void* const block : blocks) b.tested->deallocate(block, mib, passing.handle());
    b.tested->release_stream(passing.handle());
    REQUIRE(b.tested->try_allocate(mib, b[1]) != nullptr);
    CHECK(ordered(b.stream[1], last_use));
  }

  TEST_CASE("two threads take turns with three quarters of the memory, a stream each: nothing is refused") {
    bench b(2, 16 * mib, software_schedule::workers, {}, 0, true);
    std::atomic<std::size_t> turn = 0;
    std::atomic<std::size_t> refused = 0;
    findings found;
    constexpr std::size_t bytes = 64 * kib;
    run_threads(2, [&](std::size_t self) {
      for (std::size_t round = 0; round < scaled(1000); ++round) {
        while (turn.load() != 2 * round + self) std::this_thread::yield();
        std::vector<void*> blocks(16 * mib / bytes * 3 / 4);
        for (void*& block : blocks) {
          block = b.tested->try_allocate(bytes, b[self]);
          if (block == nullptr)
            refused.fetch_add(1, std::memory_order_relaxed);
          else
            use(b.stream[self], block, bytes, 2 * round + self, found);
        }
        for (void* const block : blocks) b.tested->deallocate(block, bytes, b[self]);
        ++turn;
      }
    });
    CHECK(refused == 0);
    ORDERLY_CHECK_FINDINGS(found);
    CHECK(b.tested->synchronize());
    check_sound(*b.tested);
  }

  // ------------------------------------------------------------------------------------------------------ captures

  TEST_CASE("a stream that captures gets back all that it has allocated and freed meanwhile") {
    for (const std::size_t bytes : {64 * kib, mib, 2 * mib}) {
      CAPTURE(bytes);
      bench b(1, 32 * mib);
      REQUIRE(b.tested->begin_capture(b[0]) == error::none);
      REQUIRE(b.stream[0].begin_capture());
      std::vector<void*> blocks;
      while (void* const block = b.tested->try_allocate(bytes, b[0])) blocks.push_back(block);
      CHECK(blocks.size() == 32 * mib / bytes);
      for (int i = 0; i < 3; ++i) {
        for (void* const block : blocks) b.tested->deallocate(block, bytes, b[0]);
        for (void*& block : blocks) block = b.tested->try_allocate(bytes, b[0]);
        CHECK(std::ranges::count(blocks, nullptr) == 0);
      }
      CHECK(b.tested->end_capture(b[0]) == error::none);
      static_cast<void>(b.stream[0].end_capture());
    }
  }

  TEST_CASE("a capture gets only memory that no stream may still use") {
    double_bench b(3, 16 * mib);
    const piece last_use;
    std::size_t bytes = mib;
    SUBCASE("of its own stream") {
      bytes = 16 * mib;
      void* const block = b.tested->allocate(16 * mib, b[1]);
      last_use.enter(b.stream[1]);
      b.tested->deallocate(block, 16 * mib, b[1]);
    }
    SUBCASE("of another that its stream has waited for") {
      std::vector<void*> blocks;
      while (void* const block = b.tested->try_allocate(mib, b[0])) blocks.push_back(block);
      last_use.enter(b.stream[0]);
      for (void* const block : blocks) b.tested->deallocate(block, mib, b[0]);
      REQUIRE(b.tested->try_allocate(mib, b[1]) != nullptr);
    }
    REQUIRE(b.tested->begin_capture(b[1]) == error::none);
    REQUIRE(b.stream[1].begin_capture());
    void* const block = b.tested->try_allocate(bytes, b[1]);
    auto seen = std::make_shared<bool>(true);
    b.stream[1].enqueue([seen, done = last_use.done] { *seen = done->load(); });
    static_cast<void>(b.tested->end_capture(b[1]));
    const software_graph graph = b.stream[1].end_capture();
    b.stream[2].launch(graph);
    b.stream[2].synchronize();
    if (block != nullptr) CHECK(*seen);
  }

  TEST_CASE("frees in a stream that captures ask the driver the same, however much it has freed, and for no event") {
    const auto questions = [](std::size_t count) {
      stream_options settings;
      settings.seal_bytes = 64 * kib;
      double_bench b(1, 64 * mib, software_schedule::lazy, settings);
      std::vector<void*> blocks(count);
      for (void*& block : blocks) block = b.tested->allocate(256, 512, b[0]);
      REQUIRE(b.stream[0].begin_capture());
      for (void* const block : blocks) b.tested->deallocate(block, 256, b[0]);
      const software_calls calls = b.device.calls();
      CHECK(calls.records + calls.waits + calls.queries + calls.synchronizations == 0);
      static_cast<void>(b.stream[0].end_capture());
      return b.driver->captures_asked.load();
    };
    CHECK(questions(1000) <= 1000);
    CHECK(questions(16000) <= 16000);
  }

  // ------------------------------------------------------------------------------------------------ any refusal

  TEST_CASE("a driver that refuses now and then: nothing is in two hands, nothing is lost") {
    for (std::uint64_t seed = 0; seed < scaled(32); ++seed) {
      CAPTURE(seed);
      const software_schedule schedule = seed % 2 == 0 ? software_schedule::lazy : software_schedule::random;
      double_bench b(4, 8 * mib, schedule, {}, seed, seed % 4 >= 2);
      random_engine random = make_random(seed);
      random_engine whim = make_random(seed + 1000);
      b.driver->refuse_record = [&](stream_handle) { return uniform(whim, 0, 3) == 0; };
      b.driver->refuse_wait = [&](stream_handle) { return uniform(whim, 0, 3) == 0; };
      b.driver->fail_query = [&] { return uniform(whim, 0, 3) == 0; };
      findings found;
      struct block {
        void* address;
        std::size_t bytes;
        std::size_t in;
      };
      std::vector<block> live;
      std::uint64_t mark = 0;
      const auto write = [&](const block& of) {
        const std::uint64_t mine = ++mark;
        b.stream[of.in].enqueue([of, mine] { *static_cast<std::uint64_t*>(of.address) = mine; });
        b.stream[of.in].enqueue([of, mine, &found] {
          found.expect(*static_cast<std::uint64_t*>(of.address) == mine,
                       "the block was given away while it was in use");
        });
      };
      for (int step = 0; step < 4000; ++step) {
        if (live.size() < 30 && uniform(random, 0, 1) == 0) {
          block next{nullptr, log_uniform(random, 16, 2 * mib) / 8 * 8, uniform(random, 0, 3)};
          next.address = b.tested->try_allocate(next.bytes, b[next.in]);
          if (next.address == nullptr) continue;
          write(next);
          live.push_back(next);
        } else if (!live.empty()) {
          std::swap(live[uniform(random, 0, live.size() - 1)], live.back());
          const block last = live.back();
          live.pop_back();
          if (uniform(random, 0, 3) == 0) {
            const std::size_t other = uniform(random, 0, 3);
            CHECK(b.tested->record_stream(last.address, b[other]) == error::none);
            // In order with the last use, and pending at the free.
            event_handle const event = b.device.driver()->record(b[last.in]);
            CHECK(b.device.driver()->wait(b[other], event));
            b.device.driver()->release(event);
            write({last.address, last.bytes, other});
          }
          CHECK(b.tested->try_deallocate(last.address, last.bytes, b[last.in]) == error::none);
        }
        if (uniform(random, 0, 200) == 0) static_cast<void>(b.tested->synchronize());
      }
      for (const block& last : live) b.tested->deallocate(last.address, last.bytes, b[last.in]);
      b.driver->refuse_record = nullptr;
      b.driver->refuse_wait = nullptr;
      b.driver->fail_query = nullptr;
      for (int i = 0; i < 8; ++i) CHECK(b.tested->synchronize());
      ORDERLY_CHECK_FINDINGS(found);
      const stream_statistics stats = b.tested->stats();
      CHECK(stats.held == 0);
      CHECK(stats.memory.cached == 0);
      CHECK(stats.memory.allocated == 0);
      b.tested.reset();
      const software_calls calls = b.device.calls();
      CHECK(calls.records == calls.releases);  // no event is left over, and none was given back twice
    }
  }

}  // TEST_SUITE

TEST_SUITE("stress") {
  TEST_CASE("what a pass gives away lies behind its barrier by the time another thread takes it") {
    constexpr std::size_t bytes = 256;
    constexpr std::size_t alignment = 512;  // beyond the granule: no cache holds such blocks
    double_bench b(3, 64 * kib, software_schedule::lazy, {}, 0, true);
    std::vector<void*> blocks;
    while (void* const block = b.tested->try_allocate(bytes, alignment, b[0])) blocks.push_back(block);
    REQUIRE(blocks.size() > 2);
    std::vector<piece> last_uses(2);
    for (std::size_t i = 0; i < last_uses.size(); ++i) {  // a batch for each
      last_uses[i].enter(b.stream[0]);
      b.tested->deallocate(blocks[i], bytes, b[0]);
      static_cast<void>(b.tested->defragment());
    }
    std::atomic<bool> ready = false;
    std::atomic<bool> given = false;
    std::atomic<bool> taken = false;
    void* meanwhile = nullptr;
    std::thread other([&] {
      CHECK(b.tested->record_stream(blocks.back(), b[2]) == error::none);  // it knows the stream
      ready = true;
      static_cast<void>(comes(given));
      meanwhile = b.tested->try_allocate(bytes, alignment, b[2]);
      taken = true;
    });
    CHECK(comes(ready));
    b.driver->let_go = [&] {  // in a pass that has given the first batch away
      if (!given.exchange(true)) CHECK(comes(taken));
    };
    void* const pressed = b.tested->try_allocate(bytes, alignment, b[1]);
    b.driver->let_go = nullptr;
    CHECK(given.exchange(true));
    other.join();
    CHECK(meanwhile == blocks[0]);
    CHECK(pressed == blocks[1]);
    CHECK(ordered(b.stream[2], last_uses[0]));
    CHECK(ordered(b.stream[1], last_uses[1]));
  }

  TEST_CASE("streams come and go under load: who gets memory comes after its last users; the source gets none before") {
    SUBCASE("in one piece of memory") {
      traffic load(mib, true, 6, 1, [](random_engine& random) { return log_uniform(random, 1, 64 * kib); });
      load.run(4, scaled(20000));
    }
    SUBCASE("small blocks, many streams") {
      traffic load(256 * kib, true, 24, 20, [](random_engine& random) { return log_uniform(random, 1, 4 * kib); });
      load.run(4, scaled(20000));
    }
    SUBCASE("in memory by the chunk, up to large blocks") {
      traffic load(48 * mib, false, 6, 1, [](random_engine& random) {
        return uniform(random, 0, 2) == 0 ? uniform(random, 3 * mib, 14 * mib) : log_uniform(random, 1, 2 * mib);
      });
      load.run(4, scaled(10000));
    }
  }
}  // TEST_SUITE
