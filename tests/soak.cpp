// Everything at once, for as long as wanted: threads, streams and pools come and go, blocks of all sizes change hands,
// passes run, and wrong frees are refused. In between nobody is at work, and the books are audited to the last byte; what
// the process holds does not grow. ORDERLY_TEST_OPERATIONS=N sets how many calls are made; without it a long run
// (ORDERLY_TEST_LONG) makes 10^9, or 10^8 under a sanitizer.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include <unistd.h>

#include "orderly/pool.hpp"
#include "orderly/software_stream.hpp"
#include "orderly/stream_pool.hpp"
#include "support/audit.hpp"
#include "support/oracles.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/stream_bench.hpp"
#include "support/threads.hpp"
#include "support/watched_pool.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

/// Memory of the process may grow by so much after the first half of a run: what is touched late for the first time.
constexpr std::size_t most_growth = 16 * mib;

[[nodiscard]] std::uint64_t operations_wanted() {
  if (const char* text = std::getenv("ORDERLY_TEST_OPERATIONS"); text != nullptr)
    return static_cast<std::uint64_t>(std::strtod(text, nullptr));  // 1e9, say
  if (std::getenv("ORDERLY_TEST_LONG") != nullptr) return sanitized ? 100'000'000 : 1'000'000'000;
  return sanitized ? 400'000 : 4'000'000;
}

