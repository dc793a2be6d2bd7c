// The corpus of bad input, through every language: each case is refused in the way that it says, changes nothing, and
// the pool can be used afterwards. corpus.json says how a case is written.
#include <doctest/doctest.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <map>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cpp_driver.hpp"
#include "orderly/pool.hpp"
#include "support/process.hpp"

using namespace orderly;
using namespace orderly::test;
using nlohmann::json;

namespace {

const json& corpus() {
  static const json all = [] {
    std::ifstream file(ORDERLY_BAD_INPUT_CORPUS);
    return json::parse(file).at("cases");
  }();
  return all;
}

const std::map<std::string, error> codes{
    {"none", error::none},
    {"invalid_argument", error::invalid_argument},
    {"out_of_memory", error::out_of_memory},
    {"double_free", error::double_free},
    {"interior_pointer", error::interior_pointer},
    {"foreign_pointer", error::foreign_pointer},
    {"misaligned_pointer", error::misaligned_pointer},
    {"size_mismatch", error::size_mismatch},
    {"wrong_pool", error::wrong_pool},
    {"pool_gone", error::pool_gone},
    {"stale_handle", error::stale_handle},
};

/// "2 MiB - 5", from left to right.
std::size_t size_of(const json& value) {
  if (value.is_number()) return value.get<std::size_t>();
  std::istringstream words(value.get<std::string>());
  std::size_t sum = 0, term = 0;
  std::string word, operation = "+";
  const auto apply = [&] { sum = operation == "+" ? sum + term : operation == "-" ? sum - term : sum / term; };
  while (words >> word) {
    if (word == "+" || word == "-" || word == "/") {
      apply();
      operation = word;
    } else if (word == "SIZE_MAX") {
      term = SIZE_MAX;
    } else if (word == "KiB" || word == "MiB" || word == "GiB") {
      term <<= word == "KiB" ? 10 : word == "MiB" ? 20 : 30;
    } else {
      term = std::stoull(word);
    }
  }
  apply();
  return sum;
}

std::size_t size_in(const json& from, const char* key, std::size_t otherwise = 0) {
  return from.contains(key) ? size_of(from.at(key)) : otherwise;
}

std::string text_in(const json& from, const char* key, const std::string& otherwise = {}) {
  return from.value(key, otherwise);
}

std::string text_of(const void* pointer) {
  std::ostringstream text;
  text << pointer;
  return text.str();
}

pool_settings settings_of(const json& from) {
  pool_settings settings{size_in(from, "capacity"), size_in(from, "granule"), size_in(from, "chunk"),
                         size_in(from, "limit")};
  if (from.contains("slack")) settings.slack = std::stod(from.at("slack").get<std::string>());
  return settings;
}

alignas(256) char static_memory[512];

/// One case in one language.
class scene {
 public:
  scene(const way& through, const json& said) : language_(through.language), case_(said), driver_(through.make()) {
    pool_settings settings = settings_of(said.value("options", json::object()));
    if (settings.capacity == 0) settings.capacity = driver::capacity;
    limit_ = settings.limit != 0 ? settings.limit : settings.capacity;
    driver_->use(text_in(said, "pool", "host"), settings);
    for (const json& step : said.value("before", json::array())) prepare(step);
  }

  void check() {
    const json& attempt = case_.at("try");
    const bool about_pools = attempt.contains("create") || attempt.contains("stats");
    const books before = about_pools ? books{} : driver_->audit("tested");
    const outcome result = run(attempt);
    check_outcome(attempt, result);
    const error expected = expected_code();
    if (!about_pools && expected != error::none) {
      const books after = driver_->audit("tested");
      CHECK(same_books_but_refusals(before, after));
      const bool is_free = attempt.contains("free");
      const bool counted = is_free && expected != error::pool_gone && expected != error::invalid_argument;
      CHECK(after.stats.bad_frees - before.stats.bad_frees == counted);
      CHECK(after.stats.failed - before.stats.failed == (expected == error::out_of_memory));
    }
    if (case_.contains("frees")) live_.erase(case_.at("frees").get<std::string>());
    check_usable();
  }

  /// For the process that ends in it.
  void attempt() { static_cast<void>(run(case_.at("try"))); }
  void check_message(const std::string& message) const { check_words(case_.at("try"), message); }

 private:
  struct known_block {
    checked_block block;
    std::size_t bytes;
    std::string stream;
  };

  /// Its own value for a language, or one for all.
  [[nodiscard]] const json& mine(const json& value) const { return value.is_object() ? value.at(language_) : value; }
  [[nodiscard]] error expected_code() const { return codes.at(mine(case_.at("error")).get<std::string>()); }

  static bool same_books_but_refusals(const books& a, books b) {
    b.stats.failed = a.stats.failed;
    return same_books(a, b);
  }

