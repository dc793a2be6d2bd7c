// Leases and rings on a device: who gets what, which frees are refused, and what the pool has afterwards.
#include "orderly/cuda_kernel.hpp"

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "cuda/device.hpp"
#include "cuda/item_kernels.hpp"
#include "orderly/cuda.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t mib = std::size_t{1} << 20;
constexpr unsigned million = 1U << 20;

/// Pointers that kernels write and the host reads, all null.
class pointers {
 public:
  explicit pointers(std::size_t count) : count_(count) {
    ORDERLY_CUDA(cudaHostAlloc(reinterpret_cast<void**>(&at_), count * sizeof(void*), cudaHostAllocPortable));
    std::fill_n(at_, count, nullptr);
  }
  pointers(const pointers&) = delete;
  pointers& operator=(const pointers&) = delete;
  ~pointers() { cudaFreeHost(at_); }

  [[nodiscard]] void** get() const { return at_; }
  void*& operator[](std::size_t i) const { return at_[i]; }
  [[nodiscard]] std::size_t nulls() const { return static_cast<std::size_t>(std::count(at_, at_ + count_, nullptr)); }
  /// In order, without nulls.
  [[nodiscard]] std::vector<std::uintptr_t> sorted() const {
    std::vector<std::uintptr_t> all;
    for (std::size_t i = 0; i < count_; ++i)
      if (at_[i] != nullptr) all.push_back(reinterpret_cast<std::uintptr_t>(at_[i]));
    std::ranges::sort(all);
    return all;
  }
  [[nodiscard]] bool distinct() const {
    const auto all = sorted();
    return std::ranges::adjacent_find(all) == all.end();
  }

 private:
  void** at_ = nullptr;
  std::size_t count_;
};

/// A pool on the device, and streams.
struct bench {
  explicit bench(std::size_t bytes, std::size_t granule = 256)
      : pool(make_cuda_device_source(0, bytes), make_cuda_stream_driver(0), settings(granule)), by(pool, 0), words(4) {
    // Loads the kernels, which a gate would hold up.
    const pointers none(1);
    ORDERLY_CUDA(allocate_items(cuda::lease{}, none.get(), 1, stream.get()));
    ORDERLY_CUDA(free_items(cuda::lease{}, none.get(), 1, 1, words.at(0), stream.get()));
    ORDERLY_CUDA(check_items(none.get(), 256, 1, words.at(0), stream.get()));
    ORDERLY_CUDA(cudaStreamSynchronize(stream.get()));
  }
  [[nodiscard]] static stream_options settings(std::size_t granule) {
    stream_options all;
    all.memory.granule = granule;
    all.memory.on_bad_free = on_bad_free::count;
    return all;
  }
  /// Everything is the pool's again, and merged.
  void check_idle() {
    CHECK(by.collect() == 0);
    CHECK(pool.synchronize());
    pool.defragment();
    CHECK(pool.synchronize());
    const stream_statistics stats = pool.stats();
    CHECK(stats.memory.requested == 0);
    CHECK(stats.memory.allocated == 0);
    CHECK(stats.memory.cached == 0);
    CHECK(stats.memory.allocations == stats.memory.frees);
    CHECK(stats.held == 0);
    void* const whole = pool.try_allocate(pool.largest_divisible(), stream.get());
    CHECK(whole != nullptr);
    if (whole != nullptr) pool.deallocate(whole, pool.largest_divisible(), stream.get());
  }

  untouched state;
  own_stream stream;
  own_stream other;
  stream_pool pool;
  kernel_handoff by;
  shared_words words;  ///< counters of kernels
};

}  // namespace

TEST_CASE("a million threads get items of their own, free them, and the pool has its block again") {
  for (const std::size_t bytes : {16UL, 64UL, 256UL, 4096UL}) {
    CAPTURE(bytes);
    bench b(std::max(2 * bytes * million, 64 * mib), std::min<std::size_t>(bytes, 256));
    const pointers got(million);
    void* first = nullptr;
    for (int round = 0; round < 3; ++round) {
      kernel_lease lease(b.by, bytes, million, b.stream.get());
      CHECK(lease.item_bytes() == bytes);
      CHECK(lease.count() == million);
      *b.words.at(0) = *b.words.at(1) = 0;
      ORDERLY_CUDA(allocate_items(lease.view(), got.get(), million, b.stream.get()));
      ORDERLY_CUDA(check_items(got.get(), static_cast<unsigned>(bytes), million, b.words.at(0), b.stream.get()));
      ORDERLY_CUDA(cudaStreamSynchronize(b.stream.get()));
      CHECK(b.words[0] == 0);
      CHECK(got.nulls() == 0);
      CHECK(got.distinct());
      const auto all = got.sorted();
      CHECK(all.back() - all.front() == bytes * (million - 1));
      ORDERLY_CUDA(free_items(lease.view(), got.get(), 1, million, b.words.at(1), b.stream.get()));
      CHECK(lease.give_back(b.stream.get()));
      CHECK(lease.wait());
      CHECK(b.words[1] == million);
      CHECK(lease.account().handed_out == million);
      CHECK(lease.account().kept == 0);
      if (round == 0) first = reinterpret_cast<void*>(all.front());
      CHECK(reinterpret_cast<void*>(all.front()) == first);  // the same stream has it again at once
    }
    b.check_idle();
  }
}

