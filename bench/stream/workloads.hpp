/// \file
/// What threads do with streams. A workload is a class template over the world, the peer, and the number of streams
/// that a thread goes round. One object per thread does the thread's share:
///
///   static constexpr std::string_view name;
///   static constexpr bool needs_two;            runs on an even number of threads only
///   static constexpr bool in_step;              each thread makes as many steps; else they share out all steps
///   static constexpr std::size_t arena(int threads);  bytes
///   struct shared { shared(World&, int threads); };   what the threads of one run have in common
///   workload(Peer&, shared&, const seat<World>&);
///   void step();                                the unit of work
///   std::size_t pairs_per_step() const;         allocations, each with its free, that a step of this thread counts for
///   std::size_t refused() const;                allocations that the peer refused so far
///
/// The destructor frees what is live.
#pragma once

#include <benchmark/benchmark.h>

#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string_view>
#include <thread>
#include <vector>

#include "scenario/ring.hpp"
#include "stream/world.hpp"

namespace orderly::bench {

/// A thread's place in a run.
template <class World>
struct seat {
  World& world;
  int thread;
  int threads;
  std::span<const stream_handle> streams;
  bool in_common;  ///< all threads have the same stream
};

/// The streams of a thread, one after the other.
template <std::size_t Count>
class rotation {
 public:
  explicit rotation(std::span<const stream_handle> streams) {
    for (std::size_t i = 0; i < Count; ++i) streams_[i] = streams[i];
  }
  [[nodiscard]] stream_handle next() noexcept {
    if constexpr (Count == 1) return streams_[0];
    return streams_[at_++ % Count];
  }

 private:
  std::array<stream_handle, Count> streams_;
  std::size_t at_ = 0;
};

struct nothing_in_common {
  template <class World>
  nothing_in_common(World&, int) noexcept {}
};

/// Allocates 512 B and frees it, in one stream.
template <class World, class Peer, std::size_t Streams>
class pair_work {
 public:
  static constexpr std::string_view name = "pair";
  static constexpr bool needs_two = false;
  static constexpr bool in_step = false;
  static constexpr std::size_t arena(int) { return std::size_t{1} << 30; }
  using shared = nothing_in_common;

  pair_work(Peer& peer, shared&, const seat<World>& at) : peer_(peer), streams_(at.streams) {}

  void step() {
    const stream_handle stream = streams_.next();
    void* const block = peer_.allocate(512, stream);
    benchmark::DoNotOptimize(block);
    peer_.deallocate(block, 512, stream);
  }
  [[nodiscard]] std::size_t pairs_per_step() const noexcept { return 1; }
  [[nodiscard]] std::size_t refused() const noexcept { return 0; }  // a refusal would abort in the free

 private:
  Peer& peer_;
  rotation<Streams> streams_;
};

/// 64 blocks of 256 B to 64 KiB in one stream, freed in the order of their allocation.
template <class World, class Peer, std::size_t Streams>
class batch_work {
 public:
  static constexpr std::string_view name = "batch";
  static constexpr bool needs_two = false;
  static constexpr bool in_step = false;
  static constexpr std::size_t arena(int) { return std::size_t{1} << 30; }
  using shared = nothing_in_common;

  batch_work(Peer& peer, shared&, const seat<World>& at) : peer_(peer), streams_(at.streams) {}

  void step() {
    const stream_handle stream = streams_.next();
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      blocks_[i] = peer_.allocate(std::size_t{256} << i % 9, stream);
      refused_ += blocks_[i] == nullptr;
    }
    for (std::size_t i = 0; i < blocks_.size(); ++i)
      if (blocks_[i] != nullptr) peer_.deallocate(blocks_[i], std::size_t{256} << i % 9, stream);
  }
  [[nodiscard]] std::size_t pairs_per_step() const noexcept { return blocks_.size(); }
  [[nodiscard]] std::size_t refused() const noexcept { return refused_; }

