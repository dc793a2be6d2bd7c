#include "thread_fronts.hpp"

#include <algorithm>
#include <new>
#include <vector>

#include "registry.hpp"

namespace orderly::detail {

thread_local constinit thread_fronts this_thread_fronts;

namespace {

/// All of a thread's fronts; its destructor gives them back. Touched in slow paths only.
class front_book {
 public:
  ~front_book() {
    this_thread_fronts.exiting = true;  // what this thread frees from now on goes past fronts
    this_thread_fronts.latest = {};
    this_thread_fronts.entries = {};
    for (const auto& e : entries_) detach_if_alive(e.serial, *e.of);
  }
  std::vector<thread_fronts::entry> entries_;
};

thread_local front_book book;

}  // namespace

bool remember_front(std::uint64_t serial, front* of) noexcept {
  if (this_thread_fronts.exiting) return false;
  try {
    if (book.entries_.size() == book.entries_.capacity())  // before it grows: pools may have come and gone
      std::erase_if(book.entries_, [](const thread_fronts::entry& e) { return !is_alive(e.serial); });
    book.entries_.push_back({serial, of});
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

}  // namespace orderly::detail
