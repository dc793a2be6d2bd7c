/// \file
/// relocatable_set: what sets of relocatable blocks have in common, with streams or without: records, found by handle,
/// and the run that moves blocks.
///
/// `word` of a record says all about its block:  generation (32 bits) | unused | moving | live | pins (24)
///   R   Only who has the block pinned uses its address, and only who moved 0 pins to `moving`, or a free that ended the
///       generation, changes its record. Both are a CAS that expects no pin. A pin's CAS acquires what the last step or
///       allocation released; a step's and a free's CAS acquires what the last unpin released, so that all uses come before.
/// Without a pin, the address is a look, which a step checks behind its CAS: that acquires what allocate() released.
/// A handle of an earlier generation finds another number, and each CAS compares it. ABA: a number comes again after 2^32
/// frees of one record, between a look and a CAS.
///
/// Fork. A fork takes the set's mutexes before its pool's, so the child has no step that is under way.
#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "atomic.hpp"
#include "orderly/relocatable.hpp"
#include "pool_state.hpp"
#include "registry.hpp"
#include "relocation.hpp"

namespace orderly::detail {

struct relocatable_record {
  atomic<std::uint64_t> word{0};
  atomic<void*> address{nullptr};
  atomic<std::size_t> requested{0};
  std::uint32_t next_free = 0;  ///< guarded by the mutex of the table
};

/// `Pool`: pool::state, which only its friends name. `Record`: a relocatable_record, with whatever else belongs to a block.
template <class Pool, class Record>
class relocatable_set : public registered_pool {
 public:
  relocatable_set(const relocatable_set&) = delete;
  relocatable_set& operator=(const relocatable_set&) = delete;

