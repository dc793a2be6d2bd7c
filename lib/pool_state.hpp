/// \file
/// The pool behind orderly::pool: requests to shapes, fronts and depots over the block store, passes, statistics.
///
/// Ways of an allocation, each tried when the one before has nothing:
///   hot      this thread's front
///   refill   the depot, then the block store; what is more than one block goes to the front
///   relieve  the soft limit is reached: idle memory is released to pay for new (skipped when another thread is at it)
///   press    nothing else is left: the pass that takes back everything cached, under the mutex
///   handler  the user's, without the mutex; then all over again
/// A free goes to the front that handed the block out: at once if it is this thread's, else in a parcel. From a full front
/// blocks go to the depot, and from a full depot to the block store.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "block_store.hpp"
#include "depot.hpp"
#include "front.hpp"
#include "generations.hpp"
#include "keepers.hpp"
#include "lane.hpp"
#include "lanes.hpp"
#include "notes.hpp"
#include "orderly/pool.hpp"
#include "pass_mutex.hpp"
#include "registry.hpp"
#include "relocation.hpp"
#include "tag_accounts.hpp"
#include "tag_names.hpp"
#include "thread_fronts.hpp"

namespace orderly {

class ORDERLY_LOCAL pool::state final : public detail::registered_pool {
 public:
  /// Throws std::invalid_argument, out_of_memory, std::bad_alloc.
  state(std::unique_ptr<memory_source> source, const options& settings,
        std::unique_ptr<detail::lanes> streams = nullptr);
  state(const state&) = delete;
  state& operator=(const state&) = delete;
  ~state();

  /// The hot path. When it cannot serve, nothing has happened, and it ends in `otherwise()`, the slow one: then neither
  /// needs a stack frame.
  template <class Otherwise>
  [[nodiscard, gnu::always_inline]] void* allocate_hot(std::size_t bytes, const Otherwise& otherwise) {
    return allocate_here<detail::front::brief_stay>([this] { return detail::this_thread_fronts.find(serial()); }, bytes,
                                                    otherwise);
  }
  template <class Otherwise>
  [[nodiscard, gnu::always_inline]] void* allocate_hot(detail::front& mine, std::size_t bytes,
                                                       const Otherwise& otherwise) {
    return allocate_here<detail::front::brief_stay>([&mine] { return &mine; }, bytes, otherwise);
  }
  [[nodiscard]] bool aligned_by_granule(std::size_t alignment) const noexcept {
    return alignment - 1 < hot_alignments_ && (alignment & (alignment - 1)) == 0;
  }

  /// Past the hot path. Throws out_of_memory, what the out-of-memory handler throws, and std::invalid_argument for an
  /// alignment that cannot be had.
  [[nodiscard]] void* allocate_or_throw(std::size_t bytes, std::size_t alignment, detail::lane* in = nullptr);
  /// The same; null instead of an exception. Also null for an alignment that cannot be had.
  [[nodiscard]] void* allocate_or_null(std::size_t bytes, std::size_t alignment, detail::lane* in = nullptr) noexcept;
  [[nodiscard]] bool aligns(std::size_t alignment) const noexcept;

  /// The hot path, in the same way.
  template <class Otherwise>
  [[gnu::always_inline]] error deallocate_hot(void* pointer, std::size_t bytes, const Otherwise& otherwise) {
    return deallocate_here<detail::front::brief_stay>([this] { return detail::this_thread_fronts.find(serial()); },
                                                      pointer, bytes, otherwise);
  }
  template <class Otherwise>
  [[gnu::always_inline]] error deallocate_hot(detail::front& mine, void* pointer, std::size_t bytes,
                                              const Otherwise& otherwise) {
    return deallocate_here<detail::front::brief_stay>([&mine] { return &mine; }, pointer, bytes, otherwise);
  }
  [[nodiscard]] error deallocate_slow(void* pointer, std::size_t bytes, bad_free* report,
                                      detail::lane* in = nullptr) noexcept;
  error deallocate_or_report(void* pointer, std::size_t bytes, detail::lane* in = nullptr) noexcept;

