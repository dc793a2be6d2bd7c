#include "orderly/tensor_cache.hpp"

#include <algorithm>
#include <bit>
#include <mutex>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "atomic.hpp"
#include "free_list.hpp"
#include "keepers.hpp"
#include "pool_state.hpp"
#include "registry.hpp"
#include "reserved_array.hpp"
#include "stream_pool_state.hpp"
#include "tensor_shelves.hpp"

namespace orderly {

using namespace detail;

/// Records with memory are live, exported, kept (on a shelf), or in the hands of a thread for a moment; others are blank.
///
/// A record's word says who may do what:  generation (63 bits) | exported
///   odd             live: the handle of that generation frees or exports it
///   even, exported  its owner outside releases it
///   even            nobody's handle is good: kept, blank, or in hand
///   W   Only a CAS ends what a word says (free, export, release), so of several ends one succeeds. A hand-out is a store by
///       whoever has taken the record off its shelf, or out of the blank ones. All relaxed: nothing is handed over by a word.
///       Records are handed on by shelves and lists (P there); a live one, its bytes included, by the program.
///   ABA  a generation comes again after 2^62 hand-outs of one record.
/// Members that a bad handle may look at while their owner writes them are atomics; relaxed, since the CAS that follows
/// fails then.
///
/// Bound. held_ grows before a tensor's memory is taken, and shrinks after it was given back. Of the tensors that are kept
/// at some instant, take the one whose free has looked at held_ last (in the order of its changes). When it looked, all of
/// them were counted: each was, when its own free looked before. So all of them together are at most the limit.
///
/// Mutex. Whoever takes kept tensors off shelves to give them back to the pool has mutex_, and so has whoever changes
/// labels. The pool's questions wait for it: what was in hand there has come back by then.
class tensor_cache::state final : public keeper {
 public:
  /// Throws as the cache's constructor. One of the pools.
  state(pool::state* of, stream_pool::state* streams, const tensor_options& settings)
      : core_(of), streams_(streams), number_(next_serial()) {
    if (of == nullptr) throw std::invalid_argument("orderly::tensor_cache: the pool was moved from");
    const auto invalid = [](const std::string& what) { throw std::invalid_argument("orderly::tensor_cache: " + what); };
    if (!(settings.waste >= 0 && settings.waste <= most_waste)) invalid("waste is not a fraction from 0 to 0.125");
    alignment_ = settings.alignment == 0 ? default_alignment : settings.alignment;
    if (!of->aligns(alignment_))
      invalid("alignment " + std::to_string(alignment_) + " is not a power of two that the pool's blocks can have");
    const std::size_t tensors = settings.tensors == 0 ? default_tensors : settings.tensors;
    if (tensors > most_tensors) invalid("tensors: " + std::to_string(tensors) + " are more than 2^22");
    limit_ = std::min<std::size_t>(settings.limit == 0 ? of->shape().limit / 2 : settings.limit, closed - 1);
    waste_ = settings.waste;
    device_ = settings.device;
    const auto stripes = std::min<std::uint32_t>(bounds::tensor_stripes, std::bit_ceil(hardware_threads()));
    static_assert(bounds::tensor_stripes <= tensor_shelves::contents::most_stripes);
    if (!records_.reserve(tensors)) throw std::bad_alloc();
    static_assert(sizeof(record) == sizeof(link_code) << link_spacing);
    links_ = link_table(&records_.data()->link, link_spacing);
    if (!shelves_.open(bounds::tensor_rows, stripes, links_)) throw std::bad_alloc();
    of->keepers().add(*this);
  }

  /// A stream that was named, or none.
  struct where {
    bool own = true;  ///< none: of a free, the one that the tensor was allocated for
    stream_handle stream = nullptr;
  };

  // ---------------------------------------------------------------------------------------------------- hand out

  /// The lane of a stream. Null: the pool has no streams, as the cache's owner knows, or the handle names none.
  [[nodiscard]] lane* lane_of(stream_handle stream) const noexcept {
    pool::state* const core = core_.load(relaxed);
    if (core == nullptr) return nullptr;
    const thread_lanes::entry* const known = lanes::at_hand(core->serial(), stream);
    return known != nullptr ? known->of : streams_->find(stream);
  }

  /// Throws as the cache's empty().
  [[nodiscard]] tensor empty(const tensor_layout& layout, const where& at) {
    lane* in = nullptr;
    if (streams_ != nullptr && !at.own) in = lane_of(at.stream);
    if (core_.load(relaxed) == nullptr || (streams_ == nullptr ? !at.own && at.stream != nullptr : in == nullptr))
        [[unlikely]]
      throw_bad_stream(at);
    if (record* const kept = reuse(layout, in)) [[likely]] return hand_out(*kept);
    return hand_out_new(layout, in);
  }

