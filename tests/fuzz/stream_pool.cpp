// Operations on a small pool in stream order, on software streams whose work runs in an order that the input decides.
// Work writes each block and looks whether somebody else did: two users of the same bytes without an order between them
// show.
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "orderly/software_stream.hpp"
#include "orderly/stream_pool.hpp"
#include "support/choices.hpp"
#include "support/lockstep_threads.hpp"
#include "support/require.hpp"
#include "target.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

class stream_model {
 public:
  /// `flat`: in one piece of memory, where blocks go from stream to stream behind events all the time.
  stream_model(byte_choices& choices, lockstep_threads& threads, const stream_options& settings, bool flat)
      : choices_(choices),
        threads_(threads),
        settings_(settings),
        flat_(flat),
        buffer_(flat ? settings.memory.capacity / sizeof(page) : 0),
        device_(static_cast<software_schedule>(choices.uniform(1, 3)), choices.uniform(0, 255)),
        driver_(device_.driver()),
        pool_(flat ? make_fixed_buffer_source(buffer_.data(), settings.memory.capacity) : make_host_source(), driver_,
              settings) {
    for (std::size_t i = 0; i < streams; ++i) lines_.push_back({.stream = software_stream(device_)});
  }

  ~stream_model() {  // work uses the pool's memory
    for (line& each : lines_) {
      if (each.capturing) static_cast<void>(each.stream.end_capture());
      each.stream.synchronize();
    }
  }

  void step() {
    switch (choices_.uniform(0, 31)) {
      case 0: bad_free(); break;
      case 1: misuse(); break;
      case 2: record_stream(); break;
      case 3: divide(); break;
      case 4: tidy(); break;
      case 5: synchronize(); break;
      case 6: replace_stream(any_stream()); break;
      case 7: capture(); break;
      case 8: launch(); break;
      case 9: case 10: case 11: case 12: use(); break;
      case 13: case 14: case 15: case 16: case 17: case 18: case 19: case 20: allocate(); break;
      default: deallocate();
    }
    check_stats();
  }

  /// Everything comes back.
  void finish() {
    for (std::size_t s = 0; s < streams; ++s)
      if (lines_[s].capturing) end_capture(s);
    // Whoever wrote late what was no longer his shows here.
    for (line& each : lines_) ORDERLY_REQUIRE(each.stream.synchronize());
    for (const auto& [start, known] : live_) {
      const auto* const words = reinterpret_cast<const std::uint64_t*>(start);
      const std::size_t last = known.length / sizeof(std::uint64_t) - 1;
      if (known.mark == 0 || known.capture != 0) continue;
      ORDERLY_REQUIRE(words[0] == known.mark && words[last / 2] == known.mark && words[last] == known.mark);
    }
    while (!live_.empty()) deallocate();
    check_stats();
    for (line& each : lines_) {
      each.graph.reset();
      ORDERLY_REQUIRE(each.stream.synchronize());
    }
    check_live();
    ORDERLY_REQUIRE(pool_.synchronize());
    pool_.trim();
    const stream_statistics stats = pool_.stats();
    ORDERLY_REQUIRE(stats.held == 0);
    ORDERLY_REQUIRE(stats.memory.cached == 0);
    ORDERLY_REQUIRE(stats.memory.allocated == 0);
    ORDERLY_REQUIRE(flat_ || stats.memory.committed == 0);
    ORDERLY_REQUIRE(disturbed_ == 0);
  }

 private:
  static constexpr std::size_t streams = 3;

  struct alignas(4096) page {
    std::byte bytes[4096];
  };

  struct line {
    software_stream stream;
    bool capturing = false;
    std::optional<software_graph> graph{};  ///< captured last
  };

  struct block {
    std::size_t requested;
    std::size_t length;
    std::size_t in;                      ///< the stream that it is freed in
    std::set<std::size_t> recorded{};    ///< other streams that may use it
    std::uint64_t mark = 0;              ///< what its users have left in it; 0: nobody used it
    std::uint64_t capture = 0;           ///< number of the capture that it was allocated in; 0: none
    std::uint64_t generation = 0;        ///< of its handle
  };

  using place = std::map<char*, block>::iterator;

  template <class Call>
  auto somewhere(const Call& call) {
    std::invoke_result_t<Call> result{};
    threads_.run(choices_.uniform(0, threads_.count() - 1), [&] { result = call(); });
    return result;
  }

