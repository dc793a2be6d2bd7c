#include "orderly/relocatable.hpp"

#include <cstring>
#include <mutex>
#include <new>
#include <stdexcept>
#include <utility>

#include "relocatable_set.hpp"

namespace orderly {

using namespace detail;

namespace {

bool copy_on_host(std::span<const relocation> moves) {
  for (const relocation& each : moves) std::memcpy(each.to, each.from, each.bytes);
  return true;
}

}  // namespace

class relocatable_blocks::state final : public relocatable_set<pool::state, relocatable_record> {
 public:
  using record = relocatable_record;

  state(pool::state& of, relocation_copier copy) : relocatable_set(of), copy_(copy ? std::move(copy) : copy_on_host) {
    enroll();
  }
  state(const state&) = delete;
  state& operator=(const state&) = delete;
  ~state() {
    withdraw();
    each([&](std::uint32_t, record& r, std::uint64_t word) {
      if ((word & live) != 0) pool_.deallocate_or_report(r.address.load(relaxed), r.requested.load(relaxed));
    });
  }

  /// Throws as pool::allocate.
  [[nodiscard]] relocatable allocate(std::size_t bytes) {
    const std::uint32_t index = take_record();
    if (index == none) throw std::bad_alloc();
    void* block = nullptr;
    try {
      block = pool_.allocate_or_throw(bytes, 1);
    } catch (...) {
      put_record(index);
      throw;
    }
    return open(index, block, bytes);
  }

  [[nodiscard]] error deallocate(relocatable block) noexcept {
    record* const r = find(block);
    if (r == nullptr) return error::stale_handle;
    std::uint64_t seen = r->word.load(relaxed);  // a look; the CAS acquires
    for (;;) {
      if (!is_of(seen, block)) return error::stale_handle;
      if ((seen & pins) != 0) return error::pinned;
      if ((seen & moving) != 0) {
        seen = settled(*r);
        continue;
      }
      // R. The address stays in the record until the next allocation takes it, which is after put_record().
      if (!r->word.compare_exchange_weak(seen, freed(block), acquire, relaxed)) continue;
      const error code = pool_.deallocate_or_report(r->address.load(relaxed), r->requested.load(relaxed));
      put_record(index_of(block));
      return code;
    }
  }

  [[nodiscard]] void* pin(relocatable block) noexcept {
    record* const r = find(block);
    if (r == nullptr) return nullptr;
    std::uint64_t seen = r->word.load(relaxed);  // a look; the CAS acquires
    for (;;) {
      if (!is_of(seen, block) || (seen & pins) == pins) return nullptr;
      if ((seen & moving) != 0)
        seen = settled(*r);
      else if (r->word.compare_exchange_weak(seen, seen + one_pin, acquire, relaxed))  // R
        return r->address.load(relaxed);
    }
  }

  void unpin(relocatable block) noexcept {
    record* const r = find(block);
    if (r == nullptr) return;
    std::uint64_t seen = r->word.load(relaxed);
    while (is_of(seen, block) && (seen & pins) != 0 &&
           !r->word.compare_exchange_weak(seen, seen - one_pin, release, relaxed)) {  // R
    }
  }

  std::vector<relocation> step() {
    const std::lock_guard lock(step_mutex_);
    failed_.store(false, relaxed);
    std::vector<relocation> moves = room_for_step();
    collect(moves, [&](node room, std::size_t bytes, const void* from) { return pool_.allocate_in_room(room, bytes, from); });
    if (moves.empty()) return moves;
    bool copied = false;
    try {
      copied = copy_(moves);
    } catch (...) {
      settle(moves, false);
      throw;
    }
    settle(moves, copied);
    if (!copied) {
      failed_.store(true, relaxed);
      return {};
    }
    count(moves);
    return moves;
  }

 private:
  /// Ends the moves: at their new places, or where they were.
  void settle(const std::vector<relocation>& moves, bool copied) noexcept {
    for (const relocation& each : moves) {
      record& r = at(index_of(each.block));
      if (copied) r.address.store(each.to, relaxed);
      r.word.fetch_and(~moving, release);  // R: pin()
      pool_.deallocate_or_report(copied ? each.from : each.to, each.bytes);
    }
  }

  relocation_copier copy_;
};

relocatable_blocks::relocatable_blocks(pool& of, relocation_copier copy) {
  if (of.state_ == nullptr) throw std::invalid_argument("orderly::relocatable_blocks: the pool was moved from");
  state_ = new state(*of.state_, std::move(copy));
}
relocatable_blocks::~relocatable_blocks() { delete state_; }

relocatable relocatable_blocks::allocate(std::size_t bytes) { return state_->allocate(bytes); }
relocatable relocatable_blocks::try_allocate(std::size_t bytes) noexcept {
  try {
    return state_->allocate(bytes);
  } catch (...) {  // out of memory, or the handler's
    return relocatable::none;
  }
}

error relocatable_blocks::deallocate(relocatable block) noexcept { return state_->deallocate(block); }
void* relocatable_blocks::pin(relocatable block) noexcept { return state_->pin(block); }
void relocatable_blocks::unpin(relocatable block) noexcept { state_->unpin(block); }
std::size_t relocatable_blocks::size(relocatable block) const noexcept { return state_->size(block); }
void relocatable_blocks::begin(const relocation_limits& each_step) { state_->begin(each_step); }
std::vector<relocation> relocatable_blocks::step() { return state_->step(); }
bool relocatable_blocks::last_step_failed() const noexcept { return state_->failed(); }
relocation_statistics relocatable_blocks::end() noexcept { return state_->end(); }

}  // namespace orderly
