// Pools with streams under every schedule; see streams.hpp.
#include <algorithm>
#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "c_api.hpp"
#include "orderly/stream_pool.hpp"
#include "stream/event.hpp"
#include "streams.hpp"
#include "support/audit.hpp"

using namespace orderly;
using namespace orderly::detail;
using namespace orderly::model;

namespace {

/// One frees to its front, and goes on; another stream wants more than the store has.
struct take_over : of_streams {
  void* block = nullptr;
  take_over() {
    in_buffer(2);
    warm(0, 0);
    warm(1, 1);
    block = set_up(0, 1, 0);
  }
  void thread(unsigned self) override {
    if (self == 0) return free(block, 1, 0);
    for (int i = 0; i < 2; ++i)
      if (void* const mine = allocate(1, 1)) free(mine, 1, 1);
    if (void* const both = allocate(2, 1)) free(both, 2, 1);
  }
  void check() override { check_idle(); }
};

/// Blocks come to `open` while a pass seals what is there.
struct seal_and_free : of_streams {
  std::array<void*, 2> blocks{};
  seal_and_free() {
    in_buffer(4);
    warm(0, 0);
    warm(1, 1);
    for (void*& each : blocks) each = set_up(0, 1, 0, aside);
  }
  void thread(unsigned self) override {
    if (self == 1) return static_cast<void>(tested->defragment());
    for (void* const each : blocks) {
      use(each, 1, 0);
      free(each, 1, 0);
    }
  }
  void check() override { check_idle(); }
};

/// The same, and events pass when a pass asks.
struct settle_and_free : seal_and_free {
  settle_and_free() { streams->passes = 1; }
};

/// What a third stream has freed goes to the store with a barrier, for two who want it.
struct given_by_barrier : of_streams {
  std::array<void*, 4> blocks{};
  given_by_barrier() {
    in_buffer(4);
    warm(0, 0);
    warm(1, 1);
    for (unsigned i = 0; i < 4; ++i) blocks[i] = set_up(2, 1, 3, i < 2 ? aside : 1);
    as_thread(2, [&] {
      for (unsigned i = 0; i < 2; ++i) free(blocks[i], 1, 3);
    });
  }
  void thread(unsigned self) override {
    blocks[self] = must_allocate(1, self);
  }
  void check() override {
    for (unsigned i = 0; i < 2; ++i) as_thread(i, [&] { free(blocks[i], 1, i); });
    as_thread(2, [&] {
      for (unsigned i = 2; i < 4; ++i) free(blocks[i], 1, 3);
    });
    check_idle();
  }
};

/// Some granules of a buffer are free, behind a barrier that no stream has seen but 4.
struct behind_a_barrier : of_streams {
  explicit behind_a_barrier(unsigned second = 1) {
    in_buffer(4);
    warm(0, 1);
    warm(1, second);
    std::array<void*, 4> all;
    for (void*& each : all) each = set_up(2, 1, 3);
    as_thread(2, [&] {
      for (void* const each : all) free(each, 1, 3);
    });
    void* const taken = set_up(3, 1, 4);
    as_thread(3, [&] { free(taken, 1, 4); });
  }
  void check() override { check_idle(); }
};

/// Two threads take in one stream what lies behind a barrier: one that need not wait relies on the other's wait.
struct one_waits_for_two : behind_a_barrier {
  void thread(unsigned) override {
    if (void* const mine = allocate(1, 1)) free(mine, 1, 1);
  }
};

/// The driver refuses a wait: then nothing is handed out by it, and nothing is lost.
template <std::size_t alignment>
struct wait_refused : behind_a_barrier {
  wait_refused() : behind_a_barrier(2) { streams->wait_refusals = 1; }
  void thread(unsigned self) override {
    const unsigned name = self + 1;
    if (void* const mine = allocate(1, name, alignment)) free(mine, 1, name);
  }
};

/// In an idle stream, for the host: all work on the block is done.
struct for_the_host : behind_a_barrier {
  void thread(unsigned) override {
    void* const mine = tested->allocate_settled(granule, 1, at(1));
    owned.take(mine, 1, 1);
    const std::size_t i = owners::granule_of(mine);
    ORDERLY_EXPECT(streams->done().covers(by.used[i]), "granule %zu is handed to the host while a stream uses it", i);
  }
  void check() override {
    for (std::size_t i = 0; i < 4; ++i) {
      void* const block = reinterpret_cast<void*>(paper::base + i * granule);
      if (tested->owns(block)) free(block, 1, 1);
    }
    check_idle();
  }
};

/// One takes what is cached in the idle stream and needs no wait, while the other one makes the stream wait.
struct for_the_host_from_a_cache : of_streams {
  std::array<void*, 3> blocks{};
  for_the_host_from_a_cache() {
    in_buffer(4);
    warm(0, 1);
    warm(1, 1);
    void* cached = nullptr;  // no work uses it
    as_thread(1, [&] { cached = tested->allocate(granule, at(1)); });
    for (unsigned i = 0; i < 3; ++i) blocks[i] = set_up(2, 1, 3, i < 1 ? aside : 1);
    as_thread(1, [&] { tested->deallocate(cached, granule, at(1)); });
    as_thread(2, [&] { free(blocks[0], 1, 3); });
  }
  void thread(unsigned) override {
    void* const settled = tested->allocate_settled(granule, 1, at(1));
    owned.take(settled, 1, 1);
    const std::size_t i = owners::granule_of(settled);
    ORDERLY_EXPECT(streams->done().covers(by.used[i]), "granule %zu is handed to the host while a stream uses it", i);
  }
  void check() override {
    for (unsigned i = 1; i < 3; ++i) as_thread(2, [&] { free(blocks[i], 1, 3); });
    for (std::size_t i = 0; i < 4; ++i) {
      void* const block = reinterpret_cast<void*>(paper::base + i * granule);
      if (tested->owns(block)) free(block, 1, 1);
    }
    check_idle();
  }
};

/// A capture cannot wait: it gets what has passed, or nothing.
struct capture_takes : behind_a_barrier {
  capture_takes() : behind_a_barrier(2) { streams->passes = 1; }
  void thread(unsigned self) override {
    if (self == 1) return static_cast<void>(tested->defragment());
    ORDERLY_EXPECT(tested->begin_capture(at(1)) == error::none, "the stream does not capture");
    streams->capturing[1].store(7, relaxed);
    if (void* const mine = allocate(1, 1)) free(mine, 1, 1);
    static_cast<void>(tested->end_capture(at(1)));
    streams->capturing[1].store(0, relaxed);
  }
  void check() override { check_idle(); }
};

/// A graph ends, on a thread that does not know the pool, while another stream wants what was freed in it.
struct graph_ends : of_streams {
  graph_ends() {
    in_buffer(2);
    warm(0, 0);
    warm(1, 1);
    as_thread(0, [&] {
      ORDERLY_EXPECT(tested->begin_capture(at(0)) == error::none, "the stream does not capture");
      streams->capturing[0].store(7, relaxed);
      std::array<void*, 2> all;
      for (void*& each : all) each = must_allocate(1, 0);
      for (void* const each : all) free(each, 1, 0);
      static_cast<void>(tested->end_capture(at(0)));
      streams->capturing[0].store(0, relaxed);
    });
  }
  void thread(unsigned self) override {
    if (self == 0) return streams->end_graphs();
    if (void* const mine = allocate(1, 1)) free(mine, 1, 1);
  }
  void check() override {
    streams->end_graphs();
    check_idle();
  }
};

/// A graph's block is not divided, for the graph uses it whole; when the graph has gone it is.
struct graph_divided : of_streams {
  static constexpr std::uint32_t live = 0b11;
  std::byte* block = nullptr;
  bool divided = false;
  graph_divided() {
    in_buffer(2);
    as_thread(0, [&] {
      ORDERLY_EXPECT(tested->begin_capture(at(0)) == error::none, "the stream does not capture");
      streams->capturing[0].store(7, relaxed);
      block = static_cast<std::byte*>(must_allocate(2, 0));
      static_cast<void>(tested->end_capture(at(0)));
      streams->capturing[0].store(0, relaxed);
    });
  }
  [[nodiscard]] bool divide() {
    return tested->divide_settled(block, granule, &live, 1) == error::none;
  }
  void thread(unsigned self) override {
    if (self == 1) return static_cast<void>(tested->defragment());
    ORDERLY_EXPECT(!divide(), "a graph's block is divided");
    streams->end_graphs();
  }
  void check() override {
    static_cast<void>(tested->defragment());
    ORDERLY_EXPECT(divide(), "the graph is gone, and its block is not divided");
    owned.give(block, 2, 0);
    for (std::byte* const part : {block, block + granule})
      ORDERLY_EXPECT(tested->try_deallocate(part, granule, at(0)) == error::none, "a live part is no block");
    check_books();
  }
};

/// A block that was freed in another stream than that of its home's front.
struct freed_elsewhere : of_streams {
  void* block = nullptr;
  freed_elsewhere() {
    in_buffer(2);
    warm(0, 0);
    warm(1, 1);
    block = set_up(0, 1, 0);
  }
  void thread(unsigned self) override {
    if (self == 1) {
      streams->order(at(0), at(1));
      use(block, 1, 1);
      return free(block, 1, 0, 1);
    }
    free(must_allocate(1, 0), 1, 0);
  }
  void check() override { check_idle(); }
};

/// A block waits for a recorded stream, which is released; its lane would be free for another stream.
struct recorded_and_released : of_streams {
  void* block = nullptr;
  recorded_and_released() {
    in_buffer(2);
    warm(0, 0);
    warm(1, 1);
    block = set_up(1, 1, 1);
    as_thread(0, [&] {
      ORDERLY_EXPECT(tested->record_stream(block, at(0)) == error::none, "a live block cannot be recorded");
      use(block, 1, 0);
      ORDERLY_EXPECT(tested->release_stream(at(0)), "no last event");
    });
  }
  void thread(unsigned self) override {
    if (self == 1) return free(block, 1, 1);
    if (void* const mine = allocate(1, 2)) free(mine, 1, 2);
  }
  void check() override { check_idle(); }
};

/// Two streams beside the one that it is freed in.
struct recorded : of_streams {
  void* block = nullptr;
  recorded() {
    in_buffer(2);
    warm(0, 0);
    warm(1, 1);
    streams->passes = 1;
    block = set_up(1, 1, 1);
    as_thread(1, [&] {
      for (const unsigned name : {0U, 2U}) {
        ORDERLY_EXPECT(tested->record_stream(block, at(name)) == error::none, "a live block cannot be recorded");
        use(block, 1, name);
      }
    });
  }
  void thread(unsigned self) override {
    if (self == 1) return free(block, 1, 1);
    static_cast<void>(tested->defragment());
  }
  void check() override { check_idle(); }
};

/// A parcel of a released stream lies in an inbox; it is unpacked while the lane would be free for another stream.
struct parcel_of_released : of_streams {
  void* block = nullptr;
  parcel_of_released() {
    in_buffer(4);
    warm(1, 0);
    warm(0, 1);
    block = set_up(0, 1, 1);
    as_thread(1, [&] {
      streams->order(at(1), at(0));
      use(block, 1, 0);
      free(block, 1, 1, 0);
      ORDERLY_EXPECT(tested->release_stream(at(0)), "no last event");
    });
  }
  void thread(unsigned self) override {
    const unsigned name = self + 1;
    if (void* const mine = allocate(1, name)) free(mine, 1, name);
  }
  void check() override { check_idle(); }
};

/// The same, while the thread exits whose inbox it is.
struct parcel_at_exit : of_streams {
  void* block = nullptr;
  parcel_at_exit() {
    in_buffer(4);
    warm(1, 0);
    warm(0, 1);
    block = set_up(0, 1, 1);
  }
  void thread(unsigned self) override {
    if (self == 0) return;
    streams->order(at(1), at(0));
    use(block, 1, 0);
    free(block, 1, 1, 0);
    ORDERLY_EXPECT(tested->release_stream(at(0)), "no last event");
    if (void* const mine = allocate(1, 2)) free(mine, 1, 2);
  }
  void check() override { check_idle(); }
};

/// A thread's front is left by its lane's last stream. It takes the front over for another, while a pass gives up the
/// lane's next stream.
struct front_taken_over : of_streams {
  front_taken_over() {
    in_buffer(4);
    warm(1, 0);
    ORDERLY_EXPECT(tested->release_stream(at(0)), "no last event");
    warm(0, 2);
    as_thread(0, [&] { tested->deallocate(tested->allocate(granule, at(1)), granule, at(1)); });
    static_cast<void>(tested->defragment());
  }
  void thread(unsigned self) override {
    if (self == 0) return static_cast<void>(tested->release_stream(at(2)));
    free(must_allocate(1, 1), 1, 1);
  }
  void check() override {
    as_thread(1, [&] {
      void* const first = must_allocate(1, 1);
      free(first, 1, 1);
      void* const second = must_allocate(1, 1);
      ORDERLY_EXPECT(first == second, "the thread's front is closed");
      free(second, 1, 1);
    });
    check_idle();
  }
};

/// A stream is released, and its handle names another at once.
struct handle_again : of_streams {
  handle_again() {
    in_buffer(2);
    warm(1, 1);
    void* const block = set_up(0, 1, 0);
    as_thread(0, [&] { free(block, 1, 0); });
  }
  void thread(unsigned self) override {
    if (self == 0) {
      ORDERLY_EXPECT(tested->release_stream(at(0)), "no last event");
      streams->names[0].store(2, relaxed);
    }
    if (void* const mine = allocate(1, self)) free(mine, 1, self);
  }
  void check() override { check_idle(); }
};

/// The next stream of a lane has waited for nothing that the last one waited for.
struct successor : behind_a_barrier {
  void* taken = nullptr;
  successor() {
    taken = set_up(2, 1, 0);
    streams->order(at(0), at(1));
    static_cast<void>(tested->release_stream(at(0)));
  }
  void thread(unsigned self) override {
    if (self == 1) return free(taken, 1, 0, 1);
    if (void* const mine = allocate(1, 2)) free(mine, 1, 2);
  }
};

/// No last event can be had: what was freed waits until the device is idle.
struct withheld : of_streams {
  withheld() {
    in_buffer(2);
    warm(1, 1);
    void* const block = set_up(0, 1, 0);
    as_thread(0, [&] { free(block, 1, 0); });
    streams->record_refusals = 1;
  }
  void thread(unsigned self) override {
    if (self == 0) return static_cast<void>(tested->release_stream(at(0)));
    for (int i = 0; i < 2; ++i)
      if (void* const mine = allocate(1, 1)) free(mine, 1, 1);
  }
  void check() override { check_idle(); }
};

/// Frees in safe mode, each with an event of its own, while the stream's lane is sealed.
template <bool refused>
struct marks : of_streams {
  std::array<void*, 3> blocks{};
  std::vector<void*> rest;
  marks() {
    stream_options settings = silent();
    settings.safe_mode = true;
    in_buffer(8, settings);
    warm(0, 0);
    warm(1, 0);
    for (void*& each : blocks) each = set_up(0, 1, 0, aside);
    as_thread(0, [&] { free(blocks[2], 1, 0); });
    if (refused) streams->record_refusals = 1;
  }
  void use_and_free(void* block) {
    use(block, 1, 0);
    free(block, 1, 0);
  }
  void thread(unsigned self) override {
    if (self == 0) return use_and_free(blocks[0]);
    if (refused) return static_cast<void>(tested->defragment());
    use_and_free(blocks[1]);
  }
  void check() override {
    if (refused) {  // a later mark covers it all, so that comes last
      while (void* const mine = allocate(1, 5)) rest.push_back(mine);
      for (void* const each : rest) free(each, 1, 5);
      use_and_free(blocks[1]);
    }
    check_idle();
  }
};

/// A trim while streams may still use what is free.
struct trimmed : of_streams {
  trimmed() {
    in_chunks(2);
    warm(0, 0);
    warm(1, 1);
    std::array<void*, 2> all;
    for (void*& each : all) each = set_up(0, 1, 0);
    as_thread(0, [&] {
      for (void* const each : all) free(each, 1, 0);
    });
    streams->passes = 1;
  }
  void thread(unsigned self) override {
    if (self == 0) return static_cast<void>(tested->trim());
    if (void* const mine = allocate(1, 1)) free(mine, 1, 1);
  }
  void check() override { check_idle(); }
};

/// A slot changes streams and is too long for the next one.
struct shorter_slot : of_streams {
  shorter_slot() {
    in_chunks(12);
    void* const block = set_up(0, 12, 0);
    as_thread(0, [&] { free(block, 12, 0); });
    streams->passes = 1;
  }
  void thread(unsigned self) override {
    if (self == 0) return static_cast<void>(tested->trim());
    if (void* const mine = allocate(9, 1)) free(mine, 9, 1);
  }
  void check() override { check_idle(); }
};

/// Two threads free and take large blocks in one stream.
struct large_in_one_stream : of_streams {
  std::array<void*, 2> blocks{};
  large_in_one_stream() {
    in_chunks(24);
    for (void*& each : blocks) each = set_up(0, 9, 0);
    as_thread(1, [&] { free(blocks[1], 9, 0); });
  }
  void thread(unsigned self) override {
    if (self == 0) free(blocks[0], 9, 0);
    if (void* const mine = allocate(9, 0)) free(mine, 9, 0);
  }
  void check() override { check_idle(); }
};

/// A stream is met for the first time; another thread looks at all lanes.
struct lane_made : of_streams {
  lane_made() { in_buffer(2); }
  void thread(unsigned self) override {
    if (self == 1) return ORDERLY_EXPECT(tested->stats().held <= granule, "one block was freed");
    if (void* const mine = allocate(1, 0)) free(mine, 1, 0);
  }
  void check() override { check_idle(); }
};

/// A thread comes to a stream for the first time, with a new front or one that was left, while a capture begins there. In the
/// end the front is one that it can use elsewhere: there are no more to be had.
template <bool left_before>
struct front_for_a_capture : of_streams {
  void* block = nullptr;
  front_for_a_capture() {
    in_buffer(32);
    warm(0, 1);
    if (left_before) {
      warm(1, 0);
      ORDERLY_EXPECT(tested->release_stream(at(0)), "no last event");
    }
    for (const unsigned name : {2U, 3U, 4U}) warm(2, name);
    for (const unsigned name : {2U, 3U, 4U}) warm(3, name);
  }
  void thread(unsigned self) override {
    if (self == 0)
      ORDERLY_EXPECT(tested->begin_capture(at(1)) == error::none, "the stream does not capture");
    else
      block = must_allocate(1, 1);
  }
  void check() override {
    static_cast<void>(tested->end_capture(at(1)));
    as_thread(1, [&] {
      void* const other = must_allocate(1, 2);
      free(other, 1, 2);
      ORDERLY_EXPECT(must_allocate(1, 2) == other, "the thread has no front");
      free(other, 1, 2);
      free(block, 1, 1);
    });
    check_idle();
  }
};

/// A block of four granules is divided into two live parts and free memory, while another looks for the parts. Who finds one
/// sees what was written before; a walk that finds the block divided finds what lives in it.
struct divided : of_streams {
  static constexpr std::uint32_t live = 0b1010;
  std::byte* block = nullptr;
  divided() {
    in_buffer(8);
    warm(0, 0);
    block = static_cast<std::byte*>(set_up(0, 4, 0));
    streams->finish_all();
  }
  [[nodiscard]] std::byte* part(unsigned i) const { return block + i * granule; }
  void thread(unsigned self) override {
    if (self == 0) {
      touch(part(3), true);
      ORDERLY_EXPECT(tested->divide_settled(block, granule, &live, 1) == error::none, "a live block is not divided");
      return;
    }
    bool covered = false;
    tested->for_each_block([&](const block_info& each) {
      const auto* const begin = static_cast<const std::byte*>(each.address);
      covered = covered || (part(1) >= begin && part(1) < begin + each.bytes);
    });
    ORDERLY_EXPECT(covered, "a live part is in no block");
    if (tested->block_size(part(3)) != 0) touch(part(3), true);
  }
  void check() override {
    owned.give(block, 4, 0);
    for (const unsigned i : {1U, 3U})
      ORDERLY_EXPECT(tested->try_deallocate(part(i), granule, at(0)) == error::none, "a live part is no block");
    check_idle();
  }
};

/// A thread divides a block while another frees it, one that the block is home at, or has no home: one of the two does.
template <bool at_home>
struct divided_or_freed : of_streams {
  static constexpr std::uint32_t live = 0b1111;
  std::byte* block = nullptr;
  std::array<bool, 2> done{};
  divided_or_freed() {
    in_buffer(8);
    warm(0, 0);
    warm(1, 1);
    block = static_cast<std::byte*>(set_up(0, 4, 0));
    if (!at_home) ORDERLY_EXPECT(tested->record_stream(block, at(0)) == error::none, "a live block cannot be recorded");
    streams->finish_all();
  }
  void thread(unsigned self) override {
    done[self] = self == 0 ? tested->try_deallocate(block, 4 * granule, at(0)) == error::none
                           : tested->divide_settled(block, granule, &live, 1) == error::none;
  }
  void check() override {
    owned.give(block, 4, 0);
    ORDERLY_EXPECT(done[0] != done[1], "the block is %s", done[0] ? "freed and divided" : "neither freed nor divided");
    for (std::byte* part = block; done[1] && part < block + 4 * granule; part += granule)
      ORDERLY_EXPECT(tested->try_deallocate(part, granule, at(0)) == error::none, "a live part is no block");
    check_idle();
  }
};

/// A pool's place behind its handle becomes another pool's.
struct place_again : of_streams {
  orderly_pool* first = nullptr;
  orderly_pool* second = nullptr;
  source_book another_book;
  std::unique_ptr<stream_pool> another;
  place_again() {
    in_buffer(2);
    first = c_api::enter(std::move(tested));
    another = std::make_unique<stream_pool>(std::make_unique<paper>(another_book, 0, 2 * granule), streams, silent());
  }
  void thread(unsigned self) override {
    if (self == 0)
      orderly_pool_destroy(first);
    else
      second = c_api::enter(std::move(another));
  }
  void check() override {
    ORDERLY_EXPECT(second != nullptr && second != first, "a handle names two pools");
    stream_pool* found = nullptr;
    ORDERLY_EXPECT(c_api::find(first, "find", found) != ORDERLY_OK, "a handle outlives its pool");
    ORDERLY_EXPECT(c_api::find(second, "find", found) == ORDERLY_OK, "a handle names no pool");
    orderly_pool_destroy(second);
  }
};

/// A software stream's event: who finds it complete sees the work before it, also when it was another's before.
struct event_again : scenario {
  event_store store;
  plain<int> work;
  event* recorded = &store.take();
  event_again() {
    recorded->complete();
    store.give_back(*recorded);
    recorded = &store.take();
  }
  void thread(unsigned self) override {
    if (self == 0) {
      work.set(1);
      return recorded->complete();
    }
    if (recorded->is_complete()) ORDERLY_EXPECT(work.get() == 1, "the event is complete, and the work is not done");
  }
};

/// A wait for it is in another stream's queue: until that has run the event stays as it is.
struct event_awaited : scenario {
  event_store store;
  event* const recorded = &store.take();
  bool ran = false;
  event_awaited() { recorded->begin_wait(); }
  void thread(unsigned self) override {
    if (self == 0) {
      recorded->complete();
      store.give_back(*recorded);
      event& next = store.take();
      ORDERLY_EXPECT(&next != recorded || ran, "the event is used again, and a wait for it has not run");
      return;
    }
    if (!recorded->is_complete()) return;
    ran = true;
    recorded->end_wait();
  }
};

constexpr traits usual{.stale = 1};
constexpr traits without{.stale = 1, .barrier = false};
constexpr traits exiting{.stale = 1, .exits = true};

const registered<take_over> a1("lanes", "take-over", usual);
const registered<take_over> a2("lanes", "take-over-without-barrier", without);
const registered<seal_and_free> b1("lanes", "seal-and-free", usual);
const registered<settle_and_free> b2("lanes", "settle-and-free", usual);
const registered<given_by_barrier> b3("lanes", "given-by-barrier", usual);
const registered<one_waits_for_two> c1("lanes", "one-waits-for-two", usual);
const registered<wait_refused<1>> c2("lanes", "wait-refused", usual);
const registered<wait_refused<of_streams::aside>> c3("lanes", "wait-refused-past-caches",
                                                     {.long_bound = 2, .stale = 1, .far_bound = 4});
const registered<for_the_host> c4("lanes", "for-the-host", usual);
const registered<for_the_host_from_a_cache> c5("lanes", "for-the-host-from-a-cache", usual);
const registered<capture_takes> d1("lanes", "capture-takes", usual);
const registered<graph_ends> d2("lanes", "graph-ends", {.short_bound = 3});
const registered<freed_elsewhere> e1("lanes", "freed-elsewhere", usual);
const registered<recorded> f1("lanes", "recorded", usual);
const registered<recorded_and_released> f2("lanes", "recorded-and-released", usual);
const registered<parcel_of_released> f3("lanes", "parcel-of-released", usual);
const registered<parcel_at_exit> f4("lanes", "parcel-at-exit", exiting);
const registered<front_taken_over> g1("lanes", "front-taken-over", usual);
const registered<handle_again> g2("lanes", "handle-again", usual);
const registered<successor> g3("lanes", "successor", usual);
const registered<withheld> g4("lanes", "withheld", usual);
const registered<marks<false>> h1("lanes", "marks", usual);
const registered<marks<true>> h2("lanes", "marks-refused", usual);
const registered<trimmed> i1("lanes", "trimmed", usual);
const registered<shorter_slot> i2("lanes", "shorter-slot", usual);
const registered<large_in_one_stream> i3("lanes", "large-in-one-stream", usual);
const registered<lane_made> k1("lanes", "lane-made", usual);
const registered<front_for_a_capture<false>> k2("lanes", "front-for-a-capture", usual);
const registered<front_for_a_capture<true>> k3("lanes", "left-front-for-a-capture", usual);
const registered<divided> k5("divide", "in-a-pool", usual);
const registered<divided_or_freed<true>> k7("divide", "or-freed-at-home", usual);
const registered<divided_or_freed<false>> k8("divide", "or-freed", usual);
const registered<graph_divided> k9("divide", "of-a-graph", usual);
const registered<place_again> k6("lanes", "place-again", usual);
const registered<event_again> j1("lanes", "event-again");
const registered<event_awaited> j2("lanes", "event-awaited");

}  // namespace
