/// \file
/// Host memory that is committed as the virtual memory of a CUDA device is, and what CUDA's driver would take for it.
///
/// cuda/virtual_source.cpp makes pieces: commit() one for each 2 MiB, commit_together() one for each power of two that
/// its place is aligned to. A piece is created, mapped and released, all pieces of a call are opened by one
/// cuMemSetAccess, and a decommit is one cuMemUnmap, which may not cut a piece. Here the same pieces are kept account
/// of, with the same refusals, over memory of the host; the driver's time is that of its calls measured on an H200.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "orderly/source.hpp"
#include "peer/peer.hpp"

namespace orderly::bench {

/// Microseconds of the driver for one piece (H200, CUDA 13.0, driver 580; see memory_moves::driver_seconds).
struct piece_cost {
  double bytes;
  double commit;   ///< create, map and open it
  double decommit;  ///< unmap and release it
};
inline constexpr std::array<piece_cost, 4> piece_costs{{
    {double{2 << 20}, 13.5 + 1.9 + 39.5, 22.8 + 15.8},
    {double{16 << 20}, 13.2 + 1.0 + 32.7, 22.4 + 25.3},
    {double{64 << 20}, 15.9 + 1.1 + 34.8, 22.7 + 57.1},
    {double{512 << 20}, 25.8 + 4.2 + 61.0, 29.6 + 356.8},
}};

/// What lies between two sizes that were measured is on the line through both, and so is what lies above all.
[[nodiscard]] constexpr piece_cost cost_of_piece(std::size_t bytes) noexcept {
  const auto size = static_cast<double>(bytes);
  std::size_t above = 1;
  while (above + 1 < piece_costs.size() && piece_costs[above].bytes < size) ++above;
  const piece_cost& low = piece_costs[above - 1];
  const piece_cost& high = piece_costs[above];
  const double part = std::max(0.0, (size - low.bytes) / (high.bytes - low.bytes));
  return {size, low.commit + part * (high.commit - low.commit), low.decommit + part * (high.decommit - low.decommit)};
}

/// Counts what a source was asked for. Thread-safe: all are figures.
class move_counter {
 public:
  void committed(std::size_t bytes, std::size_t pieces, double microseconds) noexcept {
    commits_.fetch_add(1, std::memory_order_relaxed);
    committed_bytes_.fetch_add(bytes, std::memory_order_relaxed);
    committed_pieces_.fetch_add(pieces, std::memory_order_relaxed);
    commit_nanoseconds_.fetch_add(static_cast<std::uint64_t>(microseconds * 1000), std::memory_order_relaxed);
  }
  void decommitted(std::size_t bytes, std::size_t pieces, double microseconds) noexcept {
    decommits_.fetch_add(1, std::memory_order_relaxed);
    decommitted_bytes_.fetch_add(bytes, std::memory_order_relaxed);
    decommitted_pieces_.fetch_add(pieces, std::memory_order_relaxed);
    decommit_nanoseconds_.fetch_add(static_cast<std::uint64_t>(microseconds * 1000), std::memory_order_relaxed);
  }
  [[nodiscard]] memory_moves total() const noexcept {
    const auto figure = [](const std::atomic<std::uint64_t>& of) { return of.load(std::memory_order_relaxed); };
    return {figure(commits_),
            figure(decommits_),
            figure(committed_bytes_),
            figure(decommitted_bytes_),
            figure(committed_pieces_),
            figure(decommitted_pieces_),
            static_cast<double>(figure(commit_nanoseconds_)) / 1e9,
            static_cast<double>(figure(decommit_nanoseconds_)) / 1e9};
  }

