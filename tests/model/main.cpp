// Explores scenarios; see explorer.hpp.
//
//   model                          all scenarios, exhaustively, up to the bound of each
//   --group NAME                   of these files' groups, one
//   --scenario GROUP/NAME          one
//   --bound N                      preemptions, and loads of an old value where the scenario does not say how many
//   --stale N                      loads of an old value
//   --random N [--seed S]          instead, N random executions of each
//   --without sleep|states|both    without these reductions of explorer.hpp
//   --compare                      with the reductions and without: what the executions come to must be the same
//   --replay CHOICES               of one scenario, the execution that a find has printed
//   --list
// Exit status: 0 no find, 1 a find, 2 a mistake in these.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <algorithm>
#include <ctime>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>

#include "orderly/pool.hpp"
#include "run.hpp"
#include "support/paper_source.hpp"

using namespace orderly;
using namespace orderly::model;

namespace {

void make_a_few_pools() {
  const auto make = [] {
    options settings;
    settings.capacity = std::size_t{1} << 20;
    settings.granule = settings.chunk = std::size_t{1} << 14;
    return std::make_unique<pool>(test::make_paper_source(std::size_t{1} << 14, std::make_shared<test::paper_map>(),
                                                          std::make_shared<test::source_log>()),
                                  settings);
  };
  const auto a = make(), b = make(), c = make();
  a->deallocate(a->allocate(1));
}

struct orders {
  const char* group = nullptr;
  std::string scenario;
  const char* replay = nullptr;
  long bound = -1;
  long stale = -1;
  std::uint64_t random = 0;
  std::uint64_t seed = 0;
  bool seeded = false;
  bool list = false;
  bool compare = false;
  bool sleeping = true;
  bool merging = true;
};

/// The audits of tests/support check by doctest.
void on_assertion(const doctest::AssertData& of) {
  if (of.m_failed) fail("%s:%d: %s, which is %s", of.m_file, of.m_line, of.m_expr, of.m_decomp.c_str());
}

[[nodiscard]] int misuse(const char* why, const char* what) {
  std::fprintf(stderr, "%s: %s\n", why, what);
  return 2;
}

[[nodiscard]] bool is_as_told(const scenario_info& of, const outcome& all) {
  if (of.of.must_fail && all.failed) std::printf("%s/%s: found, as it must be\n", of.group, of.name);
  if (of.of.must_fail && !all.failed) std::printf("%s/%s: FAILED: it was not found\n", of.group, of.name);
  return all.failed == of.of.must_fail;
}

[[nodiscard]] double seconds_since(std::clock_t begin) {
  return static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
}

[[nodiscard]] bool run_at_random(const scenario_info& of, const orders& asked) {
  const std::clock_t begin = std::clock();
  const outcome all = sample(of, asked.seed, asked.random);
  std::printf("%s/%s: %llu random executions from seed %llu, %.2f s\n", of.group, of.name,
              static_cast<unsigned long long>(all.executions), static_cast<unsigned long long>(asked.seed),
              seconds_since(begin));
  return is_as_told(of, all);
}

[[nodiscard]] bool compare(const scenario_info& of, limits within) {
  const std::clock_t begin = std::clock();
  std::vector<std::uint64_t> with;
  std::vector<std::uint64_t> without;
  const outcome reduced = explore(of, within, &with);
  within.sleeping = within.merging = false;
  const outcome full = explore(of, within, &without);
  const bool same = reduced.failed == full.failed && (full.failed || with == without);
  std::printf("%s/%s: bound %u, old values %u: %zu results of %llu executions, %zu of %llu in full, %.2f s%s\n", of.group,
              of.name, within.preemptions, within.stale, with.size(), static_cast<unsigned long long>(reduced.executions),
              without.size(), static_cast<unsigned long long>(full.executions), seconds_since(begin),
              same ? "" : ": FAILED: they differ");
  return same;
}

[[nodiscard]] bool exhaust(const scenario_info& of, const limits& within) {
  const std::clock_t begin = std::clock();
  const outcome all = explore(of, within);
  std::printf("%s/%s: bound %u, old values %u: %llu executions, %llu cut short, %u objects, %.2f s\n", of.group, of.name,
              within.preemptions, within.stale, static_cast<unsigned long long>(all.executions),
              static_cast<unsigned long long>(all.pruned), all.shared, seconds_since(begin));
  std::fflush(stdout);  // another search may follow, and take long
  return is_as_told(of, all);
}

[[nodiscard]] bool run(const scenario_info& of, const orders& asked) {
  if (asked.random != 0) return run_at_random(of, asked);
  const auto within = [&](unsigned bound, unsigned stale) {
    if (asked.bound >= 0) bound = static_cast<unsigned>(asked.bound);
    if (asked.stale >= 0) stale = static_cast<unsigned>(asked.stale);
    return limits{.preemptions = bound, .stale = stale == ~0U ? bound : stale, .sleeping = asked.sleeping,
                  .merging = asked.merging};
  };
  const traits& usual = of.of;
  if (asked.compare) return compare(of, within(usual.short_bound, usual.stale));
  if (std::getenv("ORDERLY_TEST_LONG") == nullptr) return exhaust(of, within(usual.short_bound, usual.stale));
  return exhaust(of, within(usual.long_bound, usual.stale)) &&
         (usual.far_bound == 0 || exhaust(of, within(usual.far_bound, usual.far_stale)));
}

}  // namespace

int main(int count, char** arguments) {
  orders asked;
  for (int i = 1; i < count; ++i) {
    const std::string_view option = arguments[i];
    if (option == "--list") {
      asked.list = true;
      continue;
    }
    if (option == "--compare") {
      asked.compare = true;
      continue;
    }
    if (i + 1 == count) return misuse("this option is unknown, or needs a value", arguments[i]);
    const char* const value = arguments[++i];
    if (option == "--without") {
      const std::string_view what = value;
      if (what != "sleep" && what != "states" && what != "both") return misuse("no reduction is called", value);
      asked.sleeping = what == "states";
      asked.merging = what == "sleep";
      continue;
    }
    if (option == "--group") asked.group = value;
    else if (option == "--scenario") asked.scenario = value;
    else if (option == "--replay") asked.replay = value;
    else if (option == "--bound") asked.bound = std::strtol(value, nullptr, 0);
    else if (option == "--stale") asked.stale = std::strtol(value, nullptr, 0);
    else if (option == "--random") asked.random = std::strtoull(value, nullptr, 0);
    else if (option == "--seed") asked.seed = std::strtoull(value, nullptr, 0), asked.seeded = true;
    else return misuse("this option is unknown", arguments[i - 1]);
  }
  if (!asked.seeded) asked.seed = std::random_device{}() & 0xffffff;
  doctest::Context audits;
  audits.setAsDefaultForAssertsOutOfTestCases();
  audits.setAssertHandler(on_assertion);
  prepare(make_a_few_pools);
  std::size_t matched = 0;
  bool met = true;
  for (const scenario_info& each : all_scenarios()) {
    const std::string name = std::string(each.group) + "/" + each.name;
    if (asked.group != nullptr && std::strcmp(asked.group, each.group) != 0) continue;
    if (!asked.scenario.empty() && asked.scenario != name) continue;
    ++matched;
    if (asked.list)
      std::printf("%s\n", name.c_str());
    else if (asked.replay != nullptr)
      met = replay(each, asked.replay) && met;
    else
      met = run(each, asked) && met;
    std::fflush(stdout);
  }
  if (matched == 0) return misuse("no scenario is called", asked.group != nullptr ? asked.group : asked.scenario.c_str());
  return met ? 0 : 1;
}
