/// \file
/// A peer that times some of its calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "clock.hpp"
#include "orderly/stream.hpp"

namespace orderly::bench {

/// Ticks of one thread's calls. Memory for them is there from the start; what does not fit is left out.
struct call_samples {
  static constexpr std::size_t most = std::size_t{1} << 18;
  call_samples() {
    allocate.reserve(most);
    free.reserve(most);
  }
  std::vector<std::uint64_t> allocate;
  std::vector<std::uint64_t> free;
};

/// One thread's view of a peer: times every 13th call of each kind. A number that shares no divisor with a workload's
/// batches and sizes, so that all of them are met.
template <class Peer>
class timed_peer {
 public:
  timed_peer(Peer& peer, call_samples& into) noexcept : peer_(peer), into_(into) {}

  [[nodiscard]] void* allocate(std::size_t bytes, stream_handle stream) noexcept {
    if (--allocations_ != 0) return peer_.allocate(bytes, stream);
    allocations_ = every;
    const std::uint64_t begin = section_begin();
    void* const block = peer_.allocate(bytes, stream);
    add(into_.allocate, section_end() - begin);
    return block;
  }

  void deallocate(void* block, std::size_t bytes, stream_handle stream) noexcept {
    if (--frees_ != 0) return peer_.deallocate(block, bytes, stream);
    frees_ = every;
    const std::uint64_t begin = section_begin();
    peer_.deallocate(block, bytes, stream);
    add(into_.free, section_end() - begin);
  }

 private:
  static constexpr int every = 13;

  static void add(std::vector<std::uint64_t>& to, std::uint64_t ticks) noexcept {
    if (to.size() < call_samples::most) to.push_back(ticks);
  }

  Peer& peer_;
  call_samples& into_;
  int allocations_ = every;
  int frees_ = every;
};

}  // namespace orderly::bench
