// What pools do with their memory over a trace: bench/replay/history.hpp.
#include "history.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "../support/random.hpp"
#include "../support/scale.hpp"
#include "child.hpp"
#include "peer/peer.hpp"

using namespace orderly;
using namespace orderly::bench;
using namespace orderly::test;

namespace {

constexpr std::uint64_t kib = 1024;

using row = std::array<std::uint64_t, 4>;

std::vector<row> rows_of(const std::vector<memory_range>& ranges) {
  std::vector<row> rows;
  for (const memory_range& range : ranges) rows.push_back({range.address, range.bytes, range.from, range.to});
  return rows;
}

/// Address and length of all ranges after an event.
template <class Range>
std::map<std::uint64_t, std::uint64_t> at(const std::vector<Range>& ranges, std::uint64_t event) {
  std::map<std::uint64_t, std::uint64_t> found;
  bool twice = false;
  for (const Range& range : ranges) {
    if (range.from <= event && event < range.to) twice |= !found.emplace(range.address, range.bytes).second;
  }
  CHECK_FALSE(twice);
  return found;
}

std::uint64_t sum(const std::map<std::uint64_t, std::uint64_t>& ranges) {
  std::uint64_t total = 0;
  for (const auto& [address, bytes] : ranges) total += bytes;
  return total;
}

/// Threads that allocate and free all sizes, each also what others have allocated; in waves, so that passes have work.
/// `excess`: now and then so many bytes; 0: never.
trace random_trace(std::uint64_t stream, std::size_t events, std::uint64_t excess) {
  random_engine random = make_random(stream);
  trace made;
  made.threads = 3;
  std::vector<event> live;
  while (made.events.size() < events) {
    const bool growing = made.events.size() / 256 % 2 == 0;
    const auto thread = static_cast<std::uint16_t>(uniform(random, 0, made.threads - 1));
    if (live.empty() || uniform(random, 0, 9) < (growing ? 7U : 3U)) {
      std::uint64_t bytes = log_uniform(random, 1, uniform(random, 0, 7) == 0 ? 2048 * kib : 16 * kib);
      if (excess != 0 && made.blocks % 50 == 7) bytes = excess;
      live.push_back({bytes, static_cast<std::uint32_t>(made.blocks++), thread, action::allocate});
      made.events.push_back(live.back());
    } else {
      std::swap(live[uniform(random, 0, live.size() - 1)], live.back());
      live.back().thread = thread;
      live.back().what = action::free;
      made.events.push_back(live.back());
      live.pop_back();
    }
  }
  return made;
}

/// Looks at the whole pool after each event, beside the recorder, which does not.
class audit final : public replay_observer {
 public:
  explicit audit(history_recorder& recorder) : recorder_(recorder) {}

  void after(std::uint64_t position, const event& call, const void* block, const any_peer& peer) override {
    recorder_.after(position, call, block, peer);
    instant& now = instants.emplace_back();
    now.counters = peer.inside()->stats();
    peer.inside()->each_block([&now](const block_info& seen) {
      const auto address = reinterpret_cast<std::uintptr_t>(seen.address);
      if (seen.state == block_state::live) now.live.emplace(address, seen.bytes);
      if (seen.state == block_state::cached) now.cached.emplace(address, seen.bytes);
    });
  }

  struct instant {
    statistics counters;
    std::map<std::uint64_t, std::uint64_t> live;
    std::map<std::uint64_t, std::uint64_t> cached;
  };
  std::vector<instant> instants;

