// The order in which memory changes streams, at its edges: threads and streams that end at the same time, drivers that
// refuse, marks, captures, and how much is kept of what is gone.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <set>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "orderly/software_stream.hpp"
#include "orderly/stream_pool.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

/// The software streams' driver, with a door at each call, and with one more handle that names another stream in every
/// thread that has one.
class double_driver final : public stream_driver {
 public:
  explicit double_driver(std::shared_ptr<stream_driver> inner) : inner_(std::move(inner)) {}

  std::uint64_t identity(stream_handle stream) noexcept override {
    if (identified) identified();
    if (unknown_while_capturing && inner_->capture(named(stream)) != 0) return 0;
    return inner_->identity(named(stream));
  }
  bool is_per_thread(stream_handle stream) noexcept override { return stream == per_thread(); }
  std::uint64_t capture(stream_handle stream) noexcept override { return inner_->capture(named(stream)); }
  event_handle record(stream_handle stream) noexcept override {
    if (refuse_record && refuse_record(stream)) return nullptr;
    event_handle const event = inner_->record(named(stream));
    if (recorded) recorded(stream);
    return event;
  }
  bool wait(stream_handle stream, event_handle event) noexcept override {
    return !(refuse_wait && refuse_wait(stream)) && inner_->wait(named(stream), event);
  }
  event_status query(event_handle event) noexcept override {
    if (asked) asked();
    if (fail_query && fail_query()) return event_status::failed;
    return inner_->query(event);
  }
  bool synchronize(event_handle event) noexcept override { return inner_->synchronize(event); }
  void release(event_handle event) noexcept override { inner_->release(event); }
  bool synchronize_all() noexcept override { return inner_->synchronize_all(); }
  bool when_graph_is_gone(stream_handle stream, void (*gone)(void*), void* context) noexcept override {
    return inner_->when_graph_is_gone(named(stream), gone, context);
  }

  [[nodiscard]] stream_handle per_thread() noexcept { return &mark_; }
  static inline thread_local software_stream* own = nullptr;  ///< what per_thread() names in this thread

  // Set while nobody calls.
  bool unknown_while_capturing = false;
  std::function<bool(stream_handle)> refuse_record;
  std::function<bool(stream_handle)> refuse_wait;
  std::function<bool()> fail_query;
  std::function<void(stream_handle)> recorded;
  std::function<void()> asked;
  std::function<void()> identified;

 private:
  [[nodiscard]] stream_handle named(stream_handle stream) noexcept {
    if (stream != per_thread()) return stream;
    return own != nullptr ? own->handle() : nullptr;
  }
  std::shared_ptr<stream_driver> inner_;
  char mark_ = 0;
};

struct bench {
  explicit bench(std::size_t streams, std::size_t capacity, software_schedule schedule = software_schedule::lazy,
                 stream_options settings = {}, bool flat = false, std::uint64_t seed = 0)
      : device(schedule, seed),
        driver(std::make_shared<double_driver>(device.driver())),
        buffer(flat ? new (std::align_val_t{4096}) std::byte[capacity] : nullptr) {
    settings.memory.capacity = capacity;
    settings.memory.on_bad_free = on_bad_free::count;
    tested.emplace(flat ? make_fixed_buffer_source(buffer.get(), capacity) : make_host_source(), driver, settings);
    for (std::size_t i = 0; i < streams; ++i) stream.emplace_back(device);
  }
  [[nodiscard]] stream_handle operator[](std::size_t i) const { return stream[i].handle(); }

  struct aligned_delete {
    void operator()(std::byte* bytes) const noexcept { ::operator delete[](bytes, std::align_val_t{4096}); }
  };

  software_device device;
  std::shared_ptr<double_driver> driver;
  std::unique_ptr<std::byte[], aligned_delete> buffer;
  std::optional<stream_pool> tested;
  std::vector<software_stream> stream;
};

[[nodiscard]] stream_options safe() {
  stream_options settings;
  settings.safe_mode = true;
  return settings;
}

/// Everything that the pool has is everybody's, and merged.
void check_idle(stream_pool& tested) {
  CHECK(tested.synchronize());
  const stream_statistics stats = tested.stats();
  CHECK(stats.memory.requested == 0);
  CHECK(stats.memory.allocated == 0);
  CHECK(stats.held == 0);
  CHECK(stats.memory.cached == 0);
}

