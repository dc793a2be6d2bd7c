/// \file
/// Pools with streams in scenarios. No stream runs here: the order of their work is computed. A block is handed out in a
/// stream only if all that used it is done, or lies before what enters the stream from now on, for whoever asks: a forgotten
/// wait, an event that covers too little, a missing order of the host show where the block is taken.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "orderly/stream_pool.hpp"
#include "sources.hpp"
#include "support/audit.hpp"

namespace orderly::model {

using namespace detail;

/// How far each of eight streams is, a byte each: positions behind so many pieces of work.
class progress {
 public:
  progress() = default;
  explicit progress(std::uint64_t bits) : bits_(bits) {}
  [[nodiscard]] static progress of(unsigned stream, std::uint64_t position) {
    return progress(position << 8 * stream);
  }
  [[nodiscard]] std::uint64_t bits() const { return bits_; }
  [[nodiscard]] std::uint64_t at(unsigned stream) const { return bits_ >> 8 * stream & 0xff; }
  [[nodiscard]] progress join(progress other) const {
    progress both;
    for (unsigned i = 0; i < 8; ++i) both.bits_ |= std::max(at(i), other.at(i)) << 8 * i;
    return both;
  }
  [[nodiscard]] bool covers(progress other) const { return join(other).bits_ == bits_; }

 private:
  std::uint64_t bits_ = 0;
};

/// Streams of which a thread knows what happened before: a question about a stream or the device may be answered by an
/// older state, unless the host's own order forbids it. Events pass when a thread asks, in some executions.
class device final : public stream_driver {
 public:
  static constexpr unsigned most_streams = 6;
  static constexpr unsigned replays = 7;  ///< of graphs, as a stream of its own
  static constexpr unsigned none = most_streams;  ///< a handle that names it is no stream

  unsigned passes = 0;           ///< so many events may pass while threads run; in setup and check, none
  unsigned record_refusals = 0;
  unsigned wait_refusals = 0;
  bool records_nothing = false;  ///< every record is refused
  // Read by whoever asks for a stream, so objects of the door: their changes are steps.
  std::array<atomic<unsigned>, most_streams> names{0U, 1U, 2U, 3U, 4U, 5U};  ///< which stream a handle is
  std::array<atomic<std::uint64_t>, most_streams> capturing{};
  std::vector<std::pair<void (*)(void*), void*>> graph_ends;
  int events = 0;  ///< recorded and not released

  [[nodiscard]] stream_handle handle(unsigned name) const { return reinterpret_cast<stream_handle>((name + 1) << 12); }
  [[nodiscard]] unsigned stream(stream_handle of) const {
    return names[(reinterpret_cast<std::uintptr_t>(of) >> 12) - 1].load(relaxed);
  }

  /// Work enters the stream, or the graph that it captures into. Its place.
  progress enqueue(stream_handle in) {
    const unsigned s = capturing[stream(in)].load(relaxed) != 0 ? replays : stream(in);
    const std::uint64_t before = behind_[s].fetch_add(std::uint64_t{1} << 8 * s, relaxed);
    return progress::of(s, progress(before).at(s) + 1);
  }
  /// The program makes one stream wait for another.
  void order(stream_handle first, stream_handle then) {
    join(behind_[stream(then)], progress(behind_[stream(first)].load(relaxed)));
  }
  /// What lies before all that the calling thread puts into the stream from now on.
  [[nodiscard]] progress before(stream_handle in) const {
    const progress over(done_.load(relaxed));
    // A graph's own replays are in order.
    if (capturing[stream(in)].load(relaxed) != 0) return over.join(progress::of(replays, 0xff));
    return progress(behind_[stream(in)].load(relaxed)).join(over);
  }
  [[nodiscard]] progress done() const { return progress(done_.load(relaxed)); }
  void finish_all() {
    for (const auto& each : behind_) join(done_, progress(each.load(relaxed)));
  }
  /// The last launch of every graph is over, and the graphs are gone.
  void end_graphs() {
    join(done_, progress::of(replays, progress(behind_[replays].load(relaxed)).at(replays)));
    for (const auto& [tell, context] : std::exchange(graph_ends, {})) tell(context);
  }

