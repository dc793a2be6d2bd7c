/// \file
/// Faults on purpose. A clean run of the other tests means something only where the sanitizer reports these.
///
///   canary race      hands a block over by a relaxed flag: ThreadSanitizer must report a data race
///   canary ordered   the same by release and acquire: nothing to report
///   canary overrun   reads past the end of a block: AddressSanitizer must report it
///   canary overflow  overflows an integer: UndefinedBehaviorSanitizer must report it
#include <atomic>
#include <cstdio>
#include <limits>
#include <string_view>
#include <thread>
#include <vector>

namespace {

int hand_over(std::memory_order store, std::memory_order load) {
  std::vector<int> block(16);
  std::atomic<bool> ready = false;
  std::thread writer([&] {
    for (int& value : block) ++value;
    ready.store(true, store);
  });
  while (!ready.load(load)) std::this_thread::yield();
  const int seen = block.back();
  writer.join();
  return seen == 1 ? 0 : 2;
}

int overrun(std::size_t index) {
  const std::vector<int> block(16, 1);
  return block.data()[index] == 1 ? 0 : 2;
}

int overflow(int value) { return value + std::numeric_limits<int>::max(); }

}  // namespace

int main(int count, char** arguments) {
  const std::string_view fault = count == 2 ? arguments[1] : "";
  if (fault == "race") return hand_over(std::memory_order_relaxed, std::memory_order_relaxed);
  if (fault == "ordered") return hand_over(std::memory_order_release, std::memory_order_acquire);
  if (fault == "overrun") return overrun(14 + static_cast<std::size_t>(count));
  if (fault == "overflow") return overflow(count);
  std::fputs("usage: canary race|ordered|overrun|overflow\n", stderr);
  return 3;
}
