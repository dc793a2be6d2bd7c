/// \file
/// A sequential model of a pool: operations on both, and after each the books must be the model's. Whoever chooses the
/// operations, random numbers or a fuzzer, the model tells what must come of them.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <new>
#include <set>
#include <type_traits>
#include <utility>
#include <vector>

#include "orderly/pool.hpp"
#include "support/classes.hpp"
#include "support/failing_source.hpp"
#include "support/lockstep_threads.hpp"
#include "support/require.hpp"

namespace orderly::test {

/// What one thread after the other does with a pool. `Choices`: see choices.hpp.
template <class Choices>
class pool_model {
 public:
  /// Calls are made by one of the threads each. `source`: of the memory; null: the host's.
  pool_model(Choices& choices, lockstep_threads& threads, const options& settings,
             std::unique_ptr<memory_source> source = nullptr)
      : choices_(choices),
        threads_(threads),
        pool_(std::make_unique<failing_source>(source ? std::move(source) : make_host_source(), log_), settings) {}

  void step() {
    switch (choices_.uniform(0, 23)) {
      case 0: bad_free_of_anything(); break;
      case 1: misuse(); break;
      case 2: tidy(); break;
      case 3: case 4: case 5: case 6: case 7: case 8: case 9: case 10: allocate(false); break;
      case 11: allocate(true); break;
      case 12: free_ended_handle(); break;
      default: growing_ ? allocate(false) : deallocate();
    }
    if (choices_.uniform(0, 199) == 199) growing_ = !growing_;
    check_stats();
  }

  /// Frees everything.
  void finish() {
    while (!live_.empty()) deallocate();
    check_stats();
    check_live();
    pool_.defragment();
    std::size_t at_rest = 0;
    pool_.for_each_block([&](const block_info& block) { at_rest += block.state != block_state::free; });
    ORDERLY_REQUIRE(at_rest == 0);
    ORDERLY_REQUIRE(pool_.stats().cached == 0);
    pool_.trim();
    ORDERLY_REQUIRE(is_flat() || pool_.stats().committed == 0);
    ORDERLY_REQUIRE(log_->committed() == 0);
    ORDERLY_REQUIRE(is_flat() || log_->peak_committed() == pool_.stats().peak_committed);
    ORDERLY_REQUIRE(log_->violations() == 0);
  }

  /// The pool's list of live blocks is the model's, and its blocks do not overlap.
  void check_live() {
    std::map<char*, std::size_t> seen;
    const char* end = nullptr;
    pool_.for_each_block([&](const block_info& block) {
      auto* const start = static_cast<char*>(block.address);
      ORDERLY_REQUIRE(start >= end);
      end = start + block.bytes;
      if (block.state == block_state::live) seen[start] = block.requested;
    });
    std::map<char*, std::size_t> expected;
    for (const auto& [start, block] : live_) expected[start] = block.requested;
    ORDERLY_REQUIRE(seen == expected);
  }

 private:
  struct known_block {
    std::size_t requested;
    std::size_t length;
    unsigned char mark;        // in its first and last byte
    std::uint64_t generation;  // of its handle; 0: none
  };

  struct ended_handle {
    std::uint64_t generation;
    bool by_address;  // freed
  };

  /// What `call` returns, on one of the threads.
  template <class Call>
  auto somewhere(const Call& call) {
    std::invoke_result_t<Call> result{};
    threads_.run(choices_.uniform(0, threads_.count() - 1), [&] { result = call(); });
    return result;
  }

  [[nodiscard]] bool is_flat() const { return pool_.chunk() == pool_.capacity(); }

  std::size_t any_size() {
    const std::size_t granule = pool_.granule();
    switch (choices_.uniform(0, 9)) {
      case 0: return choices_.uniform(0, granule + 1);
      case 1: return granule * choices_.uniform(1, 40) - choices_.uniform(0, 1);
      case 2: return pool_.chunk() * choices_.uniform(1, 20) + choices_.uniform(0, 2) - 1;
      case 3: return std::bit_floor(choices_.log_uniform(granule, pool_.capacity()));
      default: return choices_.log_uniform(1, pool_.limit() / 8);
    }
  }

