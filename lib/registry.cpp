#include "registry.hpp"

#include <algorithm>
#include <mutex>
#include <vector>

namespace orderly::detail {
namespace {

struct registry {
  std::mutex mutex;
  std::vector<registered_pool*> alive;
  std::uint64_t next_serial = 1;
};

/// Never destroyed: threads exit, and static pools are destroyed, after static destruction has begun.
registry& all() {
  static registry* const instance = new registry;
  return *instance;
}

}  // namespace

void registered_pool::enroll() {
  registry& pools = all();
  const std::lock_guard lock(pools.mutex);
  pools.alive.push_back(this);
  serial_ = pools.next_serial++;
}

void registered_pool::withdraw() noexcept {
  registry& pools = all();
  const std::lock_guard lock(pools.mutex);
  std::erase(pools.alive, this);
}

bool served_elsewhere(const void* pointer, const registered_pool* self) noexcept {
  registry& pools = all();
  const std::lock_guard lock(pools.mutex);
  return std::ranges::any_of(pools.alive,
                             [&](const registered_pool* p) { return p != self && p->contains(pointer); });
}

bool is_alive(std::uint64_t serial) noexcept {
  registry& pools = all();
  const std::lock_guard lock(pools.mutex);
  return std::ranges::find(pools.alive, serial, &registered_pool::serial) != pools.alive.end();
}

void detach_if_alive(std::uint64_t serial, front& of) noexcept {
  registry& pools = all();
  const std::lock_guard lock(pools.mutex);
  const auto at = std::ranges::find(pools.alive, serial, &registered_pool::serial);
  if (at != pools.alive.end()) (*at)->detach(of);
}

}  // namespace orderly::detail