TEST_CASE("a dry lease answers null, to exactly those that come too late") {
  bench b(64 * mib);
  const unsigned count = 1U << 14;
  const pointers got(million);
  kernel_lease lease(b.by, 256, count, b.stream.get());
  for (int launch = 0; launch < 3; ++launch) {
    ORDERLY_CUDA(allocate_items(lease.view(), got.get(), million, b.stream.get()));
    ORDERLY_CUDA(cudaStreamSynchronize(b.stream.get()));
    CHECK(got.nulls() == million - (launch == 0 ? count : 0));
    CHECK(got.distinct());
    if (launch == 0) {
      ORDERLY_CUDA(check_items(got.get(), 256, million, b.words.at(0), b.stream.get()));
      ORDERLY_CUDA(free_items(lease.view(), got.get(), 1, million, b.words.at(1), b.stream.get()));
    }
  }
  CHECK(lease.give_back(b.stream.get()));
  CHECK(lease.wait());
  CHECK(b.words[0] == 0);
  CHECK(b.words[1] == count);  // a null is no item
  CHECK(lease.account().handed_out == count);
  CHECK(lease.account().kept == 0);
  b.check_idle();
}

TEST_CASE(
    "of two frees of an item one is refused; so are pointers that are no item's start, and items not handed out") {
  bench b(64 * mib);
  constexpr unsigned threads = 1U << 16;
  const pointers got(threads);
  const pointers bad(threads);
  kernel_lease lease(b.by, 256, 2 * threads, b.stream.get());
  ORDERLY_CUDA(allocate_items(lease.view(), got.get(), threads, b.stream.get()));
  ORDERLY_CUDA(cudaStreamSynchronize(b.stream.get()));
  const auto base = lease.view().base;
  const auto at = [&](std::uintptr_t offset) { return reinterpret_cast<void*>(base + offset); };
  for (unsigned t = 0; t < threads; ++t) {
    const std::uintptr_t own = reinterpret_cast<std::uintptr_t>(got[t]) - base;
    const std::uintptr_t wrong[] = {own + 16, 256 * (threads + t % threads), 0 - std::uintptr_t{256}, 512UL * threads,
                                    own + 255};
    bad[t] = t % 6 == 5 ? nullptr : at(wrong[t % 6]);
  }
  ORDERLY_CUDA(free_items(lease.view(), bad.get(), 1, threads, b.words.at(0), b.stream.get()));
  ORDERLY_CUDA(cudaStreamSynchronize(b.stream.get()));
  CHECK(b.words[0] == 0);
  // Pairs of threads with one item: neighbours of a warp, and threads of different blocks.
  for (unsigned t = 0; t < threads; ++t) bad[t] = got[t < threads / 2 ? t / 2 * 2 : t % (threads / 2) / 2 * 2];
  ORDERLY_CUDA(free_items(lease.view(), bad.get(), 1, threads, b.words.at(1), b.stream.get()));
  ORDERLY_CUDA(free_items(lease.view(), bad.get(), 1, threads, b.words.at(1), b.stream.get()));
  ORDERLY_CUDA(cudaStreamSynchronize(b.stream.get()));
  CHECK(b.words[1] == threads / 4);
  CHECK(lease.give_back(b.stream.get()));
  CHECK(lease.wait());
  CHECK(lease.account().handed_out == threads);
  CHECK(lease.account().kept == threads - threads / 4);
  std::size_t refused = 0;
  for (unsigned t = 0; t < threads; ++t) {
    const bool was_freed = t < threads / 2 && t % 2 == 0;
    const error code = b.pool.try_deallocate(got[t], 256, b.stream.get());
    refused += (code == error::none) == was_freed;
  }
  CHECK(refused == 0);
  b.check_idle();
}