 private:
  Peer& peer_;
  rotation<Streams> streams_;
  std::array<void*, 64> blocks_{};
  std::size_t refused_ = 0;
};

/// 400 live blocks a thread, sizes log-uniform from 256 B to 1 MiB: replaces a random one.
template <class World, class Peer, std::size_t Streams>
class slots_work {
 public:
  static constexpr std::string_view name = "slots";
  static constexpr bool needs_two = false;
  static constexpr bool in_step = false;
  /// About 50 MiB live a thread; a scheme that divides memory by size for good needs several times as much.
  static constexpr std::size_t arena(int threads) {
    return (std::size_t{512} << 20) * static_cast<std::size_t>(threads < 2 ? 2 : threads);
  }
  using shared = nothing_in_common;

  slots_work(Peer& peer, shared&, const seat<World>& at) : peer_(peer), streams_(at.streams), draws_(draw_count) {
    std::mt19937_64 random(static_cast<std::uint64_t>(at.thread) + 1);
    std::uniform_int_distribution<std::uint32_t> any_slot(0, static_cast<std::uint32_t>(slots_.size() - 1));
    std::uniform_real_distribution<double> doublings(8, 20);
    const auto size = [&] { return static_cast<std::uint32_t>(std::exp2(doublings(random))); };
    for (draw& each : draws_) each = {any_slot(random), size()};
    for (slot& each : slots_) fill(each, size());
  }
  slots_work(const slots_work&) = delete;
  slots_work& operator=(const slots_work&) = delete;
  ~slots_work() {
    for (const slot& each : slots_) empty(each);
  }

  void step() {
    const draw drawn = draws_[next_];
    next_ = (next_ + 1) % draw_count;
    empty(slots_[drawn.slot]);
    fill(slots_[drawn.slot], drawn.bytes);
  }
  [[nodiscard]] std::size_t pairs_per_step() const noexcept { return 1; }
  [[nodiscard]] std::size_t refused() const noexcept { return refused_; }

 private:
  static constexpr std::size_t draw_count = 16384;

  struct draw {
    std::uint32_t slot;
    std::uint32_t bytes;
  };
  struct slot {
    void* block = nullptr;
    std::size_t bytes = 0;
    stream_handle stream = nullptr;
  };

  void fill(slot& emptied, std::size_t bytes) {
    const stream_handle stream = streams_.next();
    void* const block = peer_.allocate(bytes, stream);
    benchmark::DoNotOptimize(block);
    refused_ += block == nullptr;
    emptied = {block, bytes, stream};
  }
  void empty(const slot& filled) {
    if (filled.block != nullptr) peer_.deallocate(filled.block, filled.bytes, filled.stream);
  }

  Peer& peer_;
  rotation<Streams> streams_;
  std::vector<draw> draws_;
  std::array<slot, 400> slots_{};
  std::size_t next_ = 0;
  std::size_t refused_ = 0;
};

/// Pairs of threads, a stream each. One allocates 64 blocks of 2 KiB, marks its stream behind them and passes them
/// through a bounded ring; the other has its stream wait for the mark and frees them there. In one common stream, no
/// mark is needed.
template <class World, class Peer, std::size_t Streams>
class handoff_work {
 public:
  static constexpr std::string_view name = "handoff";
  static constexpr bool needs_two = true;
  static constexpr bool in_step = true;
  static constexpr std::size_t arena(int threads) {
    return (std::size_t{256} << 20) * static_cast<std::size_t>(threads < 2 ? 1 : threads / 2);
  }

 private:
  struct batch {
    std::array<void*, 64> blocks{};
    mark written;
  };
  struct lane {
    std::array<batch, 8> batches;
    ring full;
    ring empty;
  };

 public:
  struct shared {
    shared(World&, int threads) : lanes(static_cast<std::size_t>(threads) / 2) {
      for (lane& each : lanes)
        for (batch& unused : each.batches) each.empty.push(&unused);
    }
    std::vector<lane> lanes;
  };

