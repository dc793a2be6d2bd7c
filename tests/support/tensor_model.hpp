/// \file
/// A sequential model of a tensor cache over a pool with streams: operations on both, and after each the figures of the
/// cache must be the model's. In the model a freed tensor is kept, if it may be, until it is handed out, or is no live
/// block of the pool any more: it was given up. Then the model tells whether it was the one to go.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "orderly/stream_pool.hpp"
#include "orderly/tensor_cache.hpp"
#include "support/choices.hpp"
#include "support/lockstep_threads.hpp"
#include "support/require.hpp"
#include "support/stream_bench.hpp"

namespace orderly::test {

/// What one thread after the other does with a cache.
class tensor_model {
 public:
  struct setup {
    std::size_t streams;
    std::size_t capacity;  ///< of the pool
    std::size_t limit;     ///< of the cache
    double waste;
    bool roomy;            ///< the pool is never short of memory
  };

  tensor_model(random_choices& choices, lockstep_threads& threads, const setup& how)
      : choices_(choices),
        threads_(threads),
        how_(how),
        bench_(how.streams, how.capacity, software_schedule::random, {}, choices.uniform(0, 1000)),
        cache_(std::in_place, *bench_.tested, tensor_options{.limit = how.limit, .waste = how.waste}),
        captures_(how.streams),
        graphs_(how.streams) {
    const auto add = [&](std::initializer_list<std::int64_t> rows, std::int64_t columns, tensor_type type) {
      for (const std::int64_t each : rows) layouts_.emplace_back(tensor_layout({each, columns}, type));
    };
    // Such as are about as large, in steps within the waste, so that memory may be handed down; some have the same
    // bytes. They are more than have room beside each other. The last ones are by themselves.
    add({32, 34, 36, 33, 35, 38, 40}, 512, tensor_types::int8);
    add({32, 33, 34, 35}, 256, tensor_types::int16);
    add({32, 33, 34, 35}, 128, tensor_types::int32);
    add({200, 600}, 128, tensor_types::float32);
  }

  void step() {
    const bool capturing = std::ranges::count(captures_, true) != 0;
    const std::size_t what = choices_.uniform(0, 255);
    if (what < 8)
      pass_time();
    else if (what < 12)
      trim();
    else if (what < 16)
      record_stream();
    else if (what < 20)
      block_of_the_pool();
    else if (what < 21)
      release_stream();
    else if (what < (capturing ? 40U : 22U))  // captures are rare, and short
      begin_or_end_capture();
    else if (live_.size() < wanted_)
      take();
    else if (!live_.empty())
      free(choices_.uniform(0, live_.size() - 1));
    if (choices_.uniform(0, 31) == 0) wanted_ = choices_.uniform(0, most_live);
    check();
  }

  /// Everything comes back.
  void finish() {
    for (std::size_t in = 0; in < how_.streams; ++in)
      if (captures_[in]) end_capture(in);
    graphs_.clear();
    while (!live_.empty()) free(live_.size() - 1), check();
    while (!blocks_.empty()) free_block(blocks_.size() - 1);
    cache_.reset();
    check_idle(*bench_.tested);
    CHECK(bench_.tested->stats().memory.bad_frees == 0);
  }

 private:
  static constexpr std::size_t most_live = 60;

  struct live_tensor {
    tensor of;
    std::size_t capacity;  // of its memory, as it was asked of the pool
    std::size_t layout;
    std::size_t in;        // the stream that it was allocated for
    bool fleeting;         // it must not be kept
  };
  struct kept_tensor {
    char* address;
    std::size_t capacity;
    std::size_t layout;
    std::size_t in;
    std::size_t thread;    // that has freed it
    std::uint64_t freed;   // a time, in misses
    std::uint64_t number;  // of the free
  };
  struct block {
    char* address;
    std::size_t bytes;
    std::size_t in;
  };

  /// Often one for which something is kept.
  [[nodiscard]] std::size_t any_stream() {
    if (!kept_.empty() && choices_.uniform(0, 1) == 0) return kept_[choices_.uniform(0, kept_.size() - 1)].in;
    return choices_.uniform(0, how_.streams - 1);
  }
  /// Mostly one of the first three.
  [[nodiscard]] std::size_t any_layout() {
    return choices_.uniform(0, 3) == 0 ? choices_.uniform(0, layouts_.size() - 1) : choices_.uniform(0, 2);
  }
  [[nodiscard]] std::uint64_t now() const { return misses_ + 1; }
  [[nodiscard]] std::size_t most(std::size_t bytes) const {
    return bytes + static_cast<std::size_t>(static_cast<double>(bytes) * how_.waste);
  }
  [[nodiscard]] std::size_t kept_bytes() const {
    std::size_t bytes = 0;
    for (const kept_tensor& each : kept_) bytes += each.capacity;
    return bytes;
  }
  [[nodiscard]] std::size_t held() const {
    std::size_t bytes = kept_bytes();
    for (const live_tensor& each : live_) bytes += each.capacity;
    return bytes;
  }
  [[nodiscard]] std::uint64_t used(const kept_tensor& of) const { return used_.at({of.layout, of.in}); }

