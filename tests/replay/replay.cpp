// The engine: bench/replay/replay.hpp.
#include "replay.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "tiny_peers.hpp"

using namespace orderly::bench;
using orderly::test::counting_peer;

namespace {

/// Sizes are all different, so that a call's size names its block.
trace random_trace(std::size_t threads, std::size_t allocations, bool free_all) {
  std::mt19937_64 random(threads * 1000003 + allocations);
  trace made;
  made.threads = threads;
  std::vector<event> live;
  std::uint64_t live_bytes = 0;
  const auto any_thread = [&] { return static_cast<std::uint16_t>(random() % threads); };
  while (made.blocks < allocations || (free_all && !live.empty())) {
    if (made.blocks < allocations && (live.empty() || random() % 5 < 3)) {
      const event call{made.blocks + 1, static_cast<std::uint32_t>(made.blocks), any_thread(), action::allocate};
      ++made.blocks;
      live.push_back(call);
      live_bytes += call.bytes;
      made.events.push_back(call);
    } else {
      std::swap(live[random() % live.size()], live.back());
      event call = live.back();
      live.pop_back();
      live_bytes -= call.bytes;
      call.what = action::free;
      call.thread = any_thread();
      made.events.push_back(call);
    }
    made.peak_live_bytes = std::max(made.peak_live_bytes, live_bytes);
  }
  return made;
}

std::vector<std::int64_t> recorded_order(const trace& recorded) {
  std::vector<std::int64_t> order;
  for (const event& call : recorded.events)
    order.push_back(call.what == action::allocate ? static_cast<std::int64_t>(call.bytes)
                                                  : -static_cast<std::int64_t>(call.bytes));
  return order;
}

}  // namespace

TEST_CASE("a plan keeps every event, in order, on few threads with an even load") {
  const trace recorded = random_trace(7, 5000, true);
  for (const std::size_t threads : {1U, 2U, 3U, 7U, 20U}) {
    CAPTURE(threads);
    const replay_plan plan = plan_replay(recorded, threads);
    CHECK(plan.threads.size() == std::min<std::size_t>(threads, 7));
    std::vector<std::uint64_t> taken(recorded.events.size());
    for (const replay_plan::thread& thread : plan.threads) {
      std::size_t next = 0;
      for (const replay_plan::turn& turn : thread.turns) {
        for (std::uint64_t i = turn.first; i < turn.first + turn.count; ++i) {
          ++taken[i];
          const event& planned = thread.events[next++];
          CHECK(planned.block == recorded.events[i].block);
          CHECK(planned.what == recorded.events[i].what);
        }
      }
      CHECK(next == thread.events.size());
      CHECK(thread.events.size() < recorded.events.size() / plan.threads.size() * 3 / 2 + 1);
    }
    CHECK(std::count(taken.begin(), taken.end(), 1U) == static_cast<std::ptrdiff_t>(taken.size()));
  }
}

TEST_CASE("a thread of the trace stays on one thread of the plan") {
  const replay_plan plan = plan_replay(random_trace(6, 2000, true), 3);
  std::set<std::uint16_t> seen;
  for (const replay_plan::thread& thread : plan.threads) {
    std::set<std::uint16_t> own;
    for (const event& call : thread.events) own.insert(call.thread);
    for (const std::uint16_t number : own) CHECK(seen.insert(number).second);
  }
  CHECK(seen.size() == 6);
}

TEST_CASE("recorded order is kept, whatever the number of threads") {
  const trace recorded = random_trace(5, 2000, true);
  for (const std::size_t threads : {1U, 2U, 5U}) {
    CAPTURE(threads);
    counting_peer peer;
    const replay_outcome outcome = replay(peer, plan_replay(recorded, threads), {});
    CHECK(peer.order() == recorded_order(recorded));
    CHECK(outcome.peak_live_bytes == recorded.peak_live_bytes);
    CHECK(outcome.peak_committed_bytes == recorded.peak_live_bytes);
    CHECK(outcome.allocate_ticks.size() == recorded.blocks);
    CHECK(outcome.free_ticks.size() == recorded.events.size() - recorded.blocks);
    CHECK(outcome.failures == 0);
    CHECK(outcome.refused_frees == 0);
  }
}

