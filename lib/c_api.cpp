/// \file The C interface. A handle is a number that is never used twice: the low bits name a place in a table that is
/// never freed, the rest count how often that place was used. So a handle whose pool is gone is recognised without
/// touching it.
#include "c_api.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "atomic.hpp"
#include "orderly/orderly.h"
#include "orderly/pool.hpp"
#include "orderly/tag.hpp"

namespace {

using namespace orderly::detail;

constexpr unsigned place_bits = 10;
constexpr std::size_t places = std::size_t{1} << place_bits;

/// One pool's place. Constant-initialised, trivially destroyed: valid at any time of the process. Creation and destruction
/// take it by a compare-and-swap to `changing`, and whoever does has the rest; no mutex that a fork could meet locked.
struct place {
  atomic<std::uint64_t> handle{0};          ///< 0: no pool
  orderly::pool* pool = nullptr;            ///< this or the next
  orderly::stream_pool* streams = nullptr;  ///< a pool in stream order
  std::uint64_t uses = 0;
};

/// What a call without a stream means in a pool in stream order: the legacy default stream.
constexpr orderly::stream_handle default_stream = nullptr;

constinit std::array<place, places> table;
constexpr std::uint64_t changing = ~std::uint64_t{0};  // no handle: uses do not come that far

constexpr std::size_t most_text = 512;
thread_local constinit std::array<char, most_text> last_error{};

using orderly::c_api::fail;

int fail(orderly::error code) noexcept { return fail(code, orderly::to_string(code)); }

int fail(const orderly::bad_free& report) noexcept {
  try {
    return fail(report.code, report.message().c_str());
  } catch (const std::exception&) {  // no memory for the text
    return fail(report.code);
  }
}

/// The place of a handle, or null. The pool stays while no one destroys it, which is the caller's duty.
const place* find(const orderly_pool* handle) noexcept {
  const auto number = reinterpret_cast<std::uint64_t>(handle);
  const place& at = table[number % places];
  // Pairs with the release in enter(): the pool is constructed before its handle can be seen.
  return number != 0 && number != changing && at.handle.load(acquire) == number ? &at : nullptr;
}

orderly_pool* enter(orderly::pool* made, orderly::stream_pool* made_with_streams) noexcept {
  for (std::size_t i = 0; i < places; ++i) {
    place& at = table[i];
    std::uint64_t expected = 0;
    // Acquire: the release in orderly_pool_destroy(), for the place's last uses.
    if (!at.handle.compare_exchange_strong(expected, changing, acquire, relaxed)) continue;
    writes_plain(&at);
    at.pool = made;
    at.streams = made_with_streams;
    const std::uint64_t number = ++at.uses << place_bits | i;
    at.handle.store(number, release);  // find()
    return reinterpret_cast<orderly_pool*>(number);
  }
  return nullptr;
}

/// What both kinds of pools do alike.
template <class Operation>
auto of_either(const place& at, const Operation& operation) {
  return at.streams != nullptr ? operation(*at.streams) : operation(*at.pool);
}

void ignore(const orderly::bad_free&) {}

/// What a program of whichever version has set; the rest is zero. Throws std::invalid_argument.
orderly_settings known_of(const orderly_settings* given, const char* function) {
  orderly_settings known{};
  if (given == nullptr) return known;
  constexpr std::size_t most = 4096;
  const std::size_t size = given->size;
  if (size < sizeof size || size > most)
    throw std::invalid_argument(std::string(function) + ": the settings' size is " + std::to_string(size) +
                                "; set it to sizeof(orderly_settings)");
  std::memcpy(&known, given, std::min(size, sizeof known));
  for (std::size_t at = sizeof known; at < size; ++at) {
    if (reinterpret_cast<const unsigned char*>(given)[at] != 0)
      throw std::invalid_argument(std::string(function) + ": byte " + std::to_string(at) +
                                  " of the settings is set, which belongs to a later version's");
  }
  return known;
}

int create_host(const orderly::options& given, std::size_t reserve, const char* function, orderly_pool** pool) {
  orderly::options settings = given;
  settings.on_bad_free = ignore;  // the caller gets the code
  auto made = std::make_unique<orderly::pool>(settings);
  if (reserve != 0) made->reserve(reserve);
  *pool = enter(made.get(), nullptr);
  if (*pool != nullptr) {
    static_cast<void>(made.release());
    return ORDERLY_OK;
  }
  std::snprintf(last_error.data(), last_error.size(), "%s: 1024 pools exist already", function);
  return ORDERLY_ERROR_OUT_OF_MEMORY;
}

/// Runs it, and turns what it throws into a code.
template <class Create>
int created(const Create& create) {
  try {
    return create();
  } catch (const std::invalid_argument& e) {
    return fail(orderly::error::invalid_argument, e.what());
  } catch (const std::exception& e) {
    return fail(orderly::error::source_failed, e.what());
  }
}

void say_no_block(const orderly::pool& of, std::size_t bytes, std::size_t alignment) noexcept {
  const bool possible = std::has_single_bit(alignment) && alignment <= of.chunk();
  std::snprintf(last_error.data(), last_error.size(), "orderly: no block of %zu bytes aligned to %zu: %s", bytes,
                alignment,
                orderly::to_string(possible ? orderly::error::out_of_memory : orderly::error::invalid_argument));
}

int say_no_stream(const void* pointer, orderly::stream_handle stream) noexcept {
  std::snprintf(last_error.data(), last_error.size(),
                "orderly: free of %p in %p: that is no stream, or the pool has too many; release some", pointer,
                stream);
  return ORDERLY_ERROR_INVALID_ARGUMENT;
}

}  // namespace

