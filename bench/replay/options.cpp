#include "options.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <map>

#include "peer/peer.hpp"
#include "plot.hpp"
#include "snapshot.hpp"

namespace orderly::bench {

namespace {

constexpr int usage_error = 2;

constexpr const char* description =
    "Replays recorded allocation traces against orderly and other allocators and compares time and memory.\n\n"
    "Traces: logs of RMM (Thread,Time,Action,Pointer,Size,Stream, and a Tag that says what an allocation is for) and\n"
    "CSV files of MiniMalloc (id,lower,upper,size), plain or compressed (.gz, .bz2, .xz, .zst); PyTorch memory\n"
    "snapshots (.pickle, .pkl, .json; needs python3).";

constexpr const char* notes =
    "Time: each call is timed on its own, and the median time of an empty measurement is subtracted. ns/op is the sum\n"
    "of these times over the number of calls: waiting for a turn, --touch and all else between calls is not in it. A\n"
    "call that the system interrupts counts in full, so keep to as many threads as there are processors. The\n"
    "percentiles are of allocations, from exact samples; those of frees are in the JSON. Every repetition has a new\n"
    "arena; times are medians over the repetitions, memory and failures those of the worst.\n\n"
    "Memory: committed is what the allocator holds, live what the trace holds at its peak. Blocks are not written\n"
    "unless --touch is given. Each allocator runs in a process of its own.\n\n"
    "Streams: allocators named *-streams serve each replaying thread in a software stream of its own. Allocations are\n"
    "followed by work in the stream that writes to the block; a block is freed in the stream of its allocation.\n\n"
    "--html, --state, --snapshot: one more replay of one copy in recorded order; after each event orderly's pools are\n"
    "looked into. The page is one file and needs no network. The snapshot is for PyTorch's memory_viz page; it has\n"
    "one device, events for time and the trace's threads for streams, and when it is replayed it reads as the trace.\n\n"
    "--find-limit: one copy, in recorded order, on the same threads; searched upwards from the peak of live bytes in\n"
    "steps that double, then bisected, to the chunk (64 KiB where --chunk is not given).\n\n"
    "--pieces: --json tells how many pieces were committed and released up to the end of the trace, and what CUDA's\n"
    "driver takes for as many, by its calls' times on an H200. Chunks are 2 MiB at least.\n\n"
    "Exit status: 0; 1 if something asked for could not be measured; 2 if the input or the arguments are wrong.";

/// Bounds keep a slip of the keyboard from exhausting the machine.
constexpr std::size_t most_threads = 1024;
constexpr std::size_t most_repetitions = 1000;
constexpr std::uint64_t smallest_chunk = 4096;
constexpr std::uint64_t largest_size = std::uint64_t{1} << 48;

const std::map<std::string, replay_order> orders{{"trace", replay_order::recorded}, {"free", replay_order::free}};
const std::map<std::string, software_schedule> schedules{{"workers", software_schedule::workers},
                                                         {"eager", software_schedule::eager},
                                                         {"random", software_schedule::random}};
const std::map<std::string, std::uint64_t> units{
    {"B", 1}, {"KiB", std::uint64_t{1} << 10}, {"MiB", std::uint64_t{1} << 20}, {"GiB", std::uint64_t{1} << 30}};

std::string check_peer(const std::string& name) {
  if (find_peer(name) != nullptr) return {};
  std::string text = "unknown allocator '" + name + "', known are:";
  for (const auto list : {peers(), stream_peers()})
    for (const peer_entry& entry : list) text.append(" ").append(entry.name);
  return text;
}

/// Replaces a size with an optional unit by its number of bytes. Returns what is wrong with it; empty: nothing.
std::string to_bytes(std::string& text) {
  constexpr std::array<std::string_view, 5> suffixes{"B", "KiB", "MiB", "GiB", "TiB"};
  std::uint64_t count = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, outcome] = std::from_chars(text.data(), end, count);
  const auto suffix = rest == end ? suffixes.begin() : std::ranges::find(suffixes, std::string_view(rest, end));
  const auto shift = 10 * (suffix - suffixes.begin());
  if (outcome != std::errc{} || suffix == suffixes.end() || count == 0 || count > largest_size >> shift)
    return "expected a size of at most 256TiB, such as 65536, 64KiB or 2GiB, found '" + text + "'";
  text = std::to_string(count << shift);
  return {};
}

std::string check_chunk(const std::string& bytes) {
  const std::uint64_t chunk = std::stoull(bytes);
  if (chunk >= smallest_chunk && std::has_single_bit(chunk)) return {};
  return "expected a power of two of at least 4 KiB, found " + bytes + " bytes";
}

std::string check_plot(const std::string& name) {
  return is_plot_name(name) ? std::string() : "expected a name that ends in .png or .svg, found " + name;
}

std::string check_snapshot(const std::string& name) {
  return is_snapshot_name(name) ? std::string() : "expected a name that ends in .pickle or .pkl, found " + name;
}

void add_choices(CLI::App& app, replay_options& chosen) {
  app.add_option("trace", chosen.traces, "Files to replay, one after the other")->type_name("FILE");
  app.add_option("-a,--allocator", chosen.allocators,
                 "Allocators to compare; by default all that are available and know no streams")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Validator(check_peer, ""))
      ->type_name("NAME[,NAME]");
  app.add_option_function<std::string>(
         "--order", [&chosen](const std::string& name) { chosen.order = orders.at(name); },
         "trace: calls happen in recorded order, one at a time (default); free: threads run, and a block is only freed "
         "after it was allocated")
      ->check(CLI::IsMember(orders).description(""))
      ->type_name("trace|free");
  app.add_option_function<std::string>(
         "--unit", [&chosen](const std::string& name) { chosen.unit = units.at(name); },
         "What sizes are given in (default: B)")
      ->check(CLI::IsMember(units).description(""))
      ->type_name("B|KiB|MiB|GiB");
}

