/// \file
/// The pool behind orderly::pool: requests to shapes, fronts and depots over the block store, passes, statistics.
///
/// Ways of an allocation, each tried when the one before has nothing:
///   hot      this thread's front
///   refill   the depot, then the block store; what is more than one block goes to the front
///   relieve  the soft limit is reached: idle memory is released to pay for new (skipped when another thread is at it)
///   press    nothing else is left: the pass that takes back everything cached, under the mutex
///   handler  the user's, without the mutex; then all over again
/// A free goes to the front; from a full front to the depot; from a full depot to the block store.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

#include "block_store.hpp"
#include "depot.hpp"
#include "front.hpp"
#include "orderly/pool.hpp"
#include "registry.hpp"
#include "thread_fronts.hpp"

namespace orderly {

class pool::state final : public detail::registered_pool {
 public:
  /// Throws std::invalid_argument, out_of_memory, std::bad_alloc.
  state(std::unique_ptr<memory_source> source, const options& settings);
  state(const state&) = delete;
  state& operator=(const state&) = delete;
  ~state();

  /// Null: refused. Throws only what the out-of-memory handler throws.
  [[nodiscard]] void* allocate(std::size_t bytes, std::size_t alignment);
  [[nodiscard]] bool aligns(std::size_t alignment) const noexcept;

  [[nodiscard]] error deallocate(void* pointer, std::size_t bytes, bad_free* report) noexcept;
  void deallocate_or_report(void* pointer, std::size_t bytes) noexcept;

  [[nodiscard]] std::size_t block_size(const void* pointer) const noexcept;
  [[nodiscard]] bool owns(const void* pointer) const noexcept;
  [[nodiscard]] std::size_t rounded(std::size_t bytes) const noexcept;
  std::size_t trim(std::size_t keep_bytes) noexcept;
  std::size_t defragment() noexcept;
  [[nodiscard]] statistics stats() const noexcept;
  void visit(void (*report)(void*, const block_info&), void* context) const;
  [[nodiscard]] const detail::geometry& shape() const noexcept { return store_.shape(); }

  [[nodiscard]] bool contains(const void* pointer) const noexcept override;
  void detach(detail::front& of) noexcept override;

 private:
  static constexpr std::size_t most_fronts = 4096;
  static constexpr std::size_t no_class = ~std::size_t{0};

  /// A request, worked out.
  struct request {
    std::size_t bytes = 0;          ///< at least 1
    std::uint64_t granules = 0;
    detail::block_shape shape;
    std::size_t of_class = no_class;  ///< of the fronts; none: too large, or over-aligned
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

  /// Marks work past the front of a thread, or of one that has none.
  class slow_section;

  void set_rules() noexcept;
  [[nodiscard]] request work_out(std::size_t bytes, std::size_t alignment) const noexcept;

  [[nodiscard]] void* allocate_hot(std::size_t bytes) noexcept;
  [[nodiscard]] void* allocate_slow(const request& wanted);
  [[nodiscard]] void* allocate_once(const request& wanted) noexcept;
  [[nodiscard]] void* refill(detail::front& of, const request& wanted, detail::ceiling up_to,
                             detail::refusal& why) noexcept;
  [[nodiscard]] void* allocate_direct(detail::front* of, const request& wanted, detail::ceiling up_to,
                                      detail::refusal& why) noexcept;
  [[nodiscard]] void* hand_out(detail::front* of, const request& wanted, detail::node n) noexcept;

  [[nodiscard]] bool deallocate_hot(void* pointer, std::size_t bytes) noexcept;
  [[nodiscard]] error deallocate_slow(void* pointer, std::size_t bytes, bad_free* report) noexcept;
  [[nodiscard]] bool accepts(const detail::block_store::found& block, std::size_t bytes) const noexcept;
  [[nodiscard]] bad_free explain(const void* pointer, std::size_t bytes) const noexcept;
  void spill(detail::front& of, std::size_t of_class) noexcept;
  void put_back(std::size_t of_class, const std::uint32_t* blocks, std::size_t count) noexcept;

  [[nodiscard]] detail::front* this_front() noexcept;
  [[nodiscard]] detail::front* attach() noexcept;
  [[nodiscard]] detail::front* new_front() noexcept;
  void count_allocation(detail::front* of, std::size_t bytes) noexcept;
  void count_free(detail::front* of, std::size_t bytes) noexcept;
  void count_taken(detail::front* of, std::uint64_t bytes) noexcept;
  void publish_requested(detail::front& of) noexcept;
  void raise_peak_requested(std::int64_t reached) noexcept;
  [[nodiscard]] std::int64_t requested_now() const noexcept;

  void relieve(std::size_t bytes) noexcept;
  [[nodiscard]] void* press(const request& wanted) noexcept;
  [[nodiscard]] void* press_locked(const request& wanted) noexcept;
  std::size_t reclaim_caches() noexcept;
  std::size_t reclaim_depots() noexcept;
  std::size_t reclaim_fronts() noexcept;
  std::size_t drain(detail::front& of) noexcept;
  [[nodiscard]] activity watch() const noexcept;
  [[nodiscard]] std::size_t commitment(const request& wanted) const noexcept;

  // Hot: read-only after construction.
  std::byte* base_ = nullptr;
  unsigned granule_shift_ = 0;
  std::uint64_t front_granules_ = 0;  ///< requests up to here have a class
  std::uint64_t tree_bytes_ = 0;
  std::size_t max_alignment_ = 0;
  std::size_t classes_ = 0;
  options settings_;

  detail::block_store store_;
  detail::depot depot_;
  std::array<class_rule, detail::max_classes> rules_{};

  // Fronts live as long as the pool; a thread's exit leaves its front to the next thread.
  std::mutex front_mutex_;  ///< serves the creation of fronts
  detail::reserved_array<detail::front> fronts_;
  detail::reserved_array<std::uint32_t> front_blocks_;
  std::size_t blocks_per_front_ = 0;
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
  std::mutex pass_mutex_;
  detail::atomic<std::uint64_t> passes_{0};
  struct {
    std::uint64_t pass = 0;  ///< number of the pass that refused; 0: none
    std::uint64_t granules = 0;
    unsigned order = 0;
  } refused_;  ///< guarded by pass_mutex_
};

}  // namespace orderly