  [[nodiscard]] std::uint64_t identity(stream_handle of) noexcept override {
    return stream(of) == none ? 0 : stream(of) + 1;
  }
  [[nodiscard]] bool is_per_thread(stream_handle) noexcept override { return false; }
  [[nodiscard]] std::uint64_t capture(stream_handle of) noexcept override {
    return stream(of) == none ? 0 : capturing[stream(of)].load(relaxed);
  }
  [[nodiscard]] bool when_graph_is_gone(stream_handle of, void (*gone)(void*), void* context) noexcept override {
    if (capturing[stream(of)].load(relaxed) == 0) return false;
    graph_ends.emplace_back(gone, context);
    return true;
  }
  [[nodiscard]] event_handle record(stream_handle in) noexcept override {
    if (capturing[stream(in)].load(relaxed) != 0 || records_nothing || refuses(record_refusals))
      return nullptr;
    ++events;
    return new mark{.behind = plain<std::uint64_t>(behind_[stream(in)].load(relaxed))};
  }
  [[nodiscard]] bool wait(stream_handle in, event_handle event) noexcept override {
    if (capturing[stream(in)].load(relaxed) != 0 || refuses(wait_refusals)) return false;
    join(behind_[stream(in)], known(event));
    return true;
  }
  [[nodiscard]] event_status query(event_handle event) noexcept override {
    const progress before = known(event);
    if (done().covers(before)) return event_status::complete;
    if (passes == 0 || self() == most_threads || choose(2) == 0) return event_status::pending;
    --passes;
    join(done_, before);
    return event_status::complete;
  }
  [[nodiscard]] bool synchronize(event_handle event) noexcept override {
    join(done_, known(event));
    return true;
  }
  [[nodiscard]] bool synchronize_all() noexcept override {
    finish_all();
    return true;
  }
  void release(event_handle event) noexcept override {
    static_cast<void>(known(event));
    static_cast<mark*>(event)->released = true;
    --events;
  }

 private:
  struct mark {
    plain<std::uint64_t> behind;
    bool released = false;
  };
  [[nodiscard]] static progress known(event_handle event) {
    const auto& of = *static_cast<const mark*>(event);
    ORDERLY_EXPECT(!of.released, "an event is used after its release");
    return progress(of.behind.get());
  }
  [[nodiscard]] static bool refuses(unsigned& left) {
    if (left == 0 || self() == most_threads || choose(2) == 0) return false;
    --left;
    return true;
  }
  static void join(atomic<std::uint64_t>& at, progress more) {
    std::uint64_t seen = at.load(relaxed);
    while (!at.compare_exchange_weak(seen, progress(seen).join(more).bits(), relaxed, relaxed)) {
    }
  }

  std::array<atomic<std::uint64_t>, 8> behind_{};
  atomic<std::uint64_t> done_{0};
};

/// What used each granule.
struct users {
  device& streams;
  std::array<progress, owners::most> used{};
};

/// Sees that nothing is decommitted that a stream may still use.
class guarded final : public memory_source {
 public:
  guarded(source_book& book, std::size_t unit, std::size_t capacity, users& by)
      : inner_(book, unit, capacity), by_(by) {}
  [[nodiscard]] std::size_t granularity() const noexcept override { return inner_.granularity(); }
  [[nodiscard]] std::size_t capacity() const noexcept override { return inner_.capacity(); }
  [[nodiscard]] bool is_virtual() const noexcept override { return inner_.is_virtual(); }
  [[nodiscard]] void* reserve(std::size_t bytes, std::size_t alignment) noexcept override {
    return inner_.reserve(bytes, alignment);
  }
  void release(void* address, std::size_t bytes) noexcept override { inner_.release(address, bytes); }
  [[nodiscard]] bool commit(void* address, std::size_t bytes) noexcept override {
    return inner_.commit(address, bytes);
  }
  [[nodiscard]] bool decommit(void* address, std::size_t bytes) noexcept override {
    const std::size_t first = owners::granule_of(address);
    for (std::size_t i = first; i < first + bytes / granule; ++i)
      ORDERLY_EXPECT(by_.streams.done().covers(by_.used[i]), "granule %zu is decommitted while a stream uses it", i);
    return inner_.decommit(address, bytes);
  }

 private:
  paper inner_;
  users& by_;
};

struct of_streams : scenario {
  source_book book;
  std::shared_ptr<device> streams = std::make_shared<device>();
  users by{*streams};
  owners owned;
  std::unique_ptr<stream_pool> tested;

