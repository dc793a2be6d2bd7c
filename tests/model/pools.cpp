// Pools of a few granules under every schedule: no block has two owners, none is lost, and none is refused that is there.
//
// Refusals. Null is right only if at some instant of the call no memory for the request lay outside live blocks (press() in
// lib/pass.cpp). So where the threads of a scenario never hold so much that this can be, null is a find.
#include <array>
#include <memory>
#include <vector>

#include "orderly/tag.hpp"
#include "sources.hpp"
#include "support/audit.hpp"
#include "support/linearizability.hpp"

using namespace orderly;
using namespace orderly::model;

namespace {

/// What every scenario here has. Fronts exist before the first step, unless a scenario is about them.
struct of_pool : scenario {
  source_book book;
  std::unique_ptr<pool> tested;
  owners owned;
  void* kept = nullptr;

  [[nodiscard]] static options silent() {
    options settings;
    settings.on_bad_free = on_bad_free::count;
    return settings;
  }
  void in_buffer(std::size_t granules, unsigned fronts = 2) {
    tested = buffer_pool(book, granules, silent());
    make_fronts(fronts);
  }
  void in_chunks(std::size_t granules_per_chunk, std::size_t limit, unsigned fronts = 2) {
    tested = virtual_pool(book, granules_per_chunk, limit + 1, silent());
    kept = tested->allocate(granule);  // so that a root stays split, down to chunks
    make_fronts(fronts);
  }
  /// Each thread has a front, with nothing in it.
  void make_fronts(unsigned count) {
    for (unsigned i = 0; i < count; ++i)
      as_thread(i, [&] { tested->deallocate(tested->allocate(granule)); });
    static_cast<void>(tested->defragment());
  }
  void* allocate(std::size_t granules, unsigned self) {
    void* const block = tested->try_allocate(granules * granule);
    if (block != nullptr) owned.take(block, granules, self);
    return block;
  }
  void* must_allocate(std::size_t granules, unsigned self) {
    void* const block = allocate(granules, self);
    ORDERLY_EXPECT(block != nullptr, "%zu granules are refused, and were there all the time", granules);
    return block;
  }
  void free(void* block, std::size_t granules, unsigned owner, std::size_t bytes = 0) {
    owned.give(block, granules, owner);
    ORDERLY_EXPECT(tested->try_deallocate(block, bytes) == error::none, "the free of a live block is refused");
  }
  void free_sized(void* block, std::size_t granules, unsigned owner) { free(block, granules, owner, granules * granule); }
  /// In the setup: a block of a thread's own front, which is its home.
  void* set_up(unsigned self, std::size_t granules) {
    void* block = nullptr;
    as_thread(self, [&] { block = must_allocate(granules, self); });
    return block;
  }
  /// Every thread has ended, and nothing is live.
  void check_idle() {
    test::check_sound(*tested);
    tested->deallocate(kept);
    end_threads();
    test::check_idle(*tested);
  }
};

/// Two threads take a block and give it back, twice; there is room for both.
struct take_and_give : of_pool {
  take_and_give() { in_buffer(2); }
  void thread(unsigned self) override {
    for (int i = 0; i < 2; ++i) free_sized(must_allocate(1, self), 1, self);
  }
  void check() override { check_idle(); }
};

/// The same, of threads that come to the pool for the first time, and exit.
struct first_and_last : of_pool {
  first_and_last() { in_buffer(4, 0); }
  void thread(unsigned self) override { free_sized(must_allocate(1, self), 1, self); }
  void check() override { check_idle(); }
};

/// One takes two granules at once, the other one of four: a pair is free all the time.
struct pair_and_single : of_pool {
  pair_and_single() { in_buffer(4); }
  void thread(unsigned self) override {
    const std::size_t granules = 2 - self;
    free_sized(must_allocate(granules, self), granules, self);
  }
  void check() override { check_idle(); }
};

/// What one wants lies in the other's front, who comes and goes meanwhile.
struct press_on_a_front : of_pool {
  press_on_a_front() {
    in_buffer(2);
    void* const a = set_up(1, 1);
    void* const b = set_up(1, 1);
    as_thread(1, [&] {
      free_sized(a, 1, 1);
      free_sized(b, 1, 1);
    });
  }
  void thread(unsigned self) override {
    if (self == 0)
      free_sized(must_allocate(1, 0), 1, 0);
    else
      free_sized(must_allocate(1, 1), 1, 1);
  }
  void check() override { check_idle(); }
};

/// The same after a refusal, which is nothing to go by once memory is there.
struct press_after_a_refusal : of_pool {
  press_after_a_refusal() {
    in_buffer(2);
    std::array<void*, 2> all;
    for (void*& each : all) each = set_up(1, 1);
    as_thread(1, [&] {
      ORDERLY_EXPECT(allocate(1, 1) == nullptr, "a third granule of two");
      for (void* const each : all) free_sized(each, 1, 1);
    });
  }
  void thread(unsigned self) override { free_sized(must_allocate(1, self), 1, self); }
  void check() override { check_idle(); }
};

/// A block goes home from another thread, while its home takes and gives.
struct return_home : of_pool {
  void* const block = (in_buffer(4), set_up(0, 1));
  void thread(unsigned self) override {
    if (self == 1) return free_sized(block, 1, 0);
    free_sized(must_allocate(1, 0), 1, 0);
  }
  void check() override { check_idle(); }
};

/// The same, of a thread without a size, while a pass takes all caches.
struct return_home_under_a_pass : of_pool {
  void* const block = (in_buffer(4), set_up(0, 1));
  void thread(unsigned self) override {
    if (self == 1) return free(block, 1, 0);
    static_cast<void>(tested->defragment());
  }
  void check() override { check_idle(); }
};

/// The home itself frees while a pass takes its caches.
struct free_at_home_under_a_pass : of_pool {
  void* const block = (in_buffer(4), set_up(0, 1));
  void thread(unsigned self) override {
    if (self == 0) {
      free_sized(block, 1, 0);
      return free_sized(must_allocate(1, 0), 1, 0);
    }
    static_cast<void>(tested->defragment());
  }
  void check() override { check_idle(); }
};

/// Two free one block. One of the frees counts; the other is refused, at once or when the parcel comes home. The home is one
/// of the two, or a third.
template <bool sized, unsigned home = 0>
struct double_free : of_pool {
  void* const block = (in_buffer(4, home + 1 < 2 ? 2 : home + 1), set_up(home, 1));
  std::array<bool, 2> accepted{};
  void thread(unsigned self) override {
    accepted[self] = tested->try_deallocate(block, sized ? granule : 0) == error::none;
  }
  void check() override {
    owned.give(block, 1, home);
    ORDERLY_EXPECT(accepted[0] || accepted[1], "nobody's free is accepted");
    ORDERLY_EXPECT(home < 2 || !accepted[0] || !accepted[1], "both frees are accepted, and neither came from home");
    as_thread(home, [&] {  // another class has the parcel unpacked, beside what lies in the front
      void* const pair = must_allocate(2, home);
      void* const one = must_allocate(1, home);
      void* const other = must_allocate(1, home);
      free_sized(pair, 2, home);
      free_sized(one, 1, home);
      free_sized(other, 1, home);
    });
    end_threads();  // until then a parcel may be on its way that is dropped when it arrives
    test::check_idle(*tested);
    const std::uint64_t bad = tested->stats().bad_frees;
    ORDERLY_EXPECT(bad == 1, "%llu of two frees of a block are counted as bad", static_cast<unsigned long long>(bad));
    std::array<void*, 4> all;
    for (void*& each : all) each = must_allocate(1, 2);
    ORDERLY_EXPECT(allocate(1, 2) == nullptr, "a fifth granule of four");
    for (void* const each : all) free_sized(each, 1, 2);
  }
};

/// The same of a block that no front caches: it is freed once.
struct double_free_of_a_large_one : of_pool {
  static constexpr std::size_t large = 128;
  void* block = nullptr;
  std::array<bool, 2> accepted{};
  double_free_of_a_large_one() {
    in_buffer(large);
    block = set_up(0, large);
  }
  void thread(unsigned self) override {
    accepted[self] = tested->try_deallocate(block, large * granule) == error::none;
  }
  void check() override {
    owned.give(block, large, 0);
    ORDERLY_EXPECT(accepted[0] != accepted[1], "%s free is accepted", accepted[0] ? "each" : "nobody's");
    end_threads();
    test::check_idle(*tested);
  }
};

/// Frees far from home of a wrong size, and a second time, are refused, while a pass takes all caches.
struct wrong_frees : of_pool {
  void* const block = (in_buffer(4), set_up(0, 1));
  void thread(unsigned self) override {
    if (self == 0) return static_cast<void>(tested->defragment());
    ORDERLY_EXPECT(tested->try_deallocate(block, 2 * granule) == error::size_mismatch, "the size is wrong");
    free_sized(block, 1, 0);
    ORDERLY_EXPECT(tested->try_deallocate(block, granule) != error::none, "the block was freed before");
  }
  void check() override { check_idle(); }
};

/// So much comes home that a sender empties the inbox, while the home takes and gives.
struct collected : of_pool {
  std::array<void*, 2> blocks{};
  collected() {
    in_buffer(8);
    for (void*& each : blocks) each = set_up(0, 1);
  }
  void thread(unsigned self) override {
    if (self == 0) return free_sized(must_allocate(1, 0), 1, 0);
    for (void* const each : blocks) free_sized(each, 1, 0);
  }
  void check() override { check_idle(); }
};

/// A free at home of a block that another thread frees as well, and sends home in a parcel that it empties the inbox for.
struct double_free_collected : of_pool {
  std::array<void*, 2> blocks{};
  std::array<bool, 2> accepted{};
  double_free_collected() {
    in_buffer(4);
    for (void*& each : blocks) each = set_up(0, 1);
  }
  void thread(unsigned self) override {
    if (self == 1) free_sized(blocks[0], 1, 0);
    accepted[self] = tested->try_deallocate(blocks[1], granule) == error::none;
  }
  void check() override {
    owned.give(blocks[1], 1, 0);
    ORDERLY_EXPECT(accepted[0] || accepted[1], "nobody's free is accepted");
    end_threads();
    test::check_idle(*tested);
    std::array<void*, 4> all;
    for (void*& each : all) each = must_allocate(1, 2);
    ORDERLY_EXPECT(allocate(1, 2) == nullptr, "a fifth granule of four");
    for (void* const each : all) free_sized(each, 1, 2);
  }
};

/// Blocks so small that a front takes two at once, and keeps a free of another's until there are two. A thread exits with
/// one: nothing is lost.
struct small_blocks : of_pool {
  static constexpr std::size_t bytes = 4096;
  void* block = nullptr;
  small_blocks() {
    options settings = silent();
    settings.granule = bytes;
    tested = std::make_unique<pool>(std::make_unique<paper>(book, 0, 4 * bytes), settings);
    as_thread(0, [&] { block = must_allocate_small(); });
  }
  void* must_allocate_small() {
    void* const taken = tested->try_allocate(bytes);
    ORDERLY_EXPECT(taken != nullptr, "a block is refused, and was there all the time");
    return taken;
  }
  void thread(unsigned self) override {
    if (self == 0) return tested->deallocate(must_allocate_small(), bytes);
    tested->deallocate(block, bytes);
  }
  void check() override {
    end_threads();
    test::check_idle(*tested);
    std::array<void*, 4> all;
    for (void*& each : all) each = must_allocate_small();
    for (void* const each : all) tested->deallocate(each, bytes);
  }
};

/// The home exits, while another thread frees what it has handed out.
/// The depot is full, so what comes home to a front without a thread goes to the store.
struct exit_and_return : of_pool {
  void* const block = (in_buffer(8), set_up(0, 1));
  std::size_t in_depot = 0;
  exit_and_return() {
    run_thread([&] {
      std::array<void*, 6> many;
      for (void*& each : many) each = must_allocate(1, 2);
      for (void* const each : many) free_sized(each, 1, 2);
    });
    in_depot = tested->stats().cached;
  }
  void thread(unsigned self) override {
    if (self == 1) free_sized(block, 1, 0);
  }
  void check() override {
    const std::size_t cached = tested->stats().cached;
    ORDERLY_EXPECT(cached == in_depot, "%zu bytes are cached, %zu of them in the depot: the rest lies in a front that "
                   "nobody has", cached, in_depot);
    check_idle();
  }
};

/// One lets go of its front, and the next thread takes it over.
struct front_changes_hands : of_pool {
  front_changes_hands() { in_buffer(4, 1); }
  void thread(unsigned self) override {
    if (self == 0) return;
    free_sized(must_allocate(1, 1), 1, 1);
  }
  void check() override { check_idle(); }
};

/// A thread comes to the pool for the first time; another looks at all fronts.
struct front_made : of_pool {
  front_made() { in_buffer(2, 0); }
  void thread(unsigned self) override {
    if (self == 0) return free_sized(must_allocate(1, 0), 1, 0);
    ORDERLY_EXPECT(tested->stats().allocations <= 1, "one block was taken");
  }
  void check() override { check_idle(); }
};

/// A block goes home to a front that no thread has, while a pass is at all fronts: it is left in no inbox.
struct return_to_nobody : of_pool {
  void* block = nullptr;
  return_to_nobody() {
    in_buffer(4);
    run_thread([&] { block = must_allocate(1, 2); });
  }
  void thread(unsigned self) override {
    if (self == 1) return free_sized(block, 1, 2);
    static_cast<void>(tested->defragment());
  }
  void check() override {
    const std::uint64_t passes = tested->stats().passes;
    std::array<void*, 4> all;
    as_thread(1, [&] {
      for (void*& each : all) each = must_allocate(1, 1);
      for (void* const each : all) free_sized(each, 1, 1);
    });
    ORDERLY_EXPECT(tested->stats().passes == passes, "the block lay where only a pass looks");
    check_idle();
  }
};

/// A pool ends while a thread that has used it exits.
struct pool_ends : of_pool {
  pool_ends() { in_buffer(2); }
  void thread(unsigned self) override {
    if (self == 1) tested.reset();
  }
};

/// Blocks of a chunk: both commit, up to the limit.
struct grow : of_pool {
  grow() { in_chunks(1, 2); }
  void thread(unsigned self) override { free_sized(must_allocate(1, self), 1, self); }
  void check() override { check_idle(); }
};

/// The source refuses once: whoever is told so may be refused, and nothing is lost.
struct grow_refused : of_pool {
  std::array<void*, 2> blocks{};
  grow_refused() {
    in_chunks(1, 2);
    static_cast<void>(tested->trim());
    book.refusals = 1;
  }
  void thread(unsigned self) override { blocks[self] = allocate(1, self); }
  void check() override {
    ORDERLY_EXPECT(blocks[0] != nullptr || blocks[1] != nullptr, "one refusal of the source refuses two");
    for (unsigned i = 0; i < 2; ++i)
      if (blocks[i] != nullptr) free_sized(blocks[i], 1, i);
    ORDERLY_EXPECT(tested->stats().committed == book.committed, "the account is wrong");
    check_idle();
  }
};

/// At the soft limit what lies in caches moves before more is committed, while another takes and gives.
struct soft_limit : of_pool {
  static constexpr std::size_t soft = 3;  ///< chunks: of the block that is kept, of the other thread's, and one
  void* block = nullptr;
  soft_limit() {
    options settings = silent();
    settings.soft_limit = soft * 2 * granule;
    tested = virtual_pool(book, 2, soft + 2, settings);
    kept = tested->allocate(2 * granule);
    make_fronts(2);
    block = set_up(1, 1);
    void* const whole = set_up(0, 2);
    as_thread(0, [&] { free(whole, 2, 0); });  // its cache has the chunk
    ORDERLY_EXPECT(tested->stats().committed == soft * 2 * granule, "the setup commits %zu", tested->stats().committed);
  }
  void thread(unsigned self) override {
    if (self == 1) return free_sized(block, 1, 1);
    void* const one = must_allocate(1, 0);  // beside the other thread's
    void* const another = must_allocate(1, 0);
    free_sized(one, 1, 0);
    free_sized(another, 1, 0);
  }
  void check() override {
    const std::size_t peak = tested->stats().peak_committed;
    ORDERLY_EXPECT(peak <= soft * 2 * granule, "%zu bytes were committed, and a cache had enough", peak);
    check_idle();
  }
};

/// A trim takes what is free and cached, while another takes and gives.
struct trim : of_pool {
  trim() {
    in_chunks(1, 2);
    void* const a = set_up(1, 1);
    as_thread(1, [&] { free_sized(a, 1, 1); });
  }
  void thread(unsigned self) override {
    if (self == 0)
      static_cast<void>(tested->trim());
    else
      free_sized(must_allocate(1, 1), 1, 1);
  }
  void check() override {
    ORDERLY_EXPECT(tested->stats().committed == book.committed, "the account is wrong");
    check_idle();
    static_cast<void>(tested->trim());
    ORDERLY_EXPECT(book.committed == 0, "%zu bytes stay committed", book.committed);
  }
};

/// What two or three threads saw of a pool is what a pool shows that does one thing at a time.
template <unsigned threads, std::size_t granules>
struct history : of_pool {
  std::vector<test::recorded_call> calls;
  history() { in_buffer(granules, threads); }

