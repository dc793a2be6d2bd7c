/// \file
/// Everything that a pool does, once: what runs again and again while each call in turn fails below it. Whatever is refused
/// is passed over, and nothing but the library is called with `in_library` set.
#pragma once

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "orderly/pool.hpp"
#include "orderly/software_stream.hpp"
#include "orderly/stream_pool.hpp"
#include "support/audit.hpp"
#include "support/fault_plan.hpp"
#include "support/stream_bench.hpp"
#include "support/threads.hpp"

namespace orderly::test {

struct sized_block {
  void* address;
  std::size_t bytes;
};

/// One length of every class up to a root, and some above.
[[nodiscard]] inline std::vector<std::size_t> every_shape(std::size_t granule, std::size_t largest) {
  std::vector<std::size_t> all;
  for (std::size_t granules = 1; granules <= 16; ++granules) all.push_back(granules * granule);
  for (std::size_t base = 16 * granule; base < largest; base *= 2) {
    for (std::size_t eighth = 1; eighth <= 8; ++eighth) all.push_back(base + base / 8 * eighth);
  }
  return all;
}

/// Of a pool of host memory, a few MiB.
class workout {
 public:
  explicit workout(pool& of) : tested_(of) { live_.reserve(8192); }

  void run() {
    for (const std::size_t bytes : every_shape(tested_.granule(), tested_.capacity() / 8)) take(bytes);
    for (const std::size_t alignment : {tested_.granule() * 4, tested_.chunk()}) take(tested_.granule() * 5, alignment);
    give(2);
    std::thread([&] {  // another thread's first use, frees of foreign blocks, and its exit
      give(3);
      for (std::size_t bytes = 1; bytes < tested_.chunk(); bytes *= 3) take(bytes);
      give(2);
    }).join();
    lib([&] { return tested_.trim(tested_.capacity() / 4); });
    take(tested_.capacity() / 2 + 1);  // above a root
    give(1);
    lib([&] { return tested_.defragment(); });
    for (std::size_t bytes : {tested_.granule(), tested_.granule() * 3}) {
      for (int i = 0; i < 300; ++i) take(bytes);  // magazines fill, batches go to the depot
      give(1);
    }
    while (take(tested_.chunk())) {  // until the pass
    }
    try {
      if (void* const block = lib([&] { return tested_.allocate(tested_.capacity() / 2); }))
        live_.push_back({block, tested_.capacity() / 2});
    } catch (const std::bad_alloc&) {
    }
    bad_free report;
    if (!live_.empty()) {
      char* const inside = static_cast<char*>(live_.back().address) + 1;
      CHECK(lib([&] { return tested_.try_deallocate(inside, 0, &report); }) == error::misaligned_pointer);
      lib([&] { tested_.deallocate(inside); });  // reported to the handler
      try {
        (void)lib([&] { return report.message(); });
        lib([&] { tested_.deallocate_or_throw(inside, 1); });
        FAIL_CHECK("a bad free was taken");
      } catch (const bad_free_error&) {
      } catch (const std::bad_alloc&) {
      }
    }
    CHECK(lib([&] { return tested_.try_deallocate(&report, 1, &report); }) == error::foreign_pointer);
    lib([&] { return tested_.trim(); });
    give(2);
    check_sound(tested_);
  }

  /// Nothing fails any more: all is there, and of use.
  void end() {
    give(1);
    check_idle(tested_);
    tested_.trim();
    CHECK(tested_.stats().committed == 0);
    CHECK(take(tested_.capacity()));
    give(1);
    while (take(tested_.chunk())) {
    }
    CHECK(live_.size() == tested_.capacity() / tested_.chunk());
    give(1);
    check_idle(tested_);
  }

 private:
  bool take(std::size_t bytes, std::size_t alignment = 1) {
    void* const block = lib([&] { return tested_.try_allocate(bytes, alignment); });
    if (block == nullptr) return false;
    *static_cast<char*>(block) = 1;  // it is committed
    live_.push_back({block, bytes});
    return true;
  }

  /// Frees every `step`-th block, every other of them without its size.
  void give(std::size_t step) {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < live_.size(); ++i) {
      const sized_block block = live_[i];
      if (i % step != 0) {
        live_[kept++] = block;
      } else if (lib([&] { return tested_.try_deallocate(block.address, i % 4 < 2 ? block.bytes : 0); }) != error::none) {
        FAIL_CHECK("a good free was refused");
      }
    }
    live_.resize(kept);
  }