TEST_CASE("what no kernel freed is live, with its contents, and the rest comes back in few blocks") {
  bench b(256 * mib);
  constexpr unsigned threads = 1000;
  const pointers got(threads);
  kernel_lease lease(b.by, 4096, 1U << 14, b.stream.get());
  ORDERLY_CUDA(allocate_items(lease.view(), got.get(), threads, b.stream.get()));
  CHECK(lease.give_back(b.stream.get()));
  CHECK(lease.wait());
  CHECK(lease.account().handed_out == threads);
  CHECK(lease.account().kept == threads);
  CHECK(b.pool.stats().memory.requested == std::size_t{threads} * 4096);
  void* const rest = b.pool.try_allocate(32 * mib, b.other.get());  // half of the lease's block is free again
  CHECK(rest != nullptr);
  b.pool.deallocate(rest, 32 * mib, b.other.get());
  ORDERLY_CUDA(check_items(got.get(), 4096, threads, b.words.at(0), b.stream.get()));
  ORDERLY_CUDA(cudaStreamSynchronize(b.stream.get()));
  CHECK(b.words[0] == 0);
  for (unsigned t = 0; t < threads; ++t) CHECK(b.pool.try_deallocate(got[t], 4096, b.stream.get()) == error::none);
  CHECK(b.pool.try_deallocate(got[0], 4096, b.stream.get()) == error::double_free);
  b.check_idle();
}

TEST_CASE("a lease is used and given back in other streams, behind events") {
  bench b(64 * mib);
  constexpr unsigned threads = 1U << 16;
  const pointers got(threads);
  cudaEvent_t passed = nullptr;
  ORDERLY_CUDA(cudaEventCreateWithFlags(&passed, cudaEventDisableTiming));
  kernel_lease lease(b.by, 256, threads, b.stream.get());
  ORDERLY_CUDA(allocate_items(lease.view(), got.get(), threads, b.stream.get()));
  ORDERLY_CUDA(cudaEventRecord(passed, b.stream.get()));
  ORDERLY_CUDA(cudaStreamWaitEvent(b.other.get(), passed, 0));
  ORDERLY_CUDA(free_items(lease.view(), got.get(), 2, threads, b.words.at(0), b.other.get()));
  CHECK(lease.give_back(b.other.get()));
  CHECK(lease.wait());
  CHECK(b.words[0] == threads / 2);
  CHECK(lease.account().kept == threads / 2);
  for (unsigned t = 1; t < threads; t += 2) b.pool.deallocate(got[t], 256, b.stream.get());
  cudaEventDestroy(passed);
  b.check_idle();
}

TEST_CASE("several sizes in one kernel: the smallest that will do and is not dry") {
  bench b(64 * mib, 16);
  constexpr unsigned threads = 1U << 12;
  constexpr unsigned sizes = 5;  // 16 to 256 bytes, of which the last has no lease
  const pointers got(threads);
  std::vector<kernel_lease> leases;
  lease_set all;
  for (const std::size_t bytes : {128UL, 16UL, 32UL, 64UL}) {
    leases.emplace_back(b.by, bytes, bytes == 16 ? 512 : threads, b.stream.get());
    CHECK(all.add(leases.back().view()));
  }
  CHECK_FALSE(all.add({}));
  ORDERLY_CUDA(allocate_sizes(all, sizes, got.get(), threads, b.stream.get()));
  ORDERLY_CUDA(cudaStreamSynchronize(b.stream.get()));
  CHECK(got.distinct());
  CHECK(got.nulls() == threads / sizes);
  std::size_t wrong = 0, small = 0;
  for (unsigned t = 0; t < threads; ++t) {
    const std::size_t bytes = std::size_t{16} << t % sizes;
    const auto of = std::ranges::find_if(leases, [&](const kernel_lease& each) { return each.view().holds(got[t]); });
    wrong += (of == leases.end()) != (bytes == 256);
    if (of == leases.end()) continue;
    small += of->item_bytes() == 16;
    wrong += of->item_bytes() != bytes && !(bytes == 16 && of->item_bytes() == 32);
  }
  CHECK(wrong == 0);
  CHECK(small == 512);
  ORDERLY_CUDA(free_items(all, got.get(), 1, threads, b.words.at(0), b.stream.get()));
  std::size_t kept = 0;
  for (kernel_lease& each : leases) {
    CHECK(each.give_back(b.stream.get()));
    CHECK(each.wait());
    kept += each.account().kept;
  }
  CHECK(b.words[0] == threads - threads / sizes);
  CHECK(kept == 0);
  leases.clear();
  b.check_idle();
}

