/// \file
/// The functions of orderly/cuda/torch.h.
///
/// What is relied on, as PyTorch's torch/csrc/cuda/CUDAPluggableAllocator.h and .cpp and torch/csrc/cuda/Module.cpp
/// have it (sources of 2025 and 2026):
///
/// Signatures  alloc (size_t, int device, cudaStream_t) -> void*; free (void*, size_t, int device, cudaStream_t);
///             record_stream (void*, cudaStream_t); reset (); memory_fraction (double, int device);
///             base_alloc (void*, size_t*) -> void*; init (int device_count). The comment in PyTorch's Python class
///             leaves out the device of free; the C++ calls with it. All are called by address, as C functions.
/// Alloc       The device is the current one, the stream is current or given. The result is not compared with null. It
///             is called without a lock, and before PyTorch notes the block, so that an exception leaves nothing
///             behind; Python's binding turns every std::exception into RuntimeError. Size 0 arrives here.
/// Free        Size, device and stream are those of the allocation, from PyTorch's own table. Pointers that are not
///             there do not arrive. It is called from destructors, so nothing may be thrown.
/// MemPool     PyTorch's own allocator calls alloc for whole segments, takes null for "out of memory", frees cached
///             segments and tries again.
/// Init        is called when PyTorch initialises CUDA, perhaps more than once.
#include "orderly/cuda/torch.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>

#include "orderly/cuda.hpp"
#include "orderly/stream_pool.hpp"
#include "runtime.hpp"