namespace orderly::c_api {

int fail(error code, const char* text) noexcept {
  std::snprintf(last_error.data(), last_error.size(), "%s", text);
  return static_cast<int>(code);
}

orderly_pool* enter(std::unique_ptr<stream_pool> made) noexcept {
  orderly_pool* const handle = ::enter(nullptr, made.get());
  if (handle != nullptr) static_cast<void>(made.release());
  return handle;
}

int find(const orderly_pool* handle, const char* function, stream_pool*& found) noexcept {
  const place* const at = ::find(handle);
  if (at == nullptr) return ::fail(error::pool_gone);
  found = at->streams;
  if (found != nullptr) [[likely]]
    return ORDERLY_OK;
  std::snprintf(last_error.data(), last_error.size(),
                "%s: this pool has no streams; create it with orderly_pool_create_cuda, or call the function without",
                function);
  return ORDERLY_ERROR_INVALID_ARGUMENT;
}

stream_options options_of(const orderly_settings* given, const char* function, std::size_t& reserve) {
  const orderly_settings known = known_of(given, function);
  stream_options settings;
  options& memory = settings.memory;
  memory.capacity = known.capacity;
  memory.granule = known.granule;
  memory.chunk = known.chunk;
  memory.limit = known.limit;
  memory.release_threshold = known.release_threshold;
  memory.soft_limit = known.soft_limit;
  if (known.slack != 0) memory.slack = known.slack < 0 ? 0 : known.slack;
  memory.account_tags = known.account_tags != 0;
  if (known.on_out_of_memory != nullptr)
    memory.on_out_of_memory = [handler = known.on_out_of_memory, context = known.context](std::size_t bytes) {
      return handler(bytes, context) != 0;
    };
  settings.safe_mode = known.safe_mode != 0;
  settings.watch_captures = known.watch_captures != 0;
  settings.wait_before_refusing = known.wait_before_refusing != 0;
  settings.seal_bytes = known.seal_bytes;
  reserve = known.reserve;
  return settings;
}

void* allocate(stream_pool& in, std::size_t bytes, std::size_t alignment, stream_handle stream) noexcept {
  void* const block = in.try_allocate(bytes, alignment, stream);
  if (block != nullptr) [[likely]]
    return block;
  if (std::has_single_bit(alignment) && alignment <= in.granule() && in.serves(stream)) {
    // Rather than an exception with its report: a program may come here often, where memory is short.
    const statistics now = in.stats().memory;
    fail(error::out_of_memory, out_of_memory(bytes, now.committed, now.limit).what());
    return nullptr;
  }
  try {
    return in.allocate(bytes, alignment, stream);
  } catch (const std::exception& e) {
    fail(error::out_of_memory, e.what());
    return nullptr;
  }
}

int deallocate(stream_pool& in, void* pointer, std::size_t bytes, stream_handle stream) noexcept {
  bad_free report;
  const error code = in.try_deallocate(pointer, bytes, stream, &report);
  if (code == error::none) [[likely]]
    return ORDERLY_OK;
  return code == error::invalid_argument ? say_no_stream(pointer, stream) : ::fail(report);
}

}  // namespace orderly::c_api

