// Reading traces: bench/replay/trace.hpp and the formats.
#include "trace.hpp"

#include <archive.h>
#include <archive_entry.h>
#include <doctest/doctest.h>

#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "temporary_folder.hpp"

using namespace orderly::bench;
using orderly::test::temporary_folder;

namespace {

constexpr std::string_view rmm_header = "Thread,Time,Action,Pointer,Size,Stream\n";

trace read_text(std::string_view text, std::uint64_t unit = 1) {
  const temporary_folder folder;
  return read_trace(folder.file("trace.csv", text), unit);
}

/// The message of the refusal, without the folder.
std::string refusal(std::string_view text, std::uint64_t unit = 1) {
  const temporary_folder folder;
  try {
    static_cast<void>(read_trace(folder.file("trace.csv", text), unit));
  } catch (const bad_input& error) {
    const std::string message = error.what();
    const std::string prefix = folder.path("").string();
    return message.starts_with(prefix) ? message.substr(prefix.size()) : message;
  }
  return "accepted";
}

std::string rmm_refusal(std::string_view lines) { return refusal(std::string(rmm_header).append(lines)); }

std::string event_text(const trace& recorded) {
  std::ostringstream text;
  for (const event& call : recorded.events)
    text << (call.what == action::allocate ? '+' : '-') << call.block << ':' << call.bytes << '@' << call.thread << ' ';
  return text.str();
}

void add_filter(archive* out, std::string_view ending) {
  if (ending == ".gz") REQUIRE(archive_write_add_filter_gzip(out) == ARCHIVE_OK);
  if (ending == ".bz2") REQUIRE(archive_write_add_filter_bzip2(out) == ARCHIVE_OK);
  if (ending == ".xz") REQUIRE(archive_write_add_filter_xz(out) == ARCHIVE_OK);
  if (ending == ".zst") REQUIRE(archive_write_add_filter_zstd(out) == ARCHIVE_OK);
}

void write_compressed(const std::filesystem::path& file, const std::string& contents) {
  archive* const out = archive_write_new();
  add_filter(out, file.extension().string());
  REQUIRE(archive_write_set_format_raw(out) == ARCHIVE_OK);
  REQUIRE(archive_write_open_filename(out, file.c_str()) == ARCHIVE_OK);
  archive_entry* const entry = archive_entry_new();
  archive_entry_set_filetype(entry, AE_IFREG);
  REQUIRE(archive_write_header(out, entry) == ARCHIVE_OK);
  REQUIRE(archive_write_data(out, contents.data(), contents.size()) == static_cast<la_ssize_t>(contents.size()));
  archive_entry_free(entry);
  REQUIRE(archive_write_free(out) == ARCHIVE_OK);
}

/// More than one piece of the reader's, and hard to compress.
std::string long_log() {
  std::string text(rmm_header);
  std::uint64_t state = 1;
  for (int i = 1; i <= 20000; ++i) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    text += "1,0.5,allocate," + std::to_string(i) + "," + std::to_string(state >> 40) + ",0\n";
  }
  return text;
}

}  // namespace

TEST_CASE("an RMM log becomes dense blocks and threads") {
  const trace recorded = read_text(
      "Thread,Time,Action,Pointer,Size,Stream\n"
      "77,0.1,allocate,0x100,1000,0\n"
      "5,0.2,allocate,0x200,24,0\n"
      "77,0.3,free,0x200,24,0\n"
      "5,0.4,allocate,0x200,48,0\n"
      "5,0.5,free,0x100,1000,0\n");
  CHECK(event_text(recorded) == "+0:1000@0 +1:24@1 -1:24@0 +2:48@1 -0:1000@1 ");
  CHECK(recorded.name == "trace");
  CHECK(recorded.blocks == 3);
  CHECK(recorded.threads == 2);
  CHECK(recorded.peak_live_bytes == 1048);
  CHECK(recorded.unknown_frees == 0);
}

TEST_CASE("how long was recorded is told where the log tells") {
  const auto seconds = [](std::string_view first, std::string_view last) {
    std::string text(rmm_header);
    for (const std::string_view time : {first, std::string_view("half past"), last})
      text.append("1,").append(time).append(",allocate,0x").append(std::to_string(text.size())).append(",8,0\n");
    return read_text(text).recorded_seconds;
  };
  CHECK(seconds("0.25", "4.5").value() == doctest::Approx(4.25));
  CHECK(seconds("09:59:59.500000", "11:00:01.000000").value() == doctest::Approx(3601.5));
  CHECK_FALSE(seconds("23:59:59.0", "00:00:01.0"));
  CHECK_FALSE(seconds("", "12:"));
  CHECK_FALSE(seconds("-1", "nan"));
  CHECK_FALSE(read_text("Action,Pointer,Size\nallocate,0x1,8\n").recorded_seconds);
  CHECK_FALSE(read_text("id,lower,upper,size\na,0,1,3\n").recorded_seconds);
}