  void allocate(bool with_handle) {
    const std::size_t bytes = any_size();
    const bool aligned = choices_.uniform(0, 9) == 9;
    const std::size_t largest = is_flat() ? pool_.granule() : pool_.chunk();
    const auto log_largest = static_cast<std::size_t>(std::bit_width(largest) - 1);
    const std::size_t alignment = aligned ? std::size_t{1} << choices_.uniform(0, log_largest) : 1;
    const checked_block got = somewhere([&] {
      return with_handle ? pool_.try_allocate_checked(bytes, alignment)
                         : checked_block{pool_.try_allocate(bytes, alignment), 0};
    });
    if (!got) {
      ++failed_;
      ORDERLY_REQUIRE(may_refuse(bytes, alignment));
      return;
    }
    auto* const start = static_cast<char*>(got.address);
    ORDERLY_REQUIRE(bytes <= pool_.capacity());
    ORDERLY_REQUIRE(reinterpret_cast<std::uintptr_t>(start) % std::max(alignment, pool_.granule()) == 0);
    const auto ended = ended_.find(start);
    ORDERLY_REQUIRE(!with_handle || ended == ended_.end() || got.generation > ended->second.generation);
    insert(start, std::max<std::size_t>(1, bytes), alignment, got.generation);
  }

  void insert(char* start, std::size_t requested, std::size_t alignment, std::uint64_t generation) {
    const std::size_t length = pool_.block_size(start);
    ORDERLY_REQUIRE(length >= requested);
    if (alignment <= pool_.granule()) ORDERLY_REQUIRE(length == pool_.rounded(requested));
    if (alignment <= pool_.granule() && !is_flat() && requested <= 16 * pool_.chunk()) {
      ORDERLY_REQUIRE(length == class_length(requested, pool_.granule()));
    }
    const auto next = live_.lower_bound(start);
    if (next != live_.end()) ORDERLY_REQUIRE(start + length <= next->first);
    if (next != live_.begin()) ORDERLY_REQUIRE(std::prev(next)->first + std::prev(next)->second.length <= start);
    const auto mark = static_cast<unsigned char>(choices_.uniform(1, 255));
    std::memset(start, mark, 1);
    std::memset(start + length - 1, mark, 1);
    live_[start] = {requested, length, mark, generation};
    requested_ += requested;
    allocated_ += length;
    peak_requested_ = std::max(peak_requested_, requested_);
    ++allocations_;
  }

  /// A refusal is right only if the chunks that live blocks lie in leave too few for the request.
  bool may_refuse(std::size_t bytes, std::size_t alignment) {
    if (bytes > pool_.capacity()) return true;
    if (is_flat()) return !live_.empty() || pool_.rounded(bytes) > std::bit_floor(pool_.capacity());
    const std::size_t chunk = pool_.chunk();
    std::set<std::uintptr_t> covered;
    for (const auto& [start, block] : live_) {
      const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(start) / chunk;
      const std::uintptr_t last = (reinterpret_cast<std::uintptr_t>(start) + block.length - 1) / chunk;
      for (std::uintptr_t index = first; index <= last; ++index) covered.insert(index);
    }
    const bool aligned_by_itself = alignment <= pool_.granule();
    const std::size_t length = aligned_by_itself ? pool_.rounded(bytes) : std::bit_ceil(std::max(bytes, alignment));
    return covered.size() + (length + chunk - 1) / chunk > pool_.limit() / chunk;
  }

  auto any_live() {
    const std::size_t index = choices_.uniform(0, live_.size() - 1);
    return std::next(live_.begin(), static_cast<std::ptrdiff_t>(index));
  }

  [[nodiscard]] error free(char* start, std::size_t bytes, std::uint64_t generation = 0) {
    return somewhere([&] {
      return generation == 0 ? pool_.try_deallocate(start, bytes)
                             : pool_.try_deallocate(checked_block{start, generation}, bytes);
    });
  }

  void deallocate() {
    if (live_.empty()) return;
    const auto [start, block] = *any_live();
    ORDERLY_REQUIRE(static_cast<unsigned char>(*start) == block.mark);
    ORDERLY_REQUIRE(static_cast<unsigned char>(start[block.length - 1]) == block.mark);
    const std::size_t bytes = choices_.uniform(0, 1) == 0 ? block.requested : 0;
    const bool by_address = block.generation == 0 || choices_.uniform(0, 7) == 7;
    ORDERLY_REQUIRE(free(start, bytes, by_address ? 0 : block.generation) == error::none);
    ORDERLY_REQUIRE(pool_.block_size(start) == 0);
    if (block.generation != 0) ended_[start] = {block.generation, by_address};
    live_.erase(start);
    requested_ -= block.requested;
    allocated_ -= block.length;
    ++frees_;
    if (choices_.uniform(0, 9) == 9) {
      ORDERLY_REQUIRE(free(start, 0, block.generation) == error::double_free);
      ++bad_frees_;
    }
  }

