#include "arena.hpp"

#include <algorithm>
#include <bit>
#include <utility>

namespace orderly::detail {
namespace {

/// Calls visit(first, count) for each run of ones, lowest first, until it returns false. Returns the bits visited.
template <class Visit>
chunk_mask each_run(chunk_mask bits, Visit visit) {
  chunk_mask visited = 0;
  while (bits != 0) {
    const auto first = static_cast<unsigned>(std::countr_zero(bits));
    const auto count = static_cast<unsigned>(std::countr_one(bits >> first));
    const chunk_mask run = (count == 64 ? ~chunk_mask{0} : (chunk_mask{1} << count) - 1) << first;
    if (!visit(first, count)) break;
    visited |= run;
    bits &= ~run;
  }
  return visited;
}

}  // namespace

arena::arena(std::unique_ptr<memory_source> source, const geometry& shape) noexcept
    : source_(std::move(source)), shape_(shape), soft_limit_(shape.limit) {}

arena::~arena() {
  if (base_ == nullptr) return;
  tools_.end();
  source_->release(base_, shape_.bytes(shape_.total_granules));
}

bool arena::open() noexcept {
  if (!chunks_.open(shape_)) return false;
  const std::size_t alignment = shape_.flat ? shape_.granule_bytes() : shape_.chunk_bytes();
  base_ = static_cast<std::byte*>(source_->reserve(shape_.bytes(shape_.total_granules), alignment));
  if (shape_.flat && base_ != nullptr) {  // all of it is there from the start; no other thread yet
    committed_.store(shape_.capacity, relaxed);
    peak_committed_.store(shape_.capacity, relaxed);
  }
  return base_ != nullptr;
}

std::optional<std::uint64_t> arena::offset(const void* pointer) const noexcept {
  const std::uint64_t offset = reinterpret_cast<std::uintptr_t>(pointer) - reinterpret_cast<std::uintptr_t>(base_);
  if (offset >= shape_.bytes(shape_.total_granules)) return std::nullopt;
  return offset;
}

refusal arena::charge(std::size_t bytes, ceiling up_to, std::size_t& reached) noexcept {
  const std::size_t soft = up_to == ceiling::soft ? soft_limit() : shape_.limit;
  // Whoever is refused sees what those did before who have charged: press() finds them at work, and they may yet refund. All
  // changes of the sum are read-modify-writes, so whichever is read goes on the charges' release sequences.
  std::size_t now = committed_.load(acquire);
  do {
    if (now + bytes > shape_.limit) return refusal::hard_limit;
    if (now + bytes > soft) return refusal::soft_limit;
  } while (!committed_.compare_exchange_weak(now, now + bytes, release, acquire));
  reached = now + bytes;
  return refusal::none;
}

/// After a commit that the source granted, with the sum that its charge has reached: by now others may have refunded. Of all
/// that lies committed at a time somebody charged last, to a sum that all of it is part of, and notes that.
void arena::note_peak(std::size_t reached) noexcept {
  std::size_t peak = peak_committed_.load(relaxed);  // figures
  while (peak < reached && !peak_committed_.compare_exchange_weak(peak, reached, relaxed, relaxed)) {
  }
}

refusal arena::commit(node n, std::uint64_t granules, ceiling up_to) noexcept {
  if (shape_.flat) return refusal::none;
  const chunk_mask wanted = chunks_.bits(n, granules);
  const chunk_mask missing = wanted & ~chunks_.committed(n, wanted);
  if (missing == 0) return refusal::none;
  const std::size_t bytes = static_cast<std::size_t>(std::popcount(missing)) * shape_.chunk_bytes();
  std::size_t reached = 0;
  if (const refusal refused = charge(bytes, up_to, reached); refused != refusal::none) return refused;

  std::byte* const root = base_ + shape_.bytes(n.granule() >> shape_.root_order << shape_.root_order);
  const auto range = [&](unsigned first) { return root + first * shape_.chunk_bytes(); };
  const chunk_mask done = each_run(missing, [&](unsigned first, unsigned count) {
    return into_source().commit(range(first), count * shape_.chunk_bytes());
  });
  if (done == missing) {
    chunks_.set(n, missing);
    note_peak(reached);
    return refusal::none;
  }
  // Half done: undo it. What cannot be undone stays committed and accounted for, and serves the next taker.
  const std::size_t refused = static_cast<std::size_t>(std::popcount(missing & ~done)) * shape_.chunk_bytes();
  refund(refused);
  if (done != 0) note_peak(reached - refused);
  const chunk_mask undone = each_run(done, [&](unsigned first, unsigned count) {
    return into_source().decommit(range(first), count * shape_.chunk_bytes());
  });
  chunks_.set(n, done & ~undone);
  refund(static_cast<std::size_t>(std::popcount(undone)) * shape_.chunk_bytes());
  return refusal::source;
}

std::size_t arena::decommit(node n, std::uint64_t most) noexcept {
  const chunk_mask all = chunks_.bits(n, std::uint64_t{1} << n.order);
  chunk_mask committed = chunks_.committed(n, all);
  while (static_cast<unsigned>(std::popcount(committed)) > most) committed &= committed - 1;  // the first one stays
  std::byte* const root = base_ + shape_.bytes(n.granule() >> shape_.root_order << shape_.root_order);
  const chunk_mask done = each_run(committed, [&](unsigned first, unsigned count) {
    return into_source().decommit(root + first * shape_.chunk_bytes(), count * shape_.chunk_bytes());
  });
  const std::size_t bytes = static_cast<std::size_t>(std::popcount(done)) * shape_.chunk_bytes();
  chunks_.clear(n, done);
  refund(bytes);
  return bytes;
}

refusal arena::commit(node n, std::uint64_t from, std::uint64_t to, ceiling up_to) noexcept {
  if (from >= to) return refusal::none;
  const std::size_t bytes = (to - from) * shape_.chunk_bytes();
  std::size_t reached = 0;
  if (const refusal refused = charge(bytes, up_to, reached); refused != refusal::none) return refused;
  if (into_source().commit_together(base_ + shape_.bytes(shape_.granule(n)) + from * shape_.chunk_bytes(), bytes)) {
    note_peak(reached);
    return refusal::none;
  }
  refund(bytes);
  return refusal::source;
}

bool arena::decommit(node n, std::uint64_t from, std::uint64_t to) noexcept {
  if (from >= to) return true;
  const std::size_t bytes = (to - from) * shape_.chunk_bytes();
  if (!into_source().decommit(base_ + shape_.bytes(shape_.granule(n)) + from * shape_.chunk_bytes(), bytes)) return false;
  refund(bytes);
  return true;
}

}  // namespace orderly::detail