  pool& tested_;
  std::vector<sized_block> live_;
};

/// Of a pool in stream order: three streams, with work on every block that finds fault where the order of its users is not
/// kept. For schedules without workers.
class stream_workout {
 public:
  stream_workout(stream_pool& of, const software_device& device, bool watched) : tested_(of), device_(device), watched_(watched) {
    for (int i = 0; i < 3; ++i) streams_.emplace_back(device_);
    live_.reserve(8192);
  }

  void run() {
    const std::size_t small = 2 * tested_.granule();
    for (std::size_t in = 0; in < 3; ++in) {
      for (const std::size_t bytes : {small, 3 * small, std::size_t{5} * kib, 40 * kib, 100 * kib}) {
        for (int i = 0; i < 3; ++i) take(bytes, in);
      }
      give(2);
    }
    // A stream wants what others hold.
    for (std::size_t round = 0; round < 2; ++round) {
      while (take(96 * kib, round) != nullptr) {
      }
      give(1, (round + 1) % 3);
    }
    take(5 * mib / 4, 1);  // above a root
    give(1);
    record();
    divide();
    capture();
    std::thread([&] {  // another thread's first use of streams, and its exit
      for (int i = 0; i < 20; ++i) take(small, 0), take(small, 1);
      give(1);
    }).join();
    settled();
    (void)lib([&] { return tested_.release_stream(handle(2)); });
    {
      // The pool never hears of some streams' ends.
      take(small, 2);
      give(1);
      (void)lib([&] { return tested_.release_stream(handle(2)); });
      streams_[2] = software_stream(device_);
    }
    for (int i = 0; i < 10; ++i) take(small, 2);
    give(2);
    lib([&] { return tested_.trim(mib); });
    (void)lib([&] { return tested_.stream_synchronize(handle(0)); });
    lib([&] { return tested_.defragment(); });
    while (take(80 * kib, 0) != nullptr) {
    }
    give(3);
    (void)lib([&] { return tested_.synchronize(); });
    give(2);
    lib([&] { return tested_.trim(); });
  }

  /// Nothing fails any more: all is there, and of use.
  void end() {
    graph_ = {};
    give(1);
    CHECK(live_.empty());
    CHECK(device_.driver()->synchronize_all());
    // A pool that watches may take a stream for one that captures, until it is used again.
    for (std::size_t in = 0; in < 3; ++in) (void)tested_.stream_synchronize(handle(in));
    // A stream that was released without an event is waited for here; what comes home late, in the next round.
    bool known = false;
    for (int round = 0; round < 8; ++round) known = tested_.synchronize();
    CHECK(known);
    check_idle_but_for_commits();
    ORDERLY_CHECK_FINDINGS(found_);
    void* const all = tested_.try_allocate(tested_.capacity(), handle(0));
    CHECK(all != nullptr);
    CHECK(tested_.try_deallocate(all, tested_.capacity(), handle(0)) == error::none);
    CHECK(tested_.synchronize());
    check_idle_but_for_commits();
  }

 private:
  struct block {
    void* address;
    std::size_t bytes;
    std::size_t in;
  };

  [[nodiscard]] stream_handle handle(std::size_t in) const { return streams_[in].handle(); }

  void check_idle_but_for_commits() {
    const stream_statistics stats = tested_.stats();
    CHECK(stats.memory.requested == 0);
    CHECK(stats.memory.allocated == 0);
    CHECK(stats.memory.cached == 0);
    CHECK(stats.held == 0);
    std::size_t not_free = 0;
    tested_.for_each_block([&](const block_info& each) { not_free += each.state != block_state::free; });
    CHECK(not_free == 0);
  }

  /// Work of a stream on a block, which must run after all work that was given to its users before, in whatever stream.
  void use(software_stream& in, void* at, std::size_t bytes) {
    in.enqueue([first = static_cast<std::uint64_t*>(at), count = bytes / sizeof(std::uint64_t), mark = ++mark_,
                found = &found_] {
      for (std::uint64_t* const word : {first, first + count / 2, first + count - 1}) {
        found->expect(*word <= mark, "work of a block's next user, number ", *word, ", ran before number ", mark);
        *word = mark;
      }
    });
  }

  void* take(std::size_t bytes, std::size_t in) {
    void* const address = lib([&] { return tested_.try_allocate(bytes, handle(in)); });
    if (address == nullptr) return nullptr;
    use(streams_[in], address, bytes);
    live_.push_back({address, bytes, in});
    return address;
  }

