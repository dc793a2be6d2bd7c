// The allocators that the benchmarks compare. Each that has an arena must be correct, or ratios to it mean nothing.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "orderly/source.hpp"
#include "peer/peer.hpp"
#include "peer/pieces.hpp"

using namespace orderly::bench;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

struct live_block {
  std::byte* begin;
  std::size_t bytes;
};

/// Blocks by address; a block that overlaps one of them is not added.
class live_map {
 public:
  bool add(live_block block) {
    const auto next = blocks_.lower_bound(block.begin);
    if (next != blocks_.end() && next->first < block.begin + block.bytes) return false;
    if (next != blocks_.begin() && std::prev(next)->first + std::prev(next)->second > block.begin) return false;
    blocks_.emplace_hint(next, block.begin, block.bytes);
    return true;
  }
  void remove(live_block block) { blocks_.erase(block.begin); }

 private:
  std::map<std::byte*, std::size_t> blocks_;
};

std::vector<const peer_entry*> arenas() {
  std::vector<const peer_entry*> found;
  for (const peer_entry& entry : peers()) {
    if (entry.arena) found.push_back(&entry);
  }
  return found;
}

/// Mostly small, up to 1 MiB.
std::size_t random_size(std::mt19937_64& random) {
  const auto doublings = std::uniform_int_distribution<unsigned>(0, 20)(random);
  return std::uniform_int_distribution<std::size_t>(1, std::size_t{1} << doublings)(random);
}

}  // namespace

TEST_CASE("names are unique and lead to their entry, orderly first") {
  std::set<std::string> names;
  for (const peer_entry& entry : peers()) {
    CHECK(names.insert(std::string(entry.name)).second);
    CHECK(find_peer(entry.name) == &entry);
  }
  for (const peer_entry& entry : stream_peers()) {
    CHECK(names.insert(std::string(entry.name)).second);
    CHECK(find_peer(entry.name) == &entry);
  }
  CHECK(peers().front().name == "orderly");
  CHECK(arenas().size() == 5);
  CHECK(find_peer("no such allocator") == nullptr);
}

TEST_CASE("live blocks never overlap, and stay below the limit") {
  for (const peer_entry* entry : arenas()) {
    CAPTURE(entry->name);
    const std::size_t limit = 24 * mib;  // no power of two
    const auto peer = entry->make({.capacity = 64 * mib, .limit = limit, .chunk = 0});
    REQUIRE(peer != nullptr);
    std::mt19937_64 random(7);
    std::vector<live_block> live;
    live_map map;
    std::size_t refused = 0;
    for (int step = 0; step < 30'000; ++step) {
      // Grows until blocks are refused, then shrinks, and again.
      const bool grow = step % 10'000 < 6'000 ? random() % 3 != 0 : random() % 3 == 0;
      if (grow || live.empty()) {
        const std::size_t bytes = random_size(random);
        const live_block block{static_cast<std::byte*>(peer->allocate(bytes)), bytes};
        if (block.begin == nullptr) {
          ++refused;
          continue;
        }
        REQUIRE(map.add(block));
        live.push_back(block);
      } else {
        std::swap(live[random() % live.size()], live.back());
        map.remove(live.back());
        REQUIRE(peer->deallocate(live.back().begin, live.back().bytes));
        live.pop_back();
      }
      REQUIRE(peer->committed() <= limit);
    }
    CHECK(refused > 0);
    CHECK(peer->peak_committed() <= limit);
    CHECK(peer->peak_committed() > limit / 2);
    for (const live_block& block : live) REQUIRE(peer->deallocate(block.begin, block.bytes));
  }
}

TEST_CASE("after everything is freed the arena is one block again") {
  for (const peer_entry* entry : arenas()) {
    CAPTURE(entry->name);
    const std::size_t capacity = 16 * mib;
    const auto peer = entry->make({.capacity = capacity, .limit = 0, .chunk = 0});
    std::mt19937_64 random(11);
    for (int round = 0; round < 20; ++round) {
      std::vector<live_block> live;
      for (;;) {
        const std::size_t bytes = random_size(random);
        void* const block = peer->allocate(bytes);
        if (block == nullptr) break;
        live.push_back({static_cast<std::byte*>(block), bytes});
      }
      std::shuffle(live.begin(), live.end(), random);
      for (const live_block& block : live) REQUIRE(peer->deallocate(block.begin, block.bytes));
      void* const whole = peer->allocate(capacity);
      REQUIRE(whole != nullptr);
      CHECK(peer->allocate(1) == nullptr);
      REQUIRE(peer->deallocate(whole, capacity));
    }
  }
}

