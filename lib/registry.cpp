#include "registry.hpp"

#include <pthread.h>

#include <algorithm>
#include <mutex>
#include <new>
#include <vector>

#include "atomic.hpp"

namespace orderly::detail {
namespace {

struct registry {
  detail::mutex mutex;
  condition_variable unpinned;
  std::vector<registered_pool*> alive;
};

/// Never destroyed: threads exit, and static pools are destroyed, after static destruction has begun.
registry& all() {
  static auto* const instance = new registry;
  return *instance;
}

}  // namespace

/// A process that forks takes every mutex first, so that none belongs to a thread that the child does not have.
struct fork_handlers {
  static void prepare() {
    registry& pools = all();
    pools.mutex.lock();
    for (registered_pool* const pool : pools.alive) pool->before_fork();
  }
  static void parent() { release(false); }
  static void child() { release(true); }

 private:
  static void release(bool child) {
    registry& pools = all();
    for (registered_pool* const pool : pools.alive) {
      if (child) pool->pins_ = 0;
      pool->after_fork(child);
    }
    pools.mutex.unlock();
  }
};

void registered_pool::enroll() {
  static const int refused = pthread_atfork(fork_handlers::prepare, fork_handlers::parent, fork_handlers::child);
  if (refused != 0) throw std::bad_alloc();
  registry& pools = all();
  const std::lock_guard lock(pools.mutex);
  pools.alive.push_back(this);
  serial_ = next_serial();
}

void registered_pool::withdraw() noexcept {
  registry& pools = all();
  std::unique_lock lock(pools.mutex);
  std::erase(pools.alive, this);
  pools.unpinned.wait(lock, [&] { return pins_ == 0; });
}

bool served_elsewhere(const void* pointer, const registered_pool* self) noexcept {
  registry& pools = all();
  const std::lock_guard lock(pools.mutex);
  return std::ranges::any_of(pools.alive,
                             [&](const registered_pool* p) { return p != self && p->contains(pointer); });
}

std::uint64_t next_serial() noexcept {
  static constinit atomic<std::uint64_t> next{1};
  return next.fetch_add(1, relaxed);  // only the number matters
}

bool is_alive(std::uint64_t serial) noexcept {
  registry& pools = all();
  const std::lock_guard lock(pools.mutex);
  return std::ranges::find(pools.alive, serial, &registered_pool::serial) != pools.alive.end();
}

void detach_if_alive(std::uint64_t serial, front& of) noexcept {
  registry& pools = all();
  registered_pool* found = nullptr;
  {
    const std::lock_guard lock(pools.mutex);
    const auto at = std::ranges::find(pools.alive, serial, &registered_pool::serial);
    if (at == pools.alive.end()) return;
    found = *at;
    ++found->pins_;
  }
  found->detach(of);
  const std::lock_guard lock(pools.mutex);
  if (--found->pins_ == 0) pools.unpinned.notify_all();
}

}  // namespace orderly::detail
