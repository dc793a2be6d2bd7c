#include "thread_fronts.hpp"

#include <algorithm>
#include <map>
#include <new>
#include <utility>
#include <vector>

#include "registry.hpp"

namespace orderly::detail {

thread_local constinit thread_fronts this_thread_fronts;
thread_local constinit thread_lanes this_thread_lanes;

namespace {

/// All of a thread's fronts; its destructor gives them back. Touched in slow paths only.
class front_book {
 public:
  ~front_book() {
    this_thread_fronts.exiting = true;  // what this thread frees from now on goes past fronts
    this_thread_fronts.latest = {};
    this_thread_fronts.entries = {};
    this_thread_lanes = {};
    for (const auto& e : entries_) detach_if_alive(e.pool, *e.of);
  }

  struct entry : thread_fronts::entry {
    std::uint64_t pool = 0;
  };
  std::vector<entry> entries_;

  /// Lanes that the thread has met, by pool and stream.
  std::map<std::pair<std::uint64_t, const void*>, thread_lanes::entry> lanes_;
  std::size_t look_at_ = 64;  ///< so many lanes are worth a look whose pools are gone
};

thread_local front_book book;

}  // namespace

std::uint64_t this_thread_number() noexcept {
  thread_local constinit std::uint64_t number = 0;
  if (number == 0) number = next_serial();
  return number;
}

bool remember_front(std::uint64_t serial, front* of, std::uint64_t pool) noexcept {
  if (this_thread_fronts.exiting) return false;
  try {
    if (book.entries_.size() == book.entries_.capacity())  // before it grows: pools may have come and gone
      std::erase_if(book.entries_, [](const front_book::entry& e) { return !is_alive(e.pool); });
    book.entries_.push_back({{serial, of}, pool});
  } catch (const std::bad_alloc&) {
    return false;
  }
  this_thread_fronts.keep({serial, of});
  return true;
}

front* recall_front(std::uint64_t serial) noexcept {
  if (this_thread_fronts.exiting) return nullptr;
  const auto at = std::ranges::find(book.entries_, serial, &thread_fronts::entry::serial);
  if (at == book.entries_.end()) return nullptr;
  this_thread_fronts.keep(*at);
  return at->of;
}

bool holds_front(const front* of) noexcept {
  if (this_thread_fronts.exiting) return false;
  return std::ranges::find(book.entries_, of, &thread_fronts::entry::of) != book.entries_.end();
}

front* rename_front(std::uint64_t pool, std::uint64_t serial,
                    bool (*is_idle)(const front&, std::uint64_t serial)) noexcept {
  if (this_thread_fronts.exiting) return nullptr;
  const auto at = std::ranges::find_if(book.entries_, [&](const front_book::entry& e) {
    return e.pool == pool && is_idle(*e.of, e.serial);
  });
  if (at == book.entries_.end()) return nullptr;
  at->serial = serial;
  this_thread_fronts.keep(*at);
  return at->of;
}

void remember_lane(const thread_lanes::entry& e) noexcept {
  if (this_thread_fronts.exiting) return;
  auto& lanes = book.lanes_;
  if (lanes.size() >= book.look_at_) {
    std::erase_if(lanes, [](const auto& each) { return !is_alive(each.first.first); });
    book.look_at_ = std::max<std::size_t>(64, 2 * lanes.size());
  }
  try {
    lanes[{e.pool, e.stream}] = e;
  } catch (const std::bad_alloc&) {
  }
}

const thread_lanes::entry* recall_lane(std::uint64_t pool, const void* stream) noexcept {
  if (this_thread_fronts.exiting) return nullptr;
  const auto at = book.lanes_.find({pool, stream});
  return at == book.lanes_.end() ? nullptr : &at->second;
}

}  // namespace orderly::detail