TEST_CASE("free order: every block is freed once, after it was allocated") {
  const trace recorded = random_trace(4, 5000, true);
  counting_peer peer;
  const replay_outcome outcome = replay(peer, plan_replay(recorded, 4), {.order = replay_order::free});
  CHECK(outcome.refused_frees == 0);
  CHECK(peer.mistakes() == 0);
  CHECK(peer.live() == 0);
  std::vector<std::int64_t> sorted = peer.order();
  std::vector<std::int64_t> expected = recorded_order(recorded);
  std::sort(sorted.begin(), sorted.end());
  std::sort(expected.begin(), expected.end());
  CHECK(sorted == expected);
}

TEST_CASE("copies share the allocator and double everything else") {
  const trace recorded = random_trace(2, 1500, true);
  for (const replay_order order : {replay_order::recorded, replay_order::free}) {
    counting_peer peer;
    const replay_outcome outcome = replay(peer, plan_replay(recorded, 2), {.order = order, .copies = 3});
    CHECK(outcome.allocate_ticks.size() == 3 * recorded.blocks);
    CHECK(outcome.free_ticks.size() == 3 * (recorded.events.size() - recorded.blocks));
    CHECK(outcome.peak_live_bytes <= peer.peak_committed());
    CHECK(peer.mistakes() == 0);
    CHECK(peer.live() == 0);
  }
}

TEST_CASE("what the trace leaves live is freed after the replay") {
  const trace recorded = random_trace(3, 1000, false);
  counting_peer peer;
  const replay_outcome outcome = replay(peer, plan_replay(recorded, 3), {});
  CHECK(outcome.free_ticks.size() < outcome.allocate_ticks.size());
  CHECK(peer.live() == 0);
  CHECK(peer.mistakes() == 0);
}

TEST_CASE("a refused allocation is counted, and its free left out") {
  const trace recorded = random_trace(2, 1000, true);
  for (const replay_order order : {replay_order::recorded, replay_order::free}) {
    counting_peer peer(static_cast<std::size_t>(recorded.peak_live_bytes / 2));
    const replay_outcome outcome = replay(peer, plan_replay(recorded, 2), {.order = order});
    CHECK(outcome.failures > 0);
    CHECK(outcome.allocate_ticks.size() == recorded.blocks);
    CHECK(outcome.free_ticks.size() == recorded.blocks - outcome.failures);
    CHECK(outcome.refused_frees == 0);
    CHECK(outcome.peak_live_bytes <= recorded.peak_live_bytes / 2);
    CHECK(peer.live() == 0);
  }
}

TEST_CASE("the first refusal ends a replay that asks for that") {
  const trace recorded = random_trace(3, 1000, true);
  for (const replay_order order : {replay_order::recorded, replay_order::free}) {
    counting_peer peer(static_cast<std::size_t>(recorded.peak_live_bytes / 2));
    const replay_settings settings{.order = order, .copies = 2, .stop_at_refusal = true};
    const replay_outcome outcome = replay(peer, plan_replay(recorded, 3), settings);
    CHECK(outcome.failures >= 1);
    CHECK(outcome.allocate_ticks.size() < 2 * recorded.blocks);
    CHECK(peer.live() == 0);
    CHECK(peer.mistakes() == 0);
  }
}

TEST_CASE("frees that the allocator refuses are counted") {
  class suspicious final : public any_peer {
   public:
    void* allocate(std::size_t) noexcept override { return &block_; }
    bool deallocate(void*, std::size_t bytes) noexcept override { return bytes % 2 == 0; }

   private:
    char block_ = 0;
  } peer;
  const trace recorded = random_trace(1, 10, true);
  CHECK(replay(peer, plan_replay(recorded, 1), {}).refused_frees == 5);
}

