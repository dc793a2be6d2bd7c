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
#include "history.hpp"
#include "measure.hpp"
#include "options.hpp"
#include "orderly/source.hpp"
#include "page.hpp"
#include "peer/peer.hpp"
#include "plot.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "snapshot.hpp"
#include "state.hpp"
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
  arena.limit = options.limit_for(recorded.peak_live_bytes);
  arena.chunk = options.chunk;
  arena.schedule = options.schedule;
  arena.pieces = options.pieces;
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
        bar_(traces.size() * chosen_.size() * (draws() ? 2 : 1)) {}

  /// The status to exit with.
  int run() {
    std::printf("clock: %.1f ns for an empty measurement, subtracted from each\n\n",
                static_cast<double>(scale_.overhead) * scale_.nanoseconds_per_tick);
    for (std::size_t i = 0; i < traces_.size(); ++i) measure_trace(options_.traces[i], traces_[i]);
    explain_arenas();
    bar_.clear();
    if (!options_.json.empty()) write_json(options_.json, sections_, options_, scale_);
    if (!options_.plot.empty()) draw(options_.plot, pictures_);
    if (options_.look_inside()) write_states();
    return status_;
  }

 private:
  [[nodiscard]] bool draws() const { return !options_.plot.empty() || options_.look_inside(); }

  void measure_trace(const std::filesystem::path& file, const trace& recorded) {
    const std::size_t threads = options_.threads != 0 ? options_.threads : processors();
    const replay_plan plan = plan_replay(recorded, threads);
    report_section section{file, recorded.name, recorded.events.size(), plan.threads.size(), recorded.peak_live_bytes,
                           recorded.recorded_seconds, recorded.unknown_frees, recorded.recorded_failures, {}};
    for (const peer_entry* entry : chosen_) {
      bar_.begin(recorded.name + ", " + std::string(entry->name));
      section.rows.push_back(measure_peer(*entry, recorded, plan));
      bar_.finish_step();
    }
    bar_.clear();
    print_table(std::cout, section, options_);
    if (draws()) look_at(section, recorded, plan);
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

  void look_at(const report_section& section, const trace& recorded, const replay_plan& plan) {
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
    traced_memory traced{section.file, recorded.name, shown.events, recorded.threads, plan.threads.size(),
                         options_.limit_for(recorded.peak_live_bytes), shown.interval, shown.live, {}, {}};
    for (std::size_t i = 0; i < chosen_.size(); ++i) {
      bar_.begin("picture of " + recorded.name + ", " + std::string(chosen_[i]->name));
      if (section.rows[i].measured) add_curve(shown, traced, *chosen_[i], recorded, plan);
      bar_.finish_step();
    }
    traced.curves = shown.curves;
    states_.push_back(std::move(traced));
    pictures_.push_back(std::move(shown));
  }

  /// One more replay, which samples what the allocator holds and notes where its blocks lie.
  void add_curve(picture& shown, traced_memory& traced, const peer_entry& entry, const trace& recorded,
                 const replay_plan& plan) {
    const shared_array<std::uint64_t> committed(shown.live.size());
    const shared_array<std::uint64_t> addresses(recorded.blocks);
    const shared_array<bool> looked_inside(1);
    handed_over history;
    const std::string error = in_child([&] {
      history_recorder recorder(plan, shown.interval);
      arena_config arena = arena_for(options_, recorded);
      if (options_.look_inside()) arena.watcher = &recorder;
      const std::unique_ptr<any_peer> peer = entry.make(arena);
      if (peer == nullptr) throw std::runtime_error("not available here");
      observation seen;
      seen.interval = shown.interval;
      if (options_.look_inside() && peer->inside() != nullptr) seen.observer = &recorder;
      replay(*peer, plan, {.touch = options_.touch}, &seen);
      std::ranges::copy(seen.committed, committed.values().begin());
      std::ranges::copy(seen.addresses, addresses.values().begin());
      if (seen.observer == nullptr) return;
      looked_inside.values().front() = true;
      history.write(std::move(recorder).finish());
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
    if (looked_inside.values().front()) add_history(traced, entry, recorded, plan, history.read());
  }

  void add_history(traced_memory& traced, const peer_entry& entry, const trace& recorded, const replay_plan& plan,
                   memory_history history) const {
    history.allocator = entry.name;
    history.chunk = options_.chunk != 0 ? options_.chunk : make_host_source()->preferred_chunk();
    complete(history, recorded, plan);
    traced.histories.push_back(std::move(history));
  }

  void write_states() {
    const auto has_history = [](const traced_memory& traced) { return !traced.histories.empty(); };
    if (!std::ranges::all_of(states_, has_history)) {
      std::fputs("orderly-replay: there is nothing inside to look at: none of the allocators that served the trace is "
                 "a pool of orderly that commits chunks\n",
                 stderr);
      status_ = not_measured;
    }
    const std::string document = state_document(states_);
    if (!options_.state.empty()) write_text(options_.state, document);
    if (!options_.html.empty()) write_text(options_.html, page_with(document));
    if (!options_.snapshot.empty() && has_history(states_.front())) write_snapshot(options_.snapshot, document);
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
    if (!options_.find_limit && options_.limit == 0 && options_.limit_over_live == 0) return;
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
  std::vector<traced_memory> states_;  // one for each picture
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
  for (const auto& file : {options.plot, options.html, options.state, options.snapshot}) check_writable(file);
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