/// Waits for a flag, but not for ever.
[[nodiscard]] bool comes(const std::atomic<bool>& flag, std::chrono::milliseconds within = std::chrono::seconds(3)) {
  const auto end = std::chrono::steady_clock::now() + within;
  while (!flag.load()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

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

}  // namespace

TEST_SUITE("unit") {
  // ------------------------------------------------------------------------------------------------------ safe mode

  TEST_CASE("safe mode: of two threads that free in one stream, the later mark stays") {
    bench b(2, 4 * mib, software_schedule::lazy, safe());
    void* const x = b.tested->allocate(2 * mib, b[0]);
    void* const y = b.tested->allocate(2 * mib, b[0]);
    std::atomic<bool> recorded = false;
    std::atomic<bool> go_on = false;
    std::thread::id stopped;
    b.driver->recorded = [&](stream_handle) {
      if (std::this_thread::get_id() != stopped) return;
      recorded = true;
      while (!go_on.load()) std::this_thread::yield();
    };
    std::atomic<bool> named = false;
    std::thread other([&] {
      while (!named.load()) std::this_thread::yield();
      b.tested->deallocate(x, 2 * mib, b[0]);
    });
    stopped = other.get_id();
    named = true;
    REQUIRE(comes(recorded));  // the other thread has recorded its mark, and has not kept it yet
    const piece last_use;
    last_use.enter(b.stream[0]);
    b.tested->deallocate(y, 2 * mib, b[0]);
    go_on = true;
    other.join();
    void* const first = b.tested->try_allocate(2 * mib, b[1]);
    void* const second = b.tested->try_allocate(2 * mib, b[1]);
    REQUIRE(first != nullptr);
    REQUIRE(second != nullptr);
    CHECK(ordered(b.stream[1], last_use));
  }

  TEST_CASE("safe mode: a free without a mark is covered by no earlier one") {
    bench b(2, 4 * mib, software_schedule::lazy, safe());
    SUBCASE("the stream captures") {}
    SUBCASE("the driver has no event") {
      b.driver->refuse_record = [](stream_handle) { return true; };
    }
    void* const block = b.tested->allocate(4 * mib, b[0]);
    const piece last_use;
    last_use.enter(b.stream[0]);
    if (!b.driver->refuse_record) REQUIRE(b.stream[0].begin_capture());
    CHECK(b.tested->try_deallocate(block, 4 * mib, b[0]) == error::none);
    static_cast<void>(b.stream[0].end_capture());
    if (void* const again = b.tested->try_allocate(4 * mib, b[1])) CHECK(ordered(b.stream[1], last_use));
  }

  TEST_CASE("safe mode: a recorded stream is waited for") {
    bench b(3, 4 * mib, software_schedule::lazy, safe());
    void* const block = b.tested->allocate(4 * mib, b[0]);
    const piece last_use;
    CHECK(b.tested->record_stream(block, b[1]) == error::none);
    last_use.enter(b.stream[1]);
    b.tested->deallocate(block, 4 * mib, b[0]);
    void* const again = b.tested->try_allocate(4 * mib, b[2]);
    REQUIRE(again != nullptr);
    CHECK(ordered(b.stream[2], last_use));
  }

  TEST_CASE("safe mode: two threads meet the next stream of a handle at once") {
    bench b(1, 16 * mib, software_schedule::eager, safe());
    for (std::size_t round = 0; round < scaled(20000); ++round) {
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
    // In a process of its own, which may crash.
    const pid_t child = fork();
    if (child == 0) {
      bench b(1, 16 * mib, software_schedule::lazy, safe());
      std::optional<software_stream> passing(std::in_place, b.device);
      b.tested->deallocate(b.tested->allocate(1000, passing->handle()), 1000, passing->handle());
      if (!b.tested->synchronize()) _exit(3);
      passing.reset();
      software_stream next(b.device);  // has the handle and the lane's place
      std::atomic<std::thread::id> late_id;
      std::atomic<bool> late = false, go_on = false, over = false;
      b.driver->identified = [&] {
        if (std::this_thread::get_id() != late_id.load() || late.exchange(true)) return;
        while (!go_on.load()) std::this_thread::yield();
      };
      std::thread slow([&] {
        late_id = std::this_thread::get_id();
        static_cast<void>(b.tested->allocate(1000, next.handle()));
        over = true;
      });
      while (!late.load()) std::this_thread::yield();  // it has found the old stream's lane
      void* const x = b.tested->allocate(1000, next.handle());
      void* const y = b.tested->allocate(2 * mib, next.handle());
      b.tested->deallocate(y, 2 * mib, next.handle());
      std::thread([&] {
        const std::thread::id self = std::this_thread::get_id();
        b.driver->recorded = [&, self](stream_handle) {  // inside a free, on the new stream's lane
          if (std::this_thread::get_id() != self) return;
          go_on = true;
          while (!over.load()) std::this_thread::yield();
        };
        b.tested->deallocate(x, 1000, next.handle());
      }).join();
      slow.join();
      _exit(0);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK_MESSAGE((WIFEXITED(status) && WEXITSTATUS(status) == 0), "signal ",
                  WIFSIGNALED(status) ? WTERMSIG(status) : 0);
  }

  TEST_CASE("safe mode: a free in a stream that captures is served where a driver cannot tell identities then") {
    bench b(1, 4 * mib, software_schedule::lazy, safe());
    b.driver->unknown_while_capturing = true;  // as CUDA's
    void* const block = b.tested->allocate(mib, b[0]);
    REQUIRE(b.stream[0].begin_capture());
    CHECK(b.tested->try_deallocate(block, mib, b[0]) == error::none);
    CHECK(b.tested->try_allocate(mib, b[0]) != nullptr);
    static_cast<void>(b.stream[0].end_capture());
  }

  // ------------------------------------------------------------------------------- streams and threads that end

  TEST_CASE("a stream is released while a thread that has used it ends: no block is in two hands") {
    constexpr std::size_t sizes = 64;
    const auto size = [](std::size_t i) { return 256 + 256 * i; };
    random_engine random = make_random(1);
    std::size_t overlaps = 0;
    std::size_t drifts = 0;
    std::size_t round = 0;
    std::optional<bench> fresh;
    for (; round < scaled(20000) && overlaps == 0; ++round) {
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
      while (!used.load()) {
      }
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
    MESSAGE("after ", round, " rounds: ", overlaps, " overlaps, ", drifts, " rounds after which the books were wrong");
    CHECK(overlaps == 0);
    CHECK(drifts == 0);
  }

  TEST_CASE("a stream is released while a thread takes over a front that has served it: the front is opened again") {
    bench b(1, 64 * mib);
    random_engine random = make_random(2);
    bool hung = false;
    std::size_t round = 0;
    for (; round < scaled(1500) && !hung; ++round) {
      software_stream passing(b.device);
      run_threads(12, [&](std::size_t) {  // leave fronts of that stream without a thread
        void* const block = b.tested->allocate(1000, passing.handle());
        b.tested->deallocate(block, 1000, passing.handle());
      });
      std::atomic<bool> ready = false;
      std::atomic<bool> start = false;
      std::atomic<bool> gone = false;
      std::thread next([&] {
        ready = true;
        while (!start.load()) {
        }
        void* const block = b.tested->allocate(1000, b[0]);
        b.tested->deallocate(block, 1000, b[0]);
      });
      while (!ready.load()) {
      }
      start = true;
      for (std::uint64_t i = uniform(random, 0, 3000); i != 0; --i) linger();
      b.tested->release_stream(passing.handle());
      std::thread joiner([&] {
        next.join();
        gone = true;
      });
      hung = !comes(gone);
      if (hung) MESSAGE("round ", round, ": the thread does not end");
      if (hung) b.tested->defragment();  // opens all fronts
      joiner.join();
    }
    CHECK_FALSE(hung);
  }

  TEST_CASE("what comes home to a released stream while its last event goes to the barrier is not lost") {
    bench b(3, 16 * mib);
    constexpr std::size_t bytes = 512;
    std::vector<void*> blocks;
    std::atomic<int> step = 0;
    const auto wait_for = [&](int reached) {
      while (step.load() < reached) std::this_thread::yield();
    };
    std::thread home([&] {
      for (int i = 0; i < 48; ++i) blocks.push_back(b.tested->allocate(bytes, b[0]));
      step = 1;
      wait_for(2);
      void* const block = b.tested->allocate(bytes, b[0]);  // looks at what came home
      step = 3;
      wait_for(4);
      b.tested->deallocate(block, bytes, b[0]);
    });
    wait_for(1);
    std::vector<void*> rest;
    {
      software_stream passing(b.device);
      const piece late;
      void* const large = b.tested->allocate(2 * mib, passing.handle());
      late.enter(passing);
      for (void* const block : blocks) b.tested->deallocate(block, bytes, passing.handle());  // parcels for home
      b.tested->deallocate(large, 2 * mib, passing.handle());
      while (void* const block = b.tested->try_allocate(2 * mib, b[1])) {
        rest.push_back(block);
        if (rest.size() == 6) break;
      }
      b.tested->release_stream(passing.handle());
    }
    b.driver->asked = [&] {
      if (step.load() != 1) return;
      step = 2;
      wait_for(3);
    };
    static_cast<void>(b.tested->try_allocate(4 * mib, b[1]));  // a pass
    CHECK(step.load() >= 3);
    step = 4;
    home.join();
    for (void* const block : rest) b.tested->deallocate(block, 2 * mib, b[1]);
    CHECK(b.tested->synchronize());
    CHECK(b.tested->synchronize());
    CHECK(b.tested->stats().held == 0);
  }

  TEST_CASE("a thousand streams come and go, each with work in flight at its release") {
    bench b(1, 256 * mib);
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
    bench b(1, 16 * mib);
    void* const weights = b.tested->allocate(mib, b[0]);
    std::size_t refused = 0;
    for (int round = 0; round < 1100; ++round) {
      software_stream passing(b.device);
      refused += b.tested->record_stream(weights, passing.handle()) != error::none;
      b.tested->release_stream(passing.handle());
    }
    CHECK(b.tested->synchronize());
    CHECK(refused == 0);
    software_stream another(b.device);
    CHECK(b.tested->try_allocate(1000, another.handle()) != nullptr);
  }

  TEST_CASE("a release that the driver refuses gives nothing to the next stream of that handle") {
    bench b(1, 4 * mib);
    piece last_use;
    stream_handle handle = nullptr;
    {
      software_stream passing(b.device);
      handle = passing.handle();
      void* const block = b.tested->allocate(4 * mib, handle);
      last_use.enter(passing);
      b.tested->deallocate(block, 4 * mib, handle);
      b.driver->refuse_record = [](stream_handle) { return true; };  // no event can be had
      b.tested->release_stream(handle);
      b.driver->refuse_record = nullptr;
    }
    software_stream next(b.device);
    REQUIRE(next.handle() == handle);
    if (b.tested->try_allocate(4 * mib, next.handle()) != nullptr) CHECK(ordered(next, last_use));
  }

  TEST_CASE("a per-thread stream that a block was only recorded for ends with its thread") {
    bench b(1, 4 * mib);
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

  TEST_CASE("what an idle thread has freed in its per-thread stream is not out of reach") {
    bench b(1, 4 * mib);
    std::atomic<bool> freed = false;
    std::atomic<bool> leave = false;
    software_stream own(b.device);
    std::thread owner([&] {
      double_driver::own = &own;
      void* const block = b.tested->allocate(4 * mib, b.driver->per_thread());
      b.tested->deallocate(block, 4 * mib, b.driver->per_thread());
      own.synchronize();
      freed = true;
      while (!leave.load()) std::this_thread::yield();
    });
    REQUIRE(comes(freed));
    const bool told = b.tested->synchronize();
    const bool settled = b.tested->stats().held == 0;
    CHECK_MESSAGE((!told || settled), "synchronize() said yes, and a stream holds ", b.tested->stats().held);
    CHECK(b.tested->try_allocate(4 * mib, b[0]) != nullptr);
    leave = true;
    owner.join();
  }

  // ------------------------------------------------------------------------------------------------- what is kept

  TEST_CASE("events that have passed leave the barrier of a pool in one piece of memory") {
    bench b(1, 16 * mib, software_schedule::lazy, {}, true);
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
    MESSAGE("events made: ", b.device.calls().events, ", waits: ", b.device.calls().waits);
    CHECK(b.device.calls().events <= 32);
    CHECK(b.device.calls().waits <= 8 * rounds);
  }

  TEST_CASE("a thread that frees does not hang when a million freed blocks wait for a stream") {
    bench b(1, std::size_t{2} << 30);
    constexpr std::size_t count = (1U << 20) + 1000;
    std::vector<void*> blocks(count);
    for (void*& block : blocks) block = b.tested->allocate(256, 512, b[0]);  // aligned beyond the granule: of no class
    b.stream[0].enqueue([] {});
    std::atomic<std::size_t> freed = 0;
    std::atomic<bool> done = false;
    std::thread freeing([&] {
      for (void* const block : blocks) {
        b.tested->deallocate(block, 256, b[0]);
        ++freed;
      }
      done = true;
    });
    bool hung = false;
    for (std::size_t before = 1; !done.load() && !hung; std::this_thread::sleep_for(std::chrono::seconds(4))) {
      const std::size_t now = freed.load();
      hung = now == before && !done.load();
      before = now;
    }
    if (hung) MESSAGE("no progress after ", freed.load(), " frees");
    CHECK_FALSE(hung);
    while (!done.load()) static_cast<void>(b.tested->synchronize());
    freeing.join();
  }

  // -------------------------------------------------------------------------------------------- who waits for whom

  TEST_CASE("while a thread waits for all streams, others go on") {
    bench b(1, 16 * mib, software_schedule::workers);
    std::atomic<bool> gate = false;
    std::optional<software_stream> passing(std::in_place, b.device);
    void* const block = b.tested->allocate(2 * mib, passing->handle());
    passing->enqueue([&] {
      while (!gate.load()) std::this_thread::yield();
    });
    b.tested->deallocate(block, 2 * mib, passing->handle());
    b.tested->release_stream(passing->handle());
    passing.reset();
    std::atomic<bool> served = false;
    std::thread waiting([&] { static_cast<void>(b.tested->synchronize()); });
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    std::thread other([&] {
      static_cast<void>(b.tested->try_allocate(1000, b[0]));
      served = true;
    });
    CHECK(comes(served));  // as it must be where the gate opens only after this
    gate = true;
    waiting.join();
    other.join();
  }

  TEST_CASE("an allocation that the stream's own caches serve waits for no pass") {
    bench b(1, 16 * mib, software_schedule::workers);
    std::atomic<bool> gate = false;
    std::optional<software_stream> passing(std::in_place, b.device);
    void* const block = b.tested->allocate(2 * mib, passing->handle());
    passing->enqueue([&] {
      while (!gate.load()) std::this_thread::yield();
    });
    b.tested->deallocate(block, 2 * mib, passing->handle());
    b.tested->release_stream(passing->handle());
    passing.reset();
    std::atomic<bool> known = false;
    std::atomic<bool> busy = false;
    std::atomic<bool> served = false;
    std::thread other([&] {
      for (const bool thrown : {true, false}) {  // both kinds of allocation; the stream is at this thread's hand
        void* const mine = b.tested->allocate(2 * mib, b[0]);
        b.tested->deallocate(mine, 2 * mib, b[0]);
        known = true;
        while (!busy.load()) std::this_thread::yield();
        void* const again = thrown ? b.tested->allocate(2 * mib, b[0]) : b.tested->try_allocate(2 * mib, b[0]);
        b.tested->deallocate(again, 2 * mib, b[0]);
      }
      served = true;
    });
    REQUIRE(comes(known));
    std::thread waiting([&] { static_cast<void>(b.tested->synchronize()); });  // has the mutex, see above
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    busy = true;
    CHECK(comes(served));
    gate = true;
    waiting.join();
    other.join();
  }

  TEST_CASE("synchronize() makes a recorded block everybody's") {
    bench b(4, 4 * mib);
    void* const block = b.tested->allocate(4 * mib, b[3]);
    for (const std::size_t i : {0U, 1U, 2U}) CHECK(b.tested->record_stream(block, b[i]) == error::none);
    b.tested->deallocate(block, 4 * mib, b[3]);
    CHECK(b.tested->synchronize());
    CHECK(b.tested->stats().held == 0);
  }

  TEST_CASE("a released stream that a live block was recorded for keeps nobody from what was freed in it") {
    bench b(2, 16 * mib);
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
    bench b(2, 16 * mib, software_schedule::workers, {}, true);
    std::atomic<std::size_t> turn = 0;
    std::atomic<std::size_t> refused = 0;
    std::atomic<std::size_t> first_round = 0;
    constexpr std::size_t bytes = 64 * kib;
    run_threads(2, [&](std::size_t self) {
      for (std::size_t round = 0; round < scaled(1000); ++round) {
        while (turn.load() != 2 * round + self) std::this_thread::yield();
        std::vector<void*> blocks(16 * mib / bytes * 3 / 4);
        std::size_t here = 0;
        for (void*& block : blocks) {
          block = b.tested->try_allocate(bytes, b[self]);
          here += block == nullptr;
        }
        if (here != 0 && refused.fetch_add(here) == 0) first_round = round;
        for (void* const block : blocks) b.tested->deallocate(block, bytes, b[self]);
        ++turn;
      }
    });
    MESSAGE(refused.load(), " of ", scaled(1000) * 2 * 192, " refused, from round ", first_round.load(), " on; ",
            b.device.calls().records, " events, ", b.device.calls().waits, " waits, ", b.device.calls().queries,
            " queries");
    CHECK(refused == 0);
  }

  // ------------------------------------------------------------------------------------------------------ captures

  TEST_CASE("a stream that captures gets back all that it has freed") {
    for (const std::size_t bytes : {64 * kib, mib, 2 * mib}) {
      CAPTURE(bytes);
      bench b(1, 32 * mib);
      std::vector<void*> blocks;
      while (void* const block = b.tested->try_allocate(bytes, b[0])) blocks.push_back(block);
      REQUIRE(b.stream[0].begin_capture());
      for (void* const block : blocks) b.tested->deallocate(block, bytes, b[0]);
      std::size_t again = 0;
      while (b.tested->try_allocate(bytes, b[0]) != nullptr) ++again;
      CHECK(again == blocks.size());
      static_cast<void>(b.stream[0].end_capture());
    }
  }

  TEST_CASE("a capture gets only memory that no stream may still use") {
    bench b(3, 16 * mib);
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
    REQUIRE(b.stream[1].begin_capture());
    void* const block = b.tested->try_allocate(bytes, b[1]);
    auto seen = std::make_shared<bool>(true);
    b.stream[1].enqueue([seen, done = last_use.done] { *seen = done->load(); });
    const software_graph graph = b.stream[1].end_capture();
    b.stream[2].launch(graph);
    b.stream[2].synchronize();
    if (block != nullptr) CHECK(*seen);
  }

  TEST_CASE("frees in a stream that captures cost the same, however much it has freed") {
    const auto cost = [](std::size_t count) {
      stream_options settings;
      settings.seal_bytes = 64 * kib;
      bench b(1, 64 * mib, software_schedule::lazy, settings);
      std::vector<void*> blocks(count);
      for (void*& block : blocks) block = b.tested->allocate(256, 512, b[0]);
      static_cast<void>(b.stream[0].begin_capture());
      const auto start = std::chrono::steady_clock::now();
      for (void* const block : blocks) b.tested->deallocate(block, 256, b[0]);
      const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
      static_cast<void>(b.stream[0].end_capture());
      return took.count() / static_cast<double>(count);
    };
    const double few = cost(1000);
    const double many = cost(16000);
    MESSAGE("us a free: ", few, " of 1000, ", many, " of 16000");
    CHECK(many < 6 * few);
  }

  // ------------------------------------------------------------------------------------------------ any refusal

  TEST_CASE("a driver that refuses now and then: nothing is in two hands, nothing is lost") {
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
      CAPTURE(seed);
      bench b(4, 8 * mib, seed % 2 == 0 ? software_schedule::lazy : software_schedule::random, {}, seed % 4 >= 2, seed);
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
      const software_calls calls = b.device.calls();
      CHECK(calls.events <= 512);
    }
  }

}  // TEST_SUITE
