#include "registry.hpp"

#include <pthread.h>

#include <algorithm>
#include <mutex>
#include <new>
#include <vector>

#include "atomic.hpp"
#include "uncancelled.hpp"

namespace orderly::detail {
namespace {

/// Order of mutexes: gate, those of pools, list. Whoever asks needs the list alone, so he may hold a pool's mutexes, and a
/// fork that waits for these keeps nobody from asking.
struct registry {
  mutex gate;  ///< for who changes `alive`, or forks
  mutex list;  ///< for who looks at `alive`, or changes it; serves `unpinned` and pins
  condition_variable unpinned;
  std::vector<registered_pool*> alive;
};

/// Never destroyed: threads exit, and static pools are destroyed, after static destruction has begun.
registry& all() {
  static auto* const instance = new registry;
  return *instance;
}

}  // namespace

/// A process that forks takes every mutex first, so that none belongs to a thread that the child does not have. The youngest
/// pool first: its source may use an older one while it holds its own mutex.
struct fork_handlers {
  static void prepare() {
    registry& pools = all();
    pools.gate.lock();
    for (auto at = pools.alive.rbegin(); at != pools.alive.rend(); ++at) (*at)->before_fork();
    pools.list.lock();
  }
  static void parent() { release(false); }
  static void child() {
    new (&all().unpinned) condition_variable;  // nobody waits here, whatever the old one has counted
    release(true);
  }

  /// Throws std::bad_alloc.
  static void install() {
    static const bool once = [] {
      if (pthread_atfork(prepare, parent, child) != 0) throw std::bad_alloc();  // the next pool tries again
      return true;
    }();
    static_cast<void>(once);
  }

 private:
  static void release(bool child) {
    registry& pools = all();
    pools.list.unlock();
    for (registered_pool* const pool : pools.alive) {
      if (child) pool->pins_ = 0;
      pool->after_fork(child);
    }
    pools.gate.unlock();
  }
};

void registered_pool::enroll() {
  fork_handlers::install();
  registry& pools = all();
  const std::scoped_lock lock(pools.gate, pools.list);
  pools.alive.push_back(this);
  serial_ = next_serial();
}

void registered_pool::withdraw() noexcept {
  registry& pools = all();
  {
    const std::scoped_lock lock(pools.gate, pools.list);
    std::erase(pools.alive, this);
  }
  const uncancelled here;
  std::unique_lock lock(pools.list);
  pools.unpinned.wait(lock, [&] { return pins_ == 0; });
  writes_plain(this);
}

bool served_elsewhere(const void* pointer, const registered_pool* self) noexcept {
  registry& pools = all();
  const std::lock_guard lock(pools.list);
  return std::ranges::any_of(pools.alive,
                             [&](const registered_pool* p) { return p != self && p->contains(pointer); });
}

std::uint64_t next_serial() noexcept {
  static constinit atomic<std::uint64_t> next{1};
  return next.fetch_add(1, relaxed);  // only the number matters
}

bool is_alive(std::uint64_t serial) noexcept {
  registry& pools = all();
  const std::lock_guard lock(pools.list);
  return std::ranges::find(pools.alive, serial, &registered_pool::serial) != pools.alive.end();
}

void detach_if_alive(std::uint64_t serial, front& of) noexcept {
  registry& pools = all();
  registered_pool* found = nullptr;
  {
    const std::lock_guard lock(pools.list);
    const auto at = std::ranges::find(pools.alive, serial, &registered_pool::serial);
    if (at == pools.alive.end()) return;
    found = *at;
    ++found->pins_;
  }
  found->detach(of);
  reads_plain(found);
  const std::lock_guard lock(pools.list);
  if (--found->pins_ == 0) pools.unpinned.notify_all();
}

}  // namespace orderly::detail