  // Handles; see checked.cpp.
  /// Before give_handle(). False: the system refused.
  [[nodiscard]] bool open_generations() noexcept { return generations_.open(); }
  /// Pre: the block was handed out just now, and nobody else has it. Null: no handle.
  [[nodiscard]] checked_block give_handle(void* block) noexcept;
  /// The first half of a free by handle; if it succeeds the caller frees the address, which nobody else does by this handle.
  [[nodiscard]] error end_handle(const checked_block& handle, std::size_t bytes, bad_free* report) noexcept;
  [[noreturn]] void throw_out_of_memory(std::size_t bytes, std::size_t alignment,
                                        const memory_report::attempts* tried = nullptr);
  void call_handler(const bad_free& refused) const noexcept {
    if (settings_.on_bad_free) settings_.on_bad_free(refused);
  }

  // Of a pool with streams; see stream_pool.
  [[nodiscard]] detail::lane* bind(stream_handle stream) noexcept;
  [[nodiscard]] error record_stream(void* pointer, detail::lane& in) noexcept;
  /// `in`: the stream that the rest is freed in; null: no stream uses it any more. `why`: gets a line if it is refused.
  [[nodiscard]] error divide(void* pointer, std::size_t part_bytes, std::span<const std::uint32_t> live, detail::lane* in,
                             std::string* why) noexcept;
  [[nodiscard]] bool release_stream(stream_handle stream) noexcept;
  /// A look at what begin_capture() and end_capture() set; the program, or the pass that sets it, orders them.
  [[nodiscard]] static bool captures(const detail::lane* in) noexcept {
    return in != nullptr && in->graph.load(detail::acquire) != nullptr;
  }
  [[nodiscard]] error begin_capture(detail::lane& in) noexcept;
  [[nodiscard]] error end_capture(detail::lane& in) noexcept;
  [[nodiscard]] bool synchronize(detail::lane* only) noexcept;
  void seal_if_due(detail::lane& of, std::size_t due = std::numeric_limits<std::size_t>::max()) noexcept;
  [[nodiscard]] detail::lanes* streams() const noexcept { return lanes_.get(); }
  [[nodiscard]] std::size_t held() const noexcept;

  [[nodiscard]] std::size_t block_size(const void* pointer) const noexcept;
  [[nodiscard]] bool owns(const void* pointer) const noexcept;
  [[nodiscard]] std::size_t rounded(std::size_t bytes) const noexcept;
  std::size_t trim(std::size_t keep_bytes) noexcept;
  std::size_t reserve(std::size_t bytes) noexcept;
  std::size_t defragment() noexcept;

  /// Who keeps blocks that are live to this pool, and is asked for them before an allocation is refused.
  [[nodiscard]] detail::keepers& keepers() noexcept { return keepers_; }
  /// What tools are told of blocks that are kept. Pre: the block is the caller's.
  [[nodiscard]] detail::annotations& tools() noexcept { return store_.memory().tools(); }

  // Relocation; see relocation.cpp.
  /// Runs a pass, and plans what `movable` blocks are to move; they are in the order of their addresses. Throws
  /// std::bad_alloc.
  [[nodiscard]] detail::relocation_plan plan_relocation(std::span<void* const> movable);
  /// A block out of a node that was free when it was planned, with the tag of the block that is to move there; `in`: for
  /// work that enters that stream from now on. Null: somebody else has it by now, or the stream cannot be made to wait for
  /// what may still use it.
  [[nodiscard]] void* allocate_in_room(detail::node room, std::size_t bytes, const void* moving,
                                       detail::lane* in = nullptr) noexcept;
  /// Chunks that were to be emptied and are free now.
  [[nodiscard]] std::size_t count_emptied(const detail::relocation_plan& plan) const noexcept;

  [[nodiscard]] statistics stats() const noexcept;
  [[nodiscard]] std::vector<tag_statistics> tags() const;
  /// `bytes` 0: of no request. `tried`: for the request that was refused.
  [[nodiscard]] memory_report report(std::size_t bytes, std::size_t alignment,
                                     const memory_report::attempts* tried) noexcept;
  /// Inside of the pool's out-of-memory handler, on the thread that runs it: of the request that would be refused.
  [[nodiscard]] memory_report report(std::size_t bytes) noexcept;
  void visit(void (*show)(void*, const block_info&), void* context) const;
  [[nodiscard]] const detail::geometry& shape() const noexcept { return store_.shape(); }

  [[nodiscard]] bool contains(const void* pointer) const noexcept override;
  void detach(detail::front& of) noexcept override;
  void before_fork() noexcept override;
  void after_fork(bool child) noexcept override;