  [[nodiscard]] std::size_t any_stream() { return choices_.uniform(0, streams - 1); }
  [[nodiscard]] stream_handle handle(std::size_t s) const { return lines_[s].stream.handle(); }

  [[nodiscard]] place any_live() {
    return std::next(live_.begin(), static_cast<std::ptrdiff_t>(choices_.uniform(0, live_.size() - 1)));
  }

  std::size_t any_size() {
    switch (choices_.uniform(0, 3)) {
      case 0: return choices_.uniform(0, 2 * kib);
      case 1: return std::size_t{256} << choices_.uniform(0, 12);
      default: return choices_.log_uniform(1, pool_.capacity() / 2);
    }
  }

  void allocate() {
    const std::size_t s = any_stream();
    const std::size_t bytes = any_size();
    const std::size_t alignment = choices_.uniform(0, 7) == 7 ? std::size_t{1} << choices_.uniform(0, 12) : 1;
    const bool with_handle = choices_.uniform(0, 7) == 7;
    const auto attempt = [&] {
      return somewhere([&] {
        return with_handle ? pool_.try_allocate_checked(bytes, alignment, handle(s))
                           : checked_block{pool_.try_allocate(bytes, alignment, handle(s)), 0};
      });
    };
    checked_block got = attempt();
    if (!got) {
      ++failed_;
      if (std::any_of(lines_.begin(), lines_.end(), [](const line& l) { return l.capturing || l.graph; })) return;
      // When all streams are done, nothing but live blocks is in the way.
      for (line& each : lines_) ORDERLY_REQUIRE(each.stream.synchronize());  // launches of graphs that went
      ORDERLY_REQUIRE(pool_.synchronize());
      got = attempt();
      if (!got) {
        ++failed_;
        ORDERLY_REQUIRE(may_refuse(bytes, alignment));
        return;
      }
    }
    auto* const start = static_cast<char*>(got.address);
    ORDERLY_REQUIRE(reinterpret_cast<std::uintptr_t>(start) % alignment == 0);
    const place added = insert(start, std::max<std::size_t>(bytes, 1), s, got.generation);
    if (choices_.uniform(0, 3) != 3) write(added, s);
  }

  place insert(char* start, std::size_t requested, std::size_t s, std::uint64_t generation) {
    const std::size_t length = pool_.block_size(start);
    ORDERLY_REQUIRE(length >= requested);
    const auto next = live_.lower_bound(start);
    if (next != live_.end()) ORDERLY_REQUIRE(start + length <= next->first);
    if (next != live_.begin()) ORDERLY_REQUIRE(std::prev(next)->first + std::prev(next)->second.length <= start);
    requested_ += requested;
    allocated_ += length;
    const std::uint64_t capture = lines_[s].capturing ? captures_ : 0;
    return live_.insert({start, {.requested = requested, .length = length, .in = s, .capture = capture,
                                 .generation = generation}}).first;
  }

  /// As of the pool without streams: see pool_model.hpp.
  bool may_refuse(std::size_t bytes, std::size_t alignment) {
    if (flat_) return !live_.empty() || bytes > settings_.memory.capacity;
    const std::size_t chunk = settings_.memory.chunk;
    std::set<std::uintptr_t> covered;
    for (const auto& [start, known] : live_) {
      const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(start) / chunk;
      const std::uintptr_t last = (reinterpret_cast<std::uintptr_t>(start) + known.length - 1) / chunk;
      for (std::uintptr_t index = first; index <= last; ++index) covered.insert(index);
    }
    const std::size_t most = std::bit_ceil(std::max({bytes, alignment, std::size_t{1}}));
    return covered.size() + (most + chunk - 1) / chunk > settings_.memory.capacity / chunk;
  }

  /// May work in the stream use the block now?
  [[nodiscard]] bool may_use(const block& known, std::size_t s) const {
    if (known.capture != 0) return lines_[s].capturing && known.in == s && known.capture == captures_;
    return !lines_[s].capturing && (known.in == s || known.recorded.contains(s));
  }