  [[nodiscard]] tensor empty_at_hand(const tensor_layout& layout, const where& at) noexcept {
    const pool::state* const core = core_.load(relaxed);
    if (core == nullptr || (streams_ == nullptr) != at.own) return {};
    const thread_lanes::entry* const known = at.own ? nullptr : lanes::at_hand(core->serial(), at.stream);
    if (!at.own && known == nullptr) return {};
    record* const kept = reuse(layout, at.own ? nullptr : known->of);
    return kept == nullptr ? tensor() : hand_out(*kept);
  }

  // --------------------------------------------------------------------------------------------------------- free

  /// Whether it is kept is looked at before the handle ends: what changes in between costs a way to the pool, no more.
  [[nodiscard]] bool free_at_hand(const tensor& of) noexcept {
    const record* const r = find(of);
    if (r == nullptr || core_.load(relaxed) == nullptr || held_.load(relaxed) > limit_) return false;  // Bound
    if (streams_ != nullptr) {
      const lane* const in = r->made_in.load(relaxed);
      if (in == nullptr || in->serial.load(relaxed) != r->lane_serial.load(relaxed) || !keeps(*in)) return false;
    }
    if (r->capacity.load(relaxed) == 0 || r->fleeting.load(relaxed)) return false;
    return free(of, {}, nullptr) == error::none;
  }

  [[nodiscard]] error free(const tensor& of, const where& at, bad_free* report) noexcept {
    lane* in = nullptr;
    error code = error::none;
    record* const r = end(of, at, 0, in, code, report);
    if (r != nullptr) [[likely]] keep_or_give_back(*r, in);
    return code;
  }

  [[nodiscard]] error give_out(const tensor& of, const where& at, exported_tensor& given, bad_free* report) noexcept {
    lane* in = nullptr;
    error code = error::none;
    record* const ended_now = end(of, at, exported, in, code, report);
    if (ended_now == nullptr) return of ? code : refuse(error::invalid_argument, nullptr, report);
    owners_.fetch_add(1, relaxed);  // unref(): by whoever gets the storage from here
    // The owner's, who hands them to release_export() with the storage.
    record& r = *ended_now;
    r.freed_in.store(in, relaxed);
    r.freed_lane = in == nullptr ? 0 : in->serial.load(relaxed);
    if (in != nullptr) r.of_stream.store(in->stream, relaxed);
    r.area.of = &r;
    r.area.cache = this;
    given.of = describe(r);
    given.of.handle = {};
    given.storage = r.area.bytes.data();
    return error::none;
  }

  static void release_exported(void* storage) noexcept {
    auto& area = *static_cast<export_area*>(storage);
    state* const self = area.cache;
    record& r = *area.of;
    std::uint64_t seen = r.word.load(relaxed);  // W
    if ((seen & exported) == 0 || !r.word.compare_exchange_strong(seen, seen & ~exported, relaxed, relaxed)) {  // W
      bad_free report;
      static_cast<void>(self->refuse(error::double_free, r.address.load(relaxed), &report));
      return self->report(report);
    }
    lane* in = r.freed_in.load(relaxed);
    if (self->core_.load(relaxed) == nullptr) {
      self->give_back(r, in, true);
    } else {
      if (in != nullptr && in->serial.load(relaxed) != r.freed_lane)
        in = self->streams_->find(r.of_stream.load(relaxed));  // as in own_lane()
      self->keep_or_give_back(r, in);
    }
    self->unref();
  }

  void free_or_report(const tensor& of, const where& at) noexcept {
    bad_free refused;
    if (free(of, at, &refused) != error::none) [[unlikely]] report(refused);
  }

  void report(const bad_free& refused) const noexcept {
    if (const pool::state* const core = core_.load(relaxed))
      core->call_handler(refused);
    else
      on_bad_free::print(refused);
  }

  [[nodiscard]] error record_stream(const tensor& of, stream_handle stream) noexcept {
    bad_free unused;
    record* const r = find(of);
    if (core_.load(relaxed) == nullptr) return error::pool_gone;
    if (r == nullptr) return explain(of, unused);
    lane* const in = streams_ == nullptr ? nullptr : lane_of(stream);
    if (in == nullptr) return error::invalid_argument;
    r->fleeting.store(true, relaxed);  // the program orders this before the free
    if (r->capacity.load(relaxed) == 0) return error::none;
    const error code = core_.load(relaxed)->record_stream(of.data, *in);
    if (code == error::none && streams_->settings_.safe_mode) core_.load(relaxed)->streams()->mark(*in);
    return code;
  }