/// Bytes of the process that are in memory.
[[nodiscard]] std::size_t resident() {
  std::FILE* const file = std::fopen("/proc/self/statm", "r");
  unsigned long all = 0, present = 0;
  if (file != nullptr) {
    if (std::fscanf(file, "%lu %lu", &all, &present) != 2) present = 0;
    std::fclose(file);
  }
  return present * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

/// What the threads did to one pool; what the pool says must be the same.
struct ledger {
  std::atomic<std::uint64_t> allocations = 0;
  std::atomic<std::uint64_t> frees = 0;
  std::atomic<std::uint64_t> bad_frees = 0;
  std::atomic<std::uint64_t> requested = 0;  ///< live, modulo 2^64

  void allocated(std::size_t bytes) {
    allocations.fetch_add(1, std::memory_order_relaxed);
    requested.fetch_add(bytes, std::memory_order_relaxed);
  }
  void freed(std::size_t bytes) {
    frees.fetch_add(1, std::memory_order_relaxed);
    requested.fetch_sub(bytes, std::memory_order_relaxed);
  }
  void check(const statistics& said) const {
    CHECK(said.allocations == allocations.load());
    CHECK(said.frees == frees.load());
    CHECK(said.bad_frees == bad_frees.load());
    CHECK(said.requested == requested.load());
  }
};

/// What all threads share, from the first round to the last.
struct world {
  static constexpr std::size_t capacity = 256 * mib;
  static constexpr std::size_t shared_streams = 2;

  findings found;
  watched_pool watched{backing::host, {.capacity = capacity, .on_bad_free = on_bad_free::count}, found};
  ledger of_pool;
  std::array<std::atomic<owned_block*>, 64> places{};

  std::shared_ptr<source_log> log = std::make_shared<source_log>();
  software_device device{software_schedule::workers};
  stream_pool streams{make_failing_source(log), device.driver(), stream_settings()};
  ledger of_streams;
  std::vector<shadow> shadows;
  std::vector<software_stream> shared;

  world() {
    for (const source_log::range& range : log->ranges()) shadows.emplace_back(range.address, range.bytes, streams.granule());
    for (std::size_t i = 0; i < shared_streams; ++i) shared.emplace_back(device);
  }

 private:
  static stream_options stream_settings() {
    stream_options settings;
    settings.memory.capacity = 64 * mib;
    settings.memory.on_bad_free = on_bad_free::count;
    return settings;
  }
};

/// A thread's life.
class visitor {
 public:
  visitor(world& in, std::uint32_t self, std::uint64_t stream) : world_(in), self_(self), random_(make_random(stream)) {}

  void live(std::uint64_t operations) {
    const pool& looked_at = world_.watched.get();
    while (done_ < operations) {
      const std::uint64_t draw = random_();
      if (draw % 32 == 0) {
        step_in_stream(draw >> 8);
      } else {
        step(draw >> 8);
      }
      if (draw >> 48 == 0) pass(draw >> 8);
      if (draw >> 52 == 1) visit_own_pool();
      if (draw >> 50 == 2) {
        ++done_;
        const statistics stats = looked_at.stats();
        world_.found.expect(stats.committed <= stats.limit, "committed ", stats.committed, " above the limit");
      }
    }
    while (!held_.empty()) give(0);
    while (!in_streams_.empty()) free_in_stream(in_streams_.size() - 1);
    // What is still in the stream is the pool's to wait for.
    world_.found.expect(world_.streams.release_stream(own_.handle()), "a stream could not be released");
  }

 private:
  static constexpr std::size_t most = 48;
  struct piece {
    void* block;
    std::size_t bytes;
    std::size_t in;  ///< shared streams, then its own
  };

  void step(std::uint64_t draw) {
    const std::uint64_t kind = draw % 64;
    draw /= 64;
    if (held_.size() == most || (!held_.empty() && kind < 26)) return give(draw);
    if (held_.empty() || kind < 54) return take(draw);
    if (kind < 60) return swap(draw);
    free_badly(draw);
  }

  [[nodiscard]] std::size_t draw_size() {
    const std::size_t rank = uniform(random_, 0, 1023);
    if (rank == 0) return uniform(random_, mib, 6 * mib);  // slots; the watch over their granules is most of the time
    if (rank < 12) return log_uniform(random_, 64 * kib, mib);
    if (rank < 100) return log_uniform(random_, 4 * kib, 64 * kib);
    return uniform(random_, 1, 4 * kib);
  }

  void take(std::uint64_t draw) {
    const std::size_t alignment = draw % 32 == 0 ? std::size_t{512} << (draw / 32 % 8) : 1;
    const owned_block block = world_.watched.allocate(draw_size(), alignment, self_);
    ++done_;
    if (block.address == nullptr) return;  // its books tell that it was refused
    world_.of_pool.allocated(block.bytes);
    held_.push_back(block);
  }

  void give(std::uint64_t draw) {
    std::swap(held_[draw % held_.size()], held_.back());
    world_.of_pool.freed(held_.back().bytes);
    world_.watched.deallocate(held_.back());
    held_.pop_back();
    ++done_;
  }

  /// Leaves a block for whoever comes, and takes what lies there.
  void swap(std::uint64_t draw) {
    auto mine = std::make_unique<owned_block>(held_.back());
    held_.pop_back();
    std::atomic<owned_block*>& place = world_.places[draw % world_.places.size()];
    const std::unique_ptr<owned_block> theirs(place.exchange(mine.release(), std::memory_order_acq_rel));
    if (theirs == nullptr) return;
    held_.push_back(*theirs);
    world_.watched.rename(held_.back(), self_);
  }

  void free_badly(std::uint64_t draw) {
    pool& at = world_.watched.get();
    const owned_block& of = held_[draw % held_.size()];
    auto* const block = static_cast<std::byte*>(of.address);
    static std::byte elsewhere[256];
    error code = error::none, right = error::none;
    switch (draw >> 40 & 3) {
      case 0: code = at.try_deallocate(block + 1, of.bytes), right = error::misaligned_pointer; break;
      case 1: code = at.try_deallocate(block, at.block_size(block) + 1), right = error::size_mismatch; break;
      case 2: code = at.try_deallocate(elsewhere, of.bytes), right = error::foreign_pointer; break;
      default:
        if (at.block_size(block) == at.granule()) return;
        code = at.try_deallocate(block + at.granule()), right = error::interior_pointer;
        break;
    }
    ++done_;
    world_.of_pool.bad_frees.fetch_add(1, std::memory_order_relaxed);
    world_.found.expect(code == right, block, ": ", to_string(code), " for ", to_string(right));
  }

  void pass(std::uint64_t draw) {
    ++done_;
    switch (draw % 4) {
      case 0: world_.watched.get().trim(draw / 4 % (64 * mib)); break;
      case 1: world_.watched.get().defragment(); break;
      case 2: world_.streams.trim(draw / 4 % (16 * mib)); break;
      default: world_.found.expect(world_.streams.synchronize(), "a driver could not tell"); break;
    }
  }

  /// A pool that comes and goes, and whose blocks nobody else can have: what is freed twice is known to be.
  void visit_own_pool() {
    pool own(options{.capacity = mib, .on_bad_free = on_bad_free::count});
    void* const block = own.try_allocate(1000);
    world_.found.expect(own.try_deallocate(block, 1000) == error::none, "a good free was refused");
    world_.found.expect(own.try_deallocate(block, 1000) == error::double_free, "a double free was not told");
    done_ += 3;
  }

  [[nodiscard]] software_stream& stream(std::size_t in) { return in < world::shared_streams ? world_.shared[in] : own_; }

  void step_in_stream(std::uint64_t draw) {
    if (in_streams_.size() == most / 4 || (!in_streams_.empty() && draw % 2 == 0))
      return free_in_stream(draw / 2 % in_streams_.size());
    const std::size_t in = draw / 2 % (world::shared_streams + 1);
    const std::size_t bytes = log_uniform(random_, 64, draw / 8 % 32 == 0 ? 3 * mib : 64 * kib) / 8 * 8;
    void* const block = world_.streams.try_allocate(bytes, stream(in).handle());
    ++done_;
    if (block == nullptr) return;
    world_.of_streams.allocated(bytes);
    world_.found.expect(claims(block, bytes, true), block, " of ", bytes, " bytes overlaps a live block");
    // Until the stream has come to it, others' work on the block may be going on: its bytes are the stream's.
    use(stream(in), block, bytes, draw, world_.found);
    in_streams_.push_back({block, bytes, in});
  }

  void free_in_stream(std::size_t index) {
    std::swap(in_streams_[index], in_streams_.back());
    const piece freed = in_streams_.back();
    in_streams_.pop_back();
    std::size_t in = freed.in;
    if (uniform(random_, 0, 15) == 0) {  // in another stream, which the program has to order
      world_.found.expect(stream(in).synchronize(), "a stream could not be waited for");
      if (uniform(random_, 0, 1) == 0) {
        in = uniform(random_, 0, world::shared_streams);
      } else {
        software_stream& other = world_.shared[uniform(random_, 0, world::shared_streams - 1)];
        use(other, freed.block, freed.bytes, 1, world_.found);
        const error code = world_.streams.record_stream(freed.block, other.handle());
        world_.found.expect(code == error::none, "a stream could not be recorded: ", to_string(code));
      }
    }
    world_.found.expect(claims(freed.block, freed.bytes, false), freed.block, " had another owner");
    world_.of_streams.freed(freed.bytes);
    const error code = world_.streams.try_deallocate(freed.block, freed.bytes, stream(in).handle());
    world_.found.expect(code == error::none, freed.block, ": ", to_string(code));
    ++done_;
  }

  /// Notes that a block of a stream is this thread's, or no longer. False: some of it is somebody else's.
  [[nodiscard]] bool claims(void* block, std::size_t bytes, bool mine) {
    const std::size_t length = world_.streams.block_size(block);
    for (shadow& range : world_.shadows)
      if (range.contains(block, length)) return length >= bytes && (mine ? range.claim(block, length, self_) : range.release(block, length, self_));
    return false;
  }

  world& world_;
  std::uint32_t self_;
  random_engine random_;
  software_stream own_{world_.device};
  std::vector<owned_block> held_;
  std::vector<piece> in_streams_;
  std::uint64_t done_ = 0;
};

/// Nobody is at work. With `idle` nothing is live either, and all memory goes back.
void audit(world& of, bool idle) {
  ORDERLY_CHECK_FINDINGS(of.found);
  pool& tested = of.watched.get();
  if (idle) {
    for (std::atomic<owned_block*>& place : of.places) {
      const std::unique_ptr<owned_block> left(place.exchange(nullptr));
      if (left == nullptr) continue;
      of.of_pool.freed(left->bytes);
      of.watched.deallocate(*left);
    }
  }
  of.of_pool.check(tested.stats());
  check_sound(tested);
  of.of_streams.check(of.streams.stats().memory);
  check_sound(of.streams);
  if (idle) {
    check_idle(tested);
    tested.trim();
    CHECK(tested.stats().committed == 0);
    CHECK(of.watched.log().committed() == 0);
    check_idle(of.streams);
    CHECK(of.log->committed() == 0);
  }
  ORDERLY_CHECK_CONTRACT(of.watched.log());
  ORDERLY_CHECK_CONTRACT(*of.log);
}

}  // namespace