  /// Work that looks for the mark that the last user left, and leaves another.
  void write(place at, std::size_t s) {
    auto& [start, known] = *at;
    if (known.length < 3 * sizeof(std::uint64_t)) return;
    const std::uint64_t before = known.mark;
    known.mark = ++marks_;
    lines_[s].stream.enqueue([this, words = reinterpret_cast<std::uint64_t*>(start), length = known.length, before,
                              after = known.mark] {
      const std::size_t last = length / sizeof(std::uint64_t) - 1;
      for (const std::size_t index : {std::size_t{0}, last / 2, last}) {
        disturbed_ += before != 0 && words[index] != before;
        words[index] = after;
      }
    });
  }

  void use() {
    if (live_.empty()) return;
    const place at = any_live();
    const std::size_t s = any_stream();
    if (!may_use(at->second, s)) return;
    if (!order(last_user(at), s)) return;
    write(at, s);
    last_users_[at->first] = s;
  }

  [[nodiscard]] std::size_t last_user(place at) const {
    const auto known = last_users_.find(at->first);
    return known == last_users_.end() ? at->second.in : known->second;
  }

  /// What is in `later` from now on comes after all that is in `earlier` now: the program's own order.
  bool order(std::size_t earlier, std::size_t later) {
    if (earlier == later) return true;
    if (lines_[earlier].capturing || lines_[later].capturing) return false;
    const event_handle event = driver_->record(handle(earlier));
    ORDERLY_REQUIRE(event != nullptr);
    ORDERLY_REQUIRE(driver_->wait(handle(later), event));
    driver_->release(event);
    return true;
  }

  [[nodiscard]] error free(char* start, std::size_t bytes, stream_handle in, std::uint64_t generation = 0) {
    return somewhere([&] {
      return generation == 0 ? pool_.try_deallocate(start, bytes, in)
                             : pool_.try_deallocate(checked_block{start, generation}, bytes, in);
    });
  }

  void deallocate() {
    if (live_.empty()) return;
    const place at = any_live();
    const auto [start, known] = *at;
    std::size_t s = choices_.uniform(0, 3) == 3 ? any_stream() : known.in;
    // A captured block's uses are the graph's; others' are the streams', which the program orders before the free.
    if (known.capture == 0 && s != known.in && !order(known.in, s)) s = known.in;
    const std::size_t bytes = choices_.uniform(0, 1) == 0 ? known.requested : 0;
    ORDERLY_REQUIRE(free(start, bytes, handle(s), known.generation) == error::none);
    forget(at);
    if (choices_.uniform(0, 9) == 9) {
      ORDERLY_REQUIRE(free(start, 0, handle(any_stream()), known.generation) == error::double_free);
      ++bad_frees_;
    }
  }

  void forget(place at) {
    requested_ -= at->second.requested;
    allocated_ -= at->second.length;
    last_users_.erase(at->first);
    live_.erase(at);
  }

  void bad_free() {
    if (live_.empty()) return;
    const auto [start, known] = *any_live();
    const stream_handle in = handle(any_stream());
    const std::size_t granule = pool_.granule();
    if (known.length > granule) {
      ORDERLY_REQUIRE(free(start + granule, 1, in) == error::interior_pointer);
      ORDERLY_REQUIRE(free(start, known.length + granule, in) == error::size_mismatch);
      ++bad_frees_;
    } else {
      ORDERLY_REQUIRE(free(start, granule + 1, in) == error::size_mismatch);
    }
    ORDERLY_REQUIRE(free(start + 1, 0, in) == error::misaligned_pointer);
    ORDERLY_REQUIRE(free(start, known.requested, nullptr, known.generation) == error::invalid_argument);
    ORDERLY_REQUIRE(free(start, known.requested, in, known.generation + 2) == error::stale_handle);
    ORDERLY_REQUIRE(pool_.divide(start, 3 * granule, std::span<const std::uint32_t>{}, in) == error::invalid_argument);
    bad_frees_ += 3;
  }

