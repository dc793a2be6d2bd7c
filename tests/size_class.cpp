// Classes and shapes, for every request up to 70000 granules and around every power of two above.
#include "size_class.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "block_word.hpp"
#include "support/classes.hpp"

using namespace orderly::detail;
using namespace orderly::test;

namespace {

constexpr std::uint64_t exhaustive = 70000;

/// Every request up to `exhaustive`, and the neighbours of every sixteenth of the powers of two above, up to 2^47.
std::vector<std::uint64_t> requests() {
  std::vector<std::uint64_t> all;
  for (std::uint64_t granules = 1; granules <= exhaustive; ++granules) all.push_back(granules);
  for (unsigned order = 17; order < 47; ++order) {
    for (std::uint64_t sixteenths = 16; sixteenths < 32; ++sixteenths) {
      const std::uint64_t edge = sixteenths << (order - 4);
      for (const std::uint64_t granules : {edge - 1, edge, edge + 1}) {
        if (granules > all.back()) all.push_back(granules);
      }
    }
  }
  return all;
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("a class holds its requests, and the smaller class does not") {
  std::size_t wrong = 0;
  for (const std::uint64_t granules : requests()) {
    const std::size_t index = class_of(granules);
    wrong += class_granules(index) < granules;
    wrong += index > 0 && class_granules(index - 1) >= granules;
  }
  CHECK(wrong == 0);
}

TEST_CASE("classes are numbered without gaps, and each length is of its own class") {
  CHECK(class_of(1) == 0);
  const std::size_t classes = class_of(std::uint64_t{1} << 47) + 1;
  for (std::size_t index = 0; index < classes; ++index) {
    CAPTURE(index);
    CHECK(class_of(class_granules(index)) == index);
    CHECK(class_of(class_granules(index) + 1) == index + 1);
  }
}

TEST_CASE("nothing is wasted up to 16 granules, and less than an eighth of the block above") {
  std::size_t wrong = 0;
  for (const std::uint64_t granules : requests()) {
    const std::uint64_t length = class_granules(class_of(granules));
    const std::uint64_t waste = length - granules;
    const bool tight = granules <= 16 ? waste == 0 : 8 * waste < granules;
    wrong += !tight;
    wrong += granules <= exhaustive && length != class_length(granules, 1);
  }
  CHECK(wrong == 0);
}

TEST_CASE("an order is the smallest that holds the request") {
  std::size_t wrong = 0;
  for (const std::uint64_t granules : requests()) {
    const unsigned order = order_of(granules);
    wrong += std::uint64_t{1} << order < granules;
    wrong += order > 0 && std::uint64_t{1} << (order - 1) >= granules;
  }
  CHECK(wrong == 0);
}

TEST_CASE("the shape of a request is its class: the smallest order, and the class's length") {
  std::size_t wrong = 0;
  for (const std::uint64_t granules : requests()) {
    const block_shape shape = shape_of(granules);
    wrong += shape.order != order_of(granules);
    wrong += shape.sixteenths < 9 && shape.order > 3;
    wrong += shape.sixteenths < 1 || shape.sixteenths > whole;
    wrong += granules_of(shape.order, shape.sixteenths) != class_granules(class_of(granules));
    wrong += shape_of(class_granules(class_of(granules))) != shape;
  }
  CHECK(wrong == 0);
}

TEST_CASE("an aligned shape has at least the order asked for, and is tight to its sixteenth") {
  std::size_t wrong = 0;
  for (unsigned least = 0; least <= 20; ++least) {
    for (std::uint64_t granules = 1; granules <= exhaustive; granules += granules < 300 ? 1 : 97) {
      const block_shape shape = shape_of(granules, least);
      const std::uint64_t length = granules_of(shape.order, shape.sixteenths);
      const std::uint64_t unit = std::max<std::uint64_t>(1, std::uint64_t{1} << shape.order >> 4);
      wrong += shape.order != std::max(least, order_of(granules));
      wrong += shape.sixteenths < 1 || shape.sixteenths > whole;
      wrong += length < granules || length - granules >= unit;
      wrong += least <= order_of(granules) && shape != shape_of(granules);
      wrong += shape_of(length, shape.order) != shape;
    }
  }
  CHECK(wrong == 0);
}

}  // TEST_SUITE