  [[nodiscard]] std::size_t size(relocatable block) const noexcept {
    const Record* const r = find(block);
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
    each([&](std::uint32_t index, Record& r, std::uint64_t word) {
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

  [[nodiscard]] bool contains(const void* /*pointer*/) const noexcept override { return false; }  // its pool does
  void detach(front& /*of*/) noexcept override {}                                                 // it has none
  void before_fork() noexcept override {
    step_mutex_.lock();
    table_mutex_.lock();
  }
  void after_fork(bool /*child*/) noexcept override {
    table_mutex_.unlock();
    step_mutex_.unlock();
  }

 protected:
  static constexpr std::uint64_t one_pin = 1;
  static constexpr std::uint64_t pins = (std::uint64_t{1} << 24) - 1;
  static constexpr std::uint64_t live = std::uint64_t{1} << 24;
  static constexpr std::uint64_t moving = std::uint64_t{1} << 25;
  static constexpr unsigned generation_shift = 32;
  static constexpr std::uint32_t none = ~std::uint32_t{0};

  /// Throws std::bad_alloc. The derived class's constructor ends in enroll(), its destructor begins with withdraw().
  explicit relocatable_set(Pool& of) : pool_(of) {}
  ~relocatable_set() {
    for (atomic<Record*>& page : pages_) delete[] page.load(relaxed);  // no other thread
  }

  [[nodiscard]] static std::uint32_t index_of(relocatable block) noexcept { return static_cast<std::uint32_t>(block) - 1; }
  [[nodiscard]] static std::uint64_t generation_of(relocatable block) noexcept {
    return static_cast<std::uint64_t>(block) >> generation_shift;
  }
  [[nodiscard]] static bool is_of(std::uint64_t word, relocatable block) noexcept {
    return (word & live) != 0 && word >> generation_shift == generation_of(block);
  }
  /// The word of a block that is there and not pinned.
  [[nodiscard]] static std::uint64_t unpinned(relocatable block) noexcept {
    return generation_of(block) << generation_shift | live;
  }
  /// The word of its record once it is freed.
  [[nodiscard]] static std::uint64_t freed(relocatable block) noexcept {
    return ((generation_of(block) + 1) & (~std::uint64_t{0} >> generation_shift)) << generation_shift;
  }

  /// The handle of a new block in a record that this thread has taken out.
  [[nodiscard]] relocatable open(std::uint32_t index, void* block, std::size_t bytes) noexcept {
    Record& r = at(index);
    const std::uint64_t generation = r.word.load(relaxed) >> generation_shift;  // this thread's since it was taken out
    r.address.store(block, relaxed);
    r.requested.store(bytes, release);                             // size()
    r.word.store(generation << generation_shift | live, release);  // R
    return static_cast<relocatable>(generation << generation_shift | (index + 1));
  }

  /// Memory for what collect() may return, all at once: while a block is marked as moving, nothing may throw. As collect(),
  /// Pre: the mutex of steps. Throws std::bad_alloc.
  [[nodiscard]] std::vector<relocation> room_for_step() const {
    std::vector<relocation> moves;
    moves.reserve(std::min(plan_.moves.size() - next_, std::max<std::size_t>(limits_.moves, 1)));
    return moves;
  }

  /// The next moves of the plan, as many as the limits allow: their blocks are marked as moving, and have places to go to.
  template <class AllocateInRoom>
  void collect(std::vector<relocation>& moves, const AllocateInRoom& allocate) noexcept {
    std::size_t bytes = 0;
    while (next_ < plan_.moves.size()) {
      const auto [place, room] = plan_.moves[next_];
      const offer& from = offered_[place];
      Record& r = at(index_of(from.block));
      const bool too_many = moves.size() >= limits_.moves || bytes + this->size(from.block) > limits_.bytes;
      if (!moves.empty() && too_many) break;
      ++next_;
      std::uint64_t expected = unpinned(from.block);
      // R: with no pin. A block that was moved since, by nobody but a step, is where it was.
      if (!r.word.compare_exchange_strong(expected, expected | moving, acquire, relaxed)) {
        ++done_.skipped;
        continue;
      }
      // From here on the record is as allocate() left it. The plan's look may have been at one that was changing hands.
      const std::size_t size = r.requested.load(relaxed);
      const bool is_there = r.address.load(relaxed) == from.address;
      void* const to = is_there ? allocate(room, size, from.address) : nullptr;
      if (to == nullptr) {
        skip(r);
        continue;
      }
      moves.push_back({from.block, from.address, to, size});
      bytes += size;
    }
  }

  /// A block that was marked stays where it is.
  void skip(Record& r) noexcept {
    r.word.fetch_and(~moving, relaxed);  // nothing has changed; what unpin() released goes on through it
    ++done_.skipped;
  }

  void count(const std::vector<relocation>& moves) noexcept {
    done_.moves += moves.size();
    for (const relocation& each : moves) done_.bytes += each.bytes;
  }

  /// The word of a record that nobody is moving or freeing.
  [[nodiscard]] static std::uint64_t settled(const Record& r) noexcept {
    for (;;) {
      const std::uint64_t seen = r.word.load(relaxed);  // a look; the CAS acquires
      if ((seen & moving) == 0) return seen;
      yield();
    }
  }

  [[nodiscard]] Record& at(std::uint32_t index) const noexcept {
    // Relaxed: whoever comes with an index has it from the table's mutex, or from begin().
    Record* const page = pages_[index / records_per_page].load(relaxed);
    reads_plain(page);
    return page[index % records_per_page];
  }
  [[nodiscard]] Record* find(relocatable block) const noexcept {
    const std::uint32_t index = index_of(block);
    if (index / records_per_page >= most_pages) return nullptr;
    Record* const page = pages_[index / records_per_page].load(acquire);  // add_page(); the handle may be made up
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

  template <class Visit>
  void each(Visit visit) const {
    for (std::uint32_t p = 0; p < most_pages; ++p) {
      Record* const page = pages_[p].load(acquire);  // add_page()
      if (page == nullptr) return;
      reads_plain(page);
      for (std::uint32_t i = 0; i < records_per_page; ++i)
        visit(p * records_per_page + i, page[i], page[i].word.load(relaxed));  // a look
    }
  }

  Pool& pool_;
  mutex step_mutex_;
  relocation_statistics done_;  ///< guarded by step_mutex_
  atomic<bool> failed_{false};

 private:
  static constexpr std::uint32_t records_per_page = bounds::relocatable_records;
  static constexpr std::uint32_t most_pages = bounds::relocatable_pages;

  struct offer {
    void* address = nullptr;
    relocatable block = relocatable::none;
  };

  void forget_run() noexcept {
    plan_ = {};
    offered_ = {};
    next_ = 0;
    done_ = {};
  }

  /// Pre: the mutex of the table.
  [[nodiscard]] bool add_page() noexcept {
    if (page_count_ == most_pages) return false;
    auto* const page = new (std::nothrow) Record[records_per_page];
    if (page == nullptr) return false;
    const std::uint32_t first = page_count_ * records_per_page;
    for (std::uint32_t i = 0; i < records_per_page; ++i) {
      page[i].word.store(std::uint64_t{1} << generation_shift, relaxed);
      page[i].next_free = i + 1 < records_per_page ? first + i + 1 : none;
    }
    writes_plain(page);
    pages_[page_count_++].store(page, release);  // find(), each()
    first_free_ = first;
    return true;
  }

  std::array<atomic<Record*>, most_pages> pages_{};
  mutex table_mutex_;
  std::uint32_t page_count_ = 0;  ///< guarded by table_mutex_, like the next
  std::uint32_t first_free_ = none;
  // Guarded by step_mutex_.
  relocation_plan plan_;
  std::vector<offer> offered_;  ///< by address; plan_ names them by their place
  relocation_limits limits_;
  std::size_t next_ = 0;  ///< of plan_.moves
};

}  // namespace orderly::detail
