// Layouts of tensors: what follows from a shape and from strides, and what is refused, with the values.
#include "orderly/tensor.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/random.hpp"
#include "support/same_fingerprint.hpp"
#include "support/scale.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

using extents = std::vector<std::int64_t>;

constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t least = std::numeric_limits<std::int64_t>::min();

[[nodiscard]] extents strides_of(const tensor_layout& of) { return {of.strides().begin(), of.strides().end()}; }

/// The message; empty: it is taken.
[[nodiscard]] std::string refusal(const extents& shape, tensor_type type = tensor_types::float32) {
  std::string why;
  const auto made = tensor_layout::make(shape, type, tensor_order::row_major, &why);
  CHECK(made.has_value() == why.empty());
  std::string thrown;
  try {
    static_cast<void>(tensor_layout(shape, type));
  } catch (const std::invalid_argument& refused) {
    thrown = refused.what();
  }
  CHECK(thrown == why);
  return why;
}
[[nodiscard]] std::string refusal(const extents& shape, const extents& strides,
                                  tensor_type type = tensor_types::float32) {
  std::string why;
  const auto made = tensor_layout::make(shape, strides, type, &why);
  CHECK(made.has_value() == why.empty());
  std::string thrown;
  try {
    static_cast<void>(tensor_layout(shape, strides, type));
  } catch (const std::invalid_argument& refused) {
    thrown = refused.what();
  }
  CHECK(thrown == why);
  return why;
}
[[nodiscard]] bool tells(const std::string& message, std::initializer_list<const char*> parts) {
  return std::all_of(parts.begin(), parts.end(),
                     [&](const char* part) { return message.find(part) != std::string::npos; });
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("dense layouts in both orders, scalars, and tensors without elements") {
  const tensor_layout rows({2, 3, 4}, tensor_types::float32);
  CHECK(strides_of(rows) == extents{12, 4, 1});
  CHECK(rows.elements() == 24);
  CHECK(rows.bytes() == 96);
  const tensor_layout columns({2, 3, 4}, tensor_types::float32, tensor_order::column_major);
  CHECK(strides_of(columns) == extents{1, 2, 6});
  CHECK(columns.bytes() == 96);
  CHECK_FALSE(rows == columns);
  CHECK(rows == tensor_layout(rows));
  for (const tensor_layout& scalar : {tensor_layout(), tensor_layout({}, tensor_types::float32)}) {
    CHECK(scalar.dimensions() == 0);
    CHECK(scalar.elements() == 1);
    CHECK(scalar.bytes() == 4);
  }
  const tensor_layout none({5, 0, most}, tensor_types::float64);
  CHECK(none.elements() == 0);
  CHECK(none.bytes() == 0);
  CHECK(none.shape()[2] == most);
  const extents deep(tensor_layout::most_dimensions, 1);
  CHECK(tensor_layout(deep, tensor_types::int8).bytes() == 1);
}

TEST_CASE("an element takes whole bytes, of all lanes together") {
  CHECK(tensor_type{1, 1, 1}.bytes() == 1);
  CHECK(tensor_type{1, 4, 3}.bytes() == 2);
  CHECK(tensor_type{2, 32, 4}.bytes() == 16);
  CHECK(tensor_layout({3}, {0, 4, 3}).bytes() == 6);
  CHECK(tensor_type{255, 255, 65535}.bytes() == (std::size_t{255} * 65535 + 7) / 8);
}

TEST_CASE("strides with gaps: the bytes reach from the first element to the end of the last") {
  const tensor_layout padded(extents{3, 5}, extents{8, 1}, tensor_types::int16);
  CHECK(padded.bytes() == (2 * 8 + 4 + 1) * 2);
  CHECK(padded.elements() == 15);
  CHECK(tensor_layout(extents{3, 5}, extents{1, 3}, tensor_types::int8).bytes() == 15);
  CHECK(tensor_layout(extents{4}, extents{3}, tensor_types::int8).bytes() == 10);
  // What there is one of may have any stride.
  CHECK(tensor_layout(extents{1, 4, 1}, extents{-7, 1, most}, tensor_types::int8).bytes() == 4);
  CHECK(tensor_layout(extents{0, 4}, extents{least, -1}, tensor_types::int8).bytes() == 0);
  CHECK(strides_of(tensor_layout(extents{1, 4}, extents{-7, 1}, tensor_types::int8)) == extents{-7, 1});
  // Given as they follow from the shape, it is the same layout.
  CHECK(tensor_layout(extents{2, 3}, extents{3, 1}, tensor_types::float32) == tensor_layout({2, 3}, tensor_types::float32));
}

TEST_CASE("what is refused, with its values") {
  CHECK(tells(refusal({2, -1}), {"(2, -1)", "negative extent"}));
  CHECK(tells(refusal({0, -1}), {"negative extent"}));
  CHECK(tells(refusal({most, least}), {"negative extent"}));
  CHECK(tells(refusal(extents(33, 1)), {"33 dimensions", "at most 32"}));
  CHECK(tells(refusal({1}, tensor_type{2, 0, 1}), {"0 bits"}));
  CHECK(tells(refusal({1}, tensor_type{2, 32, 0}), {"0 lanes"}));
  CHECK(tells(refusal({0}, tensor_type{2, 32, 0}), {"0 lanes"}));
  CHECK(tells(refusal({most}), {"2^63 - 1", "4 bytes"}));
  CHECK(tells(refusal({std::int64_t{1} << 32, std::int64_t{1} << 32}), {"2^63 - 1"}));
  // A product that wraps to a small number, in 64 bits, and over three factors.
  CHECK(tells(refusal({std::int64_t{1} << 62, 4, 4}), {"2^63 - 1"}));
  CHECK(tells(refusal({most, most, most}), {"2^63 - 1"}));
  CHECK(tells(refusal({std::int64_t{1} << 61, 8, 1}, tensor_types::int8), {"2^63 - 1"}));
  CHECK(refusal({most}, tensor_types::int8).empty());
  CHECK(tells(refusal({std::int64_t{1} << 62}, tensor_types::int16), {"2^63 - 1"}));
  CHECK(refusal({(std::int64_t{1} << 62) - 1}, tensor_types::int16).empty());

  CHECK(tells(refusal({2, 3}, extents{3}), {"1 strides for 2 extents"}));
  CHECK(tells(refusal({2, 3}, extents{3, 1, 1}), {"3 strides for 2 extents"}));
  CHECK(tells(refusal({2, 3}, extents{3, -1}), {"(3, -1)", "negative"}));
  CHECK(tells(refusal({2, 3}, extents{0, 1}), {"overlap", "(0, 1)"}));
  CHECK(tells(refusal({2, 3}, extents{2, 1}), {"overlap", "2 does not reach past 3"}));
  CHECK(tells(refusal({2, 2}, extents{1, 1}), {"overlap"}));
  CHECK(tells(refusal({2}, extents{most}), {"2^63 - 1"}));
  CHECK(tells(refusal({std::int64_t{1} << 40, 2}, extents{2, std::int64_t{1} << 40}), {"overlap"}));
  CHECK(tells(refusal({3, 3}, extents{most, most / 2}), {"2^63 - 1"}));
  CHECK(tells(refusal({2, 2}, extents{most, 1}, tensor_types::int8), {"2^63 - 1"}));
  CHECK(refusal({2}, extents{most - 1}, tensor_types::int8).empty());
}

TEST_CASE("layouts that differ in one thing have other fingerprints, and are not equal") {
  std::set<std::uint64_t> seen;
  std::size_t count = 0;
  const auto add = [&](const tensor_layout& of) {
    ++count;
    seen.insert(of.fingerprint());
  };
  for (std::int64_t a = 0; a < 40; ++a)
    for (std::int64_t b = 0; b < 40; ++b) add(tensor_layout({a, b}, tensor_types::float32));
  for (const tensor_type type : {tensor_types::int8, tensor_types::uint8, tensor_types::int16, tensor_type{0, 8, 2}})
    add(tensor_layout({7, 9}, type));
  add(tensor_layout({7, 9}, tensor_types::float32, tensor_order::column_major));
  add(tensor_layout(extents{7, 9}, extents{16, 1}, tensor_types::float32));
  add(tensor_layout({7, 9, 1}, tensor_types::float32));
  add(tensor_layout({1, 7, 9}, tensor_types::float32));
  CHECK(seen.size() == count);

  const tensor_layout one({7, 9}, tensor_types::float32);
  CHECK(one == tensor_layout({7, 9}, tensor_types::float32));
  CHECK_FALSE(one == tensor_layout({7, 9}, tensor_types::int32));
  CHECK_FALSE(one == tensor_layout({9, 7}, tensor_types::float32));
  CHECK_FALSE(one == tensor_layout({7, 9}, tensor_types::float32, tensor_order::column_major));
  CHECK_FALSE(one == tensor_layout({7, 9, 1}, tensor_types::float32));
}

TEST_CASE("layouts that share a fingerprint are not equal for that") {
  const same_fingerprint both = make_same_fingerprint();
  REQUIRE(both.a.fingerprint() == both.b.fingerprint());
  CHECK_FALSE(both.a == both.b);
  CHECK(both.b == tensor_layout(both.b));
}

TEST_CASE("assignment takes all of a layout, itself included") {
  tensor_layout some({2, 3}, tensor_types::int8);
  const tensor_layout other({4, 5, 6}, tensor_types::float64);
  some = other;
  CHECK(some == other);
  CHECK(strides_of(some) == extents{30, 6, 1});
  const tensor_layout& itself = some;
  some = itself;
  CHECK(some == other);
}

TEST_CASE("random strides: taken exactly when no two elements share a place, as far as the rule sees, and never short") {
  random_engine random = make_random(1);
  std::size_t taken = 0;
  for (std::size_t round = 0; round < scaled(20000); ++round) {
    extents shape(uniform(random, 1, 3));
    extents strides(shape.size());
    for (std::size_t i = 0; i < shape.size(); ++i) {
      shape[i] = static_cast<std::int64_t>(uniform(random, 1, 4));
      strides[i] = static_cast<std::int64_t>(uniform(random, 0, 14));
    }
    std::set<std::int64_t> places;
    std::size_t elements = 0;
    std::array<std::int64_t, 3> at{};
    for (at[0] = 0; at[0] < shape[0]; ++at[0])
      for (at[1] = 0; at[1] < (shape.size() > 1 ? shape[1] : 1); ++at[1])
        for (at[2] = 0; at[2] < (shape.size() > 2 ? shape[2] : 1); ++at[2]) {
          std::int64_t place = 0;
          for (std::size_t i = 0; i < shape.size(); ++i) place += at[i] * strides[i];
          places.insert(place);
          ++elements;
        }
    const auto made = tensor_layout::make(shape, strides, tensor_types::int16);
    if (!made) continue;
    ++taken;
    REQUIRE(places.size() == elements);
    REQUIRE(made->elements() == elements);
    REQUIRE(made->bytes() == 2 * static_cast<std::size_t>(*places.rbegin() + 1));
  }
  CHECK(taken > 100);
}

}
