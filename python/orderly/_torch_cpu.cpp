// PyTorch's allocator of host memory, with a pool below it and a recorder beside it. Compiled for the PyTorch that is
// installed, at its first use (orderly/torch.py), since the class that it extends differs from version to version.
//
// The allocator is put in place once, and stays. What it does is decided at each call: which pool serves, this thread's
// or everybody's, or none, and then the allocator that was there before does; and whether somebody records.
//
// A tensor's memory is freed by one function, whoever allocated it, as PyTorch wants it of an allocator that can be
// called for raw memory. The pool's own check tells whether a block is its own.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <type_traits>

namespace {

struct pool_hook {
  void* (*allocate)(void* context, std::size_t bytes) noexcept;
  bool (*free)(void* context, void* block, std::size_t bytes) noexcept;
  void* context;
};

struct recorder_hook {
  void (*allocated)(void* block, std::size_t bytes) noexcept;
  void (*freed)(void* block) noexcept;
};

c10::Allocator* before = nullptr;  // written once, before the allocator is in place
std::atomic<const pool_hook*> everybodys{nullptr};
thread_local const pool_hook* mine = nullptr;
std::atomic<const recorder_hook*> recorder{nullptr};

// Every pool that has ever served, newest last; blocks of each may come back at any time.
constexpr std::size_t most_pools = 64;
std::array<std::atomic<const pool_hook*>, most_pools> pools{};
std::atomic<std::size_t> pool_count{0};
std::mutex adding;

void free_block(void* block) {
  if (block == nullptr) return;
  // Pairs with the release below, here and in what follows: what is pointed at was written before.
  if (const recorder_hook* const log = recorder.load(std::memory_order_acquire)) log->freed(block);
  for (std::size_t i = pool_count.load(std::memory_order_acquire); i-- > 0;) {
    const pool_hook* const from = pools[i].load(std::memory_order_acquire);
    if (!from->free(from->context, block, 0)) continue;
    c10::profiledCPUMemoryReporter().Delete(block);
    return;
  }
  before->raw_deleter()(block);
}

c10::DataPtr make(std::size_t bytes) {
  const pool_hook* from = mine;
  if (from == nullptr) from = everybodys.load(std::memory_order_acquire);
  const recorder_hook* const log = recorder.load(std::memory_order_acquire);
  void* block = nullptr;
  if (bytes != 0 && from != nullptr) {
    block = from->allocate(from->context, bytes);
    if (block == nullptr) {
      if (log != nullptr) log->allocated(nullptr, bytes);
      c10::profiledCPUMemoryReporter().OutOfMemory(bytes);
      TORCH_CHECK(false, "DefaultCPUAllocator: can't allocate memory: you tried to allocate ", bytes,
                  " bytes. orderly: the pool's limit is reached; free tensors, or enable a pool with a higher limit");
    }
    c10::profiledCPUMemoryReporter().New(block, bytes);
  } else if (bytes != 0) {
    c10::DataPtr other = before->allocate(bytes);
    block = other.release_context();
  }
  if (log != nullptr && bytes != 0) log->allocated(block, bytes);
  return {block, block, &free_block, c10::Device(c10::DeviceType::CPU)};
}

constexpr bool allocates_const =
    std::is_same_v<decltype(&c10::Allocator::allocate), c10::DataPtr (c10::Allocator::*)(std::size_t) const>;

// As PyTorch had it first, and since.
template <bool is_const, class Base>
struct hooked final : Base {
  c10::DataPtr allocate(std::size_t bytes) const override { return make(bytes); }
  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }
};
template <class Base>
struct hooked<false, Base> final : Base {
  c10::DataPtr allocate(std::size_t bytes) override { return make(bytes); }
  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};

}  // namespace

extern "C" {

// 0: in place. 1: the allocator that is there cannot be called for raw memory, so that its blocks could not be told.
int orderly_torch_cpu_install() {
  const std::lock_guard<std::mutex> lock(adding);
  if (before != nullptr) return 0;
  c10::Allocator* const now = c10::GetCPUAllocator();
  if (now == nullptr || now->raw_deleter() == nullptr) return 1;
  before = now;
  static auto* const allocator = new hooked<allocates_const, c10::Allocator>;  // for ever, as PyTorch wants it
  c10::SetCPUAllocator(allocator, 0xff);
  return c10::GetCPUAllocator() == allocator ? 0 : 1;
}

// A pool for orderly_torch_cpu_use(). Null: there are too many.
const void* orderly_torch_cpu_add(void* allocate, void* free, void* context) {
  const std::lock_guard<std::mutex> lock(adding);
  const std::size_t count = pool_count.load(std::memory_order_relaxed);  // written under the mutex
  if (count == most_pools) return nullptr;
  auto* const added = new pool_hook{reinterpret_cast<decltype(pool_hook::allocate)>(allocate),
                                    reinterpret_cast<decltype(pool_hook::free)>(free), context};
  pools[count].store(added, std::memory_order_release);
  pool_count.store(count + 1, std::memory_order_release);
  return added;
}

// What serves from now on, in this thread or in all; null: in this thread what serves in all, in all what was there
// before. Returns what has served.
const void* orderly_torch_cpu_use(const void* pool, int in_this_thread) {
  const auto* const next = static_cast<const pool_hook*>(pool);
  if (in_this_thread == 0) return everybodys.exchange(next, std::memory_order_acq_rel);
  const pool_hook* const last = mine;
  mine = next;
  return last;
}

void orderly_torch_cpu_record(void* allocated, void* freed) {
  if (allocated == nullptr) return recorder.store(nullptr, std::memory_order_release);
  static const recorder_hook log{reinterpret_cast<decltype(recorder_hook::allocated)>(allocated),
                                 reinterpret_cast<decltype(recorder_hook::freed)>(freed)};  // the same each time
  recorder.store(&log, std::memory_order_release);
}

}  // extern "C"