TEST_CASE("equal blocks fill the arena to the last one") {
  for (const peer_entry* entry : arenas()) {
    CAPTURE(entry->name);
    const auto peer = entry->make({.capacity = 8 * mib, .limit = 0, .chunk = 0});
    for (int i = 0; i < 128; ++i) REQUIRE(peer->allocate(64 * kib) != nullptr);
    CHECK(peer->allocate(64 * kib) == nullptr);
    CHECK(peer->committed() == 8 * mib);
  }
}

TEST_CASE("what can never fit is refused") {
  for (const peer_entry* entry : arenas()) {
    CAPTURE(entry->name);
    const auto peer = entry->make({.capacity = 8 * mib, .limit = 0, .chunk = 0});
    for (const std::size_t bytes : {8 * mib + 1, SIZE_MAX / 2, SIZE_MAX - 255, SIZE_MAX}) {
      CHECK(peer->allocate(bytes) == nullptr);
    }
    CHECK(peer->allocate(0) != nullptr);
  }
}

TEST_CASE("no block has two owners among threads") {
  for (const peer_entry* entry : arenas()) {
    CAPTURE(entry->name);
    const auto peer = entry->make({.capacity = 8 * mib, .limit = 0, .chunk = 0});
    std::vector<std::size_t> mixed_up(3);
    const auto work = [&peer, &mixed_up](unsigned thread) {
      std::mt19937_64 random(thread);
      std::vector<live_block> live;
      const auto mark = static_cast<std::byte>(thread + 1);
      for (int step = 0; step < 40'000; ++step) {
        const std::size_t bytes = random_size(random) % (64 * kib) + 1;
        auto* const block = static_cast<std::byte*>(peer->allocate(bytes));
        if (block != nullptr) {
          block[0] = block[bytes - 1] = mark;
          live.push_back({block, bytes});
        }
        while (live.size() > (block == nullptr ? 0 : 20)) {
          std::swap(live[random() % live.size()], live.back());
          const auto [begin, length] = live.back();
          mixed_up[thread] += begin[0] != mark || begin[length - 1] != mark;
          mixed_up[thread] += !peer->deallocate(begin, length);
          live.pop_back();
        }
      }
      for (const live_block& block : live) mixed_up[thread] += !peer->deallocate(block.begin, block.bytes);
    };
    std::vector<std::jthread> threads;
    for (unsigned thread = 0; thread < mixed_up.size(); ++thread) threads.emplace_back(work, thread);
    threads.clear();
    CHECK(mixed_up == std::vector<std::size_t>(3));
  }
}

TEST_CASE("no block has two owners among streams") {
  for (const peer_entry& entry : stream_peers()) {
    CAPTURE(entry.name);
    const auto peer = entry.make({.capacity = 8 * mib, .limit = 0, .chunk = 0});
    std::vector<std::size_t> mixed_up(3);
    const auto work = [&peer, &mixed_up](unsigned thread) {
      std::mt19937_64 random(thread);
      std::vector<live_block> live;
      const auto mark = static_cast<std::byte>(thread + 1);
      for (int step = 0; step < 10'000; ++step) {
        const std::size_t bytes = random_size(random) % (64 * kib) + 1;
        auto* const block = static_cast<std::byte*>(peer->allocate_in(thread, bytes));
        if (block != nullptr) {
          block[0] = block[bytes - 1] = mark;
          live.push_back({block, bytes});
        }
        while (live.size() > (block == nullptr ? 0 : 20)) {
          std::swap(live[random() % live.size()], live.back());
          const auto [begin, length] = live.back();
          mixed_up[thread] += begin[0] != mark || begin[length - 1] != mark;
          mixed_up[thread] += !peer->deallocate_in(thread, begin, length);
          live.pop_back();
        }
      }
      for (const live_block& block : live) mixed_up[thread] += !peer->deallocate_in(thread, block.begin, block.bytes);
    };
    std::vector<std::jthread> threads;
    for (unsigned thread = 0; thread < mixed_up.size(); ++thread) threads.emplace_back(work, thread);
    threads.clear();
    CHECK(mixed_up == std::vector<std::size_t>(3));
  }
}

TEST_CASE("a stream gets all that another one freed, behind what still uses it") {
  for (const peer_entry& entry : stream_peers()) {
    CAPTURE(entry.name);
    const auto peer = entry.make({.capacity = 8 * mib, .limit = 0, .chunk = 0});
    for (std::size_t stream = 0; stream < 4; ++stream) {
      std::vector<void*> blocks;
      for (int i = 0; i < 128; ++i) blocks.push_back(peer->allocate_in(stream, 64 * kib));
      CHECK(std::ranges::count(blocks, nullptr) == 0);
      CHECK(peer->allocate_in(stream, 64 * kib) == nullptr);
      for (void* const block : blocks) {
        peer->use_in(stream, block);
        REQUIRE(peer->deallocate_in(stream, block, 64 * kib));
      }
    }
    REQUIRE(peer->made());
    CHECK(peer->made()->records >= 3);
  }
}

