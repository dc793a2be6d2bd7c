#include "orderly/error.hpp"

#include <cstdio>
#include <cstdlib>
#include <iterator>

#include "orderly/options.hpp"

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
    default: return "see the documentation";
  }
}

[[nodiscard]] std::string hexadecimal(const void* pointer) {
  char text[2 + 2 * sizeof pointer + 1];
  std::snprintf(text, std::size(text), "%p", pointer);
  return text;
}

}  // namespace

std::string bad_free::message() const {
  std::string text = "orderly: bad free of " + hexadecimal(pointer);
  if (bytes != 0) text += " (" + std::to_string(bytes) + " bytes)";
  text += std::string(": ") + to_string(code);
  if (block != nullptr) {
    text += "; it falls in the block at " + hexadecimal(block) + " of " + std::to_string(block_bytes) +
            " bytes, which is " + to_string(state);
    if (state == block_state::live) text += " (" + std::to_string(block_requested) + " bytes requested)";
  }
  if (code == error::stale_handle || generation != block_generation) {
    const std::string handle = "handle of generation " + std::to_string(generation);
    const std::uint64_t since = (block_generation - generation) / 2;
    if (generation % 2 == 0 || generation > block_generation)
      text += "; no " + handle + " was given for it";
    else if (since == 0)
      text += "; the " + handle + " was freed already";
    else
      text += "; the " + handle + " was freed already, and the block handed out with another handle " +
              std::to_string(since) + (since == 1 ? " time" : " times") + " since";
  }
  return text + "; " + advice(code);
}

out_of_memory::out_of_memory(std::size_t requested, std::size_t committed, std::size_t limit) noexcept
    : requested_(requested) {
  std::snprintf(text_, std::size(text_),
                "orderly: out of memory: %zu bytes requested, %zu committed, limit %zu; free blocks, raise the limit, or "
                "set an out-of-memory handler",
                requested, committed, limit);
}

bad_free_error::bad_free_error(const bad_free& report) : std::invalid_argument(report.message()), report_(report) {}

namespace on_bad_free {

void print(const bad_free& report) { std::fprintf(stderr, "%s\n", report.message().c_str()); }

void abort(const bad_free& report) {
  print(report);
  std::abort();
}

void count(const bad_free&) {}

}  // namespace on_bad_free
}  // namespace orderly