 private:
  history_recorder& recorder_;
};

/// True if each range lies in one of `outer`, adjacent ones of which count as one.
bool lies_in(const std::map<std::uint64_t, std::uint64_t>& ranges,
             const std::map<std::uint64_t, std::uint64_t>& outer) {
  std::map<std::uint64_t, std::uint64_t> joined;  // begin, end
  for (const auto& [begin, bytes] : outer) {
    if (!joined.empty() && joined.rbegin()->second == begin) joined.rbegin()->second += bytes;
    else joined.emplace(begin, begin + bytes);
  }
  return std::ranges::all_of(ranges, [&joined](const auto& range) {
    const auto after = joined.upper_bound(range.first);
    return after != joined.begin() && range.first + range.second <= std::prev(after)->second;
  });
}

struct recorded {
  trace replayed;
  memory_history history;
  std::vector<audit::instant> instants;
  std::size_t refusals = 0;
};

recorded record(const std::string& peer_name, arena_config arena, std::size_t events) {
  recorded result;
  result.replayed = random_trace(events + arena.limit, events, arena.limit == 0 ? 0 : arena.limit + 1);
  const replay_plan plan = plan_replay(result.replayed, 2);
  history_recorder recorder(plan, 100);
  arena.watcher = &recorder;
  {
    const std::unique_ptr<any_peer> peer = find_peer(peer_name)->make(arena);
    REQUIRE(peer->inside() != nullptr);
    audit auditor(recorder);
    observation seen;
    seen.observer = &auditor;
    result.refusals = replay(*peer, plan, {}, &seen).failures;
    result.instants = std::move(auditor.instants);
    result.history = std::move(recorder).finish();
  }
  complete(result.history, result.replayed, plan);
  return result;
}

void check_every_event(const recorded& made) {
  const std::vector<audit::instant>& instants = made.instants;
  REQUIRE(instants.size() == made.replayed.events.size());
  bool good = true;
  for (std::uint64_t i = 0; i < instants.size() && good; ++i) {
    const auto live = at(made.history.live, i);
    const auto cached = at(made.history.cached, i);
    const auto committed = at(made.history.committed, i);
    const statistics& counters = instants[i].counters;
    const auto check = [&good](bool holds, const char* what) {
      INFO(what);
      CHECK(holds);
      good &= holds;
    };
    CAPTURE(i);
    check(live == instants[i].live, "live blocks");
    check(cached == instants[i].cached, "cached blocks");
    check(sum(live) == counters.allocated, "allocated bytes");
    check(sum(cached) == counters.cached, "cached bytes");
    check(sum(committed) == counters.committed, "committed bytes");
    check(lies_in(live, committed) && lies_in(cached, committed), "committed ranges");
  }
}

}  // namespace

TEST_CASE("ranges open and close") {
  range_log log;
  log.open(0, 100, 1);
  log.open(100, 100, 2);
  log.open(300, 100, 3);
  CHECK_FALSE(log.close_exactly(0, 50, 4));
  CHECK_FALSE(log.close_exactly(50, 50, 4));
  CHECK(log.close_exactly(0, 100, 4));
  CHECK_FALSE(log.close_exactly(0, 100, 4));
  CHECK(rows_of(std::move(log).finish(9)) == std::vector<row>{{0, 100, 1, 4}, {100, 100, 2, 9}, {300, 100, 3, 9}});
}

TEST_CASE("parts of ranges close") {
  range_log log;
  log.open(0, 100, 1);
  log.open(100, 100, 2);
  log.open(300, 100, 3);
  log.close(50, 300, 5);  // the end of one, all of the next, a gap, the beginning of the last
  log.close(10, 10, 6);   // the middle of what is left of the first
  log.close(200, 100, 7);  // nothing
  CHECK(rows_of(std::move(log).finish(9)) ==
        std::vector<row>{{50, 50, 1, 5}, {10, 10, 1, 6}, {0, 10, 1, 9}, {20, 30, 1, 9}, {100, 100, 2, 5},
                         {300, 50, 3, 5}, {350, 50, 3, 9}});
}

TEST_CASE("a range that is gone with the event that made it leaves no trace") {
  range_log log;
  log.open(0, 100, 4);
  log.close(0, 100, 4);
  log.open(0, 100, 9);
  CHECK(std::move(log).finish(9).empty());
}

TEST_CASE("ranges are replaced by what is there now") {
  using pairs = std::vector<std::pair<std::uint64_t, std::uint64_t>>;
  range_log log;
  log.replace(pairs{{10, 5}, {20, 5}, {40, 5}}, 1);
  log.replace(pairs{{10, 5}, {20, 9}, {30, 5}}, 2);  // kept, another length, new, gone
  log.replace(pairs{}, 3);
  log.replace(pairs{{5, 1}}, 4);
  CHECK(rows_of(std::move(log).finish(6)) ==
        std::vector<row>{{20, 5, 1, 2}, {40, 5, 1, 2}, {10, 5, 1, 3}, {20, 9, 2, 3}, {30, 5, 2, 3}, {5, 1, 4, 6}});
}