  static constexpr std::size_t no_class = ~std::size_t{0};

 private:
  static constexpr std::size_t most_fronts = detail::bounds::fronts;
  static_assert(most_fronts <= detail::block_word::most_home);

  /// A request, worked out.
  struct request {
    std::size_t bytes = 0;          ///< at least 1
    std::uint64_t granules = 0;
    detail::block_shape shape;
    std::size_t of_class = no_class;  ///< of the fronts; none: too large, or over-aligned
    detail::lane* in = nullptr;       ///< the stream that will use it
    std::uint16_t tag = 0;
    std::size_t alignment = 1;
    memory_report::attempts* tried = nullptr;  ///< to be told; null: nobody asks
  };

  /// What fronts and depots do with a class.
  struct class_rule {
    detail::block_shape shape;
    std::uint64_t bytes = 0;
    std::uint16_t capacity = 0;   ///< blocks in a front
    std::uint16_t batch = 0;      ///< blocks in a magazine of the depot
    std::uint16_t refill = 0;     ///< blocks taken from the store at once
    std::uint32_t magazines = 0;  ///< in the depot
  };

  /// How far all threads are; see press().
  struct activity {
    std::uint64_t steps = 0;
    bool inside = false;
  };

  /// How long a pass waits for a thread inside its front.
  enum class patience : std::uint8_t { brief, long_one };

  /// What came out of caches.
  struct haul {
    std::size_t blocks = 0;
    std::size_t bytes = 0;
    bool complete = true;  ///< nothing was passed over
    haul& operator+=(const haul& other) noexcept {
      blocks += other.blocks;
      bytes += other.bytes;
      complete = complete && other.complete;
      return *this;
    }
  };

  /// Marks work past the front of a thread, or of one that has none.
  class slow_section;

  template <class Stay, class FindFront, class Otherwise>
  [[nodiscard, gnu::always_inline]] void* allocate_here(const FindFront& find, std::size_t bytes,
                                                        const Otherwise& otherwise);
  template <class Stay, class FindFront, class Otherwise>
  [[gnu::always_inline]] error deallocate_here(const FindFront& find, void* pointer, std::size_t bytes,
                                               const Otherwise& otherwise);
  /// False: the hot path leaves everything to the slow one, which may begin with the same work.
  [[nodiscard]] bool hot_path_looks() const noexcept {
    return detail::asymmetric_barrier::available() && !tags_.on();
  }
  [[nodiscard]] void* allocate_in_front(detail::lane* in, std::size_t bytes) noexcept;
  [[nodiscard]] bool deallocate_in_front(detail::lane* in, void* pointer, std::size_t bytes) noexcept;

  /// Under which number threads find their fronts.
  [[nodiscard]] std::uint64_t key(const detail::lane* in) const noexcept {
    return in == nullptr ? serial() : in->serial.load(detail::relaxed);  // the caller uses the lane, so it stays
  }
  [[nodiscard]] detail::depot::shelves& shelves_of(detail::lane* in) noexcept {
    return in == nullptr ? shelves_ : in->shelves;
  }

  void set_rules() noexcept;
  [[nodiscard]] request work_out(std::size_t bytes, std::size_t alignment, detail::lane* in) const noexcept;

  /// The handler of a pool that this thread is in, for a request.
  struct handling;
  static thread_local constinit const handling* innermost_handling;

  /// Null: refused. Throws what the out-of-memory handler throws.
  [[nodiscard]] void* allocate_slow(const request& wanted);
  [[nodiscard]] void* allocate_once(const request& wanted) noexcept;
  [[nodiscard]] void* refill(detail::front& of, const request& wanted, detail::ceiling up_to,
                             detail::refusal& why) noexcept;
  [[nodiscard]] void* allocate_direct(detail::front* of, const request& wanted, detail::ceiling up_to,
                                      detail::refusal& why) noexcept;
  [[nodiscard]] void* hand_out(detail::front* of, const request& wanted, detail::node n) noexcept;