  [[nodiscard]] bool owns(const tensor& of) const noexcept { return find(of) != nullptr; }

  // ------------------------------------------------------------------------------------------------------ give up

  std::size_t give_up(std::size_t bytes) noexcept override {
    const std::lock_guard lock(mutex_);
    return give_up_locked(bytes);
  }

  void give_up_lane(std::uint64_t serial) noexcept override {
    const std::lock_guard lock(mutex_);
    for (std::uint32_t shelf = 0; shelf < shelves_.size(); ++shelf) {
      const tensor_shelves::label of = shelves_.look(shelf);  // labels change under the mutex only
      if (of.fingerprint == 0 || of.lane != serial) continue;
      tensor_shelves::contents all = shelves_.close(shelf);
      static_cast<void>(give_back_oldest(all, ~std::size_t{0}));
    }
  }

  std::size_t trim(std::size_t keep_bytes) noexcept {
    const std::lock_guard lock(mutex_);
    if (core_.load(relaxed) == nullptr) return 0;
    if (keep_bytes == 0) return give_up_locked(~std::size_t{0});
    const std::size_t kept = stats().kept;
    return kept > keep_bytes ? give_up_locked(kept - keep_bytes) : 0;
  }

  void pool_goes() noexcept override { core_.store(nullptr, relaxed); }
  void before_fork() noexcept override { mutex_.lock(); }
  void after_fork() noexcept override { mutex_.unlock(); }

  /// The cache is gone: nothing is kept any more, and only what is exported stays. No other thread but such as release.
  void close() noexcept {
    held_.fetch_add(closed, relaxed);  // frees look; one that has not seen it is found below, or by the destructor
    if (core_.load(relaxed) != nullptr) {
      static_cast<void>(give_up(~std::size_t{0}));
      const std::uint32_t count = next_.load(relaxed);  // all of this thread, or ordered before by the program
      for (std::uint32_t i = 0; i < count; ++i) {
        record& r = records_[i];
        std::uint64_t seen = r.word.load(relaxed);  // W
        if (!is_live(seen) || !r.word.compare_exchange_strong(seen, ended(seen), relaxed, relaxed)) continue;  // W
        give_back(r, streams_ == nullptr ? nullptr : own_lane(r), true);
      }
    }
    unref();
  }

  [[nodiscard]] tensor_statistics stats() const noexcept {
    tensor_statistics s;
    std::uint64_t handed_out = 0;
    const std::uint32_t count = next_.load(relaxed);  // all that follows are figures
    for (std::uint32_t i = 0; i < count; ++i) {
      const std::uint64_t word = records_[i].word.load(relaxed);
      const std::size_t capacity = records_[i].capacity.load(relaxed);
      handed_out += ((word >> 1) + 1) / 2;
      const bool is_exported = (word & exported) != 0;
      if (is_live(word) || is_exported)
        ++s.live_tensors;
      else if (capacity != 0) {
        ++s.kept_tensors;
        s.kept += capacity;
      }
      s.exported += is_exported;
    }
    s.misses = misses_.load(relaxed);
    s.hits = handed_out - std::min(handed_out, s.misses);
    s.compatible = compatible_.load(relaxed);
    s.evictions = evictions_.load(relaxed);
    s.bad_frees = bad_frees_.load(relaxed);
    s.held = held_.load(relaxed) & ~closed;
    s.limit = limit_;
    return s;
  }

 private:
  struct record;
  /// What an owner outside knows: the address of its bytes.
  struct export_area {
    alignas(16) std::array<std::byte, exported_tensor::export_bytes> bytes;
    state* cache;
    record* of;
  };

  struct alignas(interference) record {
    atomic<std::uint64_t> word;
    atomic<link_code> link;       ///< on a shelf, or among the blank ones
    std::uint32_t shelf;          ///< where it lay last: a guess. Whoever has the record writes it, as all that is plain
    atomic<void*> address;
    atomic<std::size_t> capacity; ///< bytes that were asked of the pool; 0: no memory
    atomic<lane*> made_in;        ///< of the stream that it was allocated for, and
    atomic<std::uint64_t> lane_serial;  ///< as it was then
    atomic<stream_handle> of_stream;
    std::uint64_t freed;          ///< when, by the clock
    atomic<bool> fleeting;        ///< it must not be kept
    tensor_layout layout;
    // Of an exported one:
    atomic<lane*> freed_in;
    std::uint64_t freed_lane;
    export_area area;
    std::array<std::byte, 128> unused;  ///< so that a link's place follows from a number
  };
  static constexpr unsigned link_spacing = 8;