  /// A step that has to succeed.
  void prepare(const json& step) {
    INFO("step: ", step.dump());
    const outcome result = run(step);
    REQUIRE((result.code == error::none || step.value("may_refuse", false)));
    if (step.contains("free") && result.code == error::none && size_in(step, "offset") == 0)
      live_.erase(step.at("free").get<std::string>());
  }

  outcome run(const json& step) {
    if (!step.value("thread", false)) return run_here(step);
    outcome result;
    std::thread([&] { result = run_here(step); }).join();
    return result;
  }

  outcome run_here(const json& step) {
    if (step.contains("create")) return driver_->create(settings_of(step.at("create")), text_in(step, "source"));
    if (step.contains("stats")) return driver_->stats_to_null();
    if (step.contains("allocate")) return allocate(step);
    if (step.contains("free")) return driver_->free(target_of(step, "free"));
    if (step.contains("record_stream")) return driver_->record_stream(target_of(step, "record_stream"));
    if (step.contains("divide")) {
      const outcome result = driver_->divide(target_of(step, "divide"), size_in(step, "part_bytes"),
                                             step.at("live").get<std::vector<std::uint32_t>>());
      return result;
    }
    if (step.contains("begin_capture"))
      return driver_->begin_capture({.stream = step.at("begin_capture").get<std::string>()});
    if (step.contains("end_capture"))
      return driver_->end_capture({.stream = step.at("end_capture").get<std::string>()});
    if (step.contains("defragment")) driver_->defragment(step.at("defragment").get<std::string>());
    if (step.contains("trim")) driver_->trim(step.at("trim").get<std::string>(), size_in(step, "bytes"));
    if (step.contains("release_stream")) driver_->release_stream(step.at("release_stream").get<std::string>());
    if (step.contains("destroy_stream")) driver_->destroy_stream(step.at("destroy_stream").get<std::string>());
    if (step.contains("destroy")) {
      const std::string name = step.at("destroy").get<std::string>();
      driver_->destroy(name);
      gone_ |= name == "tested";
    }
    return {};
  }

  outcome allocate(const json& step) {
    const std::string name = step.at("allocate").get<std::string>();
    target wanted{.pool = text_in(step, "pool", "tested"),
                  .by_handle = step.value("handle", false),
                  .bytes = size_in(step, "bytes"),
                  .alignment = size_in(step, "alignment", 1),
                  .stream = text_in(step, "stream")};
    checked_block got;
    const outcome result = driver_->allocate(wanted, got);
    if (result.code != error::none || !got) return result;
    blocks_[name] = got;
    if (step.contains("at")) REQUIRE(got.address == blocks_.at(step.at("at").get<std::string>()).address);
    if (wanted.pool == "tested") live_[name] = {got, wanted.bytes, wanted.stream};
    return result;
  }

  [[nodiscard]] target target_of(const json& step, const char* key) const {
    const std::string what = step.at(key).get<std::string>();
    target result{.pool = text_in(step, "pool", "tested"),
                  .by_handle = step.value("handle", false) || step.contains("generation"),
                  .bytes = size_in(step, "bytes"),
                  .alignment = size_in(step, "alignment", 1),
                  .stream = text_in(step, "stream"),
                  .wants_report = step.value("report", true)};
    const auto known = blocks_.find(what);
    if (known != blocks_.end())
      result.block = known->second;
    else if (what == "static memory")
      result.block.address = static_memory;
    else if (what == "stack")
      result.block.address = &result;
    else if (what == "heap")
      result.block.address = driver_.get();
    else if (what == "code")
      result.block.address = reinterpret_cast<void*>(&std::abort);
    else if (what != "null")
      result.block.address = reinterpret_cast<void*>(std::stoull(what, nullptr, 16));
    if (step.contains("generation")) result.block.generation = step.at("generation").get<std::uint64_t>();
    result.block.address = static_cast<char*>(result.block.address) + size_in(step, "offset");
    tried_ = result.block.address;
    return result;
  }

  void check_outcome(const json& attempt, const outcome& result) const {
    CHECK_MESSAGE(result.code == expected_code(), to_string(result.code));
    if (result.code != error::none && result.message) check_words(attempt, *result.message);
  }

  void check_words(const json& attempt, const std::string& message) const {
    CAPTURE(message);
    const auto names = [&](const std::string& part) {
      CAPTURE(part);
      CHECK(message.find(part) != std::string::npos);
    };
    const error expected = expected_code();
    if (attempt.contains("free")) {
      if (expected != error::invalid_argument) names(to_string(expected));
      names(text_of(tried_));
      const std::size_t bytes = size_in(attempt, "bytes");
      if (bytes != 0) names(std::to_string(bytes));
    }
    if (attempt.contains("allocate") && attempt.contains("bytes") && expected == error::out_of_memory)
      names(std::to_string(size_in(attempt, "bytes")));
    if (case_.contains("block")) {
      names(text_of(blocks_.at(case_.at("block").get<std::string>()).address));
      names(to_string(block_state::live));
    }
    for (const json& each : case_.value("says", json::array())) {
      std::string part = each.get<std::string>();
      if (part.front() == '{') {
        const std::string key = part.substr(1, part.size() - 2);
        const json& from = attempt.contains("create") ? attempt.at("create") : attempt;
        part = std::to_string(size_of(from.at(key)));
      }
      names(part);
    }
  }