  /// What `call` returns, on that thread.
  template <class Call>
  auto on(std::size_t thread, const Call& call) {
    std::invoke_result_t<Call> result{};
    threads_.run(thread, [&] { result = call(); });
    return result;
  }
  [[nodiscard]] std::size_t any_thread() { return choices_.uniform(0, threads_.count() - 1); }
  template <class Call>
  auto somewhere(const Call& call) {
    return on(any_thread(), call);
  }

  // ------------------------------------------------------------------------------------------------ what was given up

  /// Takes out of the model what is not kept any more. `got`: a block that was taken since; it may have been kept.
  std::vector<kept_tensor> given_up(const void* got = nullptr) {
    const auto* const start = static_cast<const char*>(got);
    const std::size_t bytes = bench_.tested->block_size(got);
    const auto gone = std::stable_partition(kept_.begin(), kept_.end(), [&](const kept_tensor& each) {
      const bool overlaps = start != nullptr && each.address < start + bytes && start < each.address + each.capacity;
      return bench_.tested->owns(each.address) && !overlaps;
    });
    std::vector<kept_tensor> all(gone, kept_.end());
    kept_.erase(gone, kept_.end());
    evictions_ += all.size();
    return all;
  }
  /// The same, of memory that was given up for want of it: the layout that was used longest ago goes first, and of it
  /// what was freed first. (Where memory is handed down, what is looked at, and too large, counts as freed anew.)
  std::vector<kept_tensor> given_up_in_order(const void* got = nullptr) {
    std::vector<kept_tensor> all = given_up(got);
    if (how_.waste != 0) return all;
    for (const kept_tensor& gone : all) {
      for (const kept_tensor& left : kept_) {
        const bool alike = gone.layout == left.layout && gone.in == left.in;
        ORDERLY_REQUIRE(used(gone) <= used(left));
        ORDERLY_REQUIRE(!alike || gone.freed <= left.freed);
        ORDERLY_REQUIRE(!alike || gone.thread != left.thread || gone.number < left.number);
      }
    }
    return all;
  }
  /// And no more than it takes to come down to `bytes`, from what remains now.
  static void require_needed(const std::vector<kept_tensor>& gone, std::size_t remain, std::size_t bytes) {
    if (gone.empty()) return;
    std::size_t largest = 0;
    for (const kept_tensor& each : gone) largest = std::max(largest, each.capacity);
    ORDERLY_REQUIRE(remain + largest > bytes);
  }
  /// All of one stream's, and no other.
  void give_up_all_of(std::size_t in) {
    const auto is_of = [&](const kept_tensor& each) { return each.in == in; };
    const auto count = static_cast<std::size_t>(std::count_if(kept_.begin(), kept_.end(), is_of));
    const std::vector<kept_tensor> gone = given_up();
    ORDERLY_REQUIRE(gone.size() == count);
    ORDERLY_REQUIRE(std::all_of(gone.begin(), gone.end(), is_of));
  }

  // ------------------------------------------------------------------------------------------------------ operations

  void take() {
    const std::size_t layout = any_layout();
    const tensor_layout& wanted = layouts_[layout];
    const std::size_t in = any_stream();
    const std::size_t thread = any_thread();
    const tensor got = on(thread, [&] { return cache_->try_empty(wanted, bench_[in]); });
    const auto found = std::find_if(kept_.begin(), kept_.end(), [&](auto& each) { return each.address == got.data; });
    if (got && cache_->stats().misses == misses_) {
      ORDERLY_REQUIRE(found != kept_.end());
      hit(got, found, layout, in, thread);
    } else {
      for (const kept_tensor& each : kept_) {
        ORDERLY_REQUIRE(each.in != in || each.layout != layout);
        ORDERLY_REQUIRE(how_.waste != 0 || each.in != in || each.capacity != wanted.bytes());
      }
      ORDERLY_REQUIRE(got || !how_.roomy);
      miss(got, layout, in);
    }
    if (!got) return;
    ORDERLY_REQUIRE(got.bytes == wanted.bytes() && got.type == wanted.type() && got.stream == bench_[in]);
    ORDERLY_REQUIRE(std::ranges::equal(got.shape, wanted.shape()) && std::ranges::equal(got.strides, wanted.strides()));
  }