  [[nodiscard]] bool accepts(const detail::block_store::found& block, std::size_t bytes) const noexcept;
  [[nodiscard]] bad_free explain(const void* pointer, std::size_t bytes) const noexcept;
  [[nodiscard]] bad_free explain_handle(const checked_block& handle, std::size_t bytes,
                                        std::uint64_t latest) const noexcept;
  [[nodiscard]] bool return_home(detail::lane* in, void* pointer, std::size_t bytes) noexcept;
  [[nodiscard]] bool send_returns(detail::front& of, std::size_t of_class) noexcept;
  void adopt(detail::front& of) noexcept;
  void deliver(detail::lane* in, std::size_t of_class, std::uint32_t home, std::span<const std::uint32_t> blocks,
               const std::uint32_t* unused) noexcept;
  void unpack(detail::front& of, std::size_t of_class) noexcept;
  std::size_t arrive(detail::front& at, detail::depot::parcel& p) noexcept;
  std::size_t empty_inbox(detail::front& of) noexcept;
  void keep_or_put_back(detail::front* mine, detail::lane* in, std::size_t of_class,
                        std::span<const std::uint32_t> blocks) noexcept;
  void spill(detail::front& of, std::size_t of_class) noexcept;
  void make_room(detail::front& of, std::size_t of_class) noexcept;
  [[nodiscard]] bool keep_in_front(detail::front& mine, detail::node n, unsigned sixteenths) noexcept;
  void put_back(detail::front* mine, detail::lane* in, std::size_t of_class,
                std::span<const std::uint32_t> blocks) noexcept;
  void settle(detail::front* mine, std::size_t of_class, std::span<const std::uint32_t> blocks) noexcept;

  // Lanes. What follows with "Pre: pass" needs pass_mutex_.
  [[nodiscard]] std::optional<detail::node> take_large(const request& wanted) noexcept;
  void give_direct(detail::front* mine, detail::lane* in, detail::node n, unsigned sixteenths) noexcept;
  void hold(detail::lane& in, std::size_t of_class, std::span<const std::uint32_t> blocks, std::uint64_t bytes) noexcept;
  void release_held(detail::lane& from, detail::depot::chain& blocks) noexcept;  ///< Pre: pass
  [[nodiscard]] bool can_record(detail::lane& of) noexcept;                      ///< Pre: pass
  bool seal(detail::lane& of) noexcept;                                          ///< Pre: pass
  void release_oldest(detail::lane& of) noexcept;                                ///< Pre: pass
  void settle_passed(detail::lane& of) noexcept;                                 ///< Pre: pass
  void settle_all(bool by_barrier) noexcept;                                     ///< Pre: pass
  [[nodiscard]] detail::lane* bind_locked(stream_handle stream) noexcept;        ///< Pre: pass
  void forget_if_passed(detail::lane& of) noexcept;                              ///< Pre: pass; the lane was released
  bool release_lane_locked(detail::lane& of) noexcept;                           ///< Pre: pass
  [[nodiscard]] error begin_capture_locked(detail::lane& in) noexcept;           ///< Pre: pass
  [[nodiscard]] bool nothing_left(const detail::lane& of) const noexcept;
  void give_up_kept(stream_handle stream) noexcept;
  void wait_for_streams(std::unique_lock<detail::pass_mutex>& pass) noexcept;            ///< Pre: pass
  void empty_large(detail::lane& of) noexcept;
  haul empty_shelves(detail::lane& of) noexcept;
  [[nodiscard]] detail::lane* next_recorded(std::uint64_t granule, detail::lane* freed_in = nullptr) noexcept;
  [[nodiscard]] bool note_for_graph(const request& wanted, detail::node n) noexcept;
  [[nodiscard]] std::optional<detail::node> take_from_graph(const request& wanted) noexcept;
  [[nodiscard]] bool keep_for_graph(detail::lane& in, detail::node n, unsigned sixteenths,
                                    std::uint64_t length) noexcept;
  void tie(const detail::lane& of) noexcept;
  void settle_graphs() noexcept;                                                 ///< Pre: pass
  void end_watched_captures() noexcept;                                          ///< Pre: pass
  [[nodiscard]] bool awaits_a_graph(const detail::lane& of) noexcept;                    ///< Pre: pass
  [[nodiscard]] error end_capture_locked(detail::lane& in) noexcept;             ///< Pre: pass
  [[nodiscard]] bool serves(const request& wanted, detail::node n, unsigned sixteenths) const noexcept;
  [[nodiscard]] bool may_serve(const request& wanted) noexcept;
  [[nodiscard]] bool hold_recorded(detail::lane* in, detail::node n, unsigned sixteenths) noexcept;
  [[nodiscard]] bool add_barrier(detail::lane& in) noexcept;
  std::size_t trim_settled(std::size_t bytes, std::size_t most = ~std::size_t{0}) noexcept;  ///< Pre: pass
  std::size_t trim_once(std::size_t keep_bytes) noexcept;