  static constexpr std::uint64_t exported = 1;
  static constexpr std::size_t closed = std::size_t{1} << 63;
  static constexpr double most_waste = 0.125;
  static constexpr std::size_t default_alignment = 256;
  static constexpr std::size_t default_tensors = bounds::tensors;
  static constexpr std::size_t most_tensors = std::size_t{1} << 22;

  [[nodiscard]] static constexpr bool is_live(std::uint64_t word) noexcept { return (word >> 1 & 1) != 0; }
  /// The word of a live one that was freed.
  [[nodiscard]] static constexpr std::uint64_t ended(std::uint64_t word) noexcept { return word + 2; }

  ~state() {
    if (pool::state* const core = core_.load(relaxed)) {
      static_cast<void>(give_up(~std::size_t{0}));  // what was kept while close() came
      core->keepers().remove(*this);
    }
  }

  /// For the cache itself, and each exported tensor.
  void unref() noexcept {
    reads_plain(this);
    if (owners_.fetch_sub(1, acq_rel) != 1) return;  // the last one sees all that the others did
    writes_plain(this);
    delete this;
  }

  // ---------------------------------------------------------------------------------------------------- hand out

  [[nodiscard]] std::uint32_t stripe() const noexcept {
    return static_cast<std::uint32_t>(this_thread_number()) & (shelves_.stripes() - 1);
  }
  [[nodiscard]] std::uint64_t now() const noexcept { return misses_.load(relaxed) + 1; }  // a time, which orders nothing

  [[nodiscard]] static tensor_shelves::label label_of(const tensor_layout& layout, const lane* in) noexcept {
    // No layout goes without a label; of two that share one, has_layout() tells which it is.
    const std::uint64_t fingerprint = layout.fingerprint() == 0 ? 1 : layout.fingerprint();
    return {fingerprint, in == nullptr ? 0 : in->serial.load(relaxed), layout.bytes()};  // own_lane()
  }

  [[noreturn, gnu::cold]] void throw_bad_stream(const where& at) const {
    if (core_.load(relaxed) == nullptr)
      throw std::invalid_argument("orderly::tensor_cache: the pool is gone: destroyed before the cache");
    if (streams_ == nullptr) throw std::invalid_argument("orderly::tensor_cache: the pool has no streams; name none");
    if (at.own) throw std::invalid_argument("orderly::tensor_cache: the pool has streams; name one");
    stream_pool::state::throw_unknown(at.stream);
  }

  /// A record of that layout, its link and its members the caller's; or null.
  [[nodiscard]] record* reuse(const tensor_layout& layout, lane* in) noexcept {
    const tensor_shelves::label wanted = label_of(layout, in);
    const std::uint32_t shelf = shelves_.find(shelves_.row(wanted.lane, wanted.bytes), wanted);
    if (shelf != tensor_shelves::none) [[likely]] {
      if (const auto taken = shelves_.take(shelf, wanted, stripe(), now())) [[likely]] {
        record& r = records_[*taken];
        reads_plain(&r);
        tell_taken(r, wanted.bytes);
        if (r.layout == layout) [[likely]] return &r;
        keep_or_give_back(r, in);  // two layouts with one fingerprint
      }
    }
    return reuse_other(layout, in, wanted);
  }

  /// One whose memory will do.
  [[nodiscard, gnu::noinline]] record* reuse_other(const tensor_layout& layout, lane* in,
                                                   const tensor_shelves::label& wanted) noexcept {
    const std::size_t most = wanted.bytes + static_cast<std::size_t>(static_cast<double>(wanted.bytes) * waste_);
    if (wanted.bytes == 0) return nullptr;
    for (std::uint32_t further = 0; further < 2; ++further) {
      const std::uint32_t row = shelves_.row(wanted.lane, wanted.bytes, further);
      for (std::uint32_t shelf = row; shelf < row + tensor_shelves::shelves_per_row; ++shelf) {
        const tensor_shelves::label of = shelves_.look(shelf);
        if (of.fingerprint == 0 || of.lane != wanted.lane || of.bytes < wanted.bytes || of.bytes > most) continue;
        const auto taken = shelves_.take(shelf, of, stripe(), now());
        if (!taken) continue;
        record& r = records_[*taken];
        const std::size_t capacity = r.capacity.load(relaxed);  // ours, now
        tell_taken(r, std::min<std::size_t>(wanted.bytes, capacity));
        if (capacity < wanted.bytes || capacity > most) {
          keep_or_give_back(r, in);
          continue;
        }
        writes_plain(&r);
        r.layout = layout;
        compatible_.fetch_add(1, relaxed);  // a figure
        return &r;
      }
    }
    return nullptr;
  }

