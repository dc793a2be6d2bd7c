/// \file
/// Two layouts with one fingerprint: as many bytes, and another type and stride.
#pragma once

#include <array>
#include <cstdint>

#include "orderly/tensor.hpp"

namespace orderly::test {

struct same_fingerprint {
  tensor_layout a;
  tensor_layout b;
};

/// The stride of one element is anything; it is added last, so it can make up for what came before.
[[nodiscard]] inline same_fingerprint make_same_fingerprint() {
  constexpr std::uint64_t step = 0x9e3779b97f4a7c15;
  const auto mixed = [](std::uint64_t value) {  // as in lib/tensor.cpp
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
    value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
    return value ^ (value >> 31);
  };
  const auto before_stride = [&](tensor_type type) {
    const std::uint64_t packed =
        std::uint64_t{type.code} << 48 | std::uint64_t{type.bits} << 32 | std::uint64_t{type.lanes} << 8 | 1U;
    return mixed(mixed(packed + step) + step + 1);
  };
  const std::uint64_t difference = before_stride(tensor_types::float32) - before_stride(tensor_types::int32);
  const std::array<std::int64_t, 1> one{1};
  return {tensor_layout(one, std::array<std::int64_t, 1>{1}, tensor_types::float32),
          tensor_layout(one, std::array{static_cast<std::int64_t>(1 + difference)}, tensor_types::int32)};
}

}  // namespace orderly::test