  // Division; see divide.cpp.
  struct division;
  [[nodiscard]] error plan_division(division& of, std::string* why) const noexcept;
  enum class taking : std::uint8_t { taken, changed, out_of_reach };
  [[nodiscard]] taking take_from_home(const detail::block_store::found& block) noexcept;
  [[nodiscard]] taking take_live(const detail::block_store::found& block) noexcept;
  [[nodiscard]] bool record_parts(const division& of) noexcept;
  void give_piece(const division& of, detail::node n) noexcept;
  void free_whole(const division& of) noexcept;
  void part(const division& of) noexcept;

  [[nodiscard]] detail::front* this_front(detail::lane* in) noexcept;
  [[nodiscard]] detail::front* attach(detail::lane* in) noexcept;
  [[nodiscard]] detail::front* new_front() noexcept;
  /// The fronts that exist: whoever comes by one here finds it as new_front() made it.
  [[nodiscard]] std::span<detail::front> made_fronts() const noexcept {
    // new_front(). seq_cst for a pass that has changed a lane's number; see attach().
    const std::size_t count = front_count_.load(detail::seq_cst);
    for (std::size_t i = 0; i < count; ++i) detail::reads_plain(&fronts_[i]);
    return {fronts_.data(), count};
  }
  /// Returns `block`, so that the hot path ends in its calls.
  [[nodiscard]] void* count_requested(detail::front& of, std::size_t bytes, void* block) noexcept;
  [[nodiscard, gnu::noinline]] void* raise_highest(detail::front& of, void* block) noexcept;
  void discount_requested(detail::front& of, std::size_t bytes) noexcept;
  void count_free(detail::front* of, std::size_t bytes) noexcept;
  void count_taken(detail::front* of, std::uint64_t bytes) noexcept;
  [[gnu::noinline]] void publish_requested(detail::front& of) noexcept;
  void raise_peak_requested(std::int64_t reached) noexcept;
  [[nodiscard]] std::int64_t requested_now() const noexcept;

  void relieve(const request& wanted) noexcept;
  void relieve_for(std::size_t bytes) noexcept;           ///< Pre: pass
  void earn(std::size_t bytes, bool by_growth) noexcept;  ///< Pre: pass
  [[nodiscard]] std::size_t spare(std::size_t bytes) const noexcept;
  void set_soft_limit(std::size_t bytes) noexcept;  ///< Pre: pass
  [[nodiscard]] void* press(const request& wanted, detail::front* mine) noexcept;
  [[nodiscard]] bool reach_pass(std::unique_lock<detail::pass_mutex>& lock) noexcept;
  [[nodiscard]] void* allocate_or_trim(const request& wanted, detail::front* mine, detail::refusal& why) noexcept;
  [[nodiscard]] void* press_locked(const request& wanted, detail::front* mine, std::unique_lock<detail::pass_mutex>& pass) noexcept;
  haul reclaim_caches(patience with) noexcept;
  haul reclaim_depots() noexcept;
  haul reclaim_fronts(patience with, const detail::lane* only = nullptr) noexcept;
  haul drain(detail::front& of) noexcept;
  [[nodiscard]] bool is_outside(const detail::front& of) noexcept;  ///< Pre: pass
  [[nodiscard]] static bool can_seal(const detail::front& of) noexcept;
  void post_returns(detail::front& of) noexcept;
  void collect(detail::front& home) noexcept;
  [[nodiscard]] activity watch(const detail::front* mine) const noexcept;
  [[nodiscard]] std::uint64_t operations() const noexcept;
  [[nodiscard]] std::size_t commitment(const request& wanted) const noexcept;
  void tell(const request& wanted, detail::refusal why) const noexcept;

  // Reports; see pool_report.cpp.
  [[nodiscard]] std::uint64_t largest_fit(std::uint64_t granules) const noexcept;
  void add_free(memory_report& to) const noexcept;
  void add_lanes(memory_report& to) const noexcept;
  void add_tags(memory_report& to) const noexcept;
  void advise(memory_report& to) const noexcept;

