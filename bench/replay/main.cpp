/// orderly-replay: replays recorded allocation traces against orderly and its peers.

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>

#include "child.hpp"
#include "clock.hpp"
#include "measure.hpp"
#include "options.hpp"
#include "peer/peer.hpp"
#include "plot.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "trace.hpp"

namespace orderly::bench {

namespace {

constexpr int success = 0;
constexpr int not_measured = 1;
constexpr int wrong_input = 2;

constexpr std::size_t plot_samples = 1000;

bool is_available(const peer_entry& entry) {
  constexpr std::size_t small = std::size_t{64} << 20;
  return run_in_child(
             [&entry] {
               if (entry.make({.capacity = small}) == nullptr) throw std::runtime_error("not available");
             },
             [] {})
      .empty();
}

std::vector<const peer_entry*> choose_peers(const std::vector<std::string>& names) {
  std::vector<const peer_entry*> chosen;
  for (const std::string& name : names) chosen.push_back(find_peer(name));
  if (!names.empty()) return chosen;
  for (const peer_entry& entry : peers()) {
    if (is_available(entry)) chosen.push_back(&entry);
  }
  return chosen;
}

void list_peers() {
  const auto print = [](const peer_entry& entry, const char* kind) {
    std::printf("%-24.*s %-16s %s\n", static_cast<int>(entry.name.size()), entry.name.data(), kind,
                is_available(entry) ? "" : "not available here");
  };
  for (const peer_entry& entry : peers()) print(entry, entry.arena ? "arena" : "general purpose");
  for (const peer_entry& entry : stream_peers()) print(entry, "arena, streams");
}

std::size_t processors() {
  cpu_set_t usable;
  CPU_ZERO(&usable);
  if (sched_getaffinity(0, sizeof usable, &usable) != 0) return 1;
  return static_cast<std::size_t>(CPU_COUNT(&usable));
}

arena_config arena_for(const replay_options& options, const trace& recorded) {
  constexpr std::uint64_t most = std::uint64_t{1} << 40;
  arena_config arena;
  const std::uint64_t needed = std::min(recorded.peak_live_bytes, most) * 2 * options.copies;
  const std::uint64_t enough = std::max<std::uint64_t>(arena.capacity, std::bit_ceil(std::min(needed, most)));
  arena.capacity = options.capacity != 0 ? options.capacity : enough;
  arena.limit = options.limit;
  arena.chunk = options.chunk;
  arena.schedule = options.schedule;
  arena.run_ahead = options.run_ahead;
  arena.slack = options.slack;
  return arena;
}

/// Why the trace cannot be replayed on this machine; empty: it can.
std::string obstacle(const replay_options& options, const trace& recorded) {
  if (!options.touch) return {};
  const double installed = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  const double needed = static_cast<double>(recorded.peak_live_bytes) * static_cast<double>(options.copies);
  if (needed <= 0.75 * installed) return {};
  char text[120];
  std::snprintf(text, sizeof text, "--touch needs %.1f GiB, and at most 3/4 of the machine's %.1f GiB may be used",
                needed / 0x1p30, installed / 0x1p30);
  return text;
}

class session {
 public:
  session(const replay_options& options, const std::vector<trace>& traces)
      : options_(options),
        traces_(traces),
        chosen_(choose_peers(options.allocators)),
        bar_(traces.size() * chosen_.size() * (options.plot.empty() ? 1 : 2)) {}

  /// The status to exit with.
  int run() {
    std::printf("clock: %.1f ns for an empty measurement, subtracted from each\n\n",
                static_cast<double>(scale_.overhead) * scale_.nanoseconds_per_tick);
    for (std::size_t i = 0; i < traces_.size(); ++i) measure_trace(options_.traces[i], traces_[i]);
    explain_arenas();
    bar_.clear();
    if (!options_.json.empty()) write_json(options_.json, sections_, options_, scale_);
    if (!options_.plot.empty()) draw(options_.plot, pictures_);
    return status_;
  }

 private:
  void measure_trace(const std::filesystem::path& file, const trace& recorded) {
    const std::size_t threads = options_.threads != 0 ? options_.threads : processors();
    const replay_plan plan = plan_replay(recorded, threads);
    report_section section{file, recorded.name, recorded.events.size(), plan.threads.size(), recorded.peak_live_bytes,
                           recorded.unknown_frees, recorded.recorded_failures, {}};
    for (const peer_entry* entry : chosen_) {
      bar_.begin(recorded.name + ", " + std::string(entry->name));
      section.rows.push_back(measure_peer(*entry, recorded, plan));
      bar_.finish_step();
    }
    bar_.clear();
    print_table(std::cout, section, options_);
    if (!options_.plot.empty()) pictures_.push_back(picture_of(section, recorded, plan));
    sections_.push_back(std::move(section));
  }

  report_row measure_peer(const peer_entry& entry, const trace& recorded, const replay_plan& plan) {
    report_row row{std::string(entry.name), entry.arena, {}, obstacle(options_, recorded)};
    const shared_array<measurement> result(1);
    if (row.error.empty()) {
      row.error = in_child([&] {
        const replay_settings settings{options_.order, options_.copies, options_.touch, false};
        const arena_config arena = arena_for(options_, recorded);
        measurement& measured = result.values().front();
        measured = measure(entry, arena, plan, settings, options_.repetitions, scale_);
        if (options_.find_limit && entry.arena)
          measured.smallest_limit_bytes = find_smallest_limit(entry, arena, plan, recorded.peak_live_bytes);
      });
    }
    if (row.error.empty()) row.measured = result.values().front();
    const bool unlimited = options_.find_limit && entry.arena && row.measured && !row.measured->smallest_limit_bytes;
    if (!row.measured || unlimited) status_ = not_measured;
    return row;
  }