  handoff_work(Peer& peer, shared& common, const seat<World>& at)
      : peer_(peer),
        world_(at.world),
        lane_(common.lanes[static_cast<std::size_t>(at.thread) / 2]),
        stream_(at.streams[0]),
        produces_(at.thread % 2 == 0),
        marks_(!at.in_common) {}

  void step() { produces_ ? produce() : consume(); }
  [[nodiscard]] std::size_t pairs_per_step() const noexcept { return produces_ ? batch{}.blocks.size() : 0; }
  [[nodiscard]] std::size_t refused() const noexcept { return refused_; }

 private:
  void produce() {
    batch& next = *static_cast<batch*>(lane_.empty.pop());
    for (void*& block : next.blocks) {
      block = peer_.allocate(block_bytes, stream_);
      refused_ += block == nullptr;
    }
    if (marks_) world_.record(next.written, stream_);
    lane_.full.push(&next);
  }
  void consume() {
    batch& next = *static_cast<batch*>(lane_.full.pop());
    if (marks_) world_.wait(stream_, next.written);
    for (void* const block : next.blocks)
      if (block != nullptr) peer_.deallocate(block, block_bytes, stream_);
    lane_.empty.push(&next);
  }

  static constexpr std::size_t block_bytes = 2048;
  Peer& peer_;
  World& world_;
  lane& lane_;
  stream_handle stream_;
  bool produces_;
  bool marks_;
  std::size_t refused_ = 0;
};

/// Under pressure: threads take turns, each with three quarters of all the memory, in blocks of 64 KiB in its own
/// stream. So what a turn takes beyond a quarter was freed in another stream. Busy: each turn leaves work in its
/// stream, which the next one's stream has to wait for.
template <class World, class Peer, bool Busy>
class cross_work_of {
 public:
  static constexpr std::string_view name = Busy ? "cross-busy" : "cross";
  static constexpr bool needs_two = false;
  static constexpr bool in_step = true;
  static constexpr std::size_t arena(int) { return std::size_t{16} << 20; }
  struct shared {
    shared(World&, int) noexcept {}
    alignas(64) std::atomic<std::size_t> turn{0};
  };

  cross_work_of(Peer& peer, shared& common, const seat<World>& at)
      : peer_(peer),
        world_(at.world),
        common_(common),
        stream_(at.streams[0]),
        next_(static_cast<std::size_t>(at.thread)),
        threads_(static_cast<std::size_t>(at.threads)) {}

  void step() {
    while (common_.turn.load(std::memory_order_acquire) != next_) std::this_thread::yield();  // the turn before
    next_ += threads_;
    if constexpr (Busy) world_.finish(stream_);  // bounds what is queued
    for (void*& block : blocks_) {
      block = peer_.allocate(block_bytes, stream_);
      refused_ += block == nullptr;
    }
    if constexpr (Busy) world_.occupy(stream_);
    for (void* const block : blocks_)
      if (block != nullptr) peer_.deallocate(block, block_bytes, stream_);
    common_.turn.fetch_add(1, std::memory_order_release);  // the turn after
  }
  [[nodiscard]] std::size_t pairs_per_step() const noexcept { return blocks_.size(); }
  [[nodiscard]] std::size_t refused() const noexcept { return refused_; }

 private:
  static constexpr std::size_t block_bytes = std::size_t{64} << 10;
  Peer& peer_;
  World& world_;
  shared& common_;
  stream_handle stream_;
  std::size_t next_;
  std::size_t threads_;
  std::array<void*, arena(1) / block_bytes * 3 / 4> blocks_{};
  std::size_t refused_ = 0;
};
template <class World, class Peer, std::size_t>
using cross_work = cross_work_of<World, Peer, false>;
template <class World, class Peer, std::size_t>
using cross_busy_work = cross_work_of<World, Peer, true>;

}  // namespace orderly::bench