  [[nodiscard]] tensor hand_out(record& r) noexcept {
    const std::uint64_t next = (r.word.load(relaxed) >> 1) + 1;
    r.word.store(next << 1, relaxed);  // W
    return describe(r);
  }

  [[nodiscard]] tensor describe(const record& r) const noexcept {
    tensor t;
    t.data = r.address.load(relaxed);  // the caller's, like the rest
    t.shape = r.layout.shape();
    t.strides = r.layout.strides();
    t.bytes = r.layout.bytes();
    t.type = r.layout.type();
    t.device = device_;
    t.stream = r.of_stream.load(relaxed);
    t.handle = {number_, r.word.load(relaxed) >> 1, static_cast<std::uint32_t>(&r - records_.data())};
    return t;
  }

  /// A miss.
  [[nodiscard, gnu::noinline]] tensor hand_out_new(const tensor_layout& layout, lane* in) {
    pool::state* const core = core_.load(relaxed);  // there is one: the caller has looked
    const std::uint32_t index = blank_record();
    if (index == tensor_shelves::none) throw std::bad_alloc();
    record& r = records_[index];
    const std::size_t bytes = layout.bytes();
    const std::size_t held = held_.fetch_add(bytes, relaxed) + bytes;  // a bound: see above
    if (held > limit_) make_room();
    void* data = nullptr;
    try {
      if (bytes != 0) {
        data = in != nullptr ? streams_->allocate_in(*in, bytes, alignment_)  // of a pool with streams
               : core->aligned_by_granule(alignment_)
                   ? core->allocate_hot(bytes, [&] { return core->allocate_or_throw(bytes, alignment_); })
                   : core->allocate_or_throw(bytes, alignment_);
      }
    } catch (...) {
      held_.fetch_sub(bytes, relaxed);
      blank_.push(links_, index);
      throw;
    }
    writes_plain(&r);
    r.shelf = tensor_shelves::none;
    r.address.store(data, relaxed);
    r.capacity.store(bytes, relaxed);
    r.made_in.store(in, relaxed);
    r.lane_serial.store(in == nullptr ? 0 : in->serial.load(relaxed), relaxed);
    r.of_stream.store(in == nullptr ? nullptr : in->stream, relaxed);
    r.fleeting.store(in != nullptr && !keeps(*in), relaxed);
    r.layout = layout;
    misses_.fetch_add(1, relaxed);  // a figure, and a time
    return hand_out(r);
  }

  /// May tensors be kept that are allocated or freed in that stream?
  [[nodiscard]] bool keeps(const lane& in) const noexcept {
    return !streams_->watched() && in.owner == 0 && !pool::state::captures(&in);
  }

  /// A record without memory. `none`: there are as many tensors as there may be.
  [[nodiscard]] std::uint32_t blank_record() noexcept {
    for (;;) {
      if (const auto index = blank_.try_pop(links_)) return *index;
      std::uint32_t next = next_.load(relaxed);  // only the count is exchanged
      while (next < records_.size())
        if (next_.compare_exchange_weak(next, next + 1, relaxed, relaxed)) return next;
      if (give_up(1) == 0) return tensor_shelves::none;
    }
  }

  // --------------------------------------------------------------------------------------------------------- free

  /// The live record of a handle; or null.
  [[nodiscard]] record* find(const tensor& of) const noexcept {
    if (of.handle.cache != number_ || of.handle.record >= records_.size()) return nullptr;
    record& r = records_[of.handle.record];
    const std::uint64_t word = r.word.load(relaxed);  // W
    return word == of.handle.generation << 1 && is_live(word) && r.address.load(relaxed) == of.data ? &r : nullptr;
  }

