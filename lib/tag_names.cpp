#include "tag_names.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

namespace orderly::detail {

/// FNV-1a.
std::uint32_t tag_names::hash(std::string_view name) noexcept {
  std::uint32_t hashed = 2166136261U;
  for (const char each : name) hashed = (hashed ^ static_cast<unsigned char>(each)) * 16777619U;
  return hashed;
}

/// 0: no number below the count that was read before has that name.
std::uint32_t tag_names::find(std::string_view name, std::uint32_t hashed) const noexcept {
  for (std::uint32_t place = hashed;; ++place) {
    const std::uint32_t number = places_[place % places].load(acquire);  // (b): its name is there
    if (number == 0) return 0;                                           // half of the places stay empty
    const char* const known = names_[number].load(relaxed);              // (b) has brought it
    reads_plain(known);
    if (name == known) return number;
  }
}

/// Puts a number into the table, unless it is there, and moves the count past it.
void tag_names::finish(std::uint32_t number, std::string_view name) noexcept {
  for (std::uint32_t place = hash(name);; ++place) {
    std::uint32_t there = 0;
    // (b) Release: the name, which this thread has put there or seen. Whoever finishes this number walks the same places, and
    // stops at the first that is empty or its own; so it is put into one.
    if (places_[place % places].compare_exchange_strong(there, number, release, relaxed) || there == number) break;
  }
  std::uint32_t expected = number;
  static_cast<void>(count_.compare_exchange_strong(expected, number + 1, release, relaxed));  // (c) -> number_of(): the table has it
}

std::uint16_t tag_names::number_of(std::string_view name) noexcept {
  name = name.substr(0, std::min(name.find('\0'), most_length));
  if (name.empty() || name == name_of(untagged)) return untagged;
  if (name == name_of(other)) return other;
  const std::uint32_t hashed = hash(name);
  std::unique_ptr<char[]> made;
  for (;;) {
    const std::uint32_t next = count_.load(acquire);  // (c)
    if (const std::uint32_t known = find(name, hashed); known != 0) return static_cast<std::uint16_t>(known);
    if (next == most) return other;
    if (made == nullptr) {
      made.reset(new (std::nothrow) char[name.size() + 1]);
      if (made == nullptr) return other;
      std::memcpy(made.get(), name.data(), name.size());
      made[name.size()] = '\0';
      writes_plain(made.get());
    }
    const char* there = nullptr;
    // (a) Release: the text. Acquire: the text of another thread, which came first.
    if (names_[next].compare_exchange_strong(there, made.get(), release, acquire)) {
      finish(next, name);
      static_cast<void>(made.release());
      return static_cast<std::uint16_t>(next);
    }
    reads_plain(there);
    finish(next, there);
  }
}

const char* tag_names::name_of(std::uint16_t number) const noexcept {
  if (number == other) return "other";
  const std::uint32_t place = number;
  const char* const known = place < first || place >= most ? nullptr : names_[place].load(acquire);  // (a)
  return known == nullptr ? "untagged" : known;
}

}  // namespace orderly::detail