  // Hot: read-only after construction.
  std::byte* base_ = nullptr;
  unsigned granule_shift_ = 0;
  std::uint64_t hot_granules_ = 0;  ///< requests up to here may be served by the hot path: those below, or none
  std::uint64_t tree_bytes_ = 0;
  detail::reserved_array<std::uint8_t> class_table_;  ///< class by last granule
  std::uint64_t front_granules_ = 0;  ///< requests up to here have a class
  std::size_t hot_alignments_ = 0;  ///< alignments that every block has: up to the granule
  std::size_t max_alignment_ = 0;
  std::size_t classes_ = 0;
  options settings_;

  detail::block_store store_;
  detail::depot depot_;
  detail::depot::shelves shelves_;  ///< without streams; else each lane has its own
  std::unique_ptr<detail::lanes> lanes_;
  std::array<class_rule, detail::max_classes> rules_{};

  detail::keepers keepers_;
  detail::generations generations_;
  detail::notes notes_;
  detail::tag_accounts tags_;
  detail::atomic<std::uint64_t> kept_bytes_{0};  ///< a figure: freed, and some graph's

  // Fronts live as long as the pool; a thread's exit leaves its front to the next thread.
  detail::mutex front_mutex_;  ///< serves the creation of fronts
  detail::reserved_array<detail::front> fronts_;
  detail::reserved_array<std::uint32_t> front_blocks_;
  std::size_t blocks_per_front_ = 0;
  std::uint64_t inbox_limit_ = 0;  ///< bytes that may wait in a front's inbox before a sender empties it
  alignas(64) detail::atomic<std::size_t> front_count_{0};

  // Figures that fronts publish rarely, and those of work without a front.
  alignas(64) detail::atomic<std::int64_t> published_requested_{0};
  detail::atomic<std::int64_t> peak_requested_{0};
  detail::atomic<std::uint64_t> taken_{0};
  detail::atomic<std::uint64_t> allocations_{0};
  detail::atomic<std::uint64_t> frees_{0};
  detail::atomic<std::uint64_t> failed_{0};
  detail::atomic<std::uint64_t> bad_frees_{0};
  detail::atomic<std::uint64_t> frontless_begun_{0};
  detail::atomic<std::uint64_t> frontless_ended_{0};

  /// Serves passes: reclaim, relieve, trim, defragment. While it is held, allocate and deallocate go on lock-free; only
  /// an allocation that would be refused waits for it.
  detail::pass_mutex pass_mutex_;
  detail::atomic<std::uint64_t> passes_{0};
  /// Beats of the pass mutex at which its holder was found to have stopped; see reach_pass().
  detail::atomic<std::uint64_t> stopped_at_{~std::uint64_t{0}};
  std::uint64_t passed_on_ = 0;           ///< blocks that went on to another stream's lane; guarded by pass_mutex_
  detail::atomic<std::size_t> kept_committed_{0};  ///< given back by trim() alone; changed under pass_mutex_
  std::uint64_t credited_operations_ = 0;
  std::size_t grown_to_ = 0;  ///< bytes committed, with those to come, when credit was last earned; guarded like it
  /// Of relieve(); may be overdrawn. A new pool has all the savings that it may have.
  std::int64_t credit_ = std::numeric_limits<std::int64_t>::max() / 2;
  struct {
    std::uint64_t pass = 0;  ///< number of the pass that refused; 0: none
    std::uint64_t granules = 0;
    unsigned order = 0;
    const detail::lane* in = nullptr;
  } refused_;  ///< guarded by pass_mutex_
};

class pool::state::slow_section {
 public:
  slow_section(state& of, detail::front* mine) noexcept : state_(of), front_(mine) {
    if (front_ != nullptr)
      front_->begin_slow();
    else
      state_.frontless_begun_.fetch_add(1, detail::seq_cst);  // as front::begin_slow
  }
  slow_section(const slow_section&) = delete;
  slow_section& operator=(const slow_section&) = delete;
  ~slow_section() {
    if (front_ != nullptr)
      front_->end_slow();
    else
      state_.frontless_ended_.fetch_add(1, detail::seq_cst);  // as front::end_slow
  }