  void hit(const tensor& got, std::vector<kept_tensor>::iterator found, std::size_t layout, std::size_t in,
           std::size_t thread) {
    const kept_tensor had = *found;
    ORDERLY_REQUIRE(had.in == in);
    ORDERLY_REQUIRE(had.capacity >= got.bytes && had.capacity <= most(got.bytes));
    for (const kept_tensor& each : kept_) {
      if (each.in != in || each.layout != layout) continue;
      ORDERLY_REQUIRE(had.layout == layout);  // an exact one comes first
      // Of those that this thread has freed the newest; or one of another's, which may be newer.
      ORDERLY_REQUIRE(how_.waste != 0 || each.thread != thread || each.number <= had.number);
    }
    compatible_ += had.layout != layout;
    ++hits_;
    used_[{had.layout, in}] = now();
    kept_.erase(found);
    live_.push_back({got, had.capacity, layout, in, false});
    ORDERLY_REQUIRE(given_up().empty());
  }

  void miss(const tensor& got, std::size_t layout, std::size_t in) {
    const std::size_t bytes = layouts_[layout].bytes();
    const std::size_t wanted = held() + bytes;
    const std::vector<kept_tensor> gone = given_up_in_order(got.data);
    if (how_.roomy) require_needed(gone, held() + bytes, how_.limit);
    ORDERLY_REQUIRE(wanted <= how_.limit || held() + bytes <= how_.limit || kept_.empty());
    if (!got) {
      ORDERLY_REQUIRE(kept_.empty());  // a pool refuses nothing while there is
      return;
    }
    ++misses_;
    live_.push_back({got, bytes, layout, in, captures_[in]});
    require_alone(live_.size() - 1);
  }

  /// The memory of a new tensor is nobody else's.
  void require_alone(std::size_t newest) const {
    const auto* const start = static_cast<const char*>(live_[newest].of.data);
    const auto* const end = start + live_[newest].capacity;
    for (std::size_t i = 0; i < live_.size(); ++i) {
      const auto* const other = static_cast<const char*>(live_[i].of.data);
      ORDERLY_REQUIRE(i == newest || end <= other || other + live_[i].capacity <= start);
    }
    for (const block& each : blocks_) ORDERLY_REQUIRE(end <= each.address || each.address + each.bytes <= start);
  }

  void free(std::size_t which) {
    std::swap(live_[which], live_.back());
    const live_tensor freed = live_.back();
    const std::size_t in = choices_.uniform(0, 7) == 0 ? any_stream() : freed.in;
    const bool kept = !freed.fleeting && !captures_[in] && held() <= how_.limit;
    const std::size_t thread = any_thread();
    if (choices_.uniform(0, 7) == 0) {
      const exported_tensor given = somewhere([&] { return cache_->give_out(freed.of, bench_[in]); });
      ORDERLY_REQUIRE(cache_->stats().exported == 1);
      threads_.run(thread, [&] { release_export(given.storage); });
    } else {
      const bool unnamed = in == freed.in && choices_.uniform(0, 1) == 0;
      ORDERLY_REQUIRE(on(thread, [&] {
        return unnamed ? cache_->try_free(freed.of) : cache_->try_free(freed.of, bench_[in]);
      }) == error::none);
    }
    live_.pop_back();
    // Of about the same bytes there are more layouts than have room: one of them may have given way.
    const std::vector<kept_tensor> gone = given_up();
    for (const kept_tensor& each : gone) ORDERLY_REQUIRE(each.layout == gone[0].layout && each.in == gone[0].in);
    if (!kept) return;
    used_[{freed.layout, in}] = now();
    kept_.push_back({static_cast<char*>(freed.of.data), freed.capacity, freed.layout, in, thread, now(), ++frees_});
  }

  void pass_time() {
    const std::size_t in = any_stream();
    const tensor none = cache_->empty({0}, tensor_types::int8, bench_[in]);
    ++misses_;
    cache_->free(none);
  }