namespace {

using namespace orderly::detail;
using orderly::stream_pool;

constexpr int most_devices = 128;  // PyTorch numbers devices in a signed byte

/// A device's pool, and what it is to be made of.
struct place {
  atomic<stream_pool*> pool{nullptr};  ///< set once, never freed: tensors may outlive everything else in the process
  double fraction = 1;                 ///< of the device's memory; guarded by the mutex
};

constinit std::array<place, most_devices> places;
constinit std::mutex making;  // one pool at a time is made

struct environment {
  std::size_t capacity = 0;
  bool safe_mode = false;
};

/// 0: not a number of bytes.
std::size_t bytes_of(const char* text) noexcept {
  char* end = nullptr;
  errno = 0;
  const unsigned long long number = std::strtoull(text, &end, 10);
  if (end == text || errno != 0 || std::strchr(text, '-') != nullptr) return 0;
  constexpr char units[] = "KMGT";
  unsigned shift = 0;
  if (*end != '\0') {
    const char* const unit = std::strchr(units, *end & ~0x20);
    if (unit == nullptr || *unit == '\0' || end[1] != '\0') return 0;
    shift = 10 * static_cast<unsigned>(unit - units + 1);
  }
  return number > std::numeric_limits<std::size_t>::max() >> shift ? 0 : static_cast<std::size_t>(number) << shift;
}

environment read_environment() {
  environment found;
  if (const char* const text = std::getenv("ORDERLY_TORCH_CAPACITY")) {
    found.capacity = bytes_of(text);
    if (found.capacity == 0)
      throw std::runtime_error("orderly: ORDERLY_TORCH_CAPACITY is \"" + std::string(text) +
                               "\"; give a number of bytes, as 1073741824, 1024M or 1G");
  }
  if (const char* const text = std::getenv("ORDERLY_TORCH_SAFE_MODE")) {
    found.safe_mode = std::strcmp(text, "1") == 0;
    if (!found.safe_mode && std::strcmp(text, "0") != 0)
      throw std::runtime_error("orderly: ORDERLY_TORCH_SAFE_MODE is \"" + std::string(text) + "\"; give 0 or 1");
  }
  return found;
}

/// What a fraction of a device's memory comes to. SIZE_MAX: the device does not say.
std::size_t part_of_memory(int device, double fraction) noexcept {
  const device_guard guard(device);
  std::size_t free = 0;
  std::size_t total = 0;
  const auto ask = [&] { return cudaMemGetInfo(&free, &total); };
  if (!guard.holds() || cuda_call("cudaMemGetInfo", ask) != cudaSuccess) return SIZE_MAX;
  return static_cast<std::size_t>(static_cast<double>(total) * fraction);
}

/// Pre: the mutex is held.
stream_pool* make_pool(int device) {
  const environment given = read_environment();
  const failure_watch watch;
  auto source = orderly::make_cuda_device_source(device, given.capacity);
  auto driver = orderly::make_cuda_stream_driver(device);
  const std::string name = "device " + std::to_string(device);
  if (source == nullptr || driver == nullptr)
    throw std::runtime_error("orderly: there is no CUDA " + name +
                             " here, or its driver is older than the CUDA runtime" + watch.text());
  const double fraction = places[static_cast<std::size_t>(device)].fraction;
  std::size_t bytes = source->capacity();
  if (fraction < 1) bytes = std::min(bytes, part_of_memory(device, fraction));

  orderly::stream_options settings;
  settings.memory.limit = std::max<std::size_t>(bytes, 1);
  settings.safe_mode = given.safe_mode;
  settings.watch_captures = true;  // little beside PyTorch's own mutex, and its graphs keep their memory
  settings.wait_before_refusing = source->is_virtual();  // as PyTorch's own allocator, where it helps
  try {
    return new stream_pool(std::move(source), std::move(driver), settings);
  } catch (const std::exception&) {  // too small for a granule, or refused
    throw std::runtime_error(
        "CUDA out of memory. orderly: " + name + " does not give the " + std::to_string(bytes) +
        " bytes in one piece that its pool is to have; set ORDERLY_TORCH_CAPACITY to less, or raise "
        "the memory fraction if it is set" +
        watch.text());
  }
}

stream_pool& pool_of(int device) {
  if (device < 0 || device >= most_devices)
    throw std::runtime_error("orderly: there is no CUDA device " + std::to_string(device));
  place& at = places[static_cast<std::size_t>(device)];
  // Pairs with the release below: the pool is there before it can be seen.
  if (stream_pool* const known = at.pool.load(acquire)) [[likely]]
    return *known;
  const std::lock_guard lock(making);
  if (stream_pool* const known = at.pool.load(relaxed)) return *known;  // written under the mutex
  stream_pool* const made = make_pool(device);
  at.pool.store(made, release);
  return *made;
}

/// The pool that the pointer's live block is of; null: none. `device` is its device.
stream_pool* owner_of(const void* pointer, int& device) noexcept {
  for (std::size_t i = 0; i < places.size(); ++i) {
    stream_pool* const of = places[i].pool.load(acquire);  // pool_of()
    if (of == nullptr || !of->owns(pointer)) continue;
    device = static_cast<int>(i);
    return of;
  }
  return nullptr;
}

[[noreturn]] void throw_out_of_memory(const stream_pool& of, std::size_t size, int device, const failure_watch& watch,
                                      const orderly::memory_report& report) {
  const orderly::stream_statistics now = of.stats();
  throw std::runtime_error(
      "CUDA out of memory. orderly: " + std::to_string(size) + " bytes were asked for on device " +
      std::to_string(device) + ". Its pool has " + std::to_string(now.memory.capacity) +
      " bytes: " + std::to_string(now.memory.allocated) + " in use (" + std::to_string(now.memory.requested) +
      " requested), " + std::to_string(now.held) +
      " freed in streams that are not done with them. Free tensors, or raise ORDERLY_TORCH_CAPACITY" + watch.text() +
      "\n" + report.message());
}

}  // namespace