TEST_CASE("columns are found by name, in any order and among others") {
  const trace recorded = read_text(
      "Colour, Size ,Pointer,Action,Extra\r\n"
      "red, 8 ,ff, allocate,\r\n"
      "\r\n"
      "red,8,0xFF,free,x");
  CHECK(event_text(recorded) == "+0:8@0 -0:8@0 ");
}

TEST_CASE("a column of tags says what each block is for, failures and blocks of no bytes apart") {
  const trace recorded = read_text(
      "Thread,Time,Action,Pointer,Size,Stream,Tag\n"
      "1,0,allocate,0x100,1000,0,weights\n"
      "1,0,allocate failure,0x0,1000,0,huge\n"
      "1,0,allocate,(nil),0,0,nothing\n"
      "1,0,allocate,0x200,24,0,\n"
      "1,0,free,0x100,1000,0,ignored\n"
      "1,0,allocate,0x100,48,0, weights \n"
      "1,0,allocate,0x300,48,0,activations\n");
  CHECK(recorded.tags == std::vector<std::string>{"weights", "untagged", "activations"});
  CHECK(recorded.tag_of == std::vector<std::uint16_t>{0, 1, 0, 2});
  const trace plain = read_text(std::string(rmm_header) + "1,0,allocate,0x1,8,0\n");
  CHECK(plain.tags.empty());
  CHECK(plain.tag_of.empty());
}

TEST_CASE("frees of unknown pointers and recorded failures are counted and left out") {
  const trace recorded = read_text(std::string(rmm_header) +
                                   "1,0,free,0x1,8,0\n"
                                   "1,0,allocate,0x1,8,0\n"
                                   "1,0,free,0x1,8,0\n"
                                   "1,0,free,0x1,8,0\n"
                                   "1,0,allocate failure,0x0,99999,0\n");
  CHECK(event_text(recorded) == "+0:8@0 -0:8@0 ");
  CHECK(recorded.unknown_frees == 2);
  CHECK(recorded.recorded_failures == 1);
}

TEST_CASE("requests of no bytes") {
  const trace recorded = read_text(std::string(rmm_header) +
                                   "1,0,allocate,0x0,0,0\n"
                                   "1,0,allocate,(nil),0,0\n"
                                   "1,0,free,(nil),0,0\n"
                                   "1,0,allocate,0x10,0,0\n");
  CHECK(event_text(recorded) == "+0:1@0 ");
  CHECK(recorded.unknown_frees == 0);
}

TEST_CASE("a MiniMalloc file: the upper time is excluded") {
  const trace recorded = read_text(
      "id,lower,upper,size\n"
      "a,5,9,30\n"
      "b,0,5,20\n"
      "c,2,9,1\n");
  CHECK(event_text(recorded) == "+0:20@0 +1:1@0 -0:20@0 +2:30@0 -2:30@0 -1:1@0 ");
  CHECK(recorded.peak_live_bytes == 31);
}

TEST_CASE("the unit scales sizes") {
  CHECK(read_text("id,lower,upper,size\na,0,1,3\n", 1024).events.front().bytes == 3072);
  CHECK(refusal("id,lower,upper,size\na,0,1,274877906945\n", 1024) ==
        "trace.csv:2: expected a size of at most 2^48 bytes, found '274877906945 times 1024'");
}

TEST_CASE("compressed files read as plain ones do") {
  const temporary_folder folder;
  const std::string text = long_log();
  const std::string expected = event_text(read_trace(folder.file("plain.csv", text)));
  for (const std::string ending : {".gz", ".bz2", ".xz", ".zst"}) {
    CAPTURE(ending);
    const std::filesystem::path file = folder.path("packed.csv" + ending);
    write_compressed(file, text);
    REQUIRE(std::filesystem::file_size(file) < text.size());
    const trace recorded = read_trace(file);
    CHECK(recorded.name == "packed");
    CHECK(event_text(recorded) == expected);
  }
}

TEST_CASE("a truncated compressed file is refused") {
  const temporary_folder folder;
  for (const std::string ending : {".gz", ".bz2", ".xz", ".zst"}) {
    const std::filesystem::path file = folder.path("packed.csv" + ending);
    write_compressed(file, long_log());
    const std::uintmax_t whole = std::filesystem::file_size(file);
    for (const unsigned tenths : {9U, 5U, 2U}) {
      CAPTURE(ending);
      CAPTURE(tenths);
      std::filesystem::resize_file(file, whole * tenths / 10);
      CHECK_THROWS_AS(static_cast<void>(read_trace(file)), bad_input);
    }
  }
}

