/// \file
/// What can go wrong, as codes, as a report, and as exceptions.
///
/// The codes are the same in C++, in C (`ORDERLY_ERROR_…` in orderly.h) and in every adapter.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>

#include "orderly/export.h"
#include "orderly/report.hpp"

namespace orderly {

/// Outcome of an operation that does not throw. The values are stable across releases.
enum class error : int {
  none = 0,
  invalid_argument = 1,    ///< an option or argument is out of range
  out_of_memory = 2,       ///< the limit is reached and nothing could be reclaimed
  source_failed = 3,       ///< the memory source refused to reserve or to commit
  stream_failed = 4,       ///< a stream cannot be waited for: its device has failed, or the handle names no stream
  double_free = 10,        ///< the block is free or cached already
  interior_pointer = 11,   ///< the pointer lies inside a live block, not at its start
  foreign_pointer = 12,    ///< no pool of this process serves the pointer
  misaligned_pointer = 13, ///< the pointer is not a multiple of the granule
  size_mismatch = 14,      ///< the given size rounds to another class than the block's
  wrong_pool = 15,         ///< another pool of this process serves the pointer
  pool_gone = 16,          ///< the pool was destroyed, or moved from
  stale_handle = 17,       ///< the handle is not the block's: it was freed, and the block handed out again
  pinned = 18,             ///< the block is pinned where it is
};

/// One sentence about a code, never null, in static storage.
[[nodiscard]] ORDERLY_API const char* to_string(error code) noexcept;

/// What the pool knew of a block at one instant.
enum class block_state : unsigned char {
  none,   ///< no block starts here: inside a larger block, or never carved
  free,   ///< in the buddy system, ready to be split, merged or taken
  cached, ///< in a magazine of a thread or depot, ready to be handed out
  live,   ///< handed out
  owned,  ///< changing hands at this instant
  split,  ///< divided into smaller blocks
};

[[nodiscard]] ORDERLY_API const char* to_string(block_state state) noexcept;

/// A refused free: what was asked, and what the pool found there.
struct bad_free {
  error code = error::none;
  const void* pointer = nullptr;     ///< as given
  std::size_t bytes = 0;             ///< as given; 0: unknown
  const void* block = nullptr;       ///< start of the block that the pointer falls in; null: none
  std::size_t block_bytes = 0;       ///< length of that block
  std::size_t block_requested = 0;   ///< bytes requested for it, if it is live
  block_state state = block_state::none;
  std::uint64_t generation = 0;        ///< of the handle as given; 0: freed by address
  std::uint64_t block_generation = 0;  ///< of the last handle that was given for the block, one more if that has ended

  /// One line: the error with its values, and what to do.
  [[nodiscard]] ORDERLY_API std::string message() const;
};

/// Thrown by pool::allocate. what() is one line, report() the whole story.
class ORDERLY_API out_of_memory : public std::bad_alloc {
 public:
  /// Where there is no pool to report of: none could be made, say.
  out_of_memory(std::size_t requested, std::size_t committed, std::size_t limit) noexcept;
  explicit out_of_memory(const memory_report& report) noexcept;
  [[nodiscard]] const char* what() const noexcept override { return text_; }
  [[nodiscard]] std::size_t requested() const noexcept { return report_.requested; }
  [[nodiscard]] const memory_report& report() const noexcept { return report_; }

 private:
  memory_report report_;
  char text_[192];
};

/// Thrown by pool::deallocate_or_throw.
class ORDERLY_API bad_free_error : public std::invalid_argument {
 public:
  explicit bad_free_error(const bad_free& report);
  [[nodiscard]] const bad_free& report() const noexcept { return report_; }

 private:
  bad_free report_;
};

}  // namespace orderly