  /// What is live can be freed, and then the whole pool allocated once and freed again.
  void check_usable() {
    for (const json& step : case_.value("after", json::array())) prepare(step);
    const std::string pool = gone_ ? "a new one" : "tested";
    const std::string stream = "s";
    const auto free = [&](const checked_block& block, std::size_t bytes) {
      const bool by_handle = block.generation != 0;
      const target freed{.pool = pool, .block = block, .by_handle = by_handle, .bytes = bytes, .stream = stream};
      CHECK(driver_->free(freed).code == error::none);
    };
    if (!gone_) {
      for (const auto& [name, known] : live_) {
        const json kept = case_.value("keeps", json::object());
        if (!kept.contains(name)) {
          free(known.block, known.bytes == 0 ? 1 : known.bytes);
          continue;
        }
        for (const json& offset : kept.at(name))
          free({static_cast<char*>(known.block.address) + size_of(offset), 0}, 0);
      }
    }
    driver_->synchronize(pool);
    constexpr std::size_t chunk = 64 * 1024;
    const std::uint64_t refused = driver_->audit(pool).stats.bad_frees;
    std::set<void*> all;
    for (;;) {
      checked_block got;
      if (driver_->allocate({.pool = pool, .bytes = chunk, .stream = stream}, got).code != error::none || !got) break;
      REQUIRE(all.insert(got.address).second);
    }
    CHECK(all.size() == limit_ / chunk);
    for (void* const block : all) free({block, 0}, chunk);
    const statistics stats = driver_->audit(pool).stats;
    CHECK(stats.bad_frees == refused);
    CHECK(stats.requested == 0);
    CHECK(stats.allocations == stats.frees);
  }

  std::string language_;
  const json& case_;
  std::unique_ptr<driver> driver_;
  std::map<std::string, checked_block> blocks_;
  std::map<std::string, known_block> live_;
  std::size_t limit_ = 0;
  bool gone_ = false;
  mutable const void* tried_ = nullptr;
};

bool is_for(const json& said, std::string_view language) {
  if (!said.contains("only")) return true;
  const json& only = said.at("only");
  return std::find(only.begin(), only.end(), language) != only.end();
}

void run_all(const std::vector<way>& ways, std::size_t least) {
  for (const way& through : ways) {
    CAPTURE(through.name);
    std::size_t count = 0;
    for (const json& said : corpus()) {
      if (!is_for(said, through.language)) continue;
      CAPTURE(said.at("name").get<std::string>());
      scene(through, said).check();
      ++count;
    }
    CHECK(count >= least);
  }
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("sizes are read from left to right") {
  CHECK(size_of(json(7)) == 7);
  CHECK(size_of(json("2 MiB - 5")) == 2 * 1024 * 1024 - 5);
  CHECK(size_of(json("SIZE_MAX / 2 + 1")) == SIZE_MAX / 2 + 1);
  CHECK(size_of(json("9 KiB - 1 KiB")) == 8 * 1024);
}

TEST_CASE("the names of cases are distinct") {
  std::set<std::string> names;
  for (const json& said : corpus()) CHECK(names.insert(said.at("name").get<std::string>()).second);
}

TEST_CASE("C++") { run_all(cpp_ways(), 150); }
TEST_CASE("std::pmr") { run_all(pmr_ways(), 120); }
TEST_CASE("C") { run_all(c_ways(), 120); }

TEST_CASE("the abort handler prints the message and ends the process, for every bad free") {
  struct by_abort final : cpp_driver {
    by_abort() : cpp_driver(on_bad_free::abort) {}
    outcome free(const target& freed) override {
      if (freed.by_handle)
        plain(freed.pool).deallocate(freed.block, freed.bytes);
      else
        plain(freed.pool).deallocate(freed.block.address, freed.bytes);
      return {};
    }
  };
  const way through{"cpp", "abort", [] { return std::unique_ptr<driver>(std::make_unique<by_abort>()); }};
  std::size_t count = 0;
  for (const json& said : corpus()) {
    const json& attempt = said.at("try");
    if (said.contains("only") || !attempt.contains("free") || attempt.value("thread", false)) continue;
    if (said.at("error") == "none" || said.at("error") == "pool_gone") continue;
    CAPTURE(said.at("name").get<std::string>());
    scene with(through, said);
    const child_end end = run_child([&] { with.attempt(); });
    CHECK(end.signal == SIGABRT);
    ++count;
  }
  CHECK(count > 50);
}

}  // TEST_SUITE