TEST_CASE("after every event the history is what the pool itself says") {
  struct chosen {
    std::string peer;
    software_schedule schedule;
  };
  const std::vector<chosen> cases{
      {"orderly", software_schedule::eager},
      {"orderly-streams", software_schedule::eager},
      {"orderly-streams", software_schedule::random},
      {"orderly-waiting-streams", software_schedule::random},
  };
  for (const chosen& each : cases) {
    CAPTURE(each.peer);
    CAPTURE(static_cast<int>(each.schedule));
    const recorded made = record(each.peer, {.schedule = each.schedule}, scaled(2000));
    CHECK(made.refusals == 0);
    check_every_event(made);
  }
}

TEST_CASE("the same where memory is short: passes run, and allocations are refused") {
  const recorded made = record("orderly", {.limit = 1 << 20}, scaled(2000));
  CHECK(made.refusals > 0);
  CHECK(made.history.refused.size() == made.refusals);
  CHECK(made.instants.back().counters.passes > 0);
  CHECK(made.history.live.size() + made.refusals == made.replayed.blocks);
  check_every_event(made);
}

TEST_CASE("the history knows what the trace knows") {
  const recorded made = record("orderly", {}, 500);
  const replay_plan plan = plan_replay(made.replayed, 2);
  auto block = made.history.live.begin();
  for (std::uint64_t i = 0; i < made.replayed.events.size(); ++i) {
    const event& call = made.replayed.events[i];
    if (call.what == action::allocate) {
      CHECK(block->from == i);
      CHECK(block->requested == call.bytes);
      CHECK(block->bytes >= call.bytes);
      CHECK(block->thread == call.thread);
      CHECK(block->lane == plan.stream_of[call.block]);
      ++block;
    } else {
      CHECK(made.history.live[call.block].to == i);
      CHECK(made.history.live[call.block].freed_by == call.thread);
    }
  }
  CHECK(block == made.history.live.end());
}

TEST_CASE("samples are taken at the end of each interval, and at the end") {
  const recorded made = record("orderly", {}, 350);
  REQUIRE(made.history.samples.size() == 4);
  for (std::size_t i = 0; i < 4; ++i) {
    const std::size_t event = std::min<std::size_t>(100 * i + 99, 349);
    CHECK(made.history.samples[i].allocated == made.instants[event].counters.allocated);
    CHECK(made.history.samples[i].committed == made.instants[event].counters.committed);
  }
  CHECK(made.history.granule == 256);
}

TEST_CASE("peers that are no pools, or commit nothing piecewise, have no inside") {
  for (const char* const name : {"best-fit", "malloc", "orderly-flat-streams", "classic-streams"}) {
    CAPTURE(name);
    CHECK(find_peer(name)->make({.capacity = 64 << 20})->inside() == nullptr);
  }
}

TEST_CASE("a history comes out of a child whole") {
  memory_history sent;
  sent.granule = 256;
  sent.interval = 7;
  sent.live.resize(1000);
  for (std::uint64_t i = 0; i < 1000; ++i) sent.live[i].address = i * i;
  sent.cached = {{1, 2, 3, 4}};
  sent.samples.resize(3);
  sent.samples[2].passes = 99;
  handed_over file;
  CHECK(run_in_child([&] { file.write(sent); }, [] {}).empty());
  const memory_history received = file.read();
  CHECK(received.granule == 256);
  CHECK(received.interval == 7);
  REQUIRE(received.live.size() == 1000);
  CHECK(received.live[999].address == 999 * 999);
  CHECK(rows_of(received.cached) == rows_of(sent.cached));
  CHECK(received.committed.empty());
  REQUIRE(received.samples.size() == 3);
  CHECK(received.samples[2].passes == 99);
}

TEST_CASE("a child that dies before it has written leaves nothing to read") {
  handed_over file;
  CHECK_FALSE(run_in_child([] { throw std::runtime_error("no"); }, [] {}).empty());
  CHECK_THROWS_AS(static_cast<void>(file.read()), std::runtime_error);
}