  /// Ends the handle: the record is the caller's then. Null: refused, with the code; or there is no tensor. `in`: gets the
  /// lane that the tensor is freed in. `mark`: 0 or exported.
  [[nodiscard]] record* end(const tensor& of, const where& at, std::uint64_t mark, lane*& in, error& code,
                            bad_free* report) noexcept {
    record* const r = find(of);
    if (core_.load(relaxed) == nullptr || r == nullptr) [[unlikely]] {
      code = refuse_handle(of, report);
      return nullptr;
    }
    if (streams_ != nullptr) in = at.own ? own_lane(*r) : lane_of(at.stream);
    if (streams_ != nullptr ? in == nullptr : !at.own && at.stream != nullptr) [[unlikely]] {
      code = refuse(error::invalid_argument, of.data, report);
      return nullptr;
    }
    std::uint64_t expected = of.handle.generation << 1;
    // W. Who has the record next gets it from this thread, by a shelf or a list.
    if (r->word.compare_exchange_strong(expected, ended(expected) | mark, relaxed, relaxed)) [[likely]] return r;
    code = refuse_handle(of, report);
    return nullptr;
  }

  /// The lane of the stream that a tensor was allocated for. Null: the stream was released. Relaxed: whoever has the tensor
  /// has it from a thread that found the lane (lanes::at_hand), by the program or by a shelf.
  [[nodiscard]] lane* own_lane(const record& r) const noexcept {
    lane* const in = r.made_in.load(relaxed);  // a look, which the CAS on the word confirms
    if (in == nullptr) return nullptr;
    if (in->serial.load(relaxed) == r.lane_serial.load(relaxed)) [[likely]] return in;
    return streams_->find(r.of_stream.load(relaxed));  // it has begun or ended a capture since, or is gone
  }

  /// A tensor that ended, in hand: to a shelf, or to the pool.
  void keep_or_give_back(record& r, lane* in) noexcept {
    const bool may = r.capacity.load(relaxed) != 0 && held_.load(relaxed) <= limit_ &&  // Bound; see above
                     !r.fleeting.load(relaxed) && (streams_ == nullptr || (in != nullptr && keeps(*in)));
    if (!may || !put(r, in)) give_back(r, in, true);
  }

  [[nodiscard]] bool put(record& r, lane* in) noexcept {
    const auto index = static_cast<std::uint32_t>(&r - records_.data());
    const tensor_shelves::label of = label_of(r.layout, in);
    if (in != nullptr) {
      r.made_in.store(in, relaxed);
      r.lane_serial.store(of.lane, relaxed);
      r.of_stream.store(in->stream, relaxed);
    }
    const std::uint64_t time = now();
    writes_plain(&r);
    r.freed = time;
    tell_kept(r);
    if (r.shelf != tensor_shelves::none && shelves_.put(r.shelf, of, index, stripe(), time)) [[likely]] return true;
    const std::uint32_t row = shelves_.row(of.lane, of.bytes);
    for (int tries = 0; tries < 2; ++tries) {
      r.shelf = shelves_.find(row, of);
      if (r.shelf == tensor_shelves::none) r.shelf = open_shelf(row, of);
      if (r.shelf == tensor_shelves::none) break;
      if (shelves_.put(r.shelf, of, index, stripe(), time)) return true;
    }
    tell_taken(r, r.capacity.load(relaxed));  // as it was
    return false;
  }

  /// To the tools that watch memory (annotate.hpp) what is kept is free.
  void tell_kept(record& r) const noexcept {
    const std::size_t capacity = r.capacity.load(relaxed);  // ours, like the rest
    core_.load(relaxed)->tools().taken_back(r.address.load(relaxed), capacity, capacity);
  }
  void tell_taken(record& r, std::size_t bytes) const noexcept {
    if (pool::state* const core = core_.load(relaxed))
      core->tools().handed_out(r.address.load(relaxed), bytes, r.capacity.load(relaxed));  // ours, like the rest
  }

  /// Labels a shelf of the row. `none`: another thread has the mutex.
  [[nodiscard, gnu::noinline]] std::uint32_t open_shelf(std::uint32_t row, const tensor_shelves::label& of) noexcept {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return tensor_shelves::none;
    if (const std::uint32_t known = shelves_.find(row, of); known != tensor_shelves::none) return known;
    const std::uint32_t shelf = shelves_.least_needed(row);
    tensor_shelves::contents all = shelves_.close(shelf);
    static_cast<void>(give_back_oldest(all, ~std::size_t{0}));
    shelves_.label_as(shelf, of);
    return shelf;
  }