TEST_SUITE("stress") {

TEST_CASE("everything at once") {
  const std::uint64_t wanted = operations_wanted();
  const std::size_t threads = std::max<std::size_t>(4, std::thread::hardware_concurrency());
  constexpr std::uint64_t generations = 2;
  const std::uint64_t rounds = std::clamp<std::uint64_t>(wanted / 400'000, 8, 400);
  const std::uint64_t each = wanted / rounds / threads / generations + 1;
  const auto begin = std::chrono::steady_clock::now();
  world shared;
  std::vector<std::size_t> sizes;
  for (std::uint64_t round = 0; round < rounds; ++round) {
    run_threads(threads, [&](std::size_t index) {
      for (std::uint64_t generation = 0; generation < generations; ++generation) {
        std::thread([&] {
          visitor(shared, static_cast<std::uint32_t>(index + 1), (round * threads + index) * generations + generation).live(each);
        }).join();
      }
    });
    const bool idle = round % 4 == 3 || round + 1 == rounds;
    audit(shared, idle);
    if (idle) sizes.push_back(resident());
    if (shared.found.count() != 0) break;
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const auto half = sizes.begin() + static_cast<std::ptrdiff_t>((sizes.size() + 1) / 2);
  const std::size_t early = *std::max_element(sizes.begin(), half);
  const std::size_t late = half == sizes.end() ? early : *std::max_element(half, sizes.end());
  std::printf("soak: %.3g operations by %zu threads at a time in %.0f s, %.2f million a second, seed %llu\n",
              static_cast<double>(each * generations * threads * rounds), threads, seconds,
              static_cast<double>(each * generations * threads * rounds) / seconds / 1e6,
              static_cast<unsigned long long>(test_seed()));
  std::printf("soak: resident after the first audit %.1f MiB, after the last %.1f MiB; highest in the first half %.1f, in the second %.1f; "
              "committed at most %zu MiB, after each of %zu audits 0\n",
              static_cast<double>(sizes.front()) / mib, static_cast<double>(sizes.back()) / mib, static_cast<double>(early) / mib,
              static_cast<double>(late) / mib, shared.watched.get().stats().peak_committed / mib, sizes.size());
  if (!sanitized) CHECK(late <= early + most_growth);  // sanitizers keep memory of their own
}

}  // TEST_SUITE