 private:
  std::atomic<std::uint64_t> commits_{0};
  std::atomic<std::uint64_t> decommits_{0};
  std::atomic<std::uint64_t> committed_bytes_{0};
  std::atomic<std::uint64_t> decommitted_bytes_{0};
  std::atomic<std::uint64_t> committed_pieces_{0};
  std::atomic<std::uint64_t> decommitted_pieces_{0};
  std::atomic<std::uint64_t> commit_nanoseconds_{0};
  std::atomic<std::uint64_t> decommit_nanoseconds_{0};
};

class piecewise_source final : public memory_source {
 public:
  static constexpr std::size_t unit = std::size_t{2} << 20;  // the granularity of CUDA's devices

  piecewise_source(std::unique_ptr<memory_source> memory, std::shared_ptr<move_counter> counter)
      : memory_(std::move(memory)), counter_(std::move(counter)) {}

  [[nodiscard]] std::size_t granularity() const noexcept override { return unit; }
  [[nodiscard]] std::size_t capacity() const noexcept override { return memory_->capacity() / unit * unit; }
  [[nodiscard]] bool is_virtual() const noexcept override { return memory_->is_virtual(); }
  [[nodiscard]] bool is_host_memory() const noexcept override { return memory_->is_host_memory(); }

  [[nodiscard]] void* reserve(std::size_t bytes, std::size_t alignment) noexcept override {
    void* const address = memory_->reserve(bytes, std::max(alignment, unit));
    if (address == nullptr) return nullptr;
    base_ = static_cast<std::byte*>(address);
    pieces_ = std::make_unique<std::uint8_t[]>(bytes / unit);
    chunk_ = std::max<std::size_t>(alignment / unit, 1);
    return address;
  }
  void release(void* address, std::size_t bytes) noexcept override { memory_->release(address, bytes); }

  [[nodiscard]] bool commit(void* address, std::size_t bytes) noexcept override { return commit(address, bytes, chunk_); }
  [[nodiscard]] bool commit_together(void* address, std::size_t bytes) noexcept override {
    return commit(address, bytes, bytes / unit);
  }

  [[nodiscard]] bool decommit(void* address, std::size_t bytes) noexcept override {
    const std::size_t first = unit_of(address);
    const std::size_t end = first + bytes / unit;
    std::size_t pieces = 0;
    double time = 0;
    std::size_t at = first;
    for (; at < end && pieces_[at] != 0; at += std::size_t{1} << (pieces_[at] - 1), ++pieces)
      time += cost_of_piece(unit << (pieces_[at] - 1)).decommit;
    if (at != end || !memory_->decommit(address, bytes)) return false;
    std::fill(&pieces_[first], &pieces_[end], std::uint8_t{0});
    counter_->decommitted(bytes, pieces, time);
    return true;
  }

 private:
  [[nodiscard]] std::size_t unit_of(const void* address) const noexcept {
    return static_cast<std::size_t>(static_cast<const std::byte*>(address) - base_) / unit;
  }

  [[nodiscard]] bool commit(void* address, std::size_t bytes, std::size_t largest_piece) noexcept {
    if (!memory_->commit(address, bytes)) return false;
    const std::size_t first = unit_of(address);
    const std::size_t end = first + bytes / unit;
    std::size_t pieces = 0;
    double time = 0;
    for (std::size_t at = first; at < end; ++pieces) {
      const std::size_t fits = std::bit_floor(std::min(largest_piece, end - at));
      const std::size_t length = at == 0 ? fits : std::min(fits, std::size_t{1} << std::countr_zero(at));
      pieces_[at] = static_cast<std::uint8_t>(std::countr_zero(length) + 1);
      time += cost_of_piece(length * unit).commit;
      at += length;
    }
    counter_->committed(bytes, pieces, time);
    return true;
  }

  std::unique_ptr<memory_source> memory_;
  std::shared_ptr<move_counter> counter_;
  std::byte* base_ = nullptr;
  std::size_t chunk_ = 1;                   ///< units that the pool commits together at least, as in the next
  std::unique_ptr<std::uint8_t[]> pieces_;  ///< by unit, as in cuda/virtual_source.cpp
};

}  // namespace orderly::bench
