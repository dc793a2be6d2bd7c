#include "page.hpp"

#include <archive.h>
#include <archive_entry.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string_view>

namespace orderly::bench {

/// page.html with style and script in place; the build writes it, see embed_page.py.
extern const std::string_view page_template;

namespace {

/// Where the data goes.
constexpr std::string_view mark = "@DATA@";

struct closer {
  void operator()(archive* open) const noexcept { archive_write_free(open); }
};
using writer = std::unique_ptr<archive, closer>;

void check(const writer& out, int outcome) {
  if (outcome == ARCHIVE_OK) return;
  const char* why = archive_error_string(out.get());
  throw std::runtime_error(std::string("the page's data cannot be compressed") + (why != nullptr ? ": " : "") +
                           (why != nullptr ? why : ""));
}

la_ssize_t append(archive*, void* to, const void* bytes, std::size_t count) {
  static_cast<std::string*>(to)->append(static_cast<const char*>(bytes), count);
  return static_cast<la_ssize_t>(count);
}

/// As gzip, the same for the same text.
std::string compress(const std::string& text) {
  std::string result;
  const writer out(archive_write_new());
  if (out == nullptr) throw std::bad_alloc();
  check(out, archive_write_add_filter_gzip(out.get()));
  check(out, archive_write_set_filter_option(out.get(), "gzip", "timestamp", nullptr));
  check(out, archive_write_set_filter_option(out.get(), "gzip", "compression-level", "9"));
  check(out, archive_write_set_format_raw(out.get()));
  check(out, archive_write_set_bytes_per_block(out.get(), 0));  // else zeros would follow the end
  check(out, archive_write_open(out.get(), &result, nullptr, append, nullptr));
  const std::unique_ptr<archive_entry, void (*)(archive_entry*)> entry(archive_entry_new(), archive_entry_free);
  archive_entry_set_filetype(entry.get(), AE_IFREG);
  check(out, archive_write_header(out.get(), entry.get()));
  if (archive_write_data(out.get(), text.data(), text.size()) != static_cast<la_ssize_t>(text.size()))
    check(out, ARCHIVE_FATAL);
  check(out, archive_write_close(out.get()));
  return result;
}

std::string base64(const std::string& bytes) {
  constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t group = 0;
    for (std::size_t j = i; j < i + 3; ++j)
      group = group << 8 | (j < bytes.size() ? static_cast<unsigned char>(bytes[j]) : 0U);
    for (int shift = 18; shift >= 0; shift -= 6) text += digits[group >> shift & 63U];
  }
  const std::size_t missing = (3 - bytes.size() % 3) % 3;
  text.replace(text.size() - missing, missing, missing, '=');
  return text;
}

}  // namespace

std::string page_with(const std::string& document) {
  std::string page(page_template);
  const std::size_t at = page.find(mark);
  if (at == std::string::npos) throw std::logic_error("page.html has no place for the data");
  return page.replace(at, mark.size(), base64(compress(document)));
}

}  // namespace orderly::bench
