#include <orderly/pmr.hpp>
#include <orderly/pool.hpp>

#include <cstddef>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <thread>
#include <vector>

namespace {

void use(orderly::pool& pool) {
  orderly::memory_resource resource(pool);
  std::pmr::map<int, std::pmr::vector<int>> numbers(&resource);
  for (int key = 0; key < 100; ++key) numbers[key].assign(static_cast<std::size_t>(key), key);

  void* block = pool.allocate(100'000);
  std::memset(block, 1, 100'000);
  pool.deallocate(block, 100'000);
}

}  // namespace

int main() {
  orderly::pool pool({.capacity = std::size_t{1} << 30});
  std::vector<std::thread> threads;
  for (int index = 0; index < 4; ++index) threads.emplace_back(use, std::ref(pool));
  for (std::thread& thread : threads) thread.join();

  const orderly::statistics stats = pool.stats();
  if (stats.allocations > 0 && stats.frees == stats.allocations && stats.requested == 0) return 0;
  std::fprintf(stderr, "%llu allocations, %llu frees\n", static_cast<unsigned long long>(stats.allocations),
               static_cast<unsigned long long>(stats.frees));
  return 1;
}