extern "C" {

int orderly_pool_create_host(const orderly_options* given, orderly_pool** pool) {
  if (pool == nullptr) return fail(orderly::error::invalid_argument, "orderly_pool_create_host: pool is null");
  *pool = nullptr;
  return created([&] {
    orderly::options settings;
    if (given != nullptr) {
      settings.capacity = given->capacity;
      settings.granule = given->granule;
      settings.chunk = given->chunk;
      settings.limit = given->limit;
    }
    return create_host(settings, 0, "orderly_pool_create_host", pool);
  });
}

int orderly_pool_create_host_with(const orderly_settings* given, orderly_pool** pool) {
  if (pool == nullptr) return fail(orderly::error::invalid_argument, "orderly_pool_create_host_with: pool is null");
  *pool = nullptr;
  return created([&] {
    constexpr const char* function = "orderly_pool_create_host_with";
    std::size_t reserve = 0;
    orderly::options settings = orderly::c_api::options_of(given, function, reserve).memory;
    if (known_of(given, function).slack == 0) settings.slack = orderly::options{}.slack;  // streams' is another
    return create_host(settings, reserve, function, pool);
  });
}

void orderly_pool_destroy(orderly_pool* pool) {
  if (find(pool) == nullptr) return;
  auto number = reinterpret_cast<std::uint64_t>(pool);
  place& at = table[number % places];
  // Of two threads that destroy one pool, one does. Acquire: as in find().
  if (!at.handle.compare_exchange_strong(number, changing, acquire, relaxed)) return;
  writes_plain(&at);
  const std::unique_ptr<orderly::pool> dying(std::exchange(at.pool, nullptr));
  const std::unique_ptr<orderly::stream_pool> dying_with_streams(std::exchange(at.streams, nullptr));
  at.handle.store(0, release);  // enter(); nobody may be using the pool, see the header
}

void* orderly_allocate(orderly_pool* pool, size_t bytes) { return orderly_allocate_aligned(pool, bytes, 1); }

void* orderly_allocate_aligned(orderly_pool* pool, size_t bytes, size_t alignment) {
  const place* const found = find(pool);
  if (found == nullptr) {
    fail(orderly::error::pool_gone);
    return nullptr;
  }
  if (found->streams != nullptr) return orderly::c_api::allocate(*found->streams, bytes, alignment, default_stream);
  void* const block = found->pool->try_allocate(bytes, alignment);
  if (block == nullptr) say_no_block(*found->pool, bytes, alignment);
  return block;
}

int orderly_deallocate(orderly_pool* pool, void* pointer, size_t bytes) {
  const place* const found = find(pool);
  if (pointer == nullptr) return ORDERLY_OK;
  if (found == nullptr) return fail({.code = orderly::error::pool_gone, .pointer = pointer, .bytes = bytes});
  if (found->streams != nullptr) return orderly::c_api::deallocate(*found->streams, pointer, bytes, default_stream);
  orderly::bad_free report;
  const orderly::error code = found->pool->try_deallocate(pointer, bytes, &report);
  if (code == orderly::error::none) [[likely]]
    return ORDERLY_OK;
  return fail(report);
}

orderly_checked_block orderly_allocate_checked(orderly_pool* pool, size_t bytes, size_t alignment) {
  const place* const found = find(pool);
  if (found == nullptr) {
    fail(orderly::error::pool_gone);
    return {};
  }
  orderly::checked_block made;
  if (found->streams != nullptr) {
    try {
      made = found->streams->allocate_checked(bytes, alignment, default_stream);
    } catch (const std::exception& e) {
      fail(orderly::error::out_of_memory, e.what());
    }
  } else {
    made = found->pool->try_allocate_checked(bytes, alignment);
    if (!made) say_no_block(*found->pool, bytes, alignment);
  }
  return {made.address, made.generation};
}

int orderly_deallocate_checked(orderly_pool* pool, orderly_checked_block block, size_t bytes) {
  const place* const found = find(pool);
  const orderly::checked_block freed{block.address, block.generation};
  if (!freed) return ORDERLY_OK;
  if (found == nullptr) return fail({.code = orderly::error::pool_gone, .pointer = freed.address, .bytes = bytes});
  orderly::bad_free report;
  const orderly::error code = found->streams != nullptr
                                  ? found->streams->try_deallocate(freed, bytes, default_stream, &report)
                                  : found->pool->try_deallocate(freed, bytes, &report);
  if (code == orderly::error::none) return ORDERLY_OK;
  return code == orderly::error::invalid_argument ? say_no_stream(freed.address, default_stream) : fail(report);
}

int orderly_defragment(orderly_pool* pool) {
  const place* const found = find(pool);
  if (found == nullptr) return fail(orderly::error::pool_gone);
  of_either(*found, [](auto& of) { return of.defragment(); });
  return ORDERLY_OK;
}

int orderly_trim(orderly_pool* pool, size_t keep_bytes) {
  const place* const found = find(pool);
  if (found == nullptr) return fail(orderly::error::pool_gone);
  of_either(*found, [=](auto& of) { return of.trim(keep_bytes); });
  return ORDERLY_OK;
}

int orderly_reserve(orderly_pool* pool, size_t bytes, size_t* committed) {
  if (committed != nullptr) *committed = 0;
  const place* const found = find(pool);
  if (found == nullptr) return fail(orderly::error::pool_gone);
  const std::size_t now = of_either(*found, [=](auto& of) { return of.reserve(bytes); });
  if (committed != nullptr) *committed = now;
  return ORDERLY_OK;
}

size_t orderly_block_size(const orderly_pool* pool, const void* pointer) {
  const place* const found = find(pool);
  return found == nullptr ? 0 : of_either(*found, [=](auto& of) { return of.block_size(pointer); });
}

int orderly_owns(const orderly_pool* pool, const void* pointer) {
  const place* const found = find(pool);
  return found != nullptr && of_either(*found, [=](auto& of) { return of.owns(pointer); }) ? 1 : 0;
}

int orderly_pool_stats(const orderly_pool* pool, orderly_stats* stats) {
  if (stats == nullptr) return fail(orderly::error::invalid_argument, "orderly_pool_stats: stats is null");
  *stats = {};
  const place* const found = find(pool);
  if (found == nullptr) return fail(orderly::error::pool_gone);
  const orderly::statistics s = found->streams != nullptr ? found->streams->stats().memory : found->pool->stats();
  *stats = {s.requested, s.allocated, s.cached, s.committed, s.peak_requested, s.peak_committed, s.capacity,
            s.allocations, s.frees, s.failed, s.bad_frees, s.passes};
  return ORDERLY_OK;
}

orderly_tag orderly_tag_named(const char* name) { return orderly::tag(name == nullptr ? "" : name).number(); }

const char* orderly_tag_name(orderly_tag tag) { return orderly::tag::of_number(tag).name(); }

orderly_tag orderly_tag_set(orderly_tag tag) {
  return orderly::tag::exchange(orderly::tag::of_number(tag)).number();
}

size_t orderly_pool_tags(const orderly_pool* pool, orderly_tag_stats* stats, size_t count) {
  const place* const found = find(pool);
  if (found == nullptr) {
    fail(orderly::error::pool_gone);
    return 0;
  }
  try {
    const std::vector<orderly::tag_statistics> all = of_either(*found, [](auto& of) { return of.tags(); });
    for (std::size_t i = 0; stats != nullptr && i < std::min(count, all.size()); ++i) {
      const orderly::tag_statistics& each = all[i];
      stats[i] = {each.tag.name(),  each.requested, each.allocated,   each.peak_requested,
                  each.allocations, each.frees,     each.tag.number()};
    }
    if (all.empty())
      fail(orderly::error::invalid_argument,
           "orderly_pool_tags: no tag was used, or the pool was created without orderly_settings.account_tags");
    return all.size();
  } catch (const std::bad_alloc&) {
    fail(orderly::error::out_of_memory, "orderly_pool_tags: no memory for the list");
    return 0;
  }
}

size_t orderly_report(const orderly_pool* pool, size_t requested, char* text, size_t bytes) {
  static_assert(static_cast<std::size_t>(ORDERLY_REPORT_BYTES) == orderly::memory_report::most_text);
  if (text == nullptr) bytes = 0;
  if (bytes != 0) text[0] = '\0';
  const place* const found = find(pool);
  if (found == nullptr) {
    fail(orderly::error::pool_gone);
    return 0;
  }
  return of_either(*found, [=](auto& of) { return of.report(requested).print(text, bytes); });
}

const char* orderly_strerror(int code) { return orderly::to_string(static_cast<orderly::error>(code)); }

const char* orderly_last_error(void) { return last_error.data(); }

}  // extern "C"
