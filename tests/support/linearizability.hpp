/// \file
/// Is there an order of a few recorded calls, each at one instant between its call and its return, in which a pool that did
/// one thing at a time would have answered the same? (Wing and Gong, JPDC 17, 1993; visited sets of calls are remembered.)
///
/// Sequential specification, over a range of at most 64 granules; a block of n granules lies in an aligned node of the next
/// power of two:
///   allocate  returns any block that starts at such a node, lies in the range, and overlaps no live one
///   free      of a live block's start: accepted, the block is live no more; of anything else: refused
///   null      only if no such node is free as a whole. That is the contract of pool::allocate (press() in lib/pass.cpp: at
///             some instant since the call no memory for the request existed outside live blocks), for pools that merge
///             what is free. It grants a second reason, threads that have not moved for seconds; a history with such a
///             thread does not belong here.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

namespace orderly::test {

/// One call, and what came of it.
struct recorded_call {
  enum class kind : std::uint8_t { allocate, free };
  static constexpr std::uint32_t none = ~std::uint32_t{0};

  kind what = kind::allocate;
  std::uint32_t thread = 0;
  std::uint64_t called = 0;    ///< instants; those of all threads in one order
  std::uint64_t returned = 0;  ///< after `called`
  std::uint32_t granules = 1;  ///< of an allocation
  std::uint32_t start = none;  ///< granule; of an allocation, none: null
  bool accepted = true;        ///< of a free
};

/// The blocks that are live, in a range of granules.
class sequential_pool {
 public:
  explicit sequential_pool(std::uint32_t granules) noexcept : granules_(granules) {}

  /// False: a pool would have answered otherwise.
  [[nodiscard]] bool apply(const recorded_call& call) noexcept {
    if (call.what == recorded_call::kind::free) {
      const bool is_live = call.start < granules_ && (starts_ >> call.start & 1) != 0;
      if (is_live != call.accepted) return false;
      if (is_live) remove(call.start);
      return true;
    }
    const std::uint32_t node = std::bit_ceil(call.granules);
    if (call.start == recorded_call::none) {
      for (std::uint32_t at = 0; at + node <= granules_; at += node)
        if ((used_ & mask(at, node)) == 0) return false;
      return true;
    }
    if (call.start % node != 0 || call.granules > granules_ || call.start > granules_ - call.granules) return false;
    const std::uint64_t block = mask(call.start, call.granules);
    if ((used_ & block) != 0) return false;
    used_ |= block;
    starts_ |= std::uint64_t{1} << call.start;
    return true;
  }

 private:
  [[nodiscard]] static std::uint64_t mask(std::uint32_t start, std::uint32_t count) noexcept {
    return (count == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1) << start;
  }
  void remove(std::uint32_t start) noexcept {
    starts_ &= ~(std::uint64_t{1} << start);
    std::uint32_t end = start + 1;  // up to the next start or the next granule that is not used
    while (end < granules_ && (used_ >> end & 1) != 0 && (starts_ >> end & 1) == 0) ++end;
    used_ &= ~mask(start, end - start);
  }

  std::uint32_t granules_;
  std::uint64_t used_ = 0;
  std::uint64_t starts_ = 0;
};

namespace linearizability {

struct search {
  std::span<const recorded_call> calls;
  std::unordered_set<std::uint64_t> failed{};  ///< sets of calls that no order of the others completes

  /// The set of calls that are done decides which blocks are live, whatever their order was.
  [[nodiscard]] bool complete(std::uint64_t done, const sequential_pool& state) {
    if (std::popcount(done) == static_cast<int>(calls.size())) return true;
    if (failed.contains(done)) return false;
    std::uint64_t first_return = ~std::uint64_t{0};
    for (std::size_t i = 0; i < calls.size(); ++i)
      if ((done >> i & 1) == 0) first_return = std::min(first_return, calls[i].returned);
    for (std::size_t i = 0; i < calls.size(); ++i) {
      if ((done >> i & 1) != 0 || calls[i].called > first_return) continue;
      sequential_pool next = state;
      if (next.apply(calls[i]) && complete(done | std::uint64_t{1} << i, next)) return true;
    }
    failed.insert(done);
    return false;
  }
};

}  // namespace linearizability

/// Pre: at most 64 calls, and at most 64 granules. All is free before the first.
[[nodiscard]] inline bool is_linearizable(std::span<const recorded_call> calls, std::uint32_t granules) {
  return linearizability::search{calls}.complete(0, sequential_pool(granules));
}

/// One line for each call, in the order of the calls.
[[nodiscard]] inline std::string text_of(std::span<const recorded_call> calls) {
  std::vector<recorded_call> sorted(calls.begin(), calls.end());
  std::ranges::sort(sorted, {}, &recorded_call::called);
  std::string text;
  for (const recorded_call& each : sorted) {
    char line[128];
    const bool allocates = each.what == recorded_call::kind::allocate;
    std::snprintf(line, sizeof line, "thread %u [%llu, %llu] %s", each.thread, static_cast<unsigned long long>(each.called),
                  static_cast<unsigned long long>(each.returned), allocates ? "allocate " : "free ");
    text += line;
    if (allocates) {
      text += std::to_string(each.granules) + " -> ";
      text += each.start == recorded_call::none ? "null" : std::to_string(each.start);
    } else {
      text += std::to_string(each.start) + (each.accepted ? " accepted" : " refused");
    }
    text += '\n';
  }
  return text;
}

}  // namespace orderly::test