 private:
  state& state_;
  detail::front* front_;
};

/// The hot path leaves pools that account tags to the slow one.
template <class Stay>
inline constexpr bool is_hot = std::is_same_v<Stay, detail::front::brief_stay>;

template <class Stay, class FindFront, class Otherwise>
inline void* pool::state::allocate_here(const FindFront& find, std::size_t bytes, const Otherwise& otherwise) {
  using namespace detail;
  const std::uint64_t last_granule = (bytes - 1) >> granule_shift_;  // of 0 bytes it is out of range
  if (last_granule >= (is_hot<Stay> ? hot_granules_ : front_granules_)) return otherwise();
  front* const mine = find();
  if (mine == nullptr) return otherwise();
  const std::size_t of_class = class_table_[last_granule];
  front_magazine& m = mine->magazines[of_class];
  bool served = false;
  void* block = nullptr;
  {
    const Stay inside(*mine);
    const std::uint32_t count = m.count.load(relaxed);  // own
    if (inside && count != 0) [[likely]] {
      const std::uint64_t position = m.blocks[count - 1];
      m.count.store(count - 1, relaxed);  // own; others read it as a figure
      store_.memory().tools().handed_out(base_ + (position << m.shift), bytes, rules_[of_class].bytes);
      if constexpr (!is_hot<Stay>) {
        if (tags_.on())
          tags_.handed_out(mine->number, this_thread_tag, (position << m.shift) >> granule_shift_, bytes,
                           rules_[of_class].bytes);
      }
      // cached -> live: the front's owner alone may touch the word. The user hands the block on with an order of his own.
      m.words[position].store(m.live(bytes).bits(), relaxed);
      front::add(mine->allocations, 1);
      block = base_ + (position << m.shift);
      served = true;
    }
  }
  return served ? count_requested(*mine, bytes, block) : otherwise();
}

template <class Stay, class FindFront, class Otherwise>
inline error pool::state::deallocate_here(const FindFront& find, void* pointer, std::size_t bytes,
                                          const Otherwise& otherwise) {
  using namespace detail;
  const std::uint64_t last_granule = (bytes - 1) >> granule_shift_;  // of an unknown size, 0, it is out of range
  const std::uint64_t offset = reinterpret_cast<std::uintptr_t>(pointer) - reinterpret_cast<std::uintptr_t>(base_);
  if (last_granule >= (is_hot<Stay> ? hot_granules_ : front_granules_) || offset >= tree_bytes_) return otherwise();
  front* const mine = find();
  if (mine == nullptr) return otherwise();
  const std::size_t of_class = class_table_[last_granule];
  front_magazine& m = mine->magazines[of_class];
  if ((offset & m.offset_mask) != 0) return otherwise();
  bool served = false;
  {
    const Stay inside(*mine);
    const std::uint32_t count = m.count.load(relaxed);  // own
    if (inside && count != m.capacity) [[likely]] {
      const std::uint64_t position = offset >> m.shift;
      atomic<std::uint64_t>& word = m.words[position];
      // live -> cached, and the check of every free: this front is the block's home, so a look and a store; see
      // block_word.hpp. Relaxed: the block's bytes go to their next user with the magazine, or stay with this thread.
      if (m.unrequested.requested_in(block_word(word.load(relaxed))) == bytes) [[likely]] {
        word.store(m.cached.bits(), relaxed);
        store_.memory().tools().taken_back(pointer, bytes, rules_[of_class].bytes);
        if constexpr (!is_hot<Stay>) {
          if (tags_.on()) tags_.taken_back(mine->number, offset >> granule_shift_, bytes, rules_[of_class].bytes);
        }
        m.blocks[count] = static_cast<std::uint32_t>(position);
        m.count.store(count + 1, relaxed);  // own; others read it as a figure
        front::add(mine->frees, 1);
        served = true;
      }
    }
  }
  if (!served) return otherwise();
  discount_requested(*mine, bytes);
  return error::none;
}

inline void* pool::state::count_requested(detail::front& of, std::size_t bytes, void* block) noexcept {
  const std::int64_t room = of.room.load(detail::relaxed) - static_cast<std::int64_t>(bytes);  // own figures
  of.room.store(room, detail::relaxed);
  return room < 0 ? raise_highest(of, block) : block;
}

inline void pool::state::discount_requested(detail::front& of, std::size_t bytes) noexcept {
  const std::int64_t room = of.room.load(detail::relaxed) + static_cast<std::int64_t>(bytes);  // own figures
  of.room.store(room, detail::relaxed);
  if (room > of.publish_at) publish_requested(of);
}

}  // namespace orderly
