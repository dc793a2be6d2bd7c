#include "cores.hpp"

#include <sched.h>

#include <algorithm>
#include <cstdio>

namespace orderly::bench {
namespace {

std::vector<std::size_t> allowed_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return {0};
  std::vector<std::size_t> found;
  for (std::size_t core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &allowed)) found.push_back(core);
  }
  return found;
}

}  // namespace

const std::vector<std::size_t>& cores() {
  static const std::vector<std::size_t> found = allowed_cores();
  return found;
}

std::vector<int> thread_counts() {
  const int all = static_cast<int>(cores().size());
  std::vector<int> counts = {1, 2, 4};
  for (int count = 8; count < all; count *= 2) counts.push_back(count);
  if (all > 2 && all != 4) counts.push_back(all);
  std::ranges::sort(counts);
  return counts;
}

void pin(int thread, int threads) {
  cpu_set_t chosen;
  CPU_ZERO(&chosen);
  if (static_cast<std::size_t>(threads) <= cores().size()) {
    CPU_SET(cores()[static_cast<std::size_t>(thread)], &chosen);
  } else {
    for (const std::size_t core : cores()) CPU_SET(core, &chosen);
  }
  if (sched_setaffinity(0, sizeof chosen, &chosen) != 0) std::perror("cannot choose the cores of a thread");
}

}  // namespace orderly::bench
