// Tags of allocations, and what pools that keep account of them say each holds.
#include "orderly/tag.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "orderly/pool.hpp"
#include "orderly/relocatable.hpp"
#include "orderly/relocatable_streams.hpp"
#include "orderly/stream_pool.hpp"
#include "support/audit.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/stream_bench.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

const tag weights("weights");
const tag activations("activations");
const tag workspace("workspace");

[[nodiscard]] tag_statistics of(const std::vector<tag_statistics>& all, tag wanted) {
  const auto at = std::ranges::find(all, wanted, &tag_statistics::tag);
  return at == all.end() ? tag_statistics{wanted, 0, 0, 0, 0, 0} : *at;
}

/// The books by tag agree with the blocks as they lie there, and with the books of the whole pool. No other thread.
template <class Pool>
void check_tags(const Pool& audited) {
  const std::vector<tag_statistics> all = audited.tags();
  std::map<std::uint16_t, tag_statistics> seen;
  std::map<std::uint16_t, std::uint64_t> blocks;
  audited.for_each_block([&](const block_info& block) {
    if (block.state != block_state::live) return;
    seen[block.tag.number()].requested += block.requested;
    seen[block.tag.number()].allocated += block.bytes;
    ++blocks[block.tag.number()];
  });
  statistics sums;
  for (const tag_statistics& each : all) {
    INFO(each.tag.name());
    const std::uint16_t number = each.tag.number();
    CHECK(each.requested == seen[number].requested);
    CHECK(each.allocated == seen[number].allocated);
    CHECK(each.allocations - each.frees == blocks[number]);
    CHECK(each.peak_requested >= each.requested);
    seen.erase(number);
    sums.requested += each.requested;
    sums.allocated += each.allocated;
    sums.allocations += each.allocations;
    sums.frees += each.frees;
  }
  CHECK(seen.empty());
  const statistics stats = memory_of(audited);
  CHECK(sums.requested == stats.requested);
  CHECK(sums.allocated == stats.allocated);
  CHECK(sums.allocations == stats.allocations);
  CHECK(sums.frees == stats.frees);
  CHECK(std::ranges::is_sorted(all, std::ranges::greater{}, &tag_statistics::requested));
}

[[nodiscard]] options tagged(std::size_t capacity) {
  options o;
  o.capacity = capacity;
  o.account_tags = true;
  o.on_bad_free = on_bad_free::count;
  return o;
}

