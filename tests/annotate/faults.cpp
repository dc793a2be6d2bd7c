/// \file
/// Programs that touch memory of a pool, wrongly and rightly. tests/annotate/check.py runs them: a tool must report a
/// wrong one at the line that says so, and nothing in a right one. Each function below is a program; its name is the
/// argument.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "orderly/pmr.hpp"
#include "orderly/pool.hpp"
#include "orderly/software_stream.hpp"
#include "orderly/stream_pool.hpp"

namespace {

using orderly::pool;

constexpr std::size_t mib = std::size_t{1} << 20;
const orderly::options small{.capacity = 64 * mib};

volatile char seen;

char* bytes_of(void* block) { return static_cast<char*>(block); }

// ----------------------------------------------------------------------------------------------------------- wrong

void use_after_free() {
  pool memory(small);
  char* const block = bytes_of(memory.allocate(1000));
  memory.deallocate(block, 1000);
  seen = block[500];  // FAULT use_after_free
}

void write_after_free() {
  pool memory(small);
  char* const block = bytes_of(memory.allocate(1000));
  if (memory.try_deallocate(block) != orderly::error::none) return;
  block[999] = 1;  // FAULT write_after_free
}

void use_after_free_of_large() {
  pool memory(small);
  char* const block = bytes_of(memory.allocate(5 * mib + 1));
  memory.deallocate(block, 5 * mib + 1);
  seen = block[5 * mib];  // FAULT use_after_free_of_large
}

void use_after_free_elsewhere() {
  pool memory(small);
  char* const block = bytes_of(memory.allocate(3000));
  std::thread([&] {
    memory.deallocate(memory.allocate(3000), 3000);  // it has a front of its own
    memory.deallocate(block, 3000);
  }).join();
  seen = block[0];  // FAULT use_after_free_elsewhere
}

void use_after_free_without_front() {
  pool memory(small);
  char* const block = bytes_of(memory.allocate(3000));
  std::thread([&] { memory.deallocate(block, 3000); }).join();
  seen = block[0];  // FAULT use_after_free_without_front
}

void one_past_the_end() {
  pool memory(small);
  char* const block = bytes_of(memory.allocate(1001));
  block[1001] = 1;  // FAULT one_past_the_end
}

void one_past_the_end_of_large() {
  pool memory(small);
  char* const block = bytes_of(memory.allocate(5 * mib + 1));
  seen = block[5 * mib + 1];  // FAULT one_past_the_end_of_large
}

void one_past_the_end_of_reused() {
  pool memory(small);
  memory.deallocate(memory.allocate(1020), 1020);
  char* const block = bytes_of(memory.allocate(1010));
  seen = block[1010];  // FAULT one_past_the_end_of_reused
}

/// The next owner asked for less than one who asked for the length.
void past_the_end_after_block_size() {
  pool memory(small);
  char* const former = bytes_of(memory.allocate(1001));
  std::memset(former, 1, memory.block_size(former));
  memory.deallocate(former, 1001);
  char* const block = bytes_of(memory.allocate(1001));
  seen = block[1002];  // FAULT past_the_end_after_block_size
}

void use_after_trim() {
  pool memory(small);
  char* const block = bytes_of(memory.allocate(mib));
  std::memset(block, 1, mib);
  memory.deallocate(block, mib);
  if (memory.trim() == 0) return;
  seen = block[7];  // FAULT use_after_trim
}

void use_of_never_allocated() {
  pool memory(small);
  char* const block = bytes_of(memory.allocate(256));
  seen = block[256 + 4096];  // FAULT use_of_never_allocated
}

void use_of_fixed_buffer() {
  const auto buffer = std::make_unique<std::array<char, mib>>();
  pool memory(orderly::make_fixed_buffer_source(buffer->data(), mib), {.granule = 16});
  char* const block = bytes_of(memory.allocate(100));
  memory.deallocate(block, 100);
  seen = (*buffer)[static_cast<std::size_t>(block - buffer->data())];  // FAULT use_of_fixed_buffer
}

void use_through_pmr() {
  pool memory(small);
  orderly::memory_resource resource(memory);
  std::pmr::vector<char> letters(100, 'a', &resource);
  const char* const first = letters.data();
  letters = {};
  letters.shrink_to_fit();
  seen = first[1];  // FAULT use_through_pmr
}

void use_after_trim_in_stream() {
  const orderly::software_device device;
  orderly::stream_pool memory(orderly::make_host_source(), device.driver(), {.memory = small});
  orderly::software_stream stream(device);
  char* const block = bytes_of(memory.allocate(mib, stream.handle()));
  std::memset(block, 1, mib);
  memory.deallocate(block, mib, stream.handle());
  if (!memory.synchronize() || memory.trim() == 0) return;
  seen = block[7];  // FAULT use_after_trim_in_stream
}

/// What only a freed block points to is nobody's. LeakSanitizer names the line of the allocation.
void leak() {
  static pool& memory = *new pool(small);
  auto** const block = static_cast<char**>(memory.allocate(64));
  *block = bytes_of(std::malloc(77));  // FAULT leak
  memory.deallocate(block, 64);
}

// ----------------------------------------------------------------------------------------------------------- right

void reuse() {
  pool memory(small);
  std::vector<std::thread> threads;
  for (unsigned number = 0; number < 3; ++number) {
    threads.emplace_back([&memory, number] {
      std::vector<std::pair<char*, std::size_t>> mine;
      for (unsigned step = 0; step < 500; ++step) {
        const std::size_t bytes = (step * 7919 + number) % (step % 50 == 0 ? 300'000 : 3000) + 1;
        char* const block = bytes_of(memory.allocate(bytes));
        std::memset(block, 1, bytes);
        mine.emplace_back(block, bytes);
        if (mine.size() < 20) continue;
        for (std::size_t index = 0; index < 10; ++index) {
          memory.deallocate(mine[index].first, index % 2 == 0 ? mine[index].second : 0);
        }
        mine.erase(mine.begin(), mine.begin() + 10);
        if (step % 100 == 0) memory.trim();
      }
      for (const auto& [block, length] : mine) memory.deallocate(block, length);
    });
  }
  for (std::thread& each : threads) each.join();
}

/// Blocks that threads hand to each other and free far from home.
void hand_over() {
  pool memory(small);
  std::atomic<char*> box = nullptr;
  std::thread consumer([&] {
    for (int count = 0; count < 500;) {
      char* const block = box.exchange(nullptr);
      if (block == nullptr) {
        std::this_thread::yield();
        continue;
      }
      std::memset(block, 2, 500);
      memory.deallocate(block, 500);
      ++count;
    }
  });
  for (int count = 0; count < 500; ++count) {
    char* block = bytes_of(memory.allocate(500));
    std::memset(block, 1, 500);
    for (char* empty = nullptr; !box.compare_exchange_weak(empty, block); empty = nullptr) std::this_thread::yield();
  }
  consumer.join();
}

void whole_length() {
  pool memory(small);
  char* const block = bytes_of(memory.allocate(1001));
  const std::size_t length = memory.block_size(block);
  if (length <= 1001) std::abort();
  std::memset(block, 1, length);
}

void refused_frees() {
  pool memory({.capacity = small.capacity, .on_bad_free = nullptr});
  char* const block = bytes_of(memory.allocate(1000));
  memory.deallocate(block, 100'000);
  memory.deallocate(block + 256, 0);
  std::memset(block, 1, 1000);
  memory.deallocate(block, 1000);
  char* const next = bytes_of(memory.allocate(1000));
  memory.deallocate(block + 1, 1000);
  std::memset(next, 1, 1000);
  if (memory.stats().bad_frees != 3) std::abort();
}

void buffer_after_pool() {
  const auto buffer = std::make_unique<std::array<char, mib>>();
  {
    pool memory(orderly::make_fixed_buffer_source(buffer->data(), mib), {.granule = 16});
    memory.deallocate(memory.allocate(1000), 1000);
    (void)memory.allocate(100);
  }
  std::memset(buffer->data(), 1, mib);
}

/// Addresses that were a pool's are the system's again, and may become anything.
void addresses_after_pool() {
  char* block = nullptr;
  {
    pool memory(small);
    block = bytes_of(memory.allocate(mib));
    memory.deallocate(block, mib);
    memory.trim();
  }
  void* const again = mmap(block, mib, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (again != block) std::abort();
  std::memset(block, 1, mib);
}

/// Work in the stream uses a block after the host has freed it, and so does the next one's.
void stream_order() {
  const orderly::software_device device;
  orderly::stream_pool memory(orderly::make_host_source(), device.driver(), {.memory = small});
  orderly::software_stream stream(device);
  for (std::size_t bytes : {std::size_t{1000}, std::size_t{700}, 3 * mib}) {
    for (int count = 0; count < 20; ++count) {
      char* const block = bytes_of(memory.allocate(bytes, stream.handle()));
      stream.enqueue([block, bytes] { std::memset(block, 1, bytes); });
      memory.deallocate(block, bytes, stream.handle());
    }
    if (!memory.synchronize()) std::abort();
    memory.trim();
  }
}

void child_after_fork() {
  pool memory(small);
  char* const block = bytes_of(memory.allocate(1000));
  const pid_t child = fork();
  std::memset(block, 1, 1000);
  memory.deallocate(block, 1000);
  static void* const other = memory.allocate(2000);
  std::memset(other, 1, 2000);
  if (child == 0) _exit(0);
  int status = 0;
  waitpid(child, &status, 0);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) std::abort();
}

/// The only pointer to what is on the heap lies in a live block.
void pointers_in_blocks() {
  static pool& memory = *new pool(small);
  static auto** const block = static_cast<char**>(memory.allocate(64));
  *block = bytes_of(std::malloc(77));
  static auto** const large = static_cast<char**>(memory.allocate(6 * mib));
  large[5 * mib / sizeof(char*)] = bytes_of(std::malloc(78));
}

constexpr std::pair<std::string_view, void (*)()> programs[] = {
#define PROGRAM(name) {#name, name}
    PROGRAM(use_after_free),
    PROGRAM(write_after_free),
    PROGRAM(use_after_free_of_large),
    PROGRAM(use_after_free_elsewhere),
    PROGRAM(use_after_free_without_front),
    PROGRAM(one_past_the_end),
    PROGRAM(one_past_the_end_of_large),
    PROGRAM(one_past_the_end_of_reused),
    PROGRAM(past_the_end_after_block_size),
    PROGRAM(use_after_trim),
    PROGRAM(use_of_never_allocated),
    PROGRAM(use_of_fixed_buffer),
    PROGRAM(use_through_pmr),
    PROGRAM(use_after_trim_in_stream),
    PROGRAM(leak),
    PROGRAM(reuse),
    PROGRAM(hand_over),
    PROGRAM(whole_length),
    PROGRAM(refused_frees),
    PROGRAM(buffer_after_pool),
    PROGRAM(addresses_after_pool),
    PROGRAM(stream_order),
    PROGRAM(child_after_fork),
    PROGRAM(pointers_in_blocks),
#undef PROGRAM
};

}  // namespace

int main(int count, char** arguments) {
  for (const auto& [name, program] : programs) {
    if (count != 2 || name != arguments[1]) continue;
    program();
    return 0;
  }
  std::fputs("usage: faults PROGRAM, one of:\n", stderr);
  for (const auto& [name, program] : programs) std::fprintf(stderr, "  %s\n", name.data());
  return 3;
}