  /// The memory of a tensor in hand to the pool. `in`: null where there are no streams, or its stream is gone: then the
  /// memory stays as it is until the pool goes. `tell`: the handler of bad frees may be called.
  [[gnu::noinline]] void give_back(record& r, lane* in, bool tell) noexcept {
    writes_plain(&r);
    pool::state* const core = core_.load(relaxed);
    void* const data = r.address.load(relaxed);  // ours, as all of the record
    const std::size_t bytes = r.capacity.load(relaxed);
    if (core != nullptr && bytes != 0 && (streams_ == nullptr || in != nullptr)) {
      bad_free found;
      const auto slowly = [&]() noexcept { return core->deallocate_slow(data, bytes, &found); };
      const error code = streams_ != nullptr ? streams_->deallocate_in(*in, data, bytes, &found)
                                             : core->deallocate_hot(data, bytes, slowly);
      if (code != error::none && tell) core->call_handler(found);  // somebody has freed it in the pool, which counts it
    }
    r.address.store(nullptr, relaxed);
    r.capacity.store(0, relaxed);
    held_.fetch_sub(bytes, relaxed);  // Bound
    blank_.push(links_, static_cast<std::uint32_t>(&r - records_.data()));
  }

  // ------------------------------------------------------------------------------------------------------ refuse

  [[gnu::cold]] error refuse(error code, const void* data, bad_free* report) noexcept {
    bad_frees_.fetch_add(1, relaxed);  // a figure
    if (report != nullptr) *report = {.code = code, .pointer = data};
    return code;
  }

  [[gnu::cold]] error refuse_handle(const tensor& of, bad_free* report) noexcept {
    if (!of) return error::none;
    if (core_.load(relaxed) == nullptr) return refuse(error::pool_gone, of.data, report);
    bad_frees_.fetch_add(1, relaxed);  // a figure
    bad_free unused;
    return explain(of, report == nullptr ? unused : *report);
  }

  /// What a handle that is not good is.
  [[nodiscard]] error explain(const tensor& of, bad_free& report) const noexcept {
    report = {.code = error::foreign_pointer, .pointer = of.data, .bytes = of.bytes};
    if (of.handle.cache != number_) {
      if (of.handle.cache != 0 && of.handle.cache < next_serial()) report.code = error::wrong_pool;
      return report.code;
    }
    if (of.handle.record >= records_.size()) return report.code;
    const record& r = records_[of.handle.record];
    const std::uint64_t latest = r.word.load(relaxed) >> 1;  // a look
    const std::uint64_t given = of.handle.generation;
    if (given % 2 == 0 || given > latest || given == latest) return report.code;
    report.generation = given;
    report.block_generation = latest;
    report.block = report.pointer;
    report.block_bytes = r.capacity.load(relaxed);
    report.state = latest % 2 != 0 ? block_state::live : block_state::cached;
    report.block_requested = report.block_bytes;
    report.code = latest == given + 1 ? error::double_free : error::stale_handle;
    return report.code;
  }

  // ----------------------------------------------------------------------------------------------------- give up

  /// Pre: mutex_. Returns the bytes.
  std::size_t give_up_locked(std::size_t bytes) noexcept {
    std::size_t given = 0;
    while (given < bytes) {
      const std::uint32_t shelf = shelves_.oldest();
      if (shelf == tensor_shelves::none) break;
      tensor_shelves::contents all = shelves_.empty(shelf);
      given += give_back_oldest(all, bytes - given);
      shelves_.restore(shelf, all);
    }
    return given;
  }

  /// Those that were freed first, of all stripes, until they have so many bytes. Pre: mutex_.
  std::size_t give_back_oldest(tensor_shelves::contents& from, std::size_t bytes) noexcept {
    std::size_t given = 0;
    while (given < bytes) {
      std::uint32_t oldest = tensor_shelves::none;
      std::uint32_t at = 0;
      for (std::uint32_t stripe = 0; stripe < shelves_.stripes(); ++stripe) {
        const std::uint32_t each = tensor_shelves::front(from, stripe);
        if (each == tensor_shelves::none) continue;
        if (oldest != tensor_shelves::none && records_[each].freed >= records_[oldest].freed) continue;
        oldest = each;
        at = stripe;
      }
      if (oldest == tensor_shelves::none) break;
      static_cast<void>(shelves_.pop(from, at));
      record& r = records_[oldest];
      given += r.capacity.load(relaxed);  // ours
      tell_taken(r, r.capacity.load(relaxed));
      evictions_.fetch_add(1, relaxed);   // a figure
      give_back(r, streams_ == nullptr ? nullptr : own_lane(r), false);
    }
    return given;
  }

  /// A miss has taken held_ past the limit. Whoever has the mutex looks after it until it is within, or nothing is kept.
  [[gnu::noinline]] void make_room() noexcept {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return;
    for (;;) {
      const std::size_t held = held_.load(relaxed);
      if (held <= limit_ || give_up_locked(held - limit_) == 0) return;
    }
  }

  [[nodiscard]] static std::uint32_t hardware_threads() noexcept;

