// Names of tags under every schedule: a name has one number, everybody who asks gets it, and finds the whole name there.
#include <array>
#include <cstdint>
#include <string_view>

#include "explorer.hpp"
#include "tag_names.hpp"

using namespace orderly::detail;
using namespace orderly::model;

namespace {

struct of_names : scenario {
  tag_names tested;
  std::array<std::array<std::uint16_t, 256>, most_threads> got{};  // by thread and first letter; 0: nothing

  void name(unsigned self, char letter) {
    const char text[2] = {letter, '\0'};
    const std::uint16_t number = tested.number_of(text);
    got[self][static_cast<unsigned char>(letter)] = number;
    if (number != tag_names::other) expect_name(number, letter);
  }
  void expect_name(std::uint16_t number, char letter) const {
    const char* const there = tested.name_of(number);
    reads_plain(there);
    ORDERLY_EXPECT(there[0] == letter && there[1] == '\0', "number %u of %c is that of %s", number, letter, there);
  }
  /// `new_names` have numbers, the first there are, and threads agree on them.
  void expect_numbers(std::uint32_t new_names) {
    ORDERLY_EXPECT(tested.count() == 2 + new_names, "%u numbers are given, and not %u", tested.count(), 2 + new_names);
    std::array<int, tag_names::most> letter_of{};
    for (unsigned letter = 0; letter < 256; ++letter) {
      for (const auto& of_thread : got) {
        const std::uint16_t number = of_thread[letter];
        if (number <= tag_names::other) continue;
        ORDERLY_EXPECT(number < 2 + new_names, "%c has number %u", static_cast<char>(letter), number);
        ORDERLY_EXPECT(letter_of[number] == 0 || letter_of[number] == static_cast<int>(letter), "number %u is given twice",
                       number);
        letter_of[number] = static_cast<int>(letter);
        expect_name(number, static_cast<char>(letter));
        ORDERLY_EXPECT(tested.number_of(tested.name_of(number)) == number, "%c has two numbers", static_cast<char>(letter));
      }
    }
  }
};

/// Both register one name, and use its number.
struct same : of_names {
  void thread(unsigned self) override { name(self, 'a'); }
  void check() override { expect_numbers(1); }
};

/// Both register two names, in opposite order.
struct crossed : of_names {
  void thread(unsigned self) override {
    name(self, self == 0 ? 'a' : 'b');
    name(self, self == 0 ? 'b' : 'a');
  }
  void check() override { expect_numbers(2); }
};

/// Four names are one too many.
struct full : of_names {
  void thread(unsigned self) override {
    name(self, self == 0 ? 'a' : 'c');
    name(self, self == 0 ? 'b' : 'd');
  }
  void check() override {
    expect_numbers(3);
    unsigned others = 0;
    for (const auto& of_thread : got)
      for (const std::uint16_t number : of_thread) others += number == tag_names::other ? 1U : 0U;
    ORDERLY_EXPECT(others == 1, "%u of four names found no place", others);
  }
};

/// One looks at what the other two register.
struct looked_at : of_names {
  void thread(unsigned self) override {
    if (self != 2) return name(self, self == 0 ? 'a' : 'b');
    const bool counts = choose(2) == 0;  // else the numbers are made up
    const std::uint32_t end = counts ? tested.count() : 4;
    for (std::uint32_t number = 2; number < end; ++number) {
      const char* const there = tested.name_of(static_cast<std::uint16_t>(number));
      reads_plain(there);
      const bool named = there[0] == 'a' || there[0] == 'b';
      ORDERLY_EXPECT(named || (!counts && there[0] == 'u'), "number %u is given, and has no name", number);
    }
  }
  void check() override { expect_numbers(2); }
};

const registered<same> n1("tags", "same");
const registered<crossed> n2("tags", "crossed");
const registered<full> n3("tags", "full");
const registered<looked_at> n4("tags", "looked-at", {.threads = 3});
const registered<crossed> n5("tags", "stopped", {.parked = 3});

}  // namespace