TEST_CASE("work in a stream writes to the block") {
  for (const peer_entry& entry : stream_peers()) {
    for (const auto schedule : {orderly::software_schedule::workers, orderly::software_schedule::eager}) {
      arena_config config{.capacity = 8 * mib, .limit = 0, .chunk = 0};
      config.schedule = schedule;
      config.run_ahead = 1;
      const auto peer = entry.make(config);
      void* const block = peer->allocate_in(0, 4096);
      REQUIRE(block != nullptr);
      *static_cast<char*>(block) = 0;
      peer->use_in(0, block);
      peer->use_in(0, peer->allocate_in(0, 4096));  // waits for the first
      CHECK(*static_cast<char*>(block) == 1);
    }
  }
}

TEST_CASE("pytorch-like: segments are as large as PyTorch's, a stream's for good, and given back before a refusal") {
  const auto peer = find_peer("pytorch-like")->make({.capacity = 80 * mib, .limit = 0, .chunk = 0});
  void* const small = peer->allocate_in(0, mib);
  CHECK(peer->committed() == 2 * mib);
  void* const large = peer->allocate_in(0, mib + 1);
  CHECK(peer->committed() == 22 * mib);
  void* const own = peer->allocate_in(0, 20 * mib + 1);
  CHECK(peer->committed() == 44 * mib);
  REQUIRE(peer->deallocate_in(0, own, 20 * mib + 1));
  void* const again = peer->allocate_in(0, 21 * mib);  // the same block, of which no 1 MiB can be split off
  CHECK(again == own);
  REQUIRE(peer->deallocate_in(0, again, 21 * mib));
  CHECK(peer->allocate_in(1, 21 * mib) != own);  // another stream's
  CHECK(peer->committed() == 66 * mib);
  CHECK(peer->allocate_in(1, 24 * mib) != nullptr);
  CHECK(peer->committed() == 68 * mib);  // without the free segment of 22 MiB
  REQUIRE(peer->deallocate_in(0, large, mib + 1));
  CHECK(peer->allocate_in(1, 28 * mib) != nullptr);
  CHECK(peer->committed() == 76 * mib);             // without that of 20 MiB
  CHECK(peer->allocate_in(1, 7 * mib) == nullptr);  // a segment of 20 MiB
  CHECK(peer->allocate_in(0, mib) != nullptr);      // the rest of the first segment
  CHECK(peer->committed() == 76 * mib);
  CHECK(peer->peak_committed() == 76 * mib);
  REQUIRE(peer->deallocate_in(0, small, mib));
}

TEST_CASE("buddy-chunks: what is committed is rounded to chunks; a chunk is shared by powers of two") {
  const auto peer = find_peer("buddy-chunks")->make({.capacity = 8 * mib, .limit = 15 * 64 * kib, .chunk = 64 * kib});
  void* const nine = peer->allocate(8 * 64 * kib + 1);
  CHECK(peer->committed() == 9 * 64 * kib);
  REQUIRE(peer->deallocate(nine, 8 * 64 * kib + 1));
  CHECK(peer->allocate(12 * 64 * kib) == nine);  // the same slot of 16 chunks
  CHECK(peer->committed() == 12 * 64 * kib);
  CHECK(peer->allocate(17 * kib) != nullptr);  // 32 KiB
  CHECK(peer->allocate(17 * kib) != nullptr);
  CHECK(peer->committed() == 13 * 64 * kib);
  CHECK(peer->allocate(33 * kib) != nullptr);  // a chunk each
  CHECK(peer->allocate(33 * kib) != nullptr);
  CHECK(peer->committed() == 15 * 64 * kib);
  CHECK(peer->allocate(1) == nullptr);
  REQUIRE(peer->deallocate(nine, 12 * 64 * kib));
  CHECK(peer->committed() == 15 * 64 * kib);     // kept for the next
  CHECK(peer->allocate(6 * 64 * kib) != nullptr);  // out of what the free slot had
  CHECK(peer->committed() == 9 * 64 * kib);
}