  // Read on every call, and hardly ever written:
  atomic<pool::state*> core_;  ///< null: the pool is gone. Relaxed: the program orders its end and all calls
  stream_pool::state* streams_;
  std::uint64_t number_;
  std::size_t limit_ = 0;
  std::size_t alignment_ = 0;
  double waste_ = 0;
  tensor_device device_;
  reserved_array<record> records_;
  link_table links_;
  tensor_shelves shelves_;

  // Written by misses:
  alignas(interference) atomic<std::size_t> held_{0};
  atomic<std::uint64_t> misses_{0};
  alignas(interference) free_list blank_;
  alignas(interference) atomic<std::uint32_t> next_{0};
  atomic<std::uint64_t> compatible_{0};
  atomic<std::uint64_t> evictions_{0};
  atomic<std::uint64_t> bad_frees_{0};
  alignas(interference) atomic<std::size_t> owners_{1};
  mutex mutex_;
};

std::uint32_t tensor_cache::state::hardware_threads() noexcept {
  return std::max(1U, std::thread::hardware_concurrency());
}

tensor_cache::tensor_cache(pool& of, const tensor_options& settings)
    : state_(new state(of.state_, nullptr, settings)) {}

tensor_cache::tensor_cache(stream_pool& of, const tensor_options& settings)
    : state_(new state(of.state_ == nullptr ? nullptr : &of.state_->core_, of.state_, settings)) {}

tensor_cache::~tensor_cache() { state_->close(); }

tensor tensor_cache::empty(const tensor_layout& layout) { return state_->empty(layout, {}); }
tensor tensor_cache::empty(const tensor_layout& layout, stream_handle stream) {
  return state_->empty(layout, {.own = false, .stream = stream});
}

tensor tensor_cache::empty_at_hand(const tensor_layout& layout) noexcept { return state_->empty_at_hand(layout, {}); }
tensor tensor_cache::empty_at_hand(const tensor_layout& layout, stream_handle stream) noexcept {
  return state_->empty_at_hand(layout, {.own = false, .stream = stream});
}
bool tensor_cache::free_at_hand(const tensor& of) noexcept { return state_->free_at_hand(of); }

tensor tensor_cache::try_empty(const tensor_layout& layout) noexcept {
  try {
    return state_->empty(layout, {});
  } catch (...) {  // out of memory, or the handler's
    return {};
  }
}
tensor tensor_cache::try_empty(const tensor_layout& layout, stream_handle stream) noexcept {
  try {
    return state_->empty(layout, {.own = false, .stream = stream});
  } catch (...) {  // as above, or no stream
    return {};
  }
}

void tensor_cache::free(const tensor& of) noexcept { state_->free_or_report(of, {}); }
void tensor_cache::free(const tensor& of, stream_handle stream) noexcept {
  state_->free_or_report(of, {.own = false, .stream = stream});
}

error tensor_cache::try_free(const tensor& of, bad_free* report) noexcept { return state_->free(of, {}, report); }
error tensor_cache::try_free(const tensor& of, stream_handle stream, bad_free* report) noexcept {
  return state_->free(of, {.own = false, .stream = stream}, report);
}

void tensor_cache::free_or_throw(const tensor& of) {
  bad_free report;
  if (try_free(of, &report) != error::none) throw bad_free_error(report);
}
void tensor_cache::free_or_throw(const tensor& of, stream_handle stream) {
  bad_free report;
  if (try_free(of, stream, &report) != error::none) throw bad_free_error(report);
}

error tensor_cache::record_stream(const tensor& of, stream_handle stream) noexcept {
  return state_->record_stream(of, stream);
}

bool tensor_cache::owns(const tensor& of) const noexcept { return state_->owns(of); }

exported_tensor tensor_cache::give_out(const tensor& of) {
  exported_tensor given;
  bad_free report;
  if (state_->give_out(of, {}, given, &report) != error::none) throw bad_free_error(report);
  return given;
}
exported_tensor tensor_cache::give_out(const tensor& of, stream_handle stream) {
  exported_tensor given;
  bad_free report;
  if (state_->give_out(of, {.own = false, .stream = stream}, given, &report) != error::none) throw bad_free_error(report);
  return given;
}

void release_export(void* storage) noexcept {
  if (storage != nullptr) tensor_cache::state::release_exported(storage);
}

std::size_t tensor_cache::trim(std::size_t keep_bytes) noexcept { return state_->trim(keep_bytes); }
tensor_statistics tensor_cache::stats() const noexcept { return state_->stats(); }

}  // namespace orderly