  void trim() {
    const std::size_t kept = kept_bytes();
    const std::size_t bytes = kept - std::min(kept, choices_.uniform(0, 100 * kib));
    const std::size_t given = somewhere([&] { return cache_->trim(bytes); });
    const std::vector<kept_tensor> gone = given_up_in_order();
    std::size_t sum = 0;
    for (const kept_tensor& each : gone) sum += each.capacity;
    ORDERLY_REQUIRE(given == sum);
    ORDERLY_REQUIRE(kept_bytes() <= bytes);
    require_needed(gone, kept_bytes(), bytes);
  }

  /// It is met anew by the next call that names it.
  void release_stream() {
    const std::size_t in = any_stream();
    if (captures_[in]) return;
    ORDERLY_REQUIRE(somewhere([&] { return bench_.tested->release_stream(bench_[in]); }));
    give_up_all_of(in);
  }

  void begin_or_end_capture() {
    for (std::size_t in = 0; in < how_.streams; ++in)
      if (captures_[in]) return end_capture(in);
    const std::size_t in = any_stream();
    ORDERLY_REQUIRE(somewhere([&] { return bench_.tested->begin_capture(bench_[in]); }) == error::none);
    ORDERLY_REQUIRE(bench_.stream[in].begin_capture());
    captures_[in] = true;
    give_up_all_of(in);
  }
  void end_capture(std::size_t in) {
    ORDERLY_REQUIRE(somewhere([&] { return bench_.tested->end_capture(bench_[in]); }) == error::none);
    graphs_[in] = bench_.stream[in].end_capture();
    captures_[in] = false;
  }

  void record_stream() {
    if (live_.empty()) return;
    live_tensor& of = live_[choices_.uniform(0, live_.size() - 1)];
    const std::size_t by = any_stream();
    if (by == of.in || captures_[by] || captures_[of.in]) return;
    ORDERLY_REQUIRE(somewhere([&] { return cache_->record_stream(of.of, bench_[by]); }) == error::none);
    of.fleeting = true;
  }

  /// Somebody else takes memory of the pool, or gives it back.
  void block_of_the_pool() {
    if (!blocks_.empty() && choices_.uniform(0, 1) == 0) return free_block(choices_.uniform(0, blocks_.size() - 1));
    const std::size_t bytes = choices_.uniform(1, 512 * kib);
    const std::size_t in = any_stream();
    void* const got = somewhere([&] { return bench_.tested->try_allocate(bytes, bench_[in]); });
    const std::vector<kept_tensor> gone = given_up_in_order(got);
    ORDERLY_REQUIRE(gone.empty() || !how_.roomy);
    ORDERLY_REQUIRE(got != nullptr || kept_.empty());
    if (got != nullptr) blocks_.push_back({static_cast<char*>(got), bytes, in});
  }
  void free_block(std::size_t which) {
    std::swap(blocks_[which], blocks_.back());
    const block freed = blocks_.back();
    blocks_.pop_back();
    ORDERLY_REQUIRE(somewhere([&] {
      return bench_.tested->try_deallocate(freed.address, freed.bytes, bench_[freed.in]);
    }) == error::none);
  }

  void check() const {
    const tensor_statistics s = cache_->stats();
    ORDERLY_REQUIRE(s.hits == hits_);
    ORDERLY_REQUIRE(s.compatible == compatible_);
    ORDERLY_REQUIRE(s.misses == misses_);
    ORDERLY_REQUIRE(s.evictions == evictions_);
    ORDERLY_REQUIRE(s.kept_tensors == kept_.size());
    ORDERLY_REQUIRE(s.kept == kept_bytes());
    ORDERLY_REQUIRE(s.live_tensors == live_.size());
    ORDERLY_REQUIRE(s.held == held());
    ORDERLY_REQUIRE(s.exported == 0);
    ORDERLY_REQUIRE(s.bad_frees == 0);
  }

  random_choices& choices_;
  lockstep_threads& threads_;
  setup how_;
  bench bench_;
  std::optional<tensor_cache> cache_;
  std::vector<tensor_layout> layouts_;
  std::vector<live_tensor> live_;
  std::vector<kept_tensor> kept_;
  std::map<std::pair<std::size_t, std::size_t>, std::uint64_t> used_;  // when, by layout and stream
  std::vector<block> blocks_;
  std::vector<bool> captures_;
  std::vector<software_graph> graphs_;
  std::size_t wanted_ = most_live;  // so many live ones
  std::uint64_t hits_ = 0;
  std::uint64_t compatible_ = 0;
  std::uint64_t misses_ = 0;
  std::uint64_t evictions_ = 0;
  std::uint64_t frees_ = 0;
};

}  // namespace orderly::test