  [[nodiscard]] static stream_options silent() {
    stream_options settings;
    settings.memory.on_bad_free = on_bad_free::count;
    settings.memory.granule = granule;
    return settings;
  }
  void in_buffer(std::size_t granules, const stream_options& settings = silent()) {
    tested = std::make_unique<stream_pool>(std::make_unique<guarded>(book, 0, granules * granule, by), streams,
                                           settings);
  }
  /// Chunks of one granule.
  void in_chunks(std::size_t chunks) {
    stream_options settings = silent();
    settings.memory.chunk = granule;
    settings.memory.capacity = 4 * chunks * granule;
    settings.memory.limit = chunks * granule;
    const std::size_t capacity = settings.memory.capacity;
    tested = std::make_unique<stream_pool>(std::make_unique<guarded>(book, granule, capacity, by), streams, settings);
  }
  [[nodiscard]] stream_handle at(unsigned name) const { return streams->handle(name); }

  /// The thread has a front in that stream, with nothing in it.
  void warm(unsigned self, unsigned name) {
    as_thread(self, [&] { tested->deallocate(tested->allocate(granule, at(name)), granule, at(name)); });
    static_cast<void>(tested->defragment());
  }

  /// Taken in a stream whose work uses it from then on.
  void take(void* block, std::size_t granules, unsigned name) {
    owned.take(block, granules, name);
    const progress ordered = streams->before(at(name));
    for (std::size_t i = owners::granule_of(block), end = i + granules; i < end; ++i)
      ORDERLY_EXPECT(ordered.covers(by.used[i]), "granule %zu is handed out in stream %u (behind %llx), used by %llx",
                     i, name, static_cast<unsigned long long>(ordered.bits()),
                     static_cast<unsigned long long>(by.used[i].bits()));
    use(block, granules, name);
  }
  void use(const void* block, std::size_t granules, unsigned name) {
    const progress by_work = streams->enqueue(at(name));
    for (std::size_t i = owners::granule_of(block), end = i + granules; i < end; ++i)
      by.used[i] = by.used[i].join(by_work);
  }
  void* allocate(std::size_t granules, unsigned name, std::size_t alignment = 1) {
    void* const block = tested->try_allocate(granules * granule, alignment, at(name));
    if (block != nullptr) take(block, granules, name);
    return block;
  }
  void* must_allocate(std::size_t granules, unsigned name, std::size_t alignment = 1) {
    void* const block = allocate(granules, name, alignment);
    ORDERLY_EXPECT(block != nullptr, "%zu granules are refused, and were there all the time", granules);
    return block;
  }
  /// `owner`: the stream that it was taken in.
  void free(void* block, std::size_t granules, unsigned owner, unsigned name) {
    owned.give(block, granules, owner);
    ORDERLY_EXPECT(tested->try_deallocate(block, granules * granule, at(name)) == error::none,
                   "the free of a live block is refused");
  }
  void free(void* block, std::size_t granules, unsigned name) { free(block, granules, name, name); }
  /// Twice a granule: such a request has no class, so that its block goes past caches.
  static constexpr std::size_t aside = 2 * granule;
  void* set_up(unsigned self, std::size_t granules, unsigned name, std::size_t alignment = 1) {
    void* block = nullptr;
    as_thread(self, [&] { block = must_allocate(granules, name, alignment); });
    return block;
  }

  /// A stream that has seen nothing takes all there is; then all work ends, and nothing is lost.
  void check_idle(unsigned newcomer = 5) {
    test::check_sound(*tested);
    std::vector<void*> all;
    while (void* const block = allocate(1, newcomer)) all.push_back(block);
    for (void* const block : all) free(block, 1, newcomer);
    check_books();
  }
  void check_books() {
    end_threads();
    streams->end_graphs();
    ORDERLY_EXPECT(tested->synchronize(), "the pool cannot tell when work is done");
    test::check_sound(*tested);
    const stream_statistics stats = tested->stats();
    ORDERLY_EXPECT(stats.held == 0, "%zu bytes are held", stats.held);
    ORDERLY_EXPECT(stats.memory.cached == 0, "%zu bytes stay cached", stats.memory.cached);
    ORDERLY_EXPECT(stats.memory.allocated == 0, "%zu bytes are live", stats.memory.allocated);
    static_cast<void>(tested->trim());
    ORDERLY_EXPECT(book.committed == 0, "%zu bytes stay committed", book.committed);
    tested.reset();
    ORDERLY_EXPECT(streams->events == 0, "%d events are never released", streams->events);
  }
};

}  // namespace orderly::model
