/// \file
/// What goes on beside the threads that are measured: a thread that runs passes of the pool, one after the other.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <string_view>
#include <thread>
#include <vector>

#include "orderly/pool.hpp"
#include "orderly/relocatable.hpp"

namespace orderly::bench {

/// Each kind is a class with a name and a call that does one unit of work. This one has none: there is no further thread.
struct no_passes {
  static constexpr std::string_view name = "nothing";
  explicit no_passes(pool&) noexcept {}
};

/// The further thread computes and leaves the pool alone: what it costs that there is one.
struct computing {
  static constexpr std::string_view name = "computing";
  explicit computing(pool&) noexcept {}
  void operator()() const noexcept {
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
    while (std::chrono::steady_clock::now() < end) {
    }
  }
};

struct defragmenting {
  static constexpr std::string_view name = "defragment";
  explicit defragmenting(pool& of) noexcept : of_(of) {}
  void operator()() const noexcept { of_.defragment(); }

 private:
  pool& of_;
};

/// Takes all that is not live, and gives it back.
struct trimming {
  static constexpr std::string_view name = "trim";
  explicit trimming(pool& of) noexcept : of_(of) {}
  void operator()() const noexcept { of_.trim(); }

 private:
  pool& of_;
};

/// Commits 16 MiB ahead, and gives it back.
struct reserving {
  static constexpr std::string_view name = "reserve";
  explicit reserving(pool& of) noexcept : of_(of) {}
  void operator()() const noexcept {
    of_.reserve(of_.stats().committed + (std::size_t{16} << 20));
    of_.trim();
  }

 private:
  pool& of_;
};

/// Frees every second one of 2000 relocatable blocks, moves the others together, and allocates the free ones again.
class relocating {
 public:
  static constexpr std::string_view name = "relocation";
  explicit relocating(pool& of) : blocks_(of), all_(count, relocatable::none) { fill(); }
  void operator()() {
    for (std::size_t i = odd_; i < count; i += 2) {
      if (all_[i] != relocatable::none) static_cast<void>(blocks_.deallocate(all_[i]));
      all_[i] = relocatable::none;
    }
    odd_ = 1 - odd_;
    blocks_.begin({.bytes = std::size_t{64} << 10});
    while (!blocks_.step().empty()) {
    }
    blocks_.end();
    fill();
  }

 private:
  static constexpr std::size_t count = 2000;
  static constexpr std::size_t bytes = 2048;

  void fill() {
    for (relocatable& each : all_)
      if (each == relocatable::none) each = blocks_.try_allocate(bytes);
  }

  relocatable_blocks blocks_;
  std::vector<relocatable> all_;
  std::size_t odd_ = 0;
};

/// The further thread. It rests nine times as long as it works, so that it takes a tenth of one core at most, and what
/// is seen is how passes and calls hinder each other, not how cores are shared.
template <class Passes>
class pass_thread {
 public:
  explicit pass_thread(pool& of) : passes_(of) {
    if constexpr (runs) thread_ = std::jthread([this](const std::stop_token& end) { run(end); });
  }

  [[nodiscard]] std::size_t count() const noexcept { return count_.load(std::memory_order_relaxed); }  // figures
  [[nodiscard]] double mean_microseconds() const noexcept {
    return static_cast<double>(nanoseconds_.load(std::memory_order_relaxed)) / 1e3 /
           static_cast<double>(std::max<std::size_t>(count(), 1));
  }

 private:
  using clock = std::chrono::steady_clock;
  static constexpr bool runs = requires(Passes& passes) { passes(); };

  void run(const std::stop_token& end) {
    if constexpr (runs) {
      while (!end.stop_requested()) {
        const auto begin = clock::now();
        passes_();
        const auto worked = clock::now() - begin;
        nanoseconds_.fetch_add(static_cast<std::size_t>(std::chrono::nanoseconds(worked).count()),
                               std::memory_order_relaxed);
        count_.fetch_add(1, std::memory_order_relaxed);
        std::this_thread::sleep_for(std::max<clock::duration>(9 * worked, std::chrono::microseconds(100)));
      }
    }
  }

  Passes passes_;
  std::atomic<std::size_t> count_{0};
  std::atomic<std::size_t> nanoseconds_{0};
  std::jthread thread_;
};

}  // namespace orderly::bench