TEST_CASE("touching writes to every page of a block and nowhere else") {
  constexpr std::size_t page = 4096;
  class arena final : public any_peer {
   public:
    void* allocate(std::size_t) noexcept override { return memory_.data(); }
    bool deallocate(void*, std::size_t) noexcept override { return true; }
    std::vector<char> memory_ = std::vector<char>(4 * page, 0);
  };
  trace recorded;
  recorded.blocks = recorded.threads = 1;
  recorded.events = {{2 * page + 1, 0, 0, action::allocate}};
  for (const bool touch : {false, true}) {
    arena peer;
    replay(peer, plan_replay(recorded, 1), {.touch = touch});
    std::vector<int> written;
    for (std::size_t first = 0; first < peer.memory_.size(); first += page)
      written.push_back(std::any_of(&peer.memory_[first], &peer.memory_[first] + page, [](char c) { return c != 0; }));
    CHECK(written == (touch ? std::vector{1, 1, 1, 0} : std::vector{0, 0, 0, 0}));
  }
}

TEST_CASE("an observation has the highest committed of each interval, and every address") {
  const trace recorded = random_trace(2, 500, true);
  counting_peer peer;
  observation seen;
  seen.interval = 7;
  replay(peer, plan_replay(recorded, 2), {}, &seen);
  std::vector<std::uint64_t> expected((recorded.events.size() + 6) / 7, 0);
  std::uint64_t live = 0;
  for (std::size_t i = 0; i < recorded.events.size(); ++i) {
    const event& call = recorded.events[i];
    live = call.what == action::allocate ? live + call.bytes : live - call.bytes;
    expected[i / 7] = std::max(expected[i / 7], live);
  }
  CHECK(seen.committed == expected);
  CHECK(std::set<std::uint64_t>(seen.addresses.begin(), seen.addresses.end()).size() == recorded.blocks);
  CHECK(std::count(seen.addresses.begin(), seen.addresses.end(), 0U) == 0);
}

TEST_CASE("each thread has a stream, and a block is used and freed in the one of its allocation") {
  class in_streams final : public any_peer {
   public:
    void* allocate(std::size_t) noexcept override { return nullptr; }
    bool deallocate(void*, std::size_t) noexcept override { return false; }
    void* allocate_in(std::size_t stream, std::size_t) noexcept override {
      const std::lock_guard lock(mutex_);
      allocating_[stream].insert(std::this_thread::get_id());
      live_[++next_] = {stream, false};
      return reinterpret_cast<void*>(next_);
    }
    void use_in(std::size_t stream, void* pointer) override {
      const std::lock_guard lock(mutex_);
      auto& block = live_.at(reinterpret_cast<std::uintptr_t>(pointer));
      mistakes_ += block != std::pair{stream, false};
      block.second = true;
    }
    bool deallocate_in(std::size_t stream, void* pointer, std::size_t) noexcept override {
      const std::lock_guard lock(mutex_);
      const auto found = live_.find(reinterpret_cast<std::uintptr_t>(pointer));
      mistakes_ += found == live_.end() || found->second != std::pair{stream, true};
      if (found != live_.end()) live_.erase(found);
      return true;
    }
    [[nodiscard]] std::optional<stream_work> made() const noexcept override { return stream_work{5, 7}; }

    std::mutex mutex_;
    std::map<std::size_t, std::set<std::thread::id>> allocating_;
    std::map<std::uintptr_t, std::pair<std::size_t, bool>> live_;
    std::uintptr_t next_ = 0;
    std::size_t mistakes_ = 0;
  };
  const trace recorded = random_trace(5, 2000, false);
  for (const replay_order order : {replay_order::recorded, replay_order::free}) {
    in_streams peer;
    const replay_outcome outcome = replay(peer, plan_replay(recorded, 3), {.order = order, .copies = 2});
    CHECK(peer.mistakes_ == 0);
    CHECK(peer.live_.empty());
    CHECK(peer.allocating_.size() == 6);
    CHECK(peer.allocating_.rbegin()->first == 5);
    for (const auto& [stream, threads] : peer.allocating_) CHECK(threads.size() == 1);
    REQUIRE(outcome.made);
    CHECK(outcome.made->records == 5);
    CHECK(outcome.made->waits == 7);
  }
}

TEST_CASE("an empty trace replays") {
  counting_peer peer;
  const replay_outcome outcome = replay(peer, plan_replay({}, 4), {.copies = 2});
  CHECK(outcome.allocate_ticks.empty());
  CHECK(outcome.peak_live_bytes == 0);
}
