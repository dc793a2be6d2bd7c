// What bench/replay reads: any bytes, plain or compressed, are a trace that keeps its promises, or are refused in one
// line.
#include "trace.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/require.hpp"
#include "target.hpp"

using namespace orderly::bench;

namespace {

/// A file in memory that holds the bytes.
class memory_file {
 public:
  memory_file(const std::uint8_t* data, std::size_t size) : file_(memfd_create("trace", 0)) {
    if (file_ < 0 || write(file_, data, size) != static_cast<ssize_t>(size))
      throw std::runtime_error("no file in memory");
  }
  memory_file(const memory_file&) = delete;
  memory_file& operator=(const memory_file&) = delete;
  ~memory_file() { close(file_); }
  [[nodiscard]] std::string name() const { return "/proc/self/fd/" + std::to_string(file_); }

 private:
  int file_;
};

void check(const trace& read) {
  struct state {
    std::uint64_t bytes = 0;
    bool freed = false;
  };
  std::vector<state> blocks;
  std::uint64_t live = 0;
  std::uint64_t peak = 0;
  std::vector<bool> seen(read.threads);
  for (const event& call : read.events) {
    ORDERLY_REQUIRE(call.bytes >= 1);
    ORDERLY_REQUIRE(call.thread < read.threads);
    seen[call.thread] = true;
    if (call.what == action::allocate) {
      ORDERLY_REQUIRE(call.block == blocks.size());
      blocks.push_back({call.bytes, false});
      live += call.bytes;
      peak = std::max(peak, live);
    } else {
      ORDERLY_REQUIRE(call.block < blocks.size());
      ORDERLY_REQUIRE(!blocks[call.block].freed && blocks[call.block].bytes == call.bytes);
      blocks[call.block].freed = true;
      live -= call.bytes;
    }
  }
  ORDERLY_REQUIRE(blocks.size() == read.blocks);
  ORDERLY_REQUIRE(peak == read.peak_live_bytes);
  ORDERLY_REQUIRE(std::all_of(seen.begin(), seen.end(), [](bool each) { return each; }));
}

void check_refusal(const std::string& message, const std::string& file) {
  ORDERLY_REQUIRE(message.starts_with(file + ":"));
  ORDERLY_REQUIRE(message.size() > file.size() + 2 && message.size() < 600);
  ORDERLY_REQUIRE(std::none_of(message.begin(), message.end(), [](char c) { return c == '\n' || c == '\0'; }));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const memory_file file(data + 1, size - 1);
  try {
    check(read_trace(file.name(), data[0] % 4 == 0 ? std::uint64_t{1} << (data[0] / 4) : 1));
  } catch (const bad_input& refused) {
    check_refusal(refused.what(), file.name());
  }
  return 0;
}