extern "C" {

void* orderly_torch_alloc(std::size_t size, int device, void* stream) {
  if (size == 0) return nullptr;
  stream_pool& of = pool_of(device);
  const failure_watch watch;
  try {
    return of.allocate(size, stream);
  } catch (const orderly::out_of_memory& e) {
    throw_out_of_memory(of, size, device, watch, e.report());
  } catch (const std::invalid_argument& e) {
    throw std::runtime_error(e.what() + watch.text());
  }
}

void* orderly_torch_try_alloc(std::size_t size, int device, void* stream) {
  if (size == 0) return nullptr;
  try {
    return pool_of(device).try_allocate(size, stream);
  } catch (const std::exception& e) {  // there is no pool
    std::fprintf(stderr, "%s\n", e.what());
    return nullptr;
  }
}

void orderly_torch_free(void* ptr, std::size_t size, int device, void* stream) {
  if (ptr == nullptr) return;
  const bool known = device >= 0 && device < most_devices;
  stream_pool* const of = known ? places[static_cast<std::size_t>(device)].pool.load(acquire) : nullptr;  // pool_of()
  if (of != nullptr) return of->deallocate(ptr, size, stream);
  orderly::on_bad_free::print({.code = orderly::error::foreign_pointer, .pointer = ptr, .bytes = size});
}

void orderly_torch_record_stream(void* ptr, void* stream) {
  if (ptr == nullptr) return;
  int device = 0;
  stream_pool* const of = owner_of(ptr, device);
  const failure_watch watch;
  const orderly::error code = of != nullptr ? of->record_stream(ptr, stream) : orderly::error::foreign_pointer;
  if (code == orderly::error::none) return;
  std::fprintf(stderr, "orderly: use of %p in stream %p cannot be recorded: %s%s\n", ptr, stream,
               orderly::to_string(code), watch.text().c_str());
}

void orderly_torch_reset(void) {
  for (const place& at : places) {
    stream_pool* const of = at.pool.load(acquire);  // pool_of()
    if (of == nullptr) continue;
    static_cast<void>(of->synchronize());  // what cannot be waited for stays where it is
    of->defragment();
    of->trim();
  }
}

void orderly_torch_memory_fraction(double fraction, int device) {
  if (device < 0 || device >= most_devices || !(fraction >= 0 && fraction <= 1)) {
    std::fprintf(stderr, "orderly: memory fraction %g of device %d: not a part of a device's memory; ignored\n",
                 fraction, device);
    return;
  }
  place& at = places[static_cast<std::size_t>(device)];
  const std::lock_guard lock(making);
  at.fraction = fraction;
  const stream_pool* const of = at.pool.load(relaxed);  // written under the mutex
  if (of == nullptr || of->capacity() <= part_of_memory(device, fraction)) return;
  std::fprintf(
      stderr,
      "orderly: memory fraction %g of device %d comes too late: its pool has %zu bytes already and keeps them; set "
      "it before the first allocation\n",
      fraction, device, of->capacity());
}

void* orderly_torch_base_alloc(void* ptr, std::size_t* size) {
  if (size != nullptr) *size = 0;
  int device = 0;
  if (owner_of(ptr, device) == nullptr) return ptr;
  const device_guard guard(device);
  using find_range = CUresult (*)(CUdeviceptr*, std::size_t*, CUdeviceptr);
  const auto find = reinterpret_cast<find_range>(driver_function("cuMemGetAddressRange"));
  CUdeviceptr base = 0;
  std::size_t bytes = 0;
  const auto call = [&] { return find(&base, &bytes, reinterpret_cast<CUdeviceptr>(ptr)); };
  if (find == nullptr || driver_call("cuMemGetAddressRange", call) != CUDA_SUCCESS) return ptr;
  if (size != nullptr) *size = bytes;
  return reinterpret_cast<void*>(base);
}

int orderly_torch_memory_stats(int device, orderly_torch_stats* stats) {
  if (stats != nullptr) *stats = {};
  const bool known = device >= 0 && device < most_devices;
  const stream_pool* const of = known ? places[static_cast<std::size_t>(device)].pool.load(acquire) : nullptr;  // pool_of()
  if (of == nullptr || stats == nullptr) return 1;
  const orderly::stream_statistics now = of->stats();
  const orderly::statistics& memory = now.memory;
  *stats = {memory.requested,      memory.allocated,      memory.cached,   memory.committed, memory.peak_requested,
            memory.peak_committed, memory.capacity,       now.held,        memory.allocations, memory.frees,
            memory.failed,         memory.bad_frees,      memory.passes};
  return 0;
}

void orderly_torch_init(int) {
  try {
    static_cast<void>(read_environment());
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
  }
}

}  // extern "C"