void add_numbers(CLI::App& app, replay_options& chosen) {
  app.add_option("-t,--threads", chosen.threads,
                 "Most threads for one copy; by default as many as the trace has, at most one for each processor")
      ->check(CLI::Range(std::size_t{1}, most_threads).description(""))
      ->type_name("N");
  app.add_option("--copies", chosen.copies, "Instances of the trace that run at once on one allocator (default: 1)")
      ->check(CLI::Range(std::size_t{1}, most_threads).description(""))
      ->type_name("K");
  app.add_option("--repeat", chosen.repetitions, "Repetitions, of which the medians are shown (default: 5)")
      ->check(CLI::Range(std::size_t{1}, most_repetitions).description(""))
      ->type_name("R");
}

void add_sizes(CLI::App& app, replay_options& chosen) {
  const CLI::Validator bytes(to_bytes, "");
  app.add_option("--chunk", chosen.chunk, "Unit in which arenas commit, a power of two; by default the allocator's own")
      ->transform(bytes)
      ->check(CLI::Validator(check_chunk, ""))
      ->type_name("BYTES");
  app.add_option("--limit", chosen.limit, "Most memory that arenas may commit; none by default")
      ->transform(bytes)
      ->type_name("BYTES");
  app.add_option("--limit-over-live", chosen.limit_over_live,
                 "The same, as a multiple of the trace's peak of live bytes")
      ->check(CLI::Range(1.0, 1000.0).description(""))
      ->excludes("--limit")
      ->type_name("F");
  app.add_option("--capacity", chosen.capacity, "Addresses of an arena; by default 16 GiB, or what the trace needs")
      ->transform(bytes)
      ->type_name("BYTES");
  app.add_option_function<std::string>(
         "--schedule", [&chosen](const std::string& name) { chosen.schedule = schedules.at(name); },
         "When streams work: on threads of their own (default); at once, within the calls; by chance, within the calls")
      ->check(CLI::IsMember(schedules).description(""))
      ->type_name("workers|eager|random");
  app.add_option("--run-ahead", chosen.run_ahead,
                 "Most pieces of work that wait in a stream before its thread waits for it (default: 1024, as many as "
                 "launches of CUDA)")
      ->check(CLI::Range(std::size_t{1}, std::size_t{1} << 32).description(""))
      ->type_name("N");
  app.add_option("--slack", chosen.slack, "orderly's option slack: idle memory kept, as a fraction of the peak")
      ->check(CLI::Range(0.0, 1000.0).description(""))
      ->type_name("F");
}

void add_outputs(CLI::App& app, replay_options& chosen) {
  app.add_flag("--find-limit", chosen.find_limit, "Find the smallest limit with which each arena serves the trace");
  app.add_flag("--pieces", chosen.pieces,
               "Commit orderly's memory in the pieces of 2 MiB and more that its source for CUDA makes, and count "
               "them");
  app.add_flag("--touch", chosen.touch, "Write a byte in each page of each block, outside of the measured time");
  app.add_option("--json", chosen.json, "Write the results as JSON")->type_name("FILE");
  app.add_option("--plot", chosen.plot, "Draw memory over time, and the address map of orderly")
      ->check(CLI::Validator(check_plot, ""))
      ->type_name("FILE.png|FILE.svg");
  app.add_option("--html", chosen.html,
                 "Write a page with memory over time, and orderly's chunks and blocks at any event")
      ->type_name("FILE");
  app.add_option("--state", chosen.state, "Write what that page shows as JSON; state.schema.json describes it")
      ->type_name("FILE");
  app.add_option("--snapshot", chosen.snapshot,
                 "Write what orderly did with one trace as a memory snapshot of PyTorch; needs python3")
      ->check(CLI::Validator(check_snapshot, ""))
      ->type_name("FILE.pickle");
  app.add_flag("--list", chosen.list, "List the allocators and exit");
}

}  // namespace

parsed_options parse_options(int count, const char* const* arguments) {
  parsed_options result;
  CLI::App app(description, "orderly-replay");
  app.footer(notes);
  add_choices(app, result.options);
  add_numbers(app, result.options);
  add_sizes(app, result.options);
  add_outputs(app, result.options);
  try {
    app.parse(count, arguments);
    if (result.options.traces.empty() && !result.options.list) throw CLI::RequiredError("at least one trace");
    if (result.options.copies * std::max<std::size_t>(result.options.threads, 1) > most_threads)
      throw CLI::ValidationError("--copies", "at most 1024 threads in all");
    if (!result.options.snapshot.empty() && result.options.traces.size() > 1)
      throw CLI::ValidationError("--snapshot", "one trace only");
  } catch (const CLI::ParseError& error) {
    result.exit_status = app.exit(error) == 0 ? 0 : usage_error;
  }
  return result;
}

}  // namespace orderly::bench