TEST_CASE("malformed lines: the file, the line, what was expected and what was found") {
  CHECK(rmm_refusal("1,0,alocate,0x1,8,0\n") ==
        "trace.csv:2: expected the action allocate, free or allocate failure, found 'alocate'");
  CHECK(rmm_refusal("1,0,allocate,0x1,8,0\n\n1,0,free\n") ==
        "trace.csv:4: expected 6 fields, as in the header, found '1,0,free'");
  CHECK(rmm_refusal("1,0,allocate,0x1,8,0,7\n") ==
        "trace.csv:2: expected 6 fields, as in the header, found '1,0,allocate,0x1,8,0,7'");
  CHECK(rmm_refusal("1,0,allocate,pointer,8,0\n") == "trace.csv:2: expected a hexadecimal pointer, found 'pointer'");
  CHECK(rmm_refusal("1,0,allocate,,8,0\n") == "trace.csv:2: expected a hexadecimal pointer, found ''");
  CHECK(rmm_refusal("1,0,allocate,0x,8,0\n") == "trace.csv:2: expected a hexadecimal pointer, found ''");
  CHECK(rmm_refusal("1,0,allocate,0x11112222333344445,8,0\n") ==
        "trace.csv:2: expected a hexadecimal pointer, found '11112222333344445'");
  CHECK(rmm_refusal("1,0,allocate,0x1,0x1,8,0\n").starts_with("trace.csv:2: expected 6 fields"));
  CHECK(rmm_refusal("1,0,allocate,0x1,0x2,0,0\n").starts_with("trace.csv:2: expected 6 fields"));
  CHECK(rmm_refusal("1,0,free,0x1,,0\n") == "trace.csv:2: expected a size in bytes, found ''");
  CHECK(rmm_refusal("1,0,allocate,0x1,8,0\n1,0,allocate,0x1,8,0\n") ==
        "trace.csv:3: expected a pointer that is not live, found 'the pointer allocated in line 2'");
  CHECK(refusal("id,lower,upper,size\na,5,5,1\n") ==
        "trace.csv:2: expected an upper time after the lower time 5, found '5'");
  CHECK(refusal("id,lower,upper,size\na,-1,5,1\n") ==
        "trace.csv:2: expected the time from which the buffer is live, found '-1'");
}

TEST_CASE("sizes that no program can have") {
  for (const std::string size : {"-1", "18446744073709551616", "99999999999999999999", "1e9", "12 34", "0x10", "12B"}) {
    CAPTURE(size);
    CHECK(rmm_refusal("1,0,allocate,0x1," + size + ",0\n") ==
          "trace.csv:2: expected a size in bytes, found '" + size + "'");
  }
  CHECK(rmm_refusal("1,0,allocate,0x1,18446744073709551615,0\n") ==
        "trace.csv:2: expected a size of at most 2^48 bytes, found '18446744073709551615 times 1'");
  CHECK(rmm_refusal("1,0,allocate,0x1,281474976710656,0\n") == "accepted");
  std::string many;
  for (int i = 1; i <= 16385; ++i) many += "1,0,allocate," + std::to_string(i) + ",281474976710656,0\n";
  CHECK(rmm_refusal(many) ==
        "trace.csv:16386: expected live sizes that sum to at most 2^62 bytes, found '4611967493404098560'");
}

TEST_CASE("files that are no trace") {
  const std::string expected =
      "trace.csv:1: expected a header line with the columns Action,Pointer,Size (RMM log), or id,lower,upper,size "
      "(MiniMalloc), found ";
  CHECK(refusal("") == expected + "the end of the file");
  CHECK(refusal("1,0,allocate,0x1,8,0\n") == expected + "'1,0,allocate,0x1,8,0'");
  CHECK(refusal(std::string("\x7f" "ELF\x02\0\0", 7)) == expected + "'\\x7fELF\\x02\\x00\\x00'");
  CHECK(refusal(std::string(100000, 'x'))
            .starts_with("trace.csv:1: expected a line of at most 65536 bytes, found 'xxx"));
  const temporary_folder folder;
  CHECK_THROWS_AS(static_cast<void>(read_trace(folder.path("absent.csv"))), bad_input);
  CHECK_THROWS_AS(static_cast<void>(read_trace(folder.path("absent.pickle"))), bad_input);
  CHECK_THROWS_AS(static_cast<void>(read_trace(folder.path(""))), bad_input);
}

TEST_CASE("a header alone is an empty trace") {
  const trace recorded = read_text(rmm_header);
  CHECK(recorded.events.empty());
  CHECK(recorded.threads == 0);
  CHECK(recorded.peak_live_bytes == 0);
}

TEST_CASE("a snapshot is converted on the way") {
  const temporary_folder folder;
  const trace recorded = read_trace(folder.file("step.json", R"({"device_traces": [[
    {"action": "alloc", "addr": 4096, "size": 512, "stream": 7, "time_us": 10},
    {"action": "free_requested", "addr": 4096, "size": 512, "stream": 7, "time_us": 20},
    {"action": "free_completed", "addr": 4096, "size": 512, "stream": 7, "time_us": 21}]]})"));
  CHECK(event_text(recorded) == "+0:512@0 -0:512@0 ");
  CHECK(recorded.name == "step");
  CHECK(recorded.unknown_frees == 0);
  CHECK_THROWS_AS(static_cast<void>(read_trace(folder.file("broken.json", "{"))), bad_input);
}