TEST_CASE("a ring of scattered blocks: kernels allocate what earlier kernels freed, and the host gets all back") {
  bench b(64 * mib);
  constexpr unsigned count = 20000;
  std::vector<void*> between;
  for (unsigned i = 0; i < 2 * count; ++i) between.push_back(b.pool.allocate(256, b.stream.get()));
  for (unsigned i = 0; i < 2 * count; i += 2) b.pool.deallocate(between[i], 256, b.stream.get());
  CHECK(b.pool.synchronize());
  const pointers got(count);
  const pointers more(count);
  std::uint64_t strangers = 0;
  {
    kernel_ring ring(b.by, 256, count, b.stream.get(), 64);
    CHECK(ring.view().run_count > 1000);
    for (unsigned round = 0; round < 10; ++round) {
      CAPTURE(round);
      *b.words.at(0) = *b.words.at(1) = *b.words.at(2) = 0;
      const unsigned threads = count - 1000 * round;
      for (unsigned t = threads; t < count; ++t) got[t] = nullptr;  // of the round before
      ORDERLY_CUDA(allocate_items(ring.view(), got.get(), threads, b.stream.get()));
      ORDERLY_CUDA(check_items(got.get(), 256, threads, b.words.at(0), b.stream.get()));
      ORDERLY_CUDA(allocate_items(ring.view(), more.get(), count, b.stream.get()));  // the rest, and dry
      ORDERLY_CUDA(cudaStreamSynchronize(b.stream.get()));
      CHECK(b.words[0] == 0);
      CHECK(got.distinct());
      CHECK(more.distinct());
      CHECK(more.nulls() == threads);
      ORDERLY_CUDA(free_items(ring.view(), got.get(), 1, threads, b.words.at(1), b.stream.get()));
      ORDERLY_CUDA(free_items(ring.view(), got.get(), 1, threads, b.words.at(2), b.stream.get()));  // again: refused
      ORDERLY_CUDA(free_items(ring.view(), more.get(), 1, count, b.words.at(1), b.stream.get()));
      CHECK(ring.turn(b.stream.get()));
      ORDERLY_CUDA(cudaStreamSynchronize(b.stream.get()));
      CHECK(b.words[1] == count);
      CHECK(b.words[2] == 0);
    }
    // Blocks that are not the ring's, as many as there is room for, and bad ones, which the host refuses.
    *b.words.at(1) = 0;
    for (unsigned i = 0; i < 100; ++i) more[i] = between[2 * i + 1];
    more[0] = &b;
    ORDERLY_CUDA(free_items(ring.view(), more.get(), 1, 100, b.words.at(1), b.stream.get()));
    ORDERLY_CUDA(cudaStreamSynchronize(b.stream.get()));
    CHECK(b.words[1] == 64);
    ORDERLY_CUDA(allocate_items(ring.view(), got.get(), 500, b.stream.get()));
    const std::uint64_t bad = b.pool.stats().memory.bad_frees;
    CHECK(ring.give_back(b.stream.get()));
    CHECK(ring.wait());
    CHECK(ring.account().handed_out == 10 * count + 500);
    CHECK(ring.account().kept == 500);
    CHECK(ring.account().returned == 64);
    strangers = b.pool.stats().memory.bad_frees - bad;
    CHECK(strangers <= 1);  // which of the hundred found room is anybody's guess
  }
  for (unsigned i = 0; i < 500; ++i) CHECK(b.pool.try_deallocate(got[i], 256, b.stream.get()) == error::none);
  std::size_t freed = 0;
  for (unsigned i = 1; i < 2 * count; i += 2)
    freed += b.pool.try_deallocate(between[i], 256, b.stream.get()) == error::none;
  CHECK(freed == count - (64 - strangers));
  b.check_idle();
}

