/// \file
/// Where a test that does many things takes its decisions from: random numbers, or the bytes of a fuzzer's input.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "support/random.hpp"

namespace orderly::test {

class random_choices {
 public:
  explicit random_choices(std::uint64_t stream) : random_(make_random(stream)) {}

  [[nodiscard]] std::size_t uniform(std::size_t low, std::size_t high) { return test::uniform(random_, low, high); }
  [[nodiscard]] std::size_t log_uniform(std::size_t low, std::size_t high) {
    return test::log_uniform(random_, low, high);
  }

 private:
  random_engine random_;
};

/// As few bytes as the range needs, so that one byte more or less of an input changes little of what follows. When they
/// are spent, everything is the lowest.
class byte_choices {
 public:
  explicit byte_choices(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  [[nodiscard]] bool spent() const noexcept { return bytes_.empty(); }

  [[nodiscard]] std::size_t uniform(std::size_t low, std::size_t high) {
    std::size_t value = 0;
    for (std::size_t range = high - low; range != 0 && !spent(); range >>= 8) {
      value = value << 8 | bytes_.front();
      bytes_ = bytes_.subspan(1);
    }
    return high - low == SIZE_MAX ? value : low + value % (high - low + 1);
  }

  [[nodiscard]] std::size_t log_uniform(std::size_t low, std::size_t high) {
    const auto shift = uniform(static_cast<std::size_t>(std::bit_width(low)), static_cast<std::size_t>(std::bit_width(high)));
    const std::size_t power = shift == 0 ? 0 : std::size_t{1} << (shift - 1);
    return std::clamp(power + power / 256 * uniform(0, 255) + uniform(0, 1), low, high);
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

}  // namespace orderly::test
