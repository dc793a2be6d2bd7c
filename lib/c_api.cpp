/// \file
/// The C interface. A handle is a number that is never used twice: the low bits name a place in a table that is never
/// freed, the rest count how often that place was used. So a handle whose pool is gone is recognised without touching it.
#include <array>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <mutex>
#include <stdexcept>

#include "atomic.hpp"
#include "orderly/orderly.h"
#include "orderly/pool.hpp"

namespace {

using namespace orderly::detail;

constexpr unsigned place_bits = 10;
constexpr std::size_t places = std::size_t{1} << place_bits;

/// One pool's place. Constant-initialised, trivially destroyed: valid at any time of the process.
struct place {
  atomic<std::uint64_t> handle{0};  ///< 0: no pool
  orderly::pool* pool = nullptr;
  std::uint64_t uses = 0;
};

constinit std::array<place, places> table;
constinit std::mutex table_mutex;  // serves creation and destruction

constexpr std::size_t most_text = 512;
thread_local constinit std::array<char, most_text> last_error{};

int fail(orderly::error code, const char* text) noexcept {
  std::snprintf(last_error.data(), last_error.size(), "%s", text);
  return static_cast<int>(code);
}

int fail(orderly::error code) noexcept { return fail(code, orderly::to_string(code)); }

int fail(const orderly::bad_free& report) noexcept {
  try {
    return fail(report.code, report.message().c_str());
  } catch (const std::exception&) {  // no memory for the text
    return fail(report.code);
  }
}

/// The pool behind a handle, or null. The pool stays while no one destroys it, which is the caller's duty.
orderly::pool* find(const orderly_pool* handle) noexcept {
  const auto number = reinterpret_cast<std::uint64_t>(handle);
  place& at = table[number % places];
  // Pairs with the release in enter(): the pool is constructed before its handle can be seen.
  return number != 0 && at.handle.load(acquire) == number ? at.pool : nullptr;
}

orderly_pool* enter(std::unique_ptr<orderly::pool> made) noexcept {
  const std::lock_guard lock(table_mutex);
  for (std::size_t i = 0; i < places; ++i) {
    place& at = table[i];
    if (at.handle.load(relaxed) != 0) continue;  // changed under the mutex only
    at.pool = made.release();
    const std::uint64_t number = ++at.uses << place_bits | i;
    at.handle.store(number, release);  // find()
    return reinterpret_cast<orderly_pool*>(number);
  }
  return nullptr;
}

void ignore(const orderly::bad_free&) {}

}  // namespace

extern "C" {

int orderly_pool_create_host(const orderly_options* given, orderly_pool** pool) {
  if (pool == nullptr) return fail(orderly::error::invalid_argument, "orderly_pool_create_host: pool is null");
  *pool = nullptr;
  try {
    orderly::options settings;
    if (given != nullptr) {
      settings.capacity = given->capacity;
      settings.granule = given->granule;
      settings.chunk = given->chunk;
      settings.limit = given->limit;
    }
    settings.on_bad_free = ignore;  // the caller gets the code
    *pool = enter(std::make_unique<orderly::pool>(settings));
    if (*pool != nullptr) return ORDERLY_OK;
    return fail(orderly::error::out_of_memory, "orderly_pool_create_host: 1024 pools exist already");
  } catch (const std::invalid_argument& e) {
    return fail(orderly::error::invalid_argument, e.what());
  } catch (const std::exception& e) {
    return fail(orderly::error::source_failed, e.what());
  }
}

void orderly_pool_destroy(orderly_pool* pool) {
  std::unique_ptr<orderly::pool> dying;
  const std::lock_guard lock(table_mutex);
  if (orderly::pool* const found = find(pool)) {
    place& at = table[reinterpret_cast<std::uint64_t>(pool) % places];
    at.handle.store(0, relaxed);  // nobody may be using the pool; see the header
    at.pool = nullptr;
    dying.reset(found);
  }
}

void* orderly_allocate(orderly_pool* pool, size_t bytes) { return orderly_allocate_aligned(pool, bytes, 1); }

void* orderly_allocate_aligned(orderly_pool* pool, size_t bytes, size_t alignment) {
  orderly::pool* const found = find(pool);
  if (found == nullptr) {
    fail(orderly::error::pool_gone);
    return nullptr;
  }
  void* const block = found->try_allocate(bytes, alignment);
  if (block == nullptr) {
    const bool possible = std::has_single_bit(alignment) && alignment <= found->chunk();
    std::snprintf(last_error.data(), last_error.size(), "orderly: no block of %zu bytes aligned to %zu: %s", bytes,
                  alignment,
                  orderly::to_string(possible ? orderly::error::out_of_memory : orderly::error::invalid_argument));
  }
  return block;
}

int orderly_deallocate(orderly_pool* pool, void* pointer, size_t bytes) {
  orderly::pool* const found = find(pool);
  if (pointer == nullptr) return ORDERLY_OK;
  if (found == nullptr) return fail({.code = orderly::error::pool_gone, .pointer = pointer, .bytes = bytes});
  orderly::bad_free report;
  const orderly::error code = found->try_deallocate(pointer, bytes, &report);
  if (code == orderly::error::none) [[likely]]
    return ORDERLY_OK;
  return fail(report);
}

int orderly_defragment(orderly_pool* pool) {
  orderly::pool* const found = find(pool);
  if (found == nullptr) return fail(orderly::error::pool_gone);
  found->defragment();
  return ORDERLY_OK;
}

int orderly_trim(orderly_pool* pool, size_t keep_bytes) {
  orderly::pool* const found = find(pool);
  if (found == nullptr) return fail(orderly::error::pool_gone);
  found->trim(keep_bytes);
  return ORDERLY_OK;
}

size_t orderly_block_size(const orderly_pool* pool, const void* pointer) {
  const orderly::pool* const found = find(pool);
  return found == nullptr ? 0 : found->block_size(pointer);
}

int orderly_owns(const orderly_pool* pool, const void* pointer) {
  const orderly::pool* const found = find(pool);
  return found != nullptr && found->owns(pointer) ? 1 : 0;
}

int orderly_pool_stats(const orderly_pool* pool, orderly_stats* stats) {
  if (stats == nullptr) return fail(orderly::error::invalid_argument, "orderly_pool_stats: stats is null");
  *stats = {};
  const orderly::pool* const found = find(pool);
  if (found == nullptr) return fail(orderly::error::pool_gone);
  const orderly::statistics s = found->stats();
  *stats = {s.requested, s.allocated, s.cached, s.committed, s.peak_requested, s.peak_committed, s.capacity,
            s.allocations, s.frees, s.failed, s.bad_frees, s.passes};
  return ORDERLY_OK;
}

const char* orderly_strerror(int code) { return orderly::to_string(static_cast<orderly::error>(code)); }

const char* orderly_last_error(void) { return last_error.data(); }

}  // extern "C"