  void misuse() {
    const std::size_t s = any_stream();
    char stranger = 0;
    ORDERLY_REQUIRE(pool_.try_allocate(SIZE_MAX - any_size(), handle(s)) == nullptr);
    ++failed_;
    ORDERLY_REQUIRE(pool_.try_allocate(1, 3, handle(s)) == nullptr);
    ORDERLY_REQUIRE(pool_.try_allocate(1, nullptr) == nullptr);
    ORDERLY_REQUIRE(free(nullptr, any_size(), handle(s)) == error::none);
    ORDERLY_REQUIRE(free(&stranger, 0, handle(s)) == error::foreign_pointer);
    ++bad_frees_;
    ORDERLY_REQUIRE(pool_.record_stream(&stranger, handle(s)) == error::foreign_pointer);
    ORDERLY_REQUIRE(pool_.record_stream(&stranger, nullptr) == error::invalid_argument);
    ORDERLY_REQUIRE(pool_.begin_capture(nullptr) == error::invalid_argument);
    if (lines_[s].capturing) {
      ORDERLY_REQUIRE(pool_.begin_capture(handle(s)) == error::invalid_argument);
    } else {
      ORDERLY_REQUIRE(pool_.end_capture(handle(s)) == error::invalid_argument);
    }
  }

  void record_stream() {
    if (live_.empty()) return;
    const place at = any_live();
    auto& [start, known] = *at;
    const std::size_t s = any_stream();
    if (known.capture != 0 || lines_[s].capturing || !order(last_user(at), s)) return;
    if (settings_.safe_mode) {  // what is in the stream now, and nothing later
      write(at, s);
      ORDERLY_REQUIRE(order(s, known.in));
    } else {
      known.recorded.insert(s);
    }
    ORDERLY_REQUIRE(pool_.record_stream(start, handle(s)) == error::none);
  }

  void divide() {
    if (live_.empty()) return;
    const place at = any_live();
    char* const start = at->first;
    const block known = at->second;
    const std::size_t s = known.in;
    if (known.length > pool_.largest_divisible() || lines_[s].capturing || known.capture != 0) return;
    const std::size_t part = pool_.granule() << choices_.uniform(0, 4);
    if (!std::has_single_bit(known.length) || part > known.length || known.length / part > 1024) return;
    if (!order(last_user(at), s)) return;  // parts are used at once
    const std::size_t parts = known.length / part;
    std::vector<std::uint32_t> live((parts + 31) / 32);
    for (std::size_t i = 0; i < parts; ++i)
      live[i / 32] |= static_cast<std::uint32_t>(choices_.uniform(0, 1)) << i % 32;
    const bool none_live = std::all_of(live.begin(), live.end(), [](std::uint32_t word) { return word == 0; });
    const error code = somewhere([&] { return pool_.divide(start, part, live, handle(s)); });
    if (code == error::invalid_argument) return;
    ORDERLY_REQUIRE(code == error::none);
    if (parts == 1 && !none_live) return;  // it is as it was
    const std::set<std::size_t> recorded = known.recorded;
    forget(at);
    for (std::size_t i = 0; i < parts; ++i) {
      if ((live[i / 32] >> i % 32 & 1) == 0) continue;
      const place added = insert(start + i * part, part, s, 0);
      added->second.recorded = recorded;
      ORDERLY_REQUIRE(added->second.length == part);
    }
  }

  void tidy() {
    switch (choices_.uniform(0, 2)) {
      case 0: static_cast<void>(somewhere([&] { return pool_.trim(choices_.uniform(0, 1) * kib * 64); })); break;
      case 1: static_cast<void>(somewhere([&] { return pool_.defragment(); })); break;
      default: check_live();
    }
  }

  void synchronize() {
    const std::size_t s = any_stream();
    const bool captures = std::any_of(lines_.begin(), lines_.end(), [](const line& l) { return l.capturing; });
    switch (choices_.uniform(0, 2)) {
      case 0: ORDERLY_REQUIRE(lines_[s].stream.synchronize() != lines_[s].capturing); break;
      case 1:
        ORDERLY_REQUIRE(somewhere([&] { return pool_.stream_synchronize(handle(s)); }) || lines_[s].capturing);
        break;
      default: ORDERLY_REQUIRE(somewhere([&] { return pool_.synchronize(); }) || captures);
    }
  }