TEST_CASE("a source in pieces makes those of CUDA's, counts them, and cuts none") {
  const auto counter = std::make_shared<move_counter>();
  piecewise_source source(orderly::make_host_source(), counter);
  auto* const base = static_cast<std::byte*>(source.reserve(64 * mib, 2 * mib));
  REQUIRE(base != nullptr);
  const auto total = [&] { return counter->total(); };
  CHECK(source.commit(base, 6 * mib));
  CHECK(total().committed_pieces == 3);
  CHECK(total().commits == 1);
  CHECK(total().driver_calls() == 10);
  CHECK(source.commit_together(base + 8 * mib, 14 * mib));  // 8, 4 and 2 MiB
  CHECK(total().committed_pieces == 6);
  CHECK(total().committed_bytes == 20 * mib);
  const double two = cost_of_piece(2 * mib).commit;
  CHECK(total().commit_seconds * 1e6 ==
        doctest::Approx(4 * two + cost_of_piece(4 * mib).commit + cost_of_piece(8 * mib).commit).epsilon(1e-4));
  CHECK_FALSE(source.decommit(base + 10 * mib, 12 * mib));  // cuts the first
  CHECK_FALSE(source.decommit(base + 8 * mib, 2 * mib));
  CHECK_FALSE(source.decommit(base + 6 * mib, 2 * mib));  // not committed
  CHECK(total().decommits == 0);
  CHECK(source.decommit(base + 16 * mib, 6 * mib));
  CHECK(source.decommit(base + 2 * mib, 2 * mib));
  CHECK(total().decommitted_pieces == 3);
  CHECK(total().decommitted_bytes == 8 * mib);
  CHECK(total().decommits == 2);
  CHECK(total().decommit_seconds * 1e6 ==
        doctest::Approx(2 * cost_of_piece(2 * mib).decommit + cost_of_piece(4 * mib).decommit).epsilon(1e-4));
  CHECK(source.commit(base + 2 * mib, 2 * mib));
  source.release(base, 64 * mib);
}

TEST_CASE("a piece is as large as the pool's chunk") {
  const auto counter = std::make_shared<move_counter>();
  piecewise_source source(orderly::make_host_source(), counter);
  const std::size_t chunk = 4 * piecewise_source::unit;
  void* const range = source.reserve(4 * chunk, chunk);
  REQUIRE(range != nullptr);
  REQUIRE(source.commit(range, 2 * chunk));
  CHECK(counter->total().committed_pieces == 2);
  REQUIRE(source.decommit(range, chunk));
  CHECK(counter->total().decommitted_pieces == 1);
  source.release(range, 4 * chunk);
}

TEST_CASE("pieces cost what was measured, and between that") {
  CHECK(cost_of_piece(2 * mib).commit == doctest::Approx(54.9));
  CHECK(cost_of_piece(2 * mib).decommit == doctest::Approx(38.6));
  CHECK(cost_of_piece(64 * mib).commit == doctest::Approx(51.8));
  CHECK(cost_of_piece(512 * mib).decommit == doctest::Approx(386.4));
  CHECK(cost_of_piece(9 * mib).decommit == doctest::Approx((38.6 + 47.7) / 2));
  CHECK(cost_of_piece(960 * mib).decommit == doctest::Approx(2 * 386.4 - 79.8));
}

TEST_CASE("orderly's source is asked for what is new, and for nothing else") {
  arena_config config{.capacity = 512 * mib, .limit = 0, .chunk = 2 * mib};
  CHECK_FALSE(find_peer("orderly")->make(config)->moved());
  config.pieces = true;
  config.slack = 16;  // nothing is given back
  CHECK_FALSE(find_peer("best-fit")->make(config)->moved());
  const auto peer = find_peer("orderly")->make(config);
  const auto hit = [&](std::size_t bytes) {
    for (int i = 0; i < 1000; ++i) REQUIRE(peer->deallocate(peer->allocate(bytes), bytes));
  };
  hit(kib);
  CHECK(peer->moved()->committed_pieces == 1);
  hit(6 * mib);
  CHECK(peer->moved()->committed_pieces == 4);
  hit(48 * mib);  // 32 and 16 MiB
  CHECK(peer->moved()->committed_pieces == 6);
  CHECK(peer->moved()->commits == 3);
  CHECK(peer->moved()->decommits == 0);
  CHECK(peer->moved()->committed_bytes == 56 * mib);
}

TEST_CASE("slack reaches the pool") {
  for (const char* const name : {"orderly", "orderly-streams"}) {
    // Frees 128 MiB of one size and asks for 128 MiB of another: how much is kept for the first is what slack says.
    const auto most = [&](double slack) {
      arena_config config{.capacity = 512 * mib, .limit = 0, .chunk = 0};
      config.slack = slack;
      config.schedule = orderly::software_schedule::eager;
      const auto peer = find_peer(name)->make(config);
      for (const std::size_t bytes : {mib, 2 * mib}) {
        std::vector<void*> blocks;
        for (std::size_t held = 0; held < 128 * mib; held += bytes) blocks.push_back(peer->allocate_in(0, bytes));
        for (void* const block : blocks) CHECK(peer->deallocate_in(0, block, bytes));
      }
      return peer->peak_committed();
    };
    CHECK(most(0) < 160 * mib);
    CHECK(most(10) >= 256 * mib);
  }
}