[[nodiscard]] stream_options tagged_streams() {
  stream_options o;
  o.memory.account_tags = true;
  return o;
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("scopes nest, and each thread has its own") {
  CHECK(tag::current() == tag());
  {
    const tag_scope outer(weights);
    CHECK(tag::current() == weights);
    {
      const tag_scope inner("activations");
      CHECK(tag::current() == activations);
      std::thread([] { CHECK(tag::current() == tag()); }).join();
    }
    CHECK(tag::current() == weights);
    CHECK(tag::exchange(workspace) == weights);
    CHECK(tag::current() == workspace);
  }
  CHECK(tag::current() == tag());
  CHECK(std::string_view(weights.name()) == "weights");
  CHECK(std::string_view(tag().name()) == "untagged");
  CHECK(tag::of_number(weights.number()) == weights);
  CHECK(tag::of_number(UINT16_MAX) == tag());
}

TEST_CASE("a pool that is not asked to accounts nothing, and its blocks are untagged") {
  pool tested(options{.capacity = mib});
  const tag_scope scope(weights);
  void* const block = tested.allocate(1000);
  CHECK(tested.tags().empty());
  tested.for_each_block([](const block_info& info) { CHECK(info.tag == tag()); });
  tested.deallocate(block, 1000);
}

TEST_CASE("each block bears the tag it was allocated under, wherever and however it is freed") {
  pool tested(tagged(64 * mib));
  // Of caches, above them, and above a root; freed with a size, without, by another thread and by a handle.
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{1000}, std::size_t{300'000}, 2 * mib, 9 * mib}) {
    CAPTURE(bytes);
    for (int way = 0; way < 4; ++way) {
      CAPTURE(way);
      void* first = nullptr;
      checked_block second;
      {
        const tag_scope scope(weights);
        first = tested.allocate(bytes);
        const tag_scope inner(activations);
        second = tested.allocate_checked(bytes);
      }
      CHECK(of(tested.tags(), weights).requested == bytes);
      CHECK(of(tested.tags(), activations).requested == bytes);
      CHECK(of(tested.tags(), weights).allocated == tested.block_size(first));
      check_tags(tested);
      const tag_scope other(workspace);
      const auto release = [&] {
        tested.deallocate(first, way % 2 == 0 ? bytes : 0);
        tested.deallocate(second, bytes);
      };
      if (way < 2)
        release();
      else
        std::thread(release).join();
      check_tags(tested);
      CHECK(of(tested.tags(), weights).requested == 0);
      CHECK(of(tested.tags(), activations).allocated == 0);
      CHECK(of(tested.tags(), workspace).allocations == 0);
    }
  }
  const tag_statistics figures = of(tested.tags(), weights);
  CHECK(figures.allocations == 20);
  CHECK(figures.frees == 20);
  CHECK(figures.peak_requested == 9 * mib);
  check_idle(tested);
}

TEST_CASE("the peak of each tag is its own, exact while one thread works") {
  pool tested(tagged(64 * mib));
  std::vector<void*> blocks;
  const auto grow = [&](tag by, std::size_t count) {
    const tag_scope scope(by);
    for (std::size_t i = 0; i < count; ++i) blocks.push_back(tested.allocate(10'000));
  };
  grow(weights, 100);
  CHECK(of(tested.tags(), weights).peak_requested == 1'000'000);
  for (void* const block : blocks) tested.deallocate(block, 10'000);
  blocks.clear();
  grow(activations, 30);
  grow(weights, 50);
  CHECK(of(tested.tags(), weights).peak_requested == 1'000'000);
  CHECK(of(tested.tags(), weights).requested == 500'000);
  CHECK(of(tested.tags(), activations).peak_requested == 300'000);
  CHECK(tested.tags().front().tag == weights);
  std::thread([&] { grow(weights, 60); }).join();  // this one's are published, or stay with its front
  CHECK(of(tested.tags(), weights).peak_requested >= 1'100'000 - 64 * kib);
  for (void* const block : blocks) tested.deallocate(block, 10'000);
  blocks.clear();
  // One that is too low for its thread to have published it.
  grow(workspace, 3);
  for (void* const block : blocks) tested.deallocate(block, 10'000);
  CHECK(of(tested.tags(), workspace).peak_requested == 30'000);
  check_tags(tested);
  check_idle(tested);
}

TEST_CASE("bad frees change no account") {
  pool tested(tagged(mib));
  const tag_scope scope(weights);
  auto* const block = static_cast<std::byte*>(tested.allocate(1000));
  void* const other = tested.allocate(1000);
  tested.deallocate(other, 1000);
  const auto before = of(tested.tags(), weights);
  tested.deallocate(other, 1000);
  tested.deallocate(block + 256, 1000);
  tested.deallocate(block, 5000);
  tested.deallocate(&tested, 1000);
  std::thread([&] { tested.deallocate(other, 1000); }).join();
  const auto after = of(tested.tags(), weights);
  CHECK(tested.stats().bad_frees == 5);
  CHECK(after.requested == before.requested);
  CHECK(after.allocated == before.allocated);
  CHECK(after.frees == before.frees);
  check_tags(tested);
  tested.deallocate(block, 1000);
  check_tags(tested);
}

TEST_CASE("a request that is refused is no tag's") {
  pool tested(tagged(mib));
  const tag_scope scope(weights);
  CHECK(tested.try_allocate(2 * mib) == nullptr);
  void* const all = tested.allocate(mib);
  CHECK(tested.try_allocate(1) == nullptr);
  CHECK(of(tested.tags(), weights).allocations == 1);
  check_tags(tested);
  tested.deallocate(all);
  check_idle(tested);
}

TEST_CASE("parts of a divided block bear its tag, and so does what is left where it cannot be divided") {
  bench b(1, 16 * mib, software_schedule::eager, tagged_streams());
  const auto make = [&] {
    const tag_scope scope(weights);
    return static_cast<std::byte*>(b.tested->allocate(64 * kib, b[0]));
  };
  std::byte* const block = make();
  const std::array<std::uint32_t, 1> live{0x0000'8005};  // parts 0, 2 and 15 of sixteen
  std::array<std::uint32_t, 2> wrong{};
  const tag_scope scope(activations);
  CHECK(b.tested->divide(block, 4 * kib, wrong, b[0]) == error::invalid_argument);
  CHECK(of(b.tested->tags(), weights).requested == 64 * kib);
  REQUIRE(b.tested->divide(block, 4 * kib, live, b[0]) == error::none);
  check_tags(*b.tested);
  CHECK(of(b.tested->tags(), weights).requested == 12 * kib);
  CHECK(of(b.tested->tags(), weights).allocations == 3);
  CHECK(of(b.tested->tags(), activations).allocations == 0);
  for (const std::size_t part : std::array<std::size_t, 3>{0, 2, 15}) {
    CHECK(b.tested->try_deallocate(block + part * 4 * kib, 4 * kib, b[0]) == error::none);
    check_tags(*b.tested);
  }
  std::byte* const freed = make();
  REQUIRE(b.tested->divide_settled(freed, 4 * kib, std::array<std::uint32_t, 1>{}) == error::none);
  check_tags(*b.tested);
  CHECK(of(b.tested->tags(), weights).requested == 0);
  check_idle(*b.tested);
}

TEST_CASE("a block that is moved keeps its tag, whoever moves it") {
  options o = tagged(64 * mib);
  o.limit = 8 * mib;
  pool tested(o);
  relocatable_blocks blocks(tested);
  std::vector<relocatable> all;
  {
    const tag_scope scope(weights);
    for (int i = 0; i < 2000; ++i) all.push_back(blocks.allocate(1000));
  }
  for (std::size_t i = 0; i < all.size(); i += 2) CHECK(blocks.deallocate(all[i]) == error::none);
  std::size_t moves = 0;
  {
    const tag_scope scope(activations);
    blocks.begin();
    for (auto step = blocks.step(); !step.empty(); step = blocks.step()) moves += step.size();
    blocks.end();
  }
  CHECK(moves != 0);
  check_tags(tested);
  CHECK(of(tested.tags(), weights).requested == 1'000'000);
  CHECK(of(tested.tags(), activations).allocations == 0);
  for (std::size_t i = 1; i < all.size(); i += 2) CHECK(blocks.deallocate(all[i]) == error::none);
  check_tags(tested);
  check_idle(tested);
}

TEST_CASE("in streams a block is its tag's until it is freed; a capture's too") {
  for (const bool watch : {false, true}) {
    CAPTURE(watch);
    stream_options settings = tagged_streams();
    settings.watch_captures = watch;
    bench b(2, 16 * mib, software_schedule::lazy, settings);
    void* first = nullptr;
    {
      const tag_scope scope(weights);
      first = b.tested->allocate(100'000, b[0]);
    }
    CHECK(of(b.tested->tags(), weights).requested == 100'000);
    CHECK(b.tested->try_deallocate(first, 100'000, b[1]) == error::none);
    CHECK(of(b.tested->tags(), weights).requested == 0);
    check_tags(*b.tested);
    if (!watch) REQUIRE(b.tested->begin_capture(b[0]) == error::none);
    REQUIRE(b.stream[0].begin_capture());
    {
      const tag_scope scope(workspace);
      first = b.tested->allocate(100'000, b[0]);
    }
    check_tags(*b.tested);
    if (!watch) CHECK(b.tested->end_capture(b[0]) == error::none);
    auto graph = std::make_unique<std::optional<software_graph>>(b.stream[0].end_capture());
    CHECK(of(b.tested->tags(), workspace).requested == 100'000);
    CHECK(b.tested->try_deallocate(first, 100'000, b[0]) == error::none);
    CHECK(of(b.tested->tags(), workspace).requested == 0);
    check_tags(*b.tested);
    graph.reset();
    check_idle(*b.tested);
  }
}

TEST_CASE("a settled block and blocks of threads without a front are accounted as well") {
  bench b(2, 16 * mib, software_schedule::eager, tagged_streams());
  void* block = nullptr;
  {
    const tag_scope scope(weights);
    block = b.tested->allocate_settled(5000, 1, b[1]);
  }
  check_tags(*b.tested);
  b.tested->deallocate(block, 5000, b[0]);
  check_tags(*b.tested);
  check_idle(*b.tested);

  // What is freed while the thread's own variables are destroyed passes by fronts.
  static pool* freed_in = nullptr;
  pool tested(tagged(mib));
  freed_in = &tested;
  struct late {
    void* block = nullptr;
    ~late() {
      if (block == nullptr) return;
      const tag_scope scope(activations);
      void* const another = freed_in->allocate(700);
      freed_in->deallocate(block, 600);
      freed_in->deallocate(another, 700);
    }
  };
  std::thread([&] {
    thread_local late keeps;
    keeps.block = nullptr;  // made before the front, so that it goes after it
    const tag_scope scope(weights);
    keeps.block = tested.allocate(600);
  }).join();
  CHECK(of(tested.tags(), activations).allocations == 1);
  check_tags(tested);
  check_idle(tested);
}

TEST_CASE("a child process goes on with the accounts that it was born with") {
  pool tested(tagged(4 * mib));
  void* block = nullptr;
  {
    const tag_scope scope(weights);
    std::thread([&] {
      const tag_scope inner(activations);
      block = tested.allocate(3000);
    }).join();
  }
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    const tag made_in_child("made in the child");
    const tag_scope scope(made_in_child);
    void* const another = tested.allocate(100);
    bool good = of(tested.tags(), made_in_child).requested == 100 && of(tested.tags(), activations).requested == 3000;
    tested.deallocate(block, 3000);
    tested.deallocate(another, 100);
    good = good && of(tested.tags(), activations).requested == 0 && of(tested.tags(), made_in_child).requested == 0;
    _exit(good ? 0 : 1);
  }
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(status == 0);
  CHECK(of(tested.tags(), activations).requested == 3000);
  tested.deallocate(block, 3000);
  check_idle(tested);
}

TEST_CASE("a pool that was moved from has no tags") {
  pool tested(tagged(mib));
  const pool moved(std::move(tested));
  CHECK(tested.tags().empty());
  CHECK(moved.tags().empty());
}

}

TEST_SUITE("stress") {

TEST_CASE("threads allocate under many tags, free what others allocated, and look: at the end every account is right") {
  constexpr std::size_t threads = 4;
  constexpr std::size_t tags = 20;
  std::vector<tag> all;
  for (std::size_t i = 0; i < tags; ++i) all.emplace_back("stress " + std::to_string(i));
  pool tested(tagged(256 * mib));
  struct entry {
    void* block = nullptr;
    std::size_t bytes = 0;
  };
  std::array<std::pair<std::mutex, entry>, 64> shared;
  std::array<std::array<std::int64_t, tags>, threads> allocated{};
  findings found;
  run_threads(threads, [&](std::size_t self) {
    random_engine random = make_random(self);
    for (std::size_t i = 0; i < scaled(60'000); ++i) {
      entry mine;
      const std::size_t by = random() % tags;
      {
        const tag_scope scope(all[by]);
        mine.bytes = 1 + random() % (random() % 64 == 0 ? 3 * mib : 20'000);
        mine.block = tested.try_allocate(mine.bytes);
      }
      if (mine.block != nullptr) ++allocated[self][by];
      auto& [mutex, slot] = shared[random() % shared.size()];
      {
        const std::lock_guard lock(mutex);
        std::swap(slot, mine);
      }
      if (mine.block != nullptr) tested.deallocate(mine.block, random() % 2 == 0 ? mine.bytes : 0);
      if (i % 1024 == self) {
        for (const tag_statistics& each : tested.tags())
          found.expect(each.requested < 256 * mib, each.tag.name(), " is said to hold ", each.requested);
      }
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  check_tags(tested);
  for (std::size_t i = 0; i < tags; ++i) {
    std::uint64_t sum = 0;
    for (const auto& of_thread : allocated) sum += static_cast<std::uint64_t>(of_thread[i]);
    CHECK(of(tested.tags(), all[i]).allocations == sum);
  }
  for (auto& [mutex, slot] : shared) tested.deallocate(slot.block, slot.bytes);
  check_tags(tested);
  CHECK(tested.stats().bad_frees == 0);
  check_idle(tested);
}

TEST_CASE("blocks are divided, moved and freed under others' tags: at each rest, a tag holds what it was given") {
  constexpr std::size_t threads = 3;
  constexpr std::size_t tags = 20;
  std::vector<tag> all;
  for (std::size_t i = 0; i < tags; ++i) all.emplace_back("stress " + std::to_string(i));
  const tag mover("stress mover");
  bench b(threads + 1, 256 * mib, software_schedule::workers, tagged_streams());
  std::optional<relocatable_stream_blocks> blocks(std::in_place, *b.tested);
  struct entry {
    relocatable handle = relocatable::none;
    std::byte* block = nullptr;  // of what has no handle
    std::size_t bytes = 0;
    std::size_t by = 0;
  };
  struct share {
    random_engine random;
    std::vector<entry> live{};
    std::array<std::size_t, tags> requested{};  // of those that are live, as the next
    std::array<std::size_t, tags> count{};

    void add(const entry& each) {
      live.push_back(each);
      requested[each.by] += each.bytes;
      ++count[each.by];
    }
    entry remove(std::size_t at) {
      const entry each = std::exchange(live[at], live.back());
      live.pop_back();
      requested[each.by] -= each.bytes;
      --count[each.by];
      return each;
    }
  };
  std::vector<share> shares;
  for (std::size_t i = 0; i < threads; ++i) shares.push_back({make_random(200 + i)});
  findings found;
  std::size_t moved = 0;  // by the one thread that moves
  const auto release = [&](const entry& each, stream_handle in) {
    const error code = each.block != nullptr ? b.tested->try_deallocate(each.block, each.bytes, in)
                                             : blocks->deallocate(each.handle, in);
    found.expect(code == error::none, "a good free was refused: ", to_string(code));
  };
  const auto divide = [&](share& mine, std::size_t by, stream_handle in) {
    const std::size_t bytes = 64 * kib << uniform(mine.random, 0, 2);
    const std::size_t part = 4 * kib << uniform(mine.random, 0, 3);
    auto* const block = static_cast<std::byte*>(b.tested->try_allocate(bytes, in));
    if (block == nullptr) return;
    std::array<std::uint32_t, 2> live{};  // of 64 parts at most
    for (std::size_t i = 0; i < bytes / part; ++i)
      if (uniform(mine.random, 0, 3) == 0) live[i / 32] |= std::uint32_t{1} << i % 32;
    const tag_scope another(all[uniform(mine.random, 0, tags - 1)]);
    const error code = b.tested->divide(block, part, std::span(live).first((bytes / part + 31) / 32), in);
    found.expect(code == error::none, "a division was refused: ", to_string(code));
    for (std::size_t i = 0; i < bytes / part; ++i)
      if ((live[i / 32] >> i % 32 & 1) != 0) mine.add({.block = block + i * part, .bytes = part, .by = by});
  };
  const auto work = [&](share& mine, stream_handle in) {
    for (std::size_t i = 0; i < scaled(2000); ++i) {
      const std::size_t by = uniform(mine.random, 0, tags - 1);
      const tag_scope scope(all[by]);
      if (const std::size_t count = mine.live.size(); count > 300 || (count != 0 && uniform(mine.random, 0, 2) == 0)) {
        release(mine.remove(uniform(mine.random, 0, count - 1)), in);
        continue;
      }
      entry made{.by = by};
      switch (uniform(mine.random, 0, 19)) {
        case 0: divide(mine, by, in); continue;
        case 1:  // keeps its chunk where it is, or has a slot
          made.bytes = uniform(mine.random, 0, 15) == 0 ? 3 * mib : log_uniform(mine.random, 1, 2000);
          made.block = static_cast<std::byte*>(b.tested->try_allocate(made.bytes, in));
          break;
        default:
          made.bytes = log_uniform(mine.random, 5000, 40'000);
          made.handle = blocks->try_allocate(made.bytes, in);
      }
      if (made.block != nullptr || made.handle != relocatable::none) mine.add(made);
    }
  };
  const auto compare = [&] {
    const std::vector<tag_statistics> figures = b.tested->tags();
    for (std::size_t i = 0; i < tags; ++i) {
      CAPTURE(i);
      std::size_t requested = 0;
      std::size_t count = 0;
      for (const share& each : shares) requested += each.requested[i], count += each.count[i];
      const tag_statistics said = of(figures, all[i]);
      CHECK(said.requested == requested);
      CHECK(said.allocations - said.frees == count);
    }
    CHECK(of(figures, mover).allocations == 0);
    check_tags(*b.tested);
  };
  for (std::size_t phase = 0; phase < 8; ++phase) {
    CAPTURE(phase);
    std::atomic<std::size_t> at_work = threads;  // relaxed: it orders nothing
    run_threads(threads + 1, [&](std::size_t self) {
      if (self != threads) {
        work(shares[(self + phase) % threads], b[self]);  // the blocks of another thread, which is gone by now
        at_work.fetch_sub(1, std::memory_order_relaxed);
        return;
      }
      const tag_scope scope(mover);
      for (bool last = false; !last;) {
        last = at_work.load(std::memory_order_relaxed) == 0;  // and once more while nothing else happens
        blocks->begin({.moves = 16});
        for (auto moves = blocks->step(b[self]); !moves.empty(); moves = blocks->step(b[self]))
          moved += moves.size();
        blocks->end();
      }
    });
    compare();
  }
  for (share& each : shares)
    while (!each.live.empty()) release(each.remove(each.live.size() - 1), b[0]);
  compare();
  ORDERLY_CHECK_FINDINGS(found);
  MESSAGE("blocks moved: ", moved);
  CHECK(moved > 0);
  CHECK(b.tested->synchronize());
  blocks.reset();
  check_idle(*b.tested);
}

TEST_CASE("who looks while a thread opens its account sees none, or all of it") {
  for (std::size_t round = 0; round < scaled(100); ++round) {
    pool tested(tagged(4 * mib));
    std::atomic<bool> seen = false;
    run_threads(2, [&](std::size_t self) {
      if (self == 0) {
        const tag_scope scope(weights);
        void* const block = tested.try_allocate(1000);
        while (!seen.load(std::memory_order_relaxed)) std::this_thread::yield();
        tested.deallocate(block, 1000);
        return;
      }
      while (of(tested.tags(), weights).requested != 1000) {  // nothing but the account says that it is there
      }
      seen.store(true, std::memory_order_relaxed);
    });
    check_tags(tested);
  }
}

}