  picture picture_of(const report_section& section, const trace& recorded, const replay_plan& plan) {
    picture shown;
    shown.title = recorded.name;
    shown.subtitle = "memory held by each allocator, " + std::to_string(plan.threads.size()) +
                     (plan.threads.size() == 1 ? " thread" : " threads") + " in recorded order";
    shown.events = recorded.events.size();
    shown.interval = std::max<std::size_t>(1, shown.events / plot_samples);
    std::uint64_t live = 0;
    shown.live.resize((shown.events + shown.interval - 1) / shown.interval);
    for (std::size_t i = 0; i < shown.events; ++i) {
      const event& call = recorded.events[i];
      live = call.what == action::allocate ? live + call.bytes : live - call.bytes;
      shown.live[i / shown.interval] = std::max(shown.live[i / shown.interval], live);
    }
    for (std::size_t i = 0; i < chosen_.size(); ++i) {
      bar_.begin("picture of " + recorded.name + ", " + std::string(chosen_[i]->name));
      if (section.rows[i].measured) add_curve(shown, *chosen_[i], recorded, plan);
      bar_.finish_step();
    }
    return shown;
  }

  /// One more replay, which samples what the allocator holds and notes where its blocks lie.
  void add_curve(picture& shown, const peer_entry& entry, const trace& recorded, const replay_plan& plan) {
    const shared_array<std::uint64_t> committed(shown.live.size());
    const shared_array<std::uint64_t> addresses(recorded.blocks);
    const std::string error = in_child([&] {
      const std::unique_ptr<any_peer> peer = entry.make(arena_for(options_, recorded));
      if (peer == nullptr) throw std::runtime_error("not available here");
      observation seen;
      seen.interval = shown.interval;
      replay(*peer, plan, {.touch = options_.touch}, &seen);
      std::ranges::copy(seen.committed, committed.values().begin());
      std::ranges::copy(seen.addresses, addresses.values().begin());
    });
    if (!error.empty()) {
      bar_.clear();
      std::fprintf(stderr, "orderly-replay: %s is not in the picture: %s\n", std::string(entry.name).c_str(),
                   error.c_str());
      status_ = not_measured;
      return;
    }
    const auto values = committed.values();
    const bool known = std::ranges::any_of(values, [](std::uint64_t bytes) { return bytes != 0; });
    if (known) shown.curves.push_back({std::string(entry.name), {values.begin(), values.end()}});
    if (shown.map_name.empty() && entry.arena) add_map(shown, entry, recorded, addresses.values());
  }

  static void add_map(picture& shown, const peer_entry& entry, const trace& recorded,
                      std::span<const std::uint64_t> addresses) {
    shown.map_name = entry.name;
    std::vector<drawn_block> blocks(recorded.blocks);
    for (std::size_t i = 0; i < recorded.events.size(); ++i) {
      const event& call = recorded.events[i];
      if (call.what == action::allocate) {
        blocks[call.block] = {addresses[call.block], call.bytes, i, recorded.events.size()};
      } else {
        blocks[call.block].end = i;
      }
    }
    std::erase_if(blocks, [](const drawn_block& block) { return block.address == 0; });
    shown.blocks = std::move(blocks);
  }

  void explain_arenas() {
    if (!options_.find_limit && options_.limit == 0) return;
    const auto is_arena = [](const peer_entry* entry) { return entry->arena; };
    if (std::ranges::any_of(chosen_, is_arena)) return;
    std::fputs("orderly-replay: none of the allocators is an arena, and only arenas have a limit\n", stderr);
    status_ = not_measured;
  }

  std::string in_child(const std::function<void()>& task) {
    bar_.refresh();
    return run_in_child(task, [this] { bar_.refresh(); });
  }

  const replay_options& options_;
  const std::vector<trace>& traces_;
  std::vector<const peer_entry*> chosen_;
  progress bar_;
  clock_scale scale_ = calibrate_clock();
  std::vector<report_section> sections_;
  std::vector<picture> pictures_;
  int status_ = success;
};

/// Outputs that cannot be written are better refused before the work than after it.
void check_writable(const std::filesystem::path& file) {
  if (!file.empty() && !std::ofstream(file, std::ios::app)) throw bad_input(file.string() + ": cannot be written");
}

int run(int count, const char* const* arguments) {
  const parsed_options parsed = parse_options(count, arguments);
  if (parsed.exit_status) return *parsed.exit_status;
  const replay_options& options = parsed.options;
  if (options.list) {
    list_peers();
    return success;
  }
  check_writable(options.json);
  check_writable(options.plot);
  std::vector<trace> traces;
  for (const auto& file : options.traces) traces.push_back(read_trace(file, options.unit));
  return session(options, traces).run();
}

}  // namespace

}  // namespace orderly::bench

int main(int count, char** arguments) {
  orderly::bench::make_room_for_peers(arguments);
  try {
    return orderly::bench::run(count, arguments);
  } catch (const orderly::bench::bad_input& error) {
    std::fprintf(stderr, "orderly-replay: %s\n", error.what());
    return orderly::bench::wrong_input;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "orderly-replay: %s\n", error.what());
    return orderly::bench::not_measured;
  }
}
