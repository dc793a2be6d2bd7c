// Names of tags: each is registered once, whoever asks, and there is an end to them.
#include "tag_names.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "support/parks.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly::detail;
using namespace orderly::test;

namespace {

/// Names stay for ever, so what holds them does, too.
tag_names* fresh_names() {
  static auto& all = *new std::vector<std::unique_ptr<tag_names>>;
  return all.emplace_back(std::make_unique<tag_names>()).get();
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("a name has one number, and a number one name") {
  tag_names* const names = fresh_names();
  CHECK(names->count() == 2);
  const std::uint16_t weights = names->number_of("weights");
  CHECK(weights == 2);
  CHECK(names->number_of("activations") == 3);
  CHECK(names->number_of(std::string("weights")) == weights);
  CHECK(std::string_view(names->name_of(weights)) == "weights");
  CHECK(names->count() == 4);
}

TEST_CASE("names that are there from the start, no name, and numbers that nothing has") {
  tag_names* const names = fresh_names();
  CHECK(names->number_of("") == tag_names::untagged);
  CHECK(names->number_of({}) == tag_names::untagged);
  CHECK(names->number_of("untagged") == tag_names::untagged);
  CHECK(names->number_of("other") == tag_names::other);
  CHECK(std::string_view(names->name_of(tag_names::other)) == "other");
  CHECK(std::string_view(names->name_of(2)) == "untagged");
  CHECK(std::string_view(names->name_of(UINT16_MAX)) == "untagged");
  CHECK(names->count() == 2);
}

TEST_CASE("of a long name the first 255 bytes count; a zero byte ends it") {
  tag_names* const names = fresh_names();
  const std::string most(255, 'a');
  const std::uint16_t number = names->number_of(most);
  CHECK(names->number_of(most + "b") == number);
  CHECK(names->number_of(std::string(254, 'a')) != number);
  CHECK(names->name_of(number) == most);
  CHECK(names->number_of(std::string_view("x\0y", 3)) == names->number_of("x"));
}

TEST_CASE("what comes when the table is full is other, and what was there is found") {
  tag_names* const names = fresh_names();
  for (std::uint32_t i = 2; i < tag_names::most; ++i)
    REQUIRE(names->number_of("name " + std::to_string(i)) == i);
  CHECK(names->count() == tag_names::most);
  CHECK(names->number_of("one more") == tag_names::other);
  CHECK(names->number_of("name 2") == 2);
  CHECK(names->number_of("name 65535") == 65535);
  CHECK(names->count() == tag_names::most);
}

}

TEST_SUITE("stress") {

TEST_CASE("threads register the same names in different orders: all agree, and no number is wasted") {
  constexpr std::size_t threads = 4;
  constexpr std::size_t many = 4000;
  tag_names* const names = fresh_names();
  std::vector<std::vector<std::uint16_t>> numbers(threads, std::vector<std::uint16_t>(many));
  findings found;
  run_threads(threads, [&](std::size_t self) {
    for (std::size_t i = 0; i < many; ++i) {
      const std::size_t each = self % 2 == 0 ? i : many - 1 - i;
      const std::string name = "name " + std::to_string(each);
      numbers[self][each] = names->number_of(name);
      found.expect(names->name_of(numbers[self][each]) == name, name, " has another's number");
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  for (std::size_t self = 1; self < threads; ++self) CHECK(numbers[self] == numbers[0]);
  CHECK(names->count() == 2 + many);
}

TEST_CASE("threads meet at a number, with one name or one each: who comes second reads the first one's, and so does who looks") {
  constexpr std::uint32_t rounds = 20'000;
  tag_names* const names = fresh_names();
  std::atomic<std::uint32_t> arrived = 0;  // relaxed: meeting orders nothing
  findings found;
  run_threads(3, [&](std::size_t self) {
    std::uint32_t next = names->count();
    for (std::uint32_t round = 0; round < rounds; ++round) {
      const bool one = round % 2 == 0;
      const std::string mine = "name " + std::to_string(round) + (one || self == 0 ? "" : "b");
      arrived.fetch_add(1, std::memory_order_relaxed);
      while (arrived.load(std::memory_order_relaxed) < 3 * (round + 1)) std::this_thread::yield();
      if (self < 2) {
        const std::uint16_t number = names->number_of(mine);
        found.expect(number == next || (!one && number == next + 1), mine, " has the number ", number);
      } else {
        // Nothing but the name itself says that it is there.
        std::string_view seen = names->name_of(static_cast<std::uint16_t>(next));
        for (; seen == "untagged"; seen = names->name_of(static_cast<std::uint16_t>(next))) std::this_thread::yield();
        found.expect(seen.starts_with(std::string_view(mine).substr(0, mine.size() - (one ? 0 : 1))), seen, " at ", next);
      }
      next += one ? 1 : 2;
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(names->count() == 2 + rounds / 2 * 3);
}

#if defined(__x86_64__)  // elsewhere no thread is stopped at a chosen instruction

TEST_CASE("who registers a name is stopped at each instruction: nobody waits for it, and its name gets one number") {
  if (sanitized) return;
  tag_names* const names = fresh_names();
  findings found;
  std::string name;
  std::uint16_t number = 0;
  stepped registers([&] { number = names->number_of(name); });
  unsigned steps = 0;
  for (bool inside = true; inside && found.count() == 0;) {
    name = "stopped " + std::to_string(++steps);
    const std::string other = "other " + std::to_string(steps);
    inside = registers.stop(steps);
    const std::uint16_t others = names->number_of(other);  // for ever, if it waited
    const std::uint16_t seen = names->number_of(name);
    registers.finish();
    found.expect(names->name_of(others) == other, other, " has another's number");
    found.expect(names->name_of(number) == name, name, " has another's number");
    found.expect(seen == number, name, " has the numbers ", number, " and ", seen);
  }
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(names->count() == 2 + 2 * steps);
}

#endif

}