  /// Frees every `step`-th block, each in its stream, or all in `in` once that is ordered.
  void give(std::size_t step, std::size_t in = 3) {
    std::vector<block> kept;
    for (std::size_t i = 0; i < live_.size(); ++i) {
      block each = live_[i];
      if (i % step != 0) {
        kept.push_back(each);
        continue;
      }
      if (in != 3) each.in = order(each.in, in);
      const error code = lib([&] { return tested_.try_deallocate(each.address, each.bytes, handle(each.in)); });
      if (code == error::none) continue;
      CHECK(code == error::invalid_argument);  // the stream was not known, because the driver did not tell
      kept.push_back(each);
    }
    live_ = std::move(kept);
  }

  /// Work of `to` comes after what is in `from` now. Past the driver that fails.
  std::size_t order(std::size_t from, std::size_t to) {
    const auto driver = device_.driver();
    event_handle const event = driver->record(handle(from));
    if (event == nullptr) return from;
    CHECK(driver->wait(handle(to), event));
    driver->release(event);
    return to;
  }

  /// Another stream uses a block of stream 0 as well, after what is in `after` now. In safe mode what it has done before it is recorded counts.
  void share(void* address, std::size_t bytes, std::size_t after, std::size_t by) {
    if (order(after, by) != by) return;
    use(streams_[by], address, bytes);
    // Where that is refused the program orders the uses itself.
    if (lib([&] { return tested_.record_stream(address, handle(by)); }) != error::none) CHECK(order(by, 0) == 0);
  }

  void record() {
    for (const std::size_t bytes : {std::size_t{1} * kib, 100 * kib}) {
      void* const address = take(bytes, 0);
      if (address == nullptr) continue;
      share(address, bytes, 0, 1);
      share(address, bytes, 1, 2);
    }
    give(1);
    while (take(96 * kib, 2) != nullptr) {
    }
    give(1);
  }

  void divide() {
    for (const bool recorded : {false, true}) {
      for (const bool settled : {false, true}) {
        const std::size_t bytes = 64 * kib;
        void* const address = take(bytes, 0);
        if (address == nullptr) continue;
        live_.pop_back();
        if (recorded) share(address, bytes, 0, 1);
        // Whoever divides comes after all uses.
        if (settled) {
          streams_[0].synchronize();
          streams_[1].synchronize();
        }
        const std::array<std::uint32_t, 1> live{0x8001'0f05};
        std::string why;
        const error code =
            settled ? lib([&] { return tested_.divide_settled(address, 2 * kib, live, &why); })
                    : lib([&] { return tested_.divide(address, 2 * kib, live, handle(0), &why); });
        if (code != error::none) {
          live_.push_back({address, bytes, 0});
          continue;
        }
        for (std::uint32_t part = 0; part < 32; ++part) {
          if ((live[0] >> part & 1) == 0) continue;
          live_.push_back({static_cast<char*>(address) + part * 2 * kib, 2 * kib, 0});
        }
      }
    }
    give(1);
  }

  void capture() {
    software_stream& in = streams_[1];
    if (!watched_ && lib([&] { return tested_.begin_capture(in.handle()); }) != error::none) return;
    REQUIRE(in.begin_capture());
    take(10 * kib, 1);
    take(10 * kib, 1);
    give(2);
    take(10 * kib, 1);
    const bool kept = watched_ || lib([&] { return tested_.end_capture(in.handle()); }) == error::none;
    graph_ = in.end_capture();
    give(1);
    // A graph that the pool was told of, and has said yes to, may run again while others work.
    if (kept && !watched_) in.launch(graph_);
    while (take(96 * kib, 0) != nullptr) {
    }
    give(1);
    graph_ = {};
  }

  void settled() {
    software_stream idle(device_);
    try {
      void* const address = lib([&] { return tested_.allocate_settled(20 * kib, 1, idle.handle()); });
      *static_cast<std::uint64_t*>(address) = mark_;  // nobody uses it
      live_.push_back({address, 20 * kib, 0});
      give(1);
    } catch (const std::bad_alloc&) {
    } catch (const std::exception&) {  // the driver did not tell
    }
    (void)lib([&] { return tested_.release_stream(idle.handle()); });
  }

  stream_pool& tested_;
  const software_device& device_;
  bool watched_;
  findings found_;  // before the streams, whose work uses it
  std::vector<software_stream> streams_;
  std::vector<block> live_;
  software_graph graph_;
  std::uint64_t mark_ = 0;
};

}  // namespace orderly::test