TEST_CASE("nothing waits for a kernel that is late; its memory is nobody else's meanwhile, and its writes are found") {
  bench b(16 * mib);
  constexpr unsigned threads = 1U << 15;  // of 256 bytes: half of the pool
  const pointers got(threads);
  const shared_words seen(1);
  kernel_lease lease(b.by, 256, threads, b.stream.get());
  const gate held;
  held.hold(b.stream.get(), b.words.at(3), 1);
  ORDERLY_CUDA(allocate_items(lease.view(), got.get(), threads / 2, b.stream.get()));
  CHECK(lease.give_back(b.stream.get()));
  CHECK_FALSE(lease.give_back(b.stream.get()));
  CHECK_FALSE(lease.collect());
  std::vector<void*> others;
  while (void* const block = b.pool.try_allocate(mib, b.other.get())) others.push_back(block);
  const cuda::lease dry = lease.view();
  CHECK(dry.count == 0);
  CHECK(others.size() >= 7);
  CHECK_FALSE(lease.collect());
  held.open();
  CHECK(lease.wait());
  CHECK(lease.account().kept == threads / 2);
  ORDERLY_CUDA(check_items(got.get(), 256, threads / 2, seen.at(0), b.other.get()));
  ORDERLY_CUDA(cudaStreamSynchronize(b.other.get()));
  CHECK(seen[0] == 0);
  const auto items = got.sorted();
  for (void* const block : others) {
    const auto start = reinterpret_cast<std::uintptr_t>(block);
    const auto next = std::ranges::lower_bound(items, start);
    CHECK((next == items.end() || *next >= start + mib));
    b.pool.deallocate(block, mib, b.other.get());
  }
  for (unsigned t = 0; t < threads / 2; ++t) b.pool.deallocate(got[t], 256, b.stream.get());
  b.check_idle();
}

TEST_CASE("an owner may go in any state: before its kernel ran, after it gave back, after all was home") {
  bench b(64 * mib);
  constexpr unsigned threads = 1U << 14;
  const pointers got(threads);
  const gate held;
  {
    kernel_lease never_used(b.by, 256, threads, b.stream.get());
    held.hold(b.stream.get(), b.words.at(3), 1);
    kernel_lease lease(b.by, 256, threads, b.stream.get());
    ORDERLY_CUDA(allocate_items(lease.view(), got.get(), threads, b.stream.get()));
    ORDERLY_CUDA(free_items(lease.view(), got.get(), 2, threads, b.words.at(0), b.stream.get()));
    kernel_ring ring(b.by, 256, 100, b.stream.get());
    kernel_lease moved = std::move(lease);
    kernel_lease given(b.by, 256, threads, b.stream.get());
    CHECK(given.give_back(b.stream.get()));
  }
  CHECK(b.by.collect() >= 3);
  CHECK(b.pool.stats().memory.requested >= 2 * threads * 256);
  held.open();
  ORDERLY_CUDA(cudaStreamSynchronize(b.stream.get()));
  CHECK(b.by.collect() == 0);
  CHECK(b.pool.stats().memory.requested == threads / 2 * 256);
  for (unsigned t = 1; t < threads; t += 2) CHECK(b.pool.try_deallocate(got[t], 256, b.stream.get()) == error::none);
  b.check_idle();
}

TEST_CASE("the calls of CUDA that a lease costs") {
  bench b(64 * mib);
  for (int round = 0; round < 2; ++round) {
    std::uint64_t before = cuda_calls();
    const auto calls = [&] { return cuda_calls() - std::exchange(before, cuda_calls()); };
    kernel_lease lease(b.by, 256, 1U << 16, b.stream.get());
    if (round == 1) CHECK(calls() == 3);
    calls();
    CHECK(lease.give_back(b.stream.get()));
    if (round == 1) CHECK(calls() == 6);
    ORDERLY_CUDA(cudaStreamSynchronize(b.stream.get()));
    calls();
    CHECK(lease.collect());
    CHECK(calls() == 3);
  }
}

TEST_CASE("what cannot be lent is refused with the reason, and changes nothing") {
  bench b(16 * mib);
  CHECK_THROWS_AS(kernel_lease(b.by, 16, 1024, b.stream.get()), std::invalid_argument);  // below the granule
  CHECK_THROWS_AS(kernel_lease(b.by, 256, 0, b.stream.get()), std::invalid_argument);
  CHECK_THROWS_AS(kernel_lease(b.by, 256, 1U << 20, b.stream.get()), std::invalid_argument);  // above the pool
  CHECK_THROWS_AS(kernel_ring(b.by, 256, 1U << 20, b.stream.get()), out_of_memory);
  ORDERLY_CUDA(cudaStreamBeginCapture(b.other.get(), cudaStreamCaptureModeRelaxed));
  CHECK_THROWS_AS(kernel_lease(b.by, 256, 1024, b.other.get()), std::invalid_argument);
  kernel_lease lease(b.by, 256, 1024, b.stream.get());
  CHECK_FALSE(lease.give_back(b.other.get()));
  cudaGraph_t graph = nullptr;
  ORDERLY_CUDA(cudaStreamEndCapture(b.other.get(), &graph));
  cudaGraphDestroy(graph);
  CHECK(lease.give_back(b.stream.get()));
  CHECK(lease.wait());
  b.check_idle();
}
