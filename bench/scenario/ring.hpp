/// \file
/// The bounded ring of the handoff workload: one producer, one consumer, both wait.
///
/// Each side keeps a copy of the other's position and reads the real one only when the copy says full or empty. A ring
/// that shares a line at every step (boost::lockfree::spsc_queue does) would cost more than the allocators that are
/// compared through it.
///
/// Ordering: A, push (c) -> pop (e): the slot and all that the producer did before. B, pop (f) -> push (b): the
/// consumer has read the slot. Each position has one writer, who may read it relaxed.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <thread>

namespace orderly::bench {

class ring {
 public:
  void push(void* block) noexcept {
    const std::size_t at = pushed_.load(std::memory_order_relaxed);  // (a) own position
    while (at - popped_seen_ == slots_.size()) {
      popped_seen_ = popped_.load(std::memory_order_acquire);  // (b) B
      if (at - popped_seen_ == slots_.size()) wait();
    }
    slots_[at % slots_.size()] = block;
    pushed_.store(at + 1, std::memory_order_release);  // (c) A
  }

  void* pop() noexcept {
    const std::size_t at = popped_.load(std::memory_order_relaxed);  // (d) own position
    while (at == pushed_seen_) {
      pushed_seen_ = pushed_.load(std::memory_order_acquire);  // (e) A
      if (at == pushed_seen_) wait();
    }
    void* const block = slots_[at % slots_.size()];
    popped_.store(at + 1, std::memory_order_release);  // (f) B
    return block;
  }

 private:
  /// Lets the other side run where it shares the core.
  static void wait() noexcept { std::this_thread::yield(); }

  static constexpr std::size_t line = 128;  // two cache lines: neighbours are fetched together

  std::array<void*, 256> slots_{};
  alignas(line) std::atomic<std::size_t> pushed_ = 0;
  std::size_t popped_seen_ = 0;  // the producer's copy
  alignas(line) std::atomic<std::size_t> popped_ = 0;
  std::size_t pushed_seen_ = 0;  // the consumer's copy
};

}  // namespace orderly::bench
