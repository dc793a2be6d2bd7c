/// \file
/// Which parts of a divided block stay live: a bit for each, folded by word operations. Bit i % 32 of word i / 32 is
/// part i.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace orderly::detail {

class part_map {
 public:
  static constexpr std::uint32_t word_bits = 32;

  /// Words that so many parts take.
  [[nodiscard]] static constexpr std::size_t words_of(std::uint64_t parts) noexcept {
    return static_cast<std::size_t>((parts + word_bits - 1) / word_bits);
  }

  /// Pre: words_of(parts) words; parts is a power of two, at most 2^31.
  part_map(std::span<const std::uint32_t> words, std::uint32_t parts) noexcept : words_(words), parts_(parts) {}

  [[nodiscard]] std::uint32_t parts() const noexcept { return parts_; }

  /// False: a bit is set that stands for no part.
  [[nodiscard]] bool valid() const noexcept { return parts_ >= word_bits || words_[0] >> parts_ == 0; }

  /// The first part from `from` on that is live, or that is not; parts() if there is none.
  [[nodiscard]] std::uint32_t next_live(std::uint32_t from) const noexcept { return next<0>(from); }
  [[nodiscard]] std::uint32_t next_free(std::uint32_t from) const noexcept { return next<~std::uint32_t{0}>(from); }

  [[nodiscard]] std::uint32_t count_live() const noexcept {
    std::uint32_t sum = 0;
    for (std::size_t at = other_word<0>(0); at != words_.size(); at = other_word<0>(at + 1))
      sum += static_cast<std::uint32_t>(std::popcount(words_[at]));
    return sum;
  }

  /// Calls visit(part) for each live part, in order.
  template <class Visit>
  void each_live(Visit visit) const {
    for (std::size_t at = other_word<0>(0); at != words_.size(); at = other_word<0>(at + 1))
      for (std::uint32_t rest = words_[at]; rest != 0; rest &= rest - 1)
        visit(static_cast<std::uint32_t>(at * word_bits) + static_cast<std::uint32_t>(std::countr_zero(rest)));
  }

  /// Calls visit(part, order) for each largest aligned run of 2^order parts that are not live, in order. So a suffix of
  /// 2^m - h of 2^m parts is at most m runs, for h > 0.
  template <class Visit>
  void each_free(Visit visit) const {
    for (std::uint32_t at = next_free(0); at < parts_; at = next_free(at)) {
      const std::uint32_t end = next_live(at);
      while (at < end) {
        const auto aligned = static_cast<unsigned>(std::countr_zero(at));  // 32 for the first part: all there is
        const unsigned order = std::min(aligned, static_cast<unsigned>(std::bit_width(end - at) - 1));
        visit(at, order);
        at += std::uint32_t{1} << order;
      }
    }
  }

 private:
  /// The first word from `at` on that differs from `skipped`; the number of words if there is none.
  template <std::uint32_t skipped>
  [[nodiscard]] std::size_t other_word(std::size_t at) const noexcept {
    constexpr std::size_t stride = 16;  // long runs are the rule
    while (words_.size() - at >= stride) {
      std::uint32_t difference = 0;
      for (std::size_t i = 0; i < stride; ++i) difference |= words_[at + i] ^ skipped;
      if (difference != 0) break;
      at += stride;
    }
    while (at != words_.size() && words_[at] == skipped) ++at;
    return at;
  }

  /// The first bit from `from` on in which the words differ from `skipped`.
  template <std::uint32_t skipped>
  [[nodiscard]] std::uint32_t next(std::uint32_t from) const noexcept {
    if (from >= parts_) return parts_;
    std::size_t at = from / word_bits;
    std::uint32_t rest = (words_[at] ^ skipped) & ~std::uint32_t{0} << from % word_bits;
    if (rest == 0) {
      at = other_word<skipped>(at + 1);
      if (at == words_.size()) return parts_;
      rest = words_[at] ^ skipped;
    }
    const auto found = static_cast<std::uint32_t>(at * word_bits) + static_cast<std::uint32_t>(std::countr_zero(rest));
    return std::min(found, parts_);
  }

  std::span<const std::uint32_t> words_;
  std::uint32_t parts_;
};

}  // namespace orderly::detail
