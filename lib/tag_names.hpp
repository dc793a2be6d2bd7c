/// \file
/// tag_names: names, each registered once, numbered in order, and never forgotten.
///
///   names   by number: set once, by CAS, the next free number only (a)
///   places  a hash table of the numbers (b)
///   count   numbers below it are in the table (c)
///
/// Who looks for a name reads the count, then the table: a name that has a number below the count is found. Who does not
/// find it puts it where the count is. If another name came there first, whoever meets it helps: puts the number into the
/// table, then moves the count. So a name gets one number: who puts it at n knows that it is not below n, and nobody else
/// can put anything there any more.
/// Linearization   (a) for a new name, else the look that finds it.
/// Progress        lock-free: a thread that stops anywhere leaves nothing that others cannot finish.
/// ABA             none: each of these changes once, or grows.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "atomic.hpp"
#include "fixed_offset.hpp"

namespace orderly::detail {

class tag_names {
 public:
  static constexpr std::uint32_t most = bounds::tag_names;
  static constexpr std::uint16_t untagged = 0;
  static constexpr std::uint16_t other = 1;
  static constexpr std::size_t most_length = 255;

  constexpr tag_names() noexcept = default;
  tag_names(const tag_names&) = delete;
  tag_names& operator=(const tag_names&) = delete;
  ~tag_names() = default;  // names stay: the one instance of the library ends with the process

  /// The number of a name; a new one, if it has none yet.
  [[nodiscard]] std::uint16_t number_of(std::string_view name) noexcept;

  /// Never null. What has no number is untagged.
  [[nodiscard]] const char* name_of(std::uint16_t number) const noexcept;

  /// Numbers below it may have been given.
  [[nodiscard]] std::uint32_t count() const noexcept { return count_.load(acquire); }  // (c): names are there

 private:
  static constexpr std::uint32_t first = 2;
  static constexpr std::uint32_t places = 2 * std::bit_ceil(most);
  static_assert(most > first && most - 1 <= UINT16_MAX);

  [[nodiscard]] static std::uint32_t hash(std::string_view name) noexcept;
  [[nodiscard]] std::uint32_t find(std::string_view name, std::uint32_t hashed) const noexcept;
  void finish(std::uint32_t number, std::string_view name) noexcept;

  std::array<atomic<const char*>, most> names_{};
  std::array<atomic<std::uint32_t>, places> places_{};  ///< 0: empty
  atomic<std::uint32_t> count_{first};
};

/// The process's. Constant-initialised, and never destroyed in earnest: names can be asked for at any time.
extern constinit tag_names all_tag_names;

/// Number of the tag that the calling thread's allocations bear.
ORDERLY_FIXED_OFFSET extern thread_local constinit std::uint16_t this_thread_tag;

}  // namespace orderly::detail
