// The page with its data: bench/replay/page.hpp. What it does in a browser, page.py tests.
#include "page.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "byte_source.hpp"
#include "temporary_folder.hpp"

using namespace orderly::bench;
using orderly::test::temporary_folder;

namespace {

std::string from_base64(std::string_view text) {
  constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  std::uint32_t bits = 0;
  int count = 0;
  for (const char digit : text) {
    if (digit == '=') break;
    bits = bits << 6 | static_cast<std::uint32_t>(digits.find(digit));
    count += 6;
    if (count >= 8) bytes += static_cast<char>(bits >> (count -= 8) & 0xffU);
  }
  return bytes;
}

std::string document_in(const std::string& page) {
  const std::size_t tag = page.find("<script id=\"data\"");
  REQUIRE(tag != std::string::npos);
  const std::size_t begin = page.find('>', tag) + 1;
  const std::string packed = page.substr(begin, page.find('<', begin) - begin);
  CHECK(packed.size() % 4 == 0);
  const std::string bytes = from_base64(packed);
  const temporary_folder folder;
  const auto source = open_bytes(folder.file("data.gz", bytes));
  std::string text;
  while (source->append_to(text)) {
  }
  // A gzip stream ends with the length of its text, and browsers refuse what follows.
  std::size_t length = 0;
  for (std::size_t i = 1; i <= 4; ++i) length = length << 8 | static_cast<unsigned char>(bytes[bytes.size() - i]);
  CHECK(length == text.size());
  return text;
}

}  // namespace

TEST_CASE("the document is in the page as it was") {
  for (const std::size_t length : {1U, 2U, 3U, 4U, 100000U}) {
    std::string document;
    for (std::size_t i = 0; i < length; ++i) document += static_cast<char>('a' + i * i % 23);
    CHECK(document_in(page_with(document)) == document);
  }
}

TEST_CASE("the page is whole, the same each time, and names no other place") {
  const std::string page = page_with("{}");
  CHECK(page == page_with("{}"));
  for (const char* const mark : {"@DATA@", "@STYLE@", "@SCRIPT@"}) CHECK(page.find(mark) == std::string::npos);
  for (const char* const place : {"http:", "https:", "src=", "href=", "import ", "import(", "url("})
    CHECK(page.find(place) == std::string::npos);
  CHECK(page.find("default-src 'none'") != std::string::npos);
}