  /// Whatever lies there now, a handle that was freed frees nothing.
  void free_ended_handle() {
    if (ended_.empty()) return;
    const std::size_t index = choices_.uniform(0, ended_.size() - 1);
    const auto [start, handle] = *std::next(ended_.begin(), static_cast<std::ptrdiff_t>(index));
    const auto now = live_.find(start);
    const bool has_another = now != live_.end() && now->second.generation != 0;
    if (handle.by_address && !has_another && pool_.owns(start)) return;  // the one case that cannot be told
    const error code = free(start, any_size(), handle.generation);
    ORDERLY_REQUIRE(code == (has_another ? error::stale_handle : error::double_free));
    ++bad_frees_;
  }

  void bad_free_of_anything() {
    if (live_.empty()) return;
    const auto [start, block] = *any_live();
    const std::size_t granule = pool_.granule();
    if (choices_.uniform(0, 1) == 0) {
      ORDERLY_REQUIRE(free(start + choices_.uniform(1, granule - 1), 0) == error::misaligned_pointer);
    } else if (block.length > granule) {
      char* const inside = start + granule * choices_.uniform(1, block.length / granule - 1);
      ORDERLY_REQUIRE(free(inside, choices_.uniform(0, block.length)) == error::interior_pointer);
      ORDERLY_REQUIRE(pool_.owns(inside));
    } else {
      ORDERLY_REQUIRE(free(start, granule + 1 + any_size(), block.generation) == error::size_mismatch);
    }
    ++bad_frees_;
  }

  void misuse() {
    ORDERLY_REQUIRE(pool_.try_allocate(pool_.capacity() + 1 + any_size()) == nullptr);
    ORDERLY_REQUIRE(pool_.try_allocate(SIZE_MAX - any_size(), pool_.granule()) == nullptr);
    ORDERLY_REQUIRE(pool_.try_allocate(1, 3) == nullptr);
    ORDERLY_REQUIRE(free(nullptr, any_size()) == error::none);
    ORDERLY_REQUIRE(free(reinterpret_cast<char*>(this), 0) == error::foreign_pointer);
    failed_ += 2;
    ++bad_frees_;
  }

  void tidy() {
    const std::size_t before = pool_.stats().committed;
    switch (choices_.uniform(0, 9)) {
      case 0: {
        const std::size_t keep = choices_.uniform(0, pool_.limit());
        ORDERLY_REQUIRE(somewhere([&] { return pool_.trim(keep); }) <= before);
        break;
      }
      case 1: static_cast<void>(somewhere([&] { return pool_.defragment(); })); break;
      case 2: check_live(); break;
      default: break;
    }
  }

  void check_stats() {
    const statistics stats = pool_.stats();
    ORDERLY_REQUIRE(stats.requested == requested_);
    ORDERLY_REQUIRE(stats.allocated == allocated_);
    ORDERLY_REQUIRE(stats.allocations == allocations_);
    ORDERLY_REQUIRE(stats.frees == frees_);
    ORDERLY_REQUIRE(stats.failed == failed_);
    ORDERLY_REQUIRE(stats.bad_frees == bad_frees_);
    ORDERLY_REQUIRE(stats.allocated + stats.cached <= stats.committed);
    ORDERLY_REQUIRE(is_flat() || stats.committed == log_->committed());
    ORDERLY_REQUIRE(stats.committed <= stats.limit);
    // Between threads it is off by what they have not published.
    ORDERLY_REQUIRE(threads_.count() == 1 ? stats.peak_requested == peak_requested_ : stats.peak_requested >= requested_);
  }

  Choices& choices_;
  lockstep_threads& threads_;
  std::shared_ptr<source_log> log_ = std::make_shared<source_log>();
  pool pool_;
  std::map<char*, known_block> live_;
  std::map<char*, ended_handle> ended_;  // the last handle of each address that was freed
  std::size_t requested_ = 0;
  std::size_t allocated_ = 0;
  std::size_t peak_requested_ = 0;
  std::uint64_t allocations_ = 0, frees_ = 0, failed_ = 0, bad_frees_ = 0;
  bool growing_ = true;
};

}  // namespace orderly::test