  void* recorded_allocate(std::uint32_t wanted) {
    test::recorded_call call{.what = test::recorded_call::kind::allocate, .thread = self(), .granules = wanted};
    call.called = tick(false);
    void* const block = allocate(wanted, self());
    call.returned = tick(true);
    if (block != nullptr) call.start = static_cast<std::uint32_t>(owners::granule_of(block));
    calls.push_back(call);
    return block;
  }
  void recorded_free(void* block, std::uint32_t length) {
    test::recorded_call call{.what = test::recorded_call::kind::free, .thread = self()};
    call.start = static_cast<std::uint32_t>(owners::granule_of(block));
    owned.give(block, length, self());
    call.called = tick(false);
    call.accepted = tested->try_deallocate(block, length * granule) == error::none;
    call.returned = tick(true);
    calls.push_back(call);
  }
  void check() override {
    ORDERLY_EXPECT(test::is_linearizable(calls, granules), "no pool that does one thing at a time shows this:\n%s",
                   test::text_of(calls).c_str());
  }
};

/// One granule for two.
struct one_for_two : history<2, 1> {
  void thread(unsigned) override {
    if (void* const block = recorded_allocate(1)) recorded_free(block, 1);
  }
};

/// A pair for one, or a granule for each.
struct pair_or_two : history<2, 2> {
  void thread(unsigned self) override {
    const unsigned wanted = 2 - self;
    if (void* const block = recorded_allocate(wanted)) recorded_free(block, wanted);
  }
};

/// A block lives all the time; a granule is left, for two.
struct one_left : history<3, 2> {
  void thread(unsigned self) override {
    void* const block = recorded_allocate(1);
    if (block != nullptr && self != 2) recorded_free(block, 1);
  }
};

/// One is stopped for ever, in a pass, which holds the mutex: the other takes and gives what lies in its front, in the depot
/// and in the store. The range is two trees: what is stopped in the middle of a merge holds one of them at most.
struct stopped_in_a_pass : of_pool {
  std::array<void*, 3> blocks{};
  stopped_in_a_pass() {
    in_buffer(24);
    for (void*& each : blocks) each = set_up(1, 1);
    as_thread(1, [&] {
      for (void* const each : blocks) free_sized(each, 1, 1);
    });
  }
  void thread(unsigned self) override {
    if (self == 0) return static_cast<void>(tested->defragment());
    for (void*& each : blocks) each = must_allocate(1, 1);
    void* const large = must_allocate(4, 1);
    for (void* const each : blocks) free_sized(each, 1, 1);
    free_sized(large, 4, 1);
  }
};

/// The same, stopped in allocate or deallocate.
struct stopped_at_work : of_pool {
  void* block = nullptr;
  stopped_at_work() {
    in_buffer(24);
    block = set_up(1, 1);
  }
  void thread(unsigned self) override {
    if (self == 0) {
      free_sized(block, 1, 1);
      return free_sized(must_allocate(1, 0), 1, 0);
    }
    void* const a = must_allocate(1, 1);
    void* const b = must_allocate(2, 1);
    free_sized(a, 1, 1);
    free_sized(b, 2, 1);
  }
};

/// A pool that accounts tags. Names are the process's, so there are the two that are there from the start.
struct of_tags : of_pool {
  explicit of_tags(std::size_t granules, unsigned fronts = 2) {
    options settings = silent();
    settings.account_tags = true;
    tested = buffer_pool(book, granules, settings);
    make_fronts(fronts);
  }
  void* set_up_as(std::uint16_t number, unsigned self) {
    void* block = nullptr;
    as_thread(self, [&] {
      const tag_scope scope(tag::of_number(number));
      block = must_allocate(1, self);
    });
    return block;
  }
  /// What the tags hold is what blocks bear them, and all that the pool has.
  void expect_accounts() {
    std::array<std::size_t, 2> requested{};
    std::array<std::uint64_t, 2> blocks{};
    tested->for_each_block([&](const block_info& block) {
      if (block.state != block_state::live) return;
      requested[block.tag.number()] += block.requested;
      ++blocks[block.tag.number()];
    });
    for (const tag_statistics& of : tested->tags()) {
      const std::uint16_t number = of.tag.number();
      ORDERLY_EXPECT(of.requested == requested[number], "%s has %zu bytes, and is said to have %zu", of.tag.name(),
                     requested[number], of.requested);
      ORDERLY_EXPECT(of.allocations - of.frees == blocks[number], "%s has %llu blocks, and is said to have another number",
                     of.tag.name(), static_cast<unsigned long long>(blocks[number]));
    }
    expect_sums();
  }
  void expect_sums() {
    std::size_t requested = 0;
    std::size_t allocated = 0;
    std::uint64_t blocks = 0;
    for (const tag_statistics& of : tested->tags()) {
      requested += of.requested;
      allocated += of.allocated;
      blocks += of.allocations - of.frees;
    }
    const statistics all = tested->stats();
    ORDERLY_EXPECT(requested == all.requested && allocated == all.allocated, "tags have %zu bytes, and the pool %zu",
                   requested, all.requested);
    ORDERLY_EXPECT(blocks == all.allocations - all.frees, "tags have other blocks than the pool");
  }
};

/// The only memory is freed by one, far from home, and allocated under another tag by the home or a third.
template <unsigned taker>
struct tagged : of_tags {
  void* const block = set_up_as(1, 0);
  void* const other = set_up_as(1, 0);
  void* taken = nullptr;
  tagged() : of_tags(2) {}
  void thread(unsigned self) override {
    if (self == 1) return free_sized(block, 1, 0);
    if (self != taker) return;
    const tag_scope scope{tag()};
    taken = allocate(1, self);
  }
  void check() override {
    expect_accounts();
    free_sized(other, 1, 0);
    if (taken != nullptr) free_sized(taken, 1, taker);
    expect_accounts();
    check_idle();
    expect_accounts();
  }
};

/// One looks at the tags while the other allocates for the first time, which makes the table of its accounts.
struct tags_looked_at : of_tags {
  void* block = nullptr;
  tags_looked_at() : of_tags(2, 1) {}
  void thread(unsigned self) override {
    if (self == 1) {
      block = allocate(1, self);
      return;
    }
    for (const tag_statistics& of : tested->tags())
      ORDERLY_EXPECT(of.requested <= granule, "%s is said to have %zu bytes", of.tag.name(), of.requested);
  }
  void check() override {
    free_sized(block, 1, 1);
    expect_accounts();
    check_idle();
  }
};

/// Both free one block, and its home goes on with it under another tag. One tag may lack what the other has too much; the
/// sum of both is right.
struct tagged_double_free : of_tags {
  void* const block = set_up_as(1, 0);
  void* const other = set_up_as(1, 0);  // else its tag might have less than nothing, which is not told
  tagged_double_free() : of_tags(4) {}
  void thread(unsigned self) override {
    static_cast<void>(tested->try_deallocate(block, granule));
    if (self == 0) tested->deallocate(tested->try_allocate(granule), granule);
  }
  void check() override {
    owned.give(block, 1, 0);
    end_threads();
    static_cast<void>(tested->defragment());
    test::check_sound(*tested);
    expect_sums();
    free_sized(other, 1, 0);
  }
};

constexpr traits usual{.stale = 1};
constexpr traits usual_without{.stale = 1, .barrier = false};
constexpr traits refused{.stale = 1, .barrier_refusals = 2};
constexpr traits exiting{.stale = 1, .exits = true};
constexpr traits three{.threads = 3, .stale = 1};
constexpr traits three_long{.threads = 3, .long_bound = 2, .stale = 1, .far_bound = 4};
constexpr traits parked{.stale = 1, .parked = 1};
constexpr traits parked_long{.long_bound = 2, .stale = 1, .far_bound = 4, .parked = 1};

const registered<take_and_give> a1("pool", "take-and-give", usual);
const registered<take_and_give> a2("pool", "take-and-give-without-barrier", usual_without);
const registered<take_and_give> a3("pool", "take-and-give-barrier-refused", refused);
const registered<first_and_last> b1("pool", "first-and-last", exiting);
const registered<pair_and_single> c1("pool", "pair-and-single", usual);
const registered<pair_and_single> c2("pool", "pair-and-single-without-barrier", usual_without);
const registered<press_on_a_front> d1("pool", "press-on-a-front", usual);
const registered<press_on_a_front> d2("pool", "press-on-a-front-barrier-refused", refused);

const registered<return_home> e1("home", "return", usual);
const registered<return_home_under_a_pass> e2("home", "return-under-a-pass", usual);
const registered<return_home_under_a_pass> e3("home", "return-under-a-pass-without-barrier", usual_without);
const registered<free_at_home_under_a_pass> e4("home", "free-under-a-pass", usual);
const registered<free_at_home_under_a_pass> e5("home", "free-under-a-pass-without-barrier", usual_without);
const registered<double_free<true>> f1("home", "double-free", usual);
const registered<double_free<true, 2>> f3("home", "double-free-elsewhere", usual);
const registered<double_free<false, 2>> f4("home", "double-free-elsewhere-of-unknown-size", usual);
const registered<double_free<false>> f2("home", "double-free-of-unknown-size", usual);
const registered<press_after_a_refusal> d3("pool", "press-after-a-refusal", usual);
const registered<double_free_of_a_large_one> f5("home", "double-free-of-a-large-one", usual);
const registered<double_free_collected> f8("home", "double-free-collected", usual);
const registered<small_blocks> g7("exit", "small-blocks", exiting);
const registered<wrong_frees> f6("home", "wrong-frees", usual);
const registered<collected> f7("home", "collected", usual);

const registered<tagged<0>> t1("tags", "return", usual);
const registered<tagged<0>> t2("tags", "return-without-barrier", usual_without);
const registered<tagged<2>> t4("tags", "return-to-a-third", three);
const registered<tagged_double_free> t3("tags", "double-free", usual);
const registered<tags_looked_at> t5("tags", "tags-looked-at", usual);

const registered<exit_and_return> g1("exit", "return", exiting);
const registered<front_changes_hands> g2("exit", "front-changes-hands", exiting);
const registered<front_made> g4("exit", "front-made", usual);
const registered<return_to_nobody> g5("exit", "return-to-nobody", usual);
const registered<return_to_nobody> g6("exit", "return-to-nobody-without-barrier", usual_without);
const registered<pool_ends> g3("exit", "pool-ends", exiting);

const registered<grow> h1("growth", "grow", usual);
const registered<grow_refused> h2("growth", "grow-refused", usual);
const registered<trim> h3("growth", "trim", usual);
const registered<soft_limit> h4("growth", "soft-limit", usual);

const registered<one_for_two> i1("history", "one-for-two", usual);
const registered<pair_or_two> i2("history", "pair-or-two", usual);
const registered<one_left> i3("history", "one-left", three_long);

const registered<stopped_in_a_pass> j1("parked", "in-a-pass", parked_long);
const registered<stopped_at_work> j2("parked", "at-work", parked);

}  // namespace
