/// \file
/// A check for what runs in doctest's tests and outside of them.
#pragma once

#include <stdexcept>
#include <string>

namespace orderly::test {

/// Throws unless the condition holds.
#define ORDERLY_REQUIRE(...) orderly::test::require(bool(__VA_ARGS__), __FILE__, __LINE__, #__VA_ARGS__)

inline void require(bool holds, const char* file, int line, const char* condition) {
  if (!holds) throw std::logic_error(std::string(file) + ":" + std::to_string(line) + ": not so: " + condition);
}

}  // namespace orderly::test
