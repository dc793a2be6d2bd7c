/// \file
/// What a language's driver does for the corpus of bad input: one operation on a pool of that language each. How the
/// cases are written is said at the top of corpus.json; corpus.cpp reads them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "orderly/checked.hpp"
#include "orderly/error.hpp"
#include "support/audit.hpp"

namespace orderly::test {

/// What came of an operation. `message`: null where the language tells none.
struct outcome {
  error code = error::none;
  std::optional<std::string> message{};
};

/// As options, with the sizes as they are in every language. NaN: the default.
struct pool_settings {
  std::size_t capacity = 0, granule = 0, chunk = 0, limit = 0;
  double slack = 0.2;
};

/// Which pool, block and stream an operation is about. Names are the case's.
struct target {
  std::string pool = "tested";
  checked_block block{};
  bool by_handle = false;
  std::size_t bytes = 0;
  std::size_t alignment = 1;
  std::string stream{};
  bool wants_report = true;
};

/// The language has no such operation.
class unsupported : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

/// Pools of one language, by name. A pool that is named for the first time is made, as the case's kind of pool.
class driver {
 public:
  static constexpr std::size_t capacity = std::size_t{8} << 20;

  driver() = default;
  driver(const driver&) = delete;
  driver& operator=(const driver&) = delete;
  virtual ~driver() = default;

  /// Pools of this case: "host", "fixed_buffer" or "streams".
  virtual void use(const std::string& kind, const pool_settings& settings) = 0;

  /// Tries to make a pool with memory from that source, and lets it go.
  virtual outcome create(const pool_settings& settings, const std::string& source) = 0;
  virtual void destroy(const std::string& pool) = 0;

  virtual outcome allocate(const target& wanted, checked_block& got) = 0;
  virtual outcome free(const target& freed) = 0;
  virtual void defragment(const std::string& pool) = 0;
  virtual void trim(const std::string& pool, std::size_t keep) = 0;
  /// Blocks where the language shows them, and figures.
  [[nodiscard]] virtual books audit(const std::string& pool) = 0;

  virtual outcome stats_to_null() { throw unsupported("stats"); }
  virtual outcome record_stream(const target&) { throw unsupported("record_stream"); }
  virtual outcome divide(const target&, std::size_t /*part_bytes*/, const std::vector<std::uint32_t>&) {
    throw unsupported("divide");
  }
  virtual outcome begin_capture(const target&) { throw unsupported("begin_capture"); }
  virtual outcome end_capture(const target&) { throw unsupported("end_capture"); }
  virtual void release_stream(const std::string&) { throw unsupported("release_stream"); }
  virtual void destroy_stream(const std::string&) { throw unsupported("destroy_stream"); }
  virtual void synchronize(const std::string&) {}
};

/// A driver: the name of the language for the corpus, what is under test of it, and how it is made.
struct way {
  std::string_view language;
  std::string_view name;
  std::unique_ptr<driver> (*make)();
};

[[nodiscard]] std::vector<way> cpp_ways();
[[nodiscard]] std::vector<way> pmr_ways();
[[nodiscard]] std::vector<way> c_ways();

}  // namespace orderly::test
