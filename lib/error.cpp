#include "orderly/error.hpp"

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <iterator>

#include "orderly/options.hpp"
#include "uncancelled.hpp"

namespace orderly {

const char* to_string(error code) noexcept {
  switch (code) {
    case error::none: return "no error";
    case error::invalid_argument: return "an option or argument is out of range";
    case error::out_of_memory: return "out of memory: the limit is reached and nothing could be reclaimed";
    case error::source_failed: return "the memory source refused to reserve or to commit";
    case error::stream_failed: return "a stream cannot be waited for: its device has failed, or it is no stream";
    case error::double_free: return "double free: the block is free already";
    case error::interior_pointer: return "the pointer lies inside a live block, not at its start";
    case error::foreign_pointer: return "foreign pointer: no pool of this process handed it out";
    case error::misaligned_pointer: return "misaligned pointer: not a multiple of the granule";
    case error::size_mismatch: return "the size given rounds to another class than the block's";
    case error::wrong_pool: return "the pointer belongs to another pool";
    case error::pool_gone: return "the pool is gone: destroyed, or moved from";
    case error::stale_handle: return "stale handle: it is not the block's, or no longer";
    case error::pinned: return "the block is pinned";
  }
  return "unknown error code";
}

const char* to_string(block_state state) noexcept {
  switch (state) {
    case block_state::none: return "none";
    case block_state::free: return "free";
    case block_state::cached: return "cached";
    case block_state::live: return "live";
    case block_state::owned: return "changing hands";
    case block_state::split: return "split";
  }
  return "unknown state";
}

namespace {

[[nodiscard]] const char* advice(error code) noexcept {
  switch (code) {
    case error::double_free: return "look for a second owner of the pointer";
    case error::interior_pointer: return "free the block's start";
    case error::foreign_pointer: return "free it where it came from";
    case error::misaligned_pointer: return "free the pointer that allocate returned";
    case error::size_mismatch: return "pass the bytes requested, or 0 if unknown";
    case error::wrong_pool: return "free it in the pool that it came from";
    case error::pool_gone: return "free blocks before their pool is destroyed";
    case error::stale_handle: return "look for a second owner of the handle";
    case error::pinned: return "unpin it first";
    default: return "see the documentation";
  }
}

/// The message, which fits. Without memory of its own: a bad free may be told where there is none.
using line = std::array<char, 512>;

[[nodiscard]] line message_of(const bad_free& report) noexcept {
  line text;
  std::size_t end = 0;
  const auto add = [&](const char* format, auto... values) {
    const int length = std::snprintf(text.data() + end, text.size() - end, format, values...);
    end = std::min(end + static_cast<std::size_t>(std::max(length, 0)), text.size() - 1);
  };
  add("orderly: bad free of %p", report.pointer);
  if (report.bytes != 0) add(" (%zu bytes)", report.bytes);
  add(": %s", to_string(report.code));
  if (report.block != nullptr) {
    add("; it falls in the block at %p of %zu bytes, which is %s", report.block, report.block_bytes,
        to_string(report.state));
    if (report.state == block_state::live) add(" (%zu bytes requested)", report.block_requested);
  }
  if (report.code == error::stale_handle || report.generation != report.block_generation) {
    const std::uint64_t generation = report.generation;
    const std::uint64_t since = (report.block_generation - generation) / 2;
    if (generation % 2 == 0 || generation > report.block_generation)
      add("; no handle of generation %" PRIu64 " was given for it", generation);
    else if (since == 0)
      add("; the handle of generation %" PRIu64 " was freed already", generation);
    else
      add("; the handle of generation %" PRIu64 " was freed already, and the block handed out with another handle "
          "%" PRIu64 " time%s since", generation, since, since == 1 ? "" : "s");
  }
  add("; %s", advice(report.code));
  return text;
}

}  // namespace

std::string bad_free::message() const { return message_of(*this).data(); }

out_of_memory::out_of_memory(std::size_t requested, std::size_t committed, std::size_t limit) noexcept
    : out_of_memory([&] {
        memory_report r;
        r.requested = requested;
        r.committed = committed;
        r.limit = r.capacity = limit;
        return r;
      }()) {}

out_of_memory::out_of_memory(const memory_report& report) noexcept : report_(report) {
  std::snprintf(text_, std::size(text_),
                "orderly: out of memory: %zu bytes requested, %zu committed, limit %zu; free blocks, raise the limit, or "
                "set an out-of-memory handler",
                report.requested, report.committed, report.limit);
}

bad_free_error::bad_free_error(const bad_free& report) : std::invalid_argument(report.message()), report_(report) {}

namespace on_bad_free {

void print(const bad_free& report) {
  const detail::uncancelled here;
  std::fprintf(stderr, "%s\n", message_of(report).data());
}

void abort(const bad_free& report) {
  print(report);
  std::abort();
}

void count(const bad_free&) {}

}  // namespace on_bad_free
}  // namespace orderly