  /// The stream goes, and another comes, with its handle perhaps. Its live blocks become another stream's.
  void replace_stream(std::size_t s) {
    if (lines_[s].capturing) return;
    const std::size_t heir = (s + 1) % streams;
    if (lines_[heir].capturing) return;
    for (auto& [start, known] : live_) {
      known.recorded.erase(s);
      if (known.in == s) known.in = heir;
      const auto last = last_users_.find(start);
      if (last != last_users_.end() && last->second == s) last->second = heir;
    }
    for (std::size_t other = 0; other < streams; ++other)
      if (!order(s, other)) return void(lines_[s].stream.synchronize());
    lines_[s].graph.reset();
    // In safe mode it need not be said, and no event can be recorded then for what was freed in a capture.
    if (!settings_.safe_mode || choices_.uniform(0, 1) == 0)
      ORDERLY_REQUIRE(pool_.release_stream(handle(s)) || settings_.safe_mode);
    lines_[s].stream = software_stream(device_);
  }

  void capture() {
    const std::size_t s = any_stream();
    if (lines_[s].capturing) return end_capture(s);
    if (std::any_of(lines_.begin(), lines_.end(), [](const line& l) { return l.capturing; })) return;
    lines_[s].graph.reset();
    ORDERLY_REQUIRE(pool_.begin_capture(handle(s)) == error::none);
    ORDERLY_REQUIRE(lines_[s].stream.begin_capture());
    lines_[s].capturing = true;
    ++captures_;
  }

  void end_capture(std::size_t s) {
    ORDERLY_REQUIRE(pool_.end_capture(handle(s)) == error::none);
    lines_[s].graph = lines_[s].stream.end_capture();
    lines_[s].capturing = false;
  }

  void launch() {
    line& chosen = lines_[any_stream()];
    if (chosen.capturing || !chosen.graph) return;
    if (choices_.uniform(0, 2) == 2)
      chosen.graph.reset();
    else
      chosen.stream.launch(*chosen.graph);
  }

  void check_live() {
    std::map<char*, std::size_t> seen;
    const char* end = nullptr;
    pool_.for_each_block([&](const block_info& info) {
      auto* const start = static_cast<char*>(info.address);
      ORDERLY_REQUIRE(start >= end);
      end = start + info.bytes;
      if (info.state == block_state::live) seen[start] = info.requested;
    });
    std::map<char*, std::size_t> expected;
    for (const auto& [start, known] : live_) expected[start] = known.requested;
    ORDERLY_REQUIRE(seen == expected);
  }

  void check_stats() {
    const statistics stats = pool_.stats().memory;
    ORDERLY_REQUIRE(stats.requested == requested_);
    ORDERLY_REQUIRE(stats.allocated == allocated_);
    ORDERLY_REQUIRE(stats.allocations - stats.frees == live_.size());
    ORDERLY_REQUIRE(stats.failed == failed_);
    ORDERLY_REQUIRE(stats.bad_frees == bad_frees_);
    ORDERLY_REQUIRE(stats.allocated + stats.cached <= stats.committed);
    ORDERLY_REQUIRE(stats.committed <= stats.limit);
    ORDERLY_REQUIRE(disturbed_ == 0);
  }

  byte_choices& choices_;
  lockstep_threads& threads_;
  const stream_options settings_;
  const bool flat_;
  std::vector<page> buffer_;
  std::size_t disturbed_ = 0;  // blocks that somebody else had written; before the device, whose end runs work
  software_device device_;
  std::shared_ptr<stream_driver> driver_;
  stream_pool pool_;
  std::vector<line> lines_;
  std::map<char*, block> live_;
  std::map<char*, std::size_t> last_users_;
  std::size_t requested_ = 0;
  std::size_t allocated_ = 0;
  std::uint64_t failed_ = 0, bad_frees_ = 0;
  std::uint64_t marks_ = 0;
  std::uint64_t captures_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static std::array<lockstep_threads, 2> threads{lockstep_threads(1), lockstep_threads(2)};
  byte_choices choices({data, size});
  stream_options settings;
  const std::size_t flags = choices.uniform(0, 63);
  settings.memory.capacity = (flags & 1) != 0 ? mib : 256 * kib;
  settings.memory.chunk = (flags & 2) != 0 ? 64 * kib : 4 * kib;
  settings.memory.on_bad_free = on_bad_free::count;
  settings.safe_mode = (flags & 4) != 0;
  settings.wait_before_refusing = (flags & 8) != 0;
  settings.seal_bytes = (flags & 16) != 0 ? 32 * kib : 0;
  stream_model tested(choices, threads[choices.uniform(0, 1)], settings, (flags & 32) != 0);
  while (!choices.spent()) tested.step();
  tested.finish();
  return 0;
}
