// Codes, reports and exceptions: orderly/error.hpp.
#include "orderly/error.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <set>
#include <sstream>
#include <string>

#include "orderly/orderly.h"

using namespace orderly;

namespace {

constexpr error every_error[] = {
    error::none,          error::invalid_argument, error::out_of_memory,      error::source_failed,
    error::stream_failed, error::double_free,      error::interior_pointer,   error::foreign_pointer,
    error::size_mismatch, error::wrong_pool,       error::misaligned_pointer, error::pool_gone,
    error::stale_handle,  error::pinned,
};

constexpr block_state every_state[] = {block_state::none,   block_state::free, block_state::cached,
                                       block_state::live, block_state::owned,  block_state::split};

static_assert(static_cast<int>(error::none) == ORDERLY_OK);
static_assert(static_cast<int>(error::invalid_argument) == ORDERLY_ERROR_INVALID_ARGUMENT);
static_assert(static_cast<int>(error::out_of_memory) == ORDERLY_ERROR_OUT_OF_MEMORY);
static_assert(static_cast<int>(error::source_failed) == ORDERLY_ERROR_SOURCE_FAILED);
static_assert(static_cast<int>(error::stream_failed) == ORDERLY_ERROR_STREAM_FAILED);
static_assert(static_cast<int>(error::double_free) == ORDERLY_ERROR_DOUBLE_FREE);
static_assert(static_cast<int>(error::interior_pointer) == ORDERLY_ERROR_INTERIOR_POINTER);
static_assert(static_cast<int>(error::foreign_pointer) == ORDERLY_ERROR_FOREIGN_POINTER);
static_assert(static_cast<int>(error::misaligned_pointer) == ORDERLY_ERROR_MISALIGNED_POINTER);
static_assert(static_cast<int>(error::size_mismatch) == ORDERLY_ERROR_SIZE_MISMATCH);
static_assert(static_cast<int>(error::wrong_pool) == ORDERLY_ERROR_WRONG_POOL);
static_assert(static_cast<int>(error::pool_gone) == ORDERLY_ERROR_POOL_GONE);
static_assert(static_cast<int>(error::stale_handle) == ORDERLY_ERROR_STALE_HANDLE);
static_assert(static_cast<int>(error::pinned) == ORDERLY_ERROR_PINNED);

std::string text_of(const void* pointer) {
  std::ostringstream text;
  text << pointer;
  return text.str();
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("every code has a sentence of its own, the same in C") {
  std::set<std::string> sentences;
  for (const error code : every_error) {
    const char* sentence = to_string(code);
    REQUIRE(sentence != nullptr);
    CHECK(std::strlen(sentence) > 0);
    CHECK(std::strcmp(sentence, orderly_strerror(static_cast<int>(code))) == 0);
    sentences.insert(sentence);
  }
  CHECK(sentences.size() == std::size(every_error));
}

TEST_CASE("a code that does not exist has a sentence all the same") {
  for (const int code : {-1, 5, 9, 18, 1000, INT32_MAX, INT32_MIN}) {
    REQUIRE(to_string(static_cast<error>(code)) != nullptr);
    REQUIRE(orderly_strerror(code) != nullptr);
    CHECK(std::strlen(orderly_strerror(code)) > 0);
  }
}

TEST_CASE("every state has a name of its own") {
  std::set<std::string> names;
  for (const block_state state : every_state) {
    REQUIRE(to_string(state) != nullptr);
    names.insert(to_string(state));
  }
  CHECK(names.size() == std::size(every_state));
  CHECK(to_string(static_cast<block_state>(200)) != nullptr);
}

TEST_CASE("a report's message is one line with every value in it") {
  const auto address = [](std::uintptr_t value) { return reinterpret_cast<const void*>(value); };
  for (const error code : every_error) {
    for (const block_state state : every_state) {
      const bad_free report{code, address(0xabc100), 777, address(0xabc000), 4096, 3333, state};
      const std::string message = report.message();
      CAPTURE(message);
      CHECK(contains(message, text_of(report.pointer)));
      CHECK(contains(message, text_of(report.block)));
      CHECK(contains(message, "4096"));
      CHECK(contains(message, to_string(state)));
      CHECK_FALSE(contains(message, "\n"));
    }
  }
}

TEST_CASE("a size mismatch names both sizes") {
  const char memory = 0;
  const bad_free report{error::size_mismatch, &memory, 777, &memory, 4096, 3333, block_state::live};
  CHECK(contains(report.message(), "777"));
  CHECK(contains(report.message(), "3333"));
}

TEST_CASE("a report of a handle tells what became of it") {
  const char memory = 0;
  const auto message = [&](std::uint64_t generation, std::uint64_t now) {
    return bad_free{error::stale_handle, &memory, 12, &memory, 256, 12, block_state::live, generation, now}.message();
  };
  CHECK(contains(message(3, 4), "the handle of generation 3 was freed already;"));
  CHECK(contains(message(3, 5), "handed out with another handle 1 time since"));
  CHECK(contains(message(3, 6), "handed out with another handle 1 time since"));
  CHECK(contains(message(3, 103), "handed out with another handle 50 times since"));
  CHECK(contains(message(1, UINT64_MAX), "9223372036854775807 times since"));
  CHECK(contains(message(7, 5), "no handle of generation 7 was given"));
  CHECK(contains(message(2, 5), "no handle of generation 2 was given"));
  CHECK(contains(message(0, 5), "no handle of generation 0 was given"));
  CHECK_FALSE(contains(bad_free{error::double_free, &memory, 12}.message(), "handle"));
  const bad_free good_handle{error::size_mismatch, &memory, 12, &memory, 256, 1, block_state::live, 5, 5};
  CHECK_FALSE(contains(good_handle.message(), "generation"));
}

TEST_CASE("a report without a block, and an empty one, still have a message") {
  const char memory = 0;
  CHECK(contains(bad_free{error::foreign_pointer, &memory}.message(), text_of(&memory)));
  CHECK_FALSE(bad_free{}.message().empty());
  const bad_free extreme{error::size_mismatch, reinterpret_cast<const void*>(UINTPTR_MAX), SIZE_MAX,
                         reinterpret_cast<const void*>(UINTPTR_MAX), SIZE_MAX, SIZE_MAX, block_state::live};
  CHECK(contains(extreme.message(), std::to_string(SIZE_MAX)));
}

TEST_CASE("out_of_memory is a bad_alloc that names the sizes") {
  const out_of_memory refused(123456, 65536, 131072);
  CHECK(refused.requested() == 123456);
  const std::bad_alloc& base = refused;
  CHECK(contains(base.what(), "123456"));
  CHECK(contains(base.what(), "65536"));
  CHECK(contains(base.what(), "131072"));

  const out_of_memory copy = refused;
  CHECK(std::strcmp(copy.what(), refused.what()) == 0);
  CHECK(copy.what() != refused.what());

  const out_of_memory extreme(SIZE_MAX, SIZE_MAX, SIZE_MAX);
  CHECK(contains(extreme.what(), std::to_string(SIZE_MAX)));
  CHECK(std::strlen(extreme.what()) < 192);
}

TEST_CASE("bad_free_error carries the report and says its message") {
  const char memory = 0;
  const bad_free report{error::double_free, &memory, 12, &memory, 256, 0, block_state::cached};
  const bad_free_error thrown(report);
  const std::invalid_argument& base = thrown;
  CHECK(base.what() == report.message());
  CHECK(thrown.report().code == error::double_free);
  CHECK(thrown.report().pointer == &memory);
  CHECK(thrown.report().state == block_state::cached);
}

}  // TEST_SUITE
