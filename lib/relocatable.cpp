#include "orderly/relocatable.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <mutex>
#include <new>
#include <stdexcept>
#include <utility>

#include "atomic.hpp"
#include "pool_state.hpp"
#include "relocation.hpp"

namespace orderly {

using namespace detail;

namespace {

constexpr unsigned generation_shift = 32;

[[nodiscard]] std::uint32_t index_of(relocatable block) noexcept { return static_cast<std::uint32_t>(block) - 1; }
[[nodiscard]] std::uint64_t generation_of(relocatable block) noexcept {
  return static_cast<std::uint64_t>(block) >> generation_shift;
}

bool copy_on_host(std::span<const relocation> moves) {
  for (const relocation& each : moves) std::memcpy(each.to, each.from, each.bytes);
  return true;
}

}  // namespace

class relocatable_blocks::state {
 public:
  state(pool::state& of, relocation_copier copy) : pool_(of), copy_(copy ? std::move(copy) : copy_on_host) {}
  state(const state&) = delete;
  state& operator=(const state&) = delete;
  ~state() {
    each([&](std::uint32_t, record& r, std::uint64_t word) {
      if ((word & live) != 0) pool_.deallocate_or_report(r.address.load(relaxed), r.requested.load(relaxed));
    });
    for (atomic<record*>& page : pages_) delete[] page.load(relaxed);  // no other thread
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
    record& r = at(index);
    const std::uint64_t generation = r.word.load(relaxed) >> generation_shift;  // this thread's since it was taken out
    r.address.store(block, relaxed);
    r.requested.store(bytes, release);  // size()
    r.word.store(generation << generation_shift | live, release);  // R
    return static_cast<relocatable>(generation << generation_shift | (index + 1));
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
      const std::uint64_t next = (generation_of(block) + 1) & (~std::uint64_t{0} >> generation_shift);
      // R. The address stays in the record until the next allocation takes it, which is after put_record().
      if (!r->word.compare_exchange_weak(seen, next << generation_shift, acquire, relaxed)) continue;
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

  [[nodiscard]] std::size_t size(relocatable block) const noexcept {
    const record* const r = find(block);
    // Relaxed: the program handed the handle over, and with it this.
    if (r == nullptr || !is_of(r->word.load(relaxed), block)) return 0;
    // If it is a later block's, that one's allocate() is seen, and with it the end of this one.
    const std::size_t bytes = r->requested.load(acquire);
    return is_of(r->word.load(relaxed), block) ? bytes : 0;
  }

  void begin(const relocation_limits& limits) {
    const std::lock_guard lock(step_mutex_);
    forget_run();
    std::vector<offer> offered;
    each([&](std::uint32_t index, record& r, std::uint64_t word) {
      if ((word & live) == 0 || (word & (pins | moving)) != 0) return;
      const std::uint64_t generation = word >> generation_shift;
      offered.push_back({r.address.load(relaxed), static_cast<relocatable>(generation << generation_shift | (index + 1))});
    });
    std::sort(offered.begin(), offered.end(),
              [](const offer& a, const offer& b) { return std::less<>()(a.address, b.address); });
    std::vector<void*> addresses;
    addresses.reserve(offered.size());
    for (const offer& each : offered) addresses.push_back(each.address);
    plan_ = pool_.plan_relocation(addresses);
    offered_ = std::move(offered);
    limits_ = limits;
  }

  std::vector<relocation> step() {
    const std::lock_guard lock(step_mutex_);
    failed_.store(false, relaxed);
    std::vector<relocation> moves;
    // All at once: while a block is marked as moving, nothing may throw.
    moves.reserve(std::min(plan_.moves.size() - next_, std::max<std::size_t>(limits_.moves, 1)));
    std::size_t bytes = 0;
    while (next_ < plan_.moves.size()) {
      const auto [place, room] = plan_.moves[next_];
      const offer& from = offered_[place];
      record& r = at(index_of(from.block));
      const bool too_many = moves.size() >= limits_.moves || bytes + this->size(from.block) > limits_.bytes;
      if (!moves.empty() && too_many) break;
      ++next_;
      std::uint64_t expected = generation_of(from.block) << generation_shift | live;
      // R: with no pin. A block that was moved since, by nobody but a step, is where it was.
      if (!r.word.compare_exchange_strong(expected, expected | moving, acquire, relaxed)) {
        ++done_.skipped;
        continue;
      }
      // From here on the record is as allocate() left it. The plan's look may have been at one that was changing hands.
      const std::size_t size = r.requested.load(relaxed);
      const bool is_there = r.address.load(relaxed) == from.address;
      void* const to = is_there ? pool_.allocate_in_room(room, size, from.address) : nullptr;
      if (to == nullptr) {
        r.word.fetch_and(~moving, relaxed);  // nothing has changed; what unpin() released goes on through it
        ++done_.skipped;
        continue;
      }
      moves.push_back({from.block, from.address, to, size});
      bytes += size;
    }
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
    done_.moves += moves.size();
    done_.bytes += bytes;
    return moves;
  }

  [[nodiscard]] bool failed() const noexcept { return failed_.load(relaxed); }  // a figure

  relocation_statistics end() noexcept {
    const std::lock_guard lock(step_mutex_);
    if (!plan_.emptied.empty()) {
      pool_.defragment();  // what the old places' caches hold
      done_.planned = plan_.emptied.size();
      done_.chunks = pool_.count_emptied(plan_);
    }
    const relocation_statistics done = done_;
    forget_run();
    return done;
  }

 private:
  /// The record of one block, found by its handle.
  ///
  /// `word` says all about it:  generation (32 bits) | unused | moving | live | pins (24)
  ///   R   Only who has it pinned uses the address, and only a step that moved 0 pins to `moving`, or a free that ended the
  ///       generation, changes it. Both are a CAS that expects no pin. A pin's CAS acquires what the last step or allocation
  ///       released; a step's and a free's CAS acquires what the last unpin released, so that all uses come before.
  /// Without a pin, the address is a look, which a step checks behind its CAS: that acquires what allocate() released.
  /// A handle of an earlier generation finds another number, and each CAS compares it. ABA: a number comes again after
  /// 2^32 frees of one record, between a look and a CAS.
  struct record {
    atomic<std::uint64_t> word{0};
    atomic<void*> address{nullptr};
    atomic<std::size_t> requested{0};
    std::uint32_t next_free = 0;  ///< guarded by the mutex of the table
  };

  static constexpr std::uint64_t one_pin = 1;
  static constexpr std::uint64_t pins = (std::uint64_t{1} << 24) - 1;
  static constexpr std::uint64_t live = std::uint64_t{1} << 24;
  static constexpr std::uint64_t moving = std::uint64_t{1} << 25;

  static constexpr std::uint32_t records_per_page = bounds::relocatable_records;
  static constexpr std::uint32_t most_pages = bounds::relocatable_pages;
  static constexpr std::uint32_t none = ~std::uint32_t{0};

  [[nodiscard]] static bool is_of(std::uint64_t word, relocatable block) noexcept {
    return (word & live) != 0 && word >> generation_shift == generation_of(block);
  }

  struct offer {
    void* address = nullptr;
    relocatable block = relocatable::none;
  };

  /// Ends the moves: at their new places, or where they were.
  void settle(const std::vector<relocation>& moves, bool copied) noexcept {
    for (const relocation& each : moves) {
      record& r = at(index_of(each.block));
      if (copied) r.address.store(each.to, relaxed);
      r.word.fetch_and(~moving, release);  // R: pin()
      pool_.deallocate_or_report(copied ? each.from : each.to, each.bytes);
    }
  }

  void forget_run() noexcept {
    plan_ = {};
    offered_ = {};
    next_ = 0;
    done_ = {};
  }

  /// The word of a record that no step is copying.
  [[nodiscard]] static std::uint64_t settled(const record& r) noexcept {
    for (;;) {
      const std::uint64_t seen = r.word.load(relaxed);  // as above
      if ((seen & moving) == 0) return seen;
      yield();
    }
  }

  [[nodiscard]] record& at(std::uint32_t index) const noexcept {
    // Relaxed: whoever comes with an index has it from the table's mutex, or from begin().
    record* const page = pages_[index / records_per_page].load(relaxed);
    reads_plain(page);
    return page[index % records_per_page];
  }
  [[nodiscard]] record* find(relocatable block) const noexcept {
    const std::uint32_t index = index_of(block);
    if (index / records_per_page >= most_pages) return nullptr;
    record* const page = pages_[index / records_per_page].load(acquire);  // add_page(); the handle may be made up
    if (page == nullptr) return nullptr;
    reads_plain(page);
    return page + index % records_per_page;
  }

  /// A record that is nobody's. `none`: there are no more, or there is no memory.
  [[nodiscard]] std::uint32_t take_record() noexcept {
    const std::lock_guard lock(table_mutex_);
    if (first_free_ == none && !add_page()) return none;
    const std::uint32_t index = first_free_;
    first_free_ = at(index).next_free;
    return index;
  }
  void put_record(std::uint32_t index) noexcept {
    const std::lock_guard lock(table_mutex_);
    at(index).next_free = std::exchange(first_free_, index);
  }

  /// Pre: the mutex of the table.
  [[nodiscard]] bool add_page() noexcept {
    if (page_count_ == most_pages) return false;
    record* const page = new (std::nothrow) record[records_per_page];
    if (page == nullptr) return false;
    const std::uint32_t first = page_count_ * records_per_page;
    for (std::uint32_t i = 0; i < records_per_page; ++i) {
      page[i].word.store(std::uint64_t{1} << generation_shift, relaxed);
      page[i].next_free = i + 1 < records_per_page ? first + i + 1 : none;
    }
    writes_plain(page);
    pages_[page_count_++].store(page, release);
    first_free_ = first;
    return true;
  }

  template <class Visit>
  void each(Visit visit) {
    for (std::uint32_t p = 0; p < most_pages; ++p) {
      record* const page = pages_[p].load(acquire);  // add_page()
      if (page == nullptr) return;
      reads_plain(page);
      for (std::uint32_t i = 0; i < records_per_page; ++i)
        visit(p * records_per_page + i, page[i], page[i].word.load(relaxed));  // a look
    }
  }

  pool::state& pool_;
  relocation_copier copy_;
  std::array<atomic<record*>, most_pages> pages_{};
  mutex table_mutex_;
  std::uint32_t page_count_ = 0;        ///< guarded by table_mutex_, like the next
  std::uint32_t first_free_ = none;
  mutex step_mutex_;                    ///< what follows is guarded by it
  relocation_plan plan_;
  std::vector<offer> offered_;          ///< by address; plan_ names them by their place
  relocation_limits limits_;
  std::size_t next_ = 0;                ///< of plan_.moves
  relocation_statistics done_;
  atomic<bool> failed_{false};
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
