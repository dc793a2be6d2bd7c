#include "pool_state.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

namespace orderly {

using namespace detail;

namespace {

constexpr std::size_t default_granule = 256;
constexpr std::size_t least_granule = 16;
constexpr std::size_t most_granule = 64 * 1024;

/// Largest class that fronts cache: above it, the price of the buddy is small against the use of the block.
constexpr std::uint64_t most_front_bytes = std::uint64_t{1} << 20;

constexpr std::int64_t least_publish = 64 * 1024;
constexpr std::int64_t most_publish = 16 * 1024 * 1024;

/// Fronts that publish more often than that raise their bound: threads that write to one cache line all the time run one
/// after the other.
constexpr std::uint64_t calls_per_publish = 4096;

/// A pool reserves about 2 x capacity for each order above the root; user space has 2^47 bytes on most machines.
constexpr std::uint64_t most_addresses = std::uint64_t{1} << 46;

/// Of a front that may not be there, as tag_accounts knows it.
[[nodiscard]] std::uint32_t number_of(const front* of) noexcept { return of == nullptr ? 0 : of->number; }

[[noreturn]] void invalid(const std::string& what) { throw std::invalid_argument("orderly::pool: " + what); }

[[nodiscard]] geometry plan(const memory_source* source, const options& o) {
  if (source == nullptr) invalid("the source is null");
  const std::size_t granule = o.granule == 0 ? default_granule : o.granule;
  if (!std::has_single_bit(granule) || granule < least_granule || granule > most_granule)
    invalid("granule " + std::to_string(granule) + " is not a power of two from 16 to 65536");
  std::size_t capacity = o.capacity != 0 ? o.capacity : source->capacity();
  if (capacity == 0) invalid("capacity is not given, and the source does not know one");
  if (o.capacity == 0) capacity = std::min<std::size_t>(capacity, most_addresses);
  if (capacity > most_addresses) invalid("capacity " + std::to_string(capacity) + " is above 64 TiB");
  if (!(o.slack >= 0 && o.slack <= 16)) invalid("slack is not a fraction from 0 to 16");
  const std::size_t most = o.limit == 0 ? capacity : std::min(capacity, o.limit);
  if (o.release_threshold > most)
    invalid("release_threshold " + std::to_string(o.release_threshold) + " is above the limit, " + std::to_string(most));
  if (o.soft_limit != 0 && o.soft_limit < o.release_threshold)
    invalid("soft_limit " + std::to_string(o.soft_limit) + " is below release_threshold, " +
            std::to_string(o.release_threshold));
  if (!source->is_virtual()) {
    if (o.limit != 0) capacity = std::min(capacity, o.limit);
    if (capacity < granule) invalid("capacity " + std::to_string(capacity) + " is below the granule");
    return flat_geometry(granule, capacity);
  }
  const std::size_t chunk = o.chunk == 0 ? std::max(source->preferred_chunk(), granule) : o.chunk;
  if (!std::has_single_bit(chunk) || chunk < granule || chunk < source->granularity())
    invalid("chunk " + std::to_string(chunk) + " is not a power of two of at least the granule and the source's " +
            std::to_string(source->granularity()));
  if (chunk > std::size_t{1} << 32) invalid("chunk " + std::to_string(chunk) + " is above 4 GiB");
  if (o.limit != 0 && o.limit < chunk) invalid("limit " + std::to_string(o.limit) + " is below one chunk");
  for (;;) {
    const geometry g = virtual_geometry(granule, chunk, capacity, o.limit);
    const bool tree_is_long_enough = g.bytes(g.tree_granules) >= g.capacity;
    const bool addresses_exist = g.bytes(g.total_granules) <= most_addresses;
    if (tree_is_long_enough && addresses_exist) return g;
    if (g.tree_granules == 0)
      invalid("chunk " + std::to_string(chunk) + " is too large for the granule; use a granule of at least " +
              std::to_string(granule * 2));
    if (o.capacity == 0) {  // nobody asked for so much
      capacity -= capacity / 16;
      continue;
    }
    if (!tree_is_long_enough)
      invalid("capacity " + std::to_string(capacity) + " is too large for the granule; use a granule of at least " +
              std::to_string(granule * 2));
    invalid("capacity " + std::to_string(capacity) + " needs more addresses than a process has; lower it");
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------- construction

pool::state::state(std::unique_ptr<memory_source> source, const options& settings, std::unique_ptr<lanes> streams)
    : settings_(settings),
      store_{plan(source.get(), settings), std::move(source)},  // in braces: from left to right
      lanes_(std::move(streams)),
      generations_(shape().total_granules) {
  asymmetric_barrier::prepare();
  set_rules();
  const std::size_t limit = shape().limit;
  if (!store_.open() || !store_.memory().annotate(lanes_ == nullptr ? free_order::program : free_order::stream) ||
      !depot_.open(bounds::magazines) || !fronts_.reserve(most_fronts) ||
      !front_blocks_.reserve(most_fronts * blocks_per_front_) || !class_table_.reserve(front_granules_) ||
      (settings.account_tags && !tags_.open(shape().total_granules)))
    throw out_of_memory(shape().capacity, 0, limit);
  for (std::uint64_t last_granule = 0; last_granule < front_granules_; ++last_granule)
    class_table_[last_granule] = static_cast<std::uint8_t>(class_of(last_granule + 1));
  hot_granules_ = tags_.on() ? 0 : front_granules_;
  if (lanes_ != nullptr) {
    touch_ahead(fronts_.data(), lanes::ready_lanes * sizeof(front));
    touch_ahead(front_blocks_.data(), lanes::ready_lanes * blocks_per_front_ * sizeof(front_blocks_[0]));
  }
  base_ = store_.memory().base();
  granule_shift_ = shape().granule_shift;
  hot_alignments_ = shape().granule_bytes();
  tree_bytes_ = shape().bytes(shape().tree_granules);
  max_alignment_ = shape().flat ? std::size_t{1} << std::countr_zero(reinterpret_cast<std::uintptr_t>(base_))
                                : shape().chunk_bytes();
  kept_committed_.store(settings_.release_threshold, relaxed);  // no other thread yet
  if (!shape().flat) store_.memory().set_soft_limit(0);  // the first commit sets it, from what is live then
  enroll();
}

pool::state::~state() {
  keepers_.pool_goes();
  withdraw();
}

/// Fronts and depots hold little of what a small pool has, and few blocks of what is large.
void pool::state::set_rules() noexcept {
  const geometry& g = shape();
  front_granules_ = std::min(most_front_bytes >> g.granule_shift, std::uint64_t{1} << g.root_order);
  if (g.flat) front_granules_ = std::min(front_granules_, std::bit_floor(g.tree_granules));
  if (front_granules_ == 0) front_granules_ = 1;
  classes_ = class_of(front_granules_) + 1;
  const std::uint64_t budget = std::clamp<std::uint64_t>(g.limit / 1024, 16 * 1024, 1024 * 1024);
  // Streams take back from each other's caches under pressure anyway, and each way past a cache costs them more.
  const auto least_capacity = [&](std::uint64_t bytes) -> std::uint64_t {
    if (g.limit >= std::uint64_t{1} << 30) return 8;
    return lanes_ == nullptr ? 2 : std::clamp<std::uint64_t>(g.limit / (32 * bytes), 2, 8);
  };
  inbox_limit_ = 2 * budget;
  blocks_per_front_ = 0;
  for (std::size_t c = 0; c < classes_; ++c) {
    class_rule& rule = rules_[c];
    rule.shape = shape_of(class_granules(c));
    rule.bytes = g.bytes(class_granules(c));
    rule.capacity = static_cast<std::uint16_t>(
        std::clamp<std::uint64_t>(budget / rule.bytes, least_capacity(rule.bytes), front::most_blocks));
    rule.batch = static_cast<std::uint16_t>(rule.capacity / 2);
    rule.refill = static_cast<std::uint16_t>(std::clamp<std::uint64_t>(16 * 1024 / rule.bytes, 1, rule.batch));
    rule.magazines =
        static_cast<std::uint32_t>(std::clamp<std::uint64_t>(2 * budget / (rule.bytes * rule.batch), 2, 64));
    blocks_per_front_ += std::size_t{rule.capacity} + 2 * std::size_t{rule.batch};
  }
  constexpr std::size_t per_line = interference / sizeof(std::uint32_t);
  blocks_per_front_ = (blocks_per_front_ + per_line - 1) / per_line * per_line;  // no line serves two threads
}

// ------------------------------------------------------------------------------------------------------- requests

bool pool::state::aligns(std::size_t alignment) const noexcept {
  return std::has_single_bit(alignment) && (alignment <= shape().granule_bytes() || alignment <= max_alignment_);
}

void* pool::state::allocate_or_throw(std::size_t bytes, std::size_t alignment, lane* in) {
  if (!hot_path_looks() && aligned_by_granule(alignment))
    if (void* const block = allocate_in_front(in, bytes)) return block;
  if (!aligns(alignment))
    invalid("alignment " + std::to_string(alignment) +
            " is not a power of two up to the chunk size (or, in a fixed buffer, the buffer's own)");
  memory_report::attempts tried;
  request wanted = work_out(bytes, alignment, in);
  wanted.tried = &tried;
  if (void* const block = allocate_slow(wanted)) return block;
  throw_out_of_memory(bytes, alignment, &tried);
}

void pool::state::throw_out_of_memory(std::size_t bytes, std::size_t alignment, const memory_report::attempts* tried) {
  throw out_of_memory(report(std::max<std::size_t>(bytes, 1), alignment, tried));
}

void* pool::state::allocate_or_null(std::size_t bytes, std::size_t alignment, lane* in) noexcept {
  if (!hot_path_looks() && aligned_by_granule(alignment))
    if (void* const block = allocate_in_front(in, bytes)) return block;
  if (!aligns(alignment)) return nullptr;
  memory_report::attempts tried;
  request wanted = work_out(bytes, alignment, in);
  if (settings_.on_out_of_memory) wanted.tried = &tried;  // it may ask for a report
  try {
    return allocate_slow(wanted);
  } catch (...) {  // the out-of-memory handler's
    return nullptr;
  }
}

pool::state::request pool::state::work_out(std::size_t bytes, std::size_t alignment, lane* in) const noexcept {
  request r;
  r.in = in;
  r.tag = this_thread_tag;
  r.alignment = alignment;
  r.bytes = std::max<std::size_t>(bytes, 1);
  r.granules = ((r.bytes - 1) >> granule_shift_) + 1;
  if (alignment > shape().granule_bytes() && r.granules <= std::uint64_t{1} << shape().root_order) {
    const auto least = static_cast<unsigned>(std::countr_zero(alignment)) - granule_shift_;
    const block_shape aligned = shape_of(r.granules, least);
    if (aligned != shape_of(r.granules)) {
      r.shape = aligned;
      return r;
    }
  }
  r.shape = shape_of(r.granules);
  if (r.granules <= front_granules_) r.of_class = class_of(r.granules);
  return r;
}

std::size_t pool::state::rounded(std::size_t bytes) const noexcept {
  if (bytes > shape().capacity) return 0;
  const request r = work_out(bytes, 1, nullptr);
  if (shape().in_tree(r.shape.order)) return shape().bytes(granules_of(r.shape.order, r.shape.sixteenths));
  return (r.bytes + shape().chunk_bytes() - 1) & ~(shape().chunk_bytes() - 1);
}

// ------------------------------------------------------------------------------------------------------ allocation

void* pool::state::hand_out(front* of, const request& wanted, node n) noexcept {
  const std::uint64_t length = store_.length(n, wanted.shape.sixteenths);
  const unsigned home = of != nullptr && wanted.of_class != no_class ? of->number : 0;
  void* const block = store_.memory().address(shape().granule(n));
  store_.memory().tools().handed_out(block, wanted.bytes, length);
  if (tags_.on()) tags_.handed_out(number_of(of), wanted.tag, shape().granule(n), wanted.bytes, length);
  // owned -> live, or cached -> live for a block of a magazine in hand: nobody else may touch the word.
  store_.word(n).store(block_word::live(wanted.shape.sixteenths, length - wanted.bytes, home).bits(), relaxed);
  if (of != nullptr) {
    front::add(of->allocations, 1);
    return count_requested(*of, wanted.bytes, block);
  }
  const auto before = published_requested_.fetch_add(static_cast<std::int64_t>(wanted.bytes), relaxed);  // a figure
  raise_peak_requested(before + static_cast<std::int64_t>(wanted.bytes));
  allocations_.fetch_add(1, relaxed);  // a figure
  return block;
}

void* pool::state::allocate_direct(front* of, const request& wanted, ceiling up_to, refusal& why) noexcept {
  auto n = captures(wanted.in) ? take_from_graph(wanted) : take_large(wanted);
  if (!n) {
    n = store_.take_one(wanted.shape, wanted.granules, up_to, why);
    if (!n) return nullptr;
    if (!may_serve(wanted) || (captures(wanted.in) && !note_for_graph(wanted, *n))) {
      store_.give(*n, wanted.shape.sixteenths);
      why = refusal::order;
      return nullptr;
    }
    count_taken(of, store_.length(*n, wanted.shape.sixteenths));
  }
  return hand_out(of, wanted, *n);
}

/// The hot path's work, also where entering a front takes an exchange.
void* pool::state::allocate_in_front(lane* in, std::size_t bytes) noexcept {
  return allocate_here<front::stay>([&] { return this_thread_fronts.find(key(in)); }, bytes,
                                    []() noexcept { return nullptr; });
}

bool pool::state::deallocate_in_front(lane* in, void* pointer, std::size_t bytes) noexcept {
  const auto find = [&] { return this_thread_fronts.find(key(in)); };
  return deallocate_here<front::stay>(find, pointer, bytes, []() noexcept { return error::double_free; }) == error::none;
}

/// What came home, a magazine of the depot, or a batch of the store: one block for the caller, the rest for the front.
void* pool::state::refill(front& of, const request& wanted, ceiling up_to, refusal& why) noexcept {
  const class_rule& rule = rules_[wanted.of_class];
  if (of.inbox.peek()) {
    unpack(of, wanted.of_class);
    if (void* const block = allocate_in_front(wanted.in, wanted.bytes)) return block;
  }
  std::array<std::uint32_t, max_magazine_blocks> blocks;
  std::size_t count = depot_.pop(shelves_of(wanted.in), wanted.of_class, blocks, &of.spare);
  if (count == 0) {
    count = store_.take(rule.shape, std::span(blocks).first(rule.refill), up_to, why);
    if (count == 0) return nullptr;
    if (!may_serve(wanted)) {
      for (std::size_t i = 0; i < count; ++i) store_.give({blocks[i], rule.shape.order}, rule.shape.sixteenths);
      why = refusal::order;
      return nullptr;
    }
    count_taken(&of, count * rule.bytes);
    for (std::size_t i = 0; i < count; ++i) {
      const node n{blocks[i], rule.shape.order};
      if (i != 0) store_.word(n).store(block_word::cached(rule.shape.sixteenths).bits(), relaxed);  // owned: still ours
      blocks[i] = store_.tree().position(n);
    }
  }
  void* const block = hand_out(&of, wanted, store_.tree().at_position(blocks[0], rule.shape.order));
  std::size_t kept = 1;
  if (const front::stay inside(of); inside) {
    front_magazine& m = of.magazines[wanted.of_class];
    std::uint32_t held = m.count.load(relaxed);  // own
    // Backwards, so that the lowest address is handed out first and neighbours stay together.
    while (kept < count && held < m.capacity) m.blocks[held++] = blocks[count - kept++];
    m.count.store(held, relaxed);  // own; others read it as a figure
  }
  if (kept < count) keep_or_put_back(&of, wanted.in, wanted.of_class, std::span(blocks).subspan(1, count - kept));
  return block;
}

void* pool::state::allocate_once(const request& wanted) noexcept {
  if (wanted.in != nullptr && wanted.in->wanted.load(relaxed)) seal_if_due(*wanted.in);  // a hint
  front* const mine = captures(wanted.in) ? nullptr : this_front(wanted.in);
  // The hot path may not have looked: where it does not know the stream, or the front, or entering takes an exchange.
  if (mine != nullptr && wanted.of_class != no_class)
    if (void* const block = allocate_in_front(wanted.in, wanted.bytes)) return block;
  refusal why = refusal::none;
  const auto attempt = [&](ceiling up_to) {
    const slow_section marked(*this, mine);
    if (wanted.of_class != no_class && mine != nullptr) return refill(*mine, wanted, up_to, why);
    return allocate_direct(mine, wanted, up_to, why);
  };
  void* block = attempt(ceiling::soft);
  if (block == nullptr && why == refusal::soft_limit) {
    relieve(wanted);
    block = attempt(ceiling::hard);
  }
  if (block == nullptr && wanted.in != nullptr) {
    {
      const std::lock_guard lock(pass_mutex_);
      settle_all(!captures(wanted.in));
    }
    block = attempt(ceiling::hard);
  }
  return block != nullptr ? block : press(wanted, mine);
}

/// One may allocate in another pool, and that one's handler here.
struct pool::state::handling {
  std::uint64_t pool;
  const request& refused;
  const handling* outer;
};
thread_local constinit const pool::state::handling* pool::state::innermost_handling = nullptr;

/// What kept a request from being served, for its report.
void pool::state::tell(const request& wanted, refusal why) const noexcept {
  if (wanted.tried == nullptr) return;
  memory_report::attempts& tried = *wanted.tried;
  tried.by_limit = tried.by_limit || why == refusal::hard_limit;
  tried.by_order = tried.by_order || why == refusal::order;
  if (why != refusal::source) return;
  tried.by_source = true;
  store_.memory().why_refused(tried.source_error);
}

memory_report pool::state::report(std::size_t bytes) noexcept {
  const handling* here = innermost_handling;
  while (here != nullptr && here->pool != serial()) here = here->outer;
  if (here == nullptr || (bytes != 0 && bytes != here->refused.bytes)) return report(bytes, 1, nullptr);
  return report(here->refused.bytes, here->refused.alignment, here->refused.tried);
}

void* pool::state::allocate_slow(const request& wanted) {
  struct refusal_count {  // also when the handler throws
    atomic<std::uint64_t>* counter;
    ~refusal_count() {
      if (counter != nullptr) counter->fetch_add(1, relaxed);  // a figure
    }
  } refused{&failed_};
  while (wanted.bytes <= shape().capacity && commitment(wanted) <= shape().limit) {
    if (void* const block = allocate_once(wanted)) {
      refused.counter = nullptr;
      return block;
    }
    if (keepers_.give_up(wanted.bytes) != 0) continue;
    if (!settings_.on_out_of_memory) break;
    const handling* same = innermost_handling;
    while (same != nullptr && same->pool != serial()) same = same->outer;
    if (same != nullptr) break;
    const handling here{serial(), wanted, innermost_handling};
    struct leaving {
      const handling* outer;
      ~leaving() { innermost_handling = outer; }
    } const leave{std::exchange(innermost_handling, &here)};
    ++wanted.tried->handler_calls;  // where there is a handler, somebody asks
    if (!settings_.on_out_of_memory(wanted.bytes)) break;
  }
  return nullptr;
}

// ------------------------------------------------------------------------------------------------------------ free

error pool::state::deallocate_or_report(void* pointer, std::size_t bytes, lane* in) noexcept {
  bad_free report;
  const error code = deallocate_slow(pointer, bytes, &report, in);
  if (code != error::none) call_handler(report);
  return code;
}

/// True if a request of that size gets a block like this one; 0: unknown.
bool pool::state::accepts(const block_store::found& block, std::size_t bytes) const noexcept {
  if (bytes == 0) return true;
  if (bytes > block.length) return false;
  if (!shape().in_tree(block.n.order)) {
    const auto chunks = [&](std::uint64_t n) { return (n - 1) >> (shape().chunk_order + granule_shift_); };
    return chunks(bytes) == chunks(block.length - block.word.unused());
  }
  const std::uint64_t granules = ((bytes - 1) >> granule_shift_) + 1;
  return shape_of(granules, block.n.order) == block_shape{block.n.order, static_cast<std::uint8_t>(block.word.sixteenths())};
}

error pool::state::deallocate_slow(void* pointer, std::size_t bytes, bad_free* report, lane* in) noexcept {
  if (pointer == nullptr) return error::none;
  if (!hot_path_looks() && deallocate_in_front(in, pointer, bytes)) return error::none;
  if (return_home(in, pointer, bytes)) return error::none;
  front* const mine = captures(in) ? nullptr : this_front(in);
  const auto offset = store_.memory().offset(pointer);
  for (;;) {
    const block_store::found block = offset ? store_.find_live(*offset) : block_store::found{};
    if (!block.exists || !accepts(block, bytes)) {
      bad_frees_.fetch_add(1, relaxed);  // a figure
      const bad_free found = explain(pointer, bytes);
      if (report != nullptr) *report = found;
      return found.code;
    }
    const std::size_t requested = block.length - block.word.unused();
    const std::uint32_t home = block.word.home();
    const std::size_t of_class = home == 0 ? no_class : class_of(((requested - 1) >> granule_shift_) + 1);
    if (home != 0 && mine != nullptr) {
      // A front after all: the size was unknown, the magazine was full, or the block is another front's.
      if (home != mine->number) {
        if (return_home(in, pointer, requested)) return error::none;
      } else {
        if (mine->magazines[of_class].count.load(relaxed) == rules_[of_class].capacity) spill(*mine, of_class);  // own
        if (deallocate_in_front(in, pointer, requested)) return error::none;
      }
    }
    const slow_section marked(*this, mine);
    std::uint64_t expected = block.word.bits();
    const unsigned sixteenths = block.word.sixteenths();
    const block_word next = home != 0      ? block_word::returning(sixteenths, block.word.unused(), home)
                            : in == nullptr ? block_word::owned()
                                            : block_word::cached(sixteenths);
    // live -> owned or returning, the check, past the front. Relaxed: give() or the parcel publishes. When another thread
    // is faster, look again.
    if (!store_.word(block.n).compare_exchange_strong(expected, next.bits(), relaxed, relaxed)) continue;
    store_.memory().tools().taken_back(pointer, requested, block.length);
    if (tags_.on()) tags_.taken_back(number_of(mine), shape().granule(block.n), requested, block.length);
    count_free(mine, requested);
    if (home != 0) {
      const auto unused = static_cast<std::uint32_t>(block.word.unused());
      const std::uint32_t position = store_.tree().position(block.n);
      deliver(in, of_class, home, {&position, 1}, &unused);
    } else {
      give_direct(mine, in, block.n, sixteenths);
    }
    return error::none;
  }
}

/// Frees a block of another front: marks it, and keeps it for a parcel. False: it is no such block, or this thread's front
/// is revoked; nothing has happened.
bool pool::state::return_home(lane* in, void* pointer, std::size_t bytes) noexcept {
  const std::uint64_t last_granule = (bytes - 1) >> granule_shift_;  // of an unknown size, 0, it is out of range
  const std::uint64_t offset = reinterpret_cast<std::uintptr_t>(pointer) - reinterpret_cast<std::uintptr_t>(base_);
  front* const mine = this_thread_fronts.find(key(in));
  if (mine == nullptr || last_granule >= front_granules_ || offset >= tree_bytes_) return false;
  const std::size_t of_class = class_table_[last_granule];
  const front_magazine& m = mine->magazines[of_class];
  if ((offset & m.offset_mask) != 0) return false;
  const std::uint64_t position = offset >> m.shift;
  atomic<std::uint64_t>& word = m.words[position];
  front_returns& r = mine->returns[of_class];
  for (;;) {
    bool full = false;
    if (const front::stay inside(*mine); inside) {
      const block_word seen(word.load(relaxed));
      const std::uint32_t home = seen.home();
      if (home == 0 || home == mine->number || !seen.matches(m.live(bytes))) return false;
      const std::uint32_t count = r.count.load(relaxed);  // own
      full = count == rules_[of_class].batch || (count != 0 && r.home != home);  // the former: sending met a pass
      if (!full) {
        std::uint64_t expected = seen.bits();
        const block_word returning = block_word::returning(m.cached.sixteenths(), seen.unused(), home);
        // live -> returning, the check of this free: of several threads that free one block, one CAS succeeds. Relaxed:
        // the parcel hands the block on.
        if (!word.compare_exchange_strong(expected, returning.bits(), relaxed, relaxed)) return false;
        store_.memory().tools().taken_back(pointer, bytes, rules_[of_class].bytes);
        if (tags_.on()) tags_.taken_back(mine->number, offset >> granule_shift_, bytes, rules_[of_class].bytes);
        r.home = home;
        r.blocks[count] = static_cast<std::uint32_t>(position);
        r.unused[count] = static_cast<std::uint32_t>(seen.unused());
        r.count.store(count + 1, relaxed);  // own; others read it as a figure
        count_free(mine, bytes);
        if (count + 1 < rules_[of_class].batch) return true;
      }
    } else {
      return false;
    }
    if (!send_returns(*mine, of_class) && full) return false;  // revoked: take the way past the front
    if (!full) return true;
  }
}

/// Sends what a front holds of another front's blocks of a class. False: the front is revoked; nothing has happened.
bool pool::state::send_returns(front& of, std::size_t of_class) noexcept {
  const slow_section marked(*this, &of);
  std::array<std::uint32_t, max_magazine_blocks> blocks;
  std::array<std::uint32_t, max_magazine_blocks> unused;
  std::uint32_t count = 0;
  std::uint32_t home = 0;
  lane* const in = of.of_lane.load(relaxed);  // own
  if (const front::stay inside(of); inside) {
    front_returns& r = of.returns[of_class];
    count = r.count.load(relaxed);  // own
    home = r.home;
    std::copy_n(r.blocks, count, blocks.begin());
    std::copy_n(r.unused, count, unused.begin());
    // While the stay lasts: a pass that finds the front empty finds the lane still awaits something. See detach().
    if (in != nullptr && count != 0) in->coming.fetch_add(1, relaxed);  // ordered by outside()
    r.count.store(0, relaxed);  // own; others read it as a figure
  }
  if (count == 0) return false;
  deliver(in, of_class, home, std::span(blocks).first(count), unused.data());
  if (in != nullptr) in->coming.fetch_sub(1, release);  // deliver() has counted its own
  return true;
}

/// Puts a parcel into the inbox of a front, and sees to it that it does not lie there for ever: a front without a thread, or
/// one whose thread does not come to look, is emptied by the sender.
void pool::state::deliver(lane* in, std::size_t of_class, std::uint32_t home, std::span<const std::uint32_t> blocks,
                          const std::uint32_t* unused) noexcept {
  front& at = fronts_[home - 1];
  if (in != nullptr) in->coming.fetch_add(1, relaxed);  // before the parcel can arrive
  const std::uint64_t bytes = blocks.size() * rules_[of_class].bytes;
  const std::uint64_t waiting = at.inbox_bytes.fetch_add(bytes, relaxed) + bytes;  // a figure
  while (!depot_.send(at.inbox, of_class, blocks, unused, in)) {  // every magazine is in use: a pass empties some
    const std::unique_lock lock(pass_mutex_, std::try_to_lock);  // another may be at it, and wait for this thread to go on
    if (!lock) {
      yield();
      continue;
    }
    passes_.fetch_add(1, relaxed);  // as in collect()
    reclaim_caches(patience::brief);
    settle_all(true);
  }
  if (at.attached()) {
    if (waiting >= inbox_limit_) collect(at);
  } else {
    adopt(at);
  }
}

/// Empties the inbox of a front without a thread. A parcel that comes while a thread lets go of a front is seen by one of
/// the two: the thread detaches, then looks at the inbox; the sender pushes, then looks whether a thread is attached. Nor is
/// one left where a pass keeps everybody out: it restores the front, then looks whether a thread is attached; who could not
/// get in detaches, then looks whether the front is still revoked.
void pool::state::adopt(front& of) noexcept {
  while (of.inbox.peek() && of.try_attach()) {
    bool done = false;
    if (of.retired()) of.renew();  // its lane was given up, and no thread has come since
    if (const front::stay inside(of); inside) {
      empty_inbox(of);
      done = true;
    }
    of.detach();
    if (!done && of.is_revoked()) return;  // a pass is at it, and comes by once more
  }
}

/// Takes parcels until the class that is wanted has blocks again, or none is left.
void pool::state::unpack(front& of, std::size_t of_class) noexcept {
  for (;;) {
    depot::parcel p;
    std::size_t kept = 0;
    if (const front::stay inside(of); inside) {
      p = depot_.receive(of.inbox);
      if (p.count == 0) return;
      arrive(of, p);
      if (p.note == of.of_lane.load(relaxed)) {  // else its blocks were freed in another stream, whose they are
        front_magazine& m = of.magazines[p.of_class];
        std::uint32_t held = m.count.load(relaxed);  // own
        while (kept < p.count && held < m.capacity) m.blocks[held++] = p.blocks[kept++];
        m.count.store(held, relaxed);  // own; others read it as a figure
      }
    } else {
      return;
    }
    auto* const in = static_cast<lane*>(p.note);
    keep_or_put_back(&of, in, p.of_class, std::span(p.blocks).first(p.count).subspan(kept));
    if (in != nullptr) in->coming.fetch_sub(1, release);  // release_lane(): the lane has its blocks
    if (p.of_class == of_class && kept != 0) return;
  }
}

/// Ends the return of a parcel's blocks; what is no returning block is dropped: it was freed twice. Pre: inside `at`.
std::size_t pool::state::arrive(front& at, depot::parcel& p) noexcept {
  const class_rule& rule = rules_[p.of_class];
  const std::uint64_t bytes = p.count * rule.bytes;
  std::size_t valid = 0;
  for (std::size_t i = 0; i < p.count; ++i) {
    const node n = store_.tree().at_position(p.blocks[i], rule.shape.order);
    atomic<std::uint64_t>& word = store_.word(n);
    if (word.load(relaxed) != block_word::returning(rule.shape.sixteenths, p.unused[i], at.number).bits()) {
      // Counted as a free when it was sent, which it was not. Figures, all of them.
      bad_frees_.fetch_add(1, relaxed);
      frees_.fetch_sub(1, relaxed);
      published_requested_.fetch_add(static_cast<std::int64_t>(rule.bytes - p.unused[i]), relaxed);
      // Of the tag that the block bears now, which may be another owner's: then the sum of all tags is right alone.
      if (tags_.on()) tags_.free_was_none(n.granule(), rule.bytes - p.unused[i], rule.bytes);
      continue;
    }
    word.store(block_word::cached(rule.shape.sixteenths).bits(), relaxed);  // at home; see block_word.hpp
    p.blocks[valid++] = p.blocks[i];
  }
  at.inbox_bytes.fetch_sub(bytes, relaxed);  // a figure
  p.count = valid;
  return valid;
}

/// Takes every parcel of a front to depot or store. Returns the bytes. Pre: inside `of`.
std::size_t pool::state::empty_inbox(front& of) noexcept {
  std::size_t bytes = 0;
  for (;;) {
    depot::parcel p = depot_.receive(of.inbox);
    if (p.count == 0) return bytes;
    arrive(of, p);
    bytes += p.count * rules_[p.of_class].bytes;
    auto* const in = static_cast<lane*>(p.note);
    keep_or_put_back(nullptr, in, p.of_class, std::span(p.blocks).first(p.count));
    if (in != nullptr) in->coming.fetch_sub(1, release);  // as in unpack()
  }
}

/// Cached blocks in hand: a full batch goes to the depot if it has room, all else to the store.
void pool::state::keep_or_put_back(front* mine, lane* in, std::size_t of_class,
                                   std::span<const std::uint32_t> blocks) noexcept {
  const class_rule& rule = rules_[of_class];
  if (blocks.empty()) return;
  // Nobody would look on the shelves of a lane that was given up. Relaxed: a look; what is put there while the lane is being
  // given up is found by seal().
  const bool wanted = in == nullptr || in->serial.load(relaxed) != 0;
  if (wanted && blocks.size() == rule.batch && depot_.push(shelves_of(in), of_class, blocks, rule.magazines,
                                                 mine == nullptr ? nullptr : &mine->spare))
    return;
  put_back(mine, in, of_class, blocks);
}

/// What caches do not hold: to the store, or to the lane until no stream may use it.
void pool::state::put_back(front* mine, lane* in, std::size_t of_class, std::span<const std::uint32_t> blocks) noexcept {
  if (in == nullptr) return settle(mine, of_class, blocks);
  hold(*in, of_class, blocks, blocks.size() * rules_[of_class].bytes);
}

/// Gives blocks that the caller holds (owned or cached) back to the store. `mine`: the caller's front, if it is its owner.
void pool::state::settle(front* mine, std::size_t of_class, std::span<const std::uint32_t> blocks) noexcept {
  const block_shape shape = rules_[of_class].shape;
  for (const std::uint32_t position : blocks)
    store_.give(store_.tree().at_position(position, shape.order), shape.sixteenths);
  count_taken(mine, 0 - blocks.size() * rules_[of_class].bytes);
}

/// Moves the older half of a full magazine out of a front: to the depot, or to the store.
void pool::state::spill(front& of, std::size_t of_class) noexcept {
  const slow_section marked(*this, &of);
  make_room(of, of_class);
}

/// The same. Pre: in a slow section.
void pool::state::make_room(front& of, std::size_t of_class) noexcept {
  const class_rule& rule = rules_[of_class];
  std::array<std::uint32_t, max_magazine_blocks> blocks;
  std::uint32_t moved = 0;
  if (const front::stay inside(of); inside) {
    front_magazine& m = of.magazines[of_class];
    const std::uint32_t held = m.count.load(relaxed);  // own
    moved = std::min<std::uint32_t>(held, rule.batch);
    std::copy_n(m.blocks, moved, blocks.begin());
    std::copy(m.blocks + moved, m.blocks + held, m.blocks);
    m.count.store(held - moved, relaxed);  // own; others read it as a figure
  }
  keep_or_put_back(&of, of.of_lane.load(relaxed), of_class, std::span(blocks).first(moved));
}

/// A cached block without a home, of a shape that fronts hold: from now on this front's. False: it is of another shape, or
/// the front is revoked. Pre: in a slow section.
bool pool::state::keep_in_front(front& mine, node n, unsigned sixteenths) noexcept {
  const std::uint64_t granules = granules_of(n.order, sixteenths);
  if (granules > front_granules_) return false;
  const std::size_t of_class = class_of(granules);
  if (rules_[of_class].shape != block_shape{n.order, static_cast<std::uint8_t>(sixteenths)}) return false;
  front_magazine& m = mine.magazines[of_class];
  if (m.count.load(relaxed) == m.capacity) make_room(mine, of_class);  // own
  const front::stay inside(mine);
  const std::uint32_t held = m.count.load(relaxed);  // own
  if (!inside || held == m.capacity) return false;
  m.blocks[held] = store_.tree().position(n);
  m.count.store(held + 1, relaxed);  // own; others read it as a figure
  return true;
}

bad_free pool::state::explain(const void* pointer, std::size_t bytes) const noexcept {
  bad_free r;
  r.pointer = pointer;
  r.bytes = bytes;
  const auto offset = store_.memory().offset(pointer);
  if (!offset) {
    r.code = served_elsewhere(pointer, this) ? error::wrong_pool : error::foreign_pointer;
    return r;
  }
  const block_store::found block = store_.find(*offset);
  const bool live = block.exists && block.word.state() == block_state::live;
  if (!block.exists || (live && *offset - block.offset >= block.length)) {
    r.code = error::foreign_pointer;
    return r;
  }
  r.block = base_ + block.offset;
  r.block_bytes = block.length;
  r.state = block.word.state();
  if (r.state == block_state::live) r.block_requested = block.length - block.word.unused();
  if ((*offset & (shape().granule_bytes() - 1)) != 0)
    r.code = error::misaligned_pointer;
  else if (r.state != block_state::live)
    r.code = error::double_free;
  else
    r.code = *offset != block.offset ? error::interior_pointer : error::size_mismatch;
  return r;
}

// ---------------------------------------------------------------------------------------------------------- fronts

front* pool::state::this_front(lane* in) noexcept {
  front* const mine = this_thread_fronts.find(key(in));
  return mine != nullptr ? mine : attach(in);
}

front* pool::state::attach(lane* in) noexcept {
  if (this_thread_fronts.exiting) return nullptr;
  const std::uint64_t number = in == nullptr ? serial() : in->serial.load(acquire);
  const auto shown = [&](front* mine) {  // the next call for the stream finds it with the lane
    if (in != nullptr) this_thread_lanes.keep_front(serial(), in->stream, number, mine);
    return mine;
  };
  if (front* const known = recall_front(number)) return shown(known);
  if (captures(in)) return nullptr;  // begin_capture() sets that first
  // seq_cst: a pass changes the lane's number, then looks for fronts of the lane; see reclaim_fronts(). One sees the other.
  const auto still = [&] { return in == nullptr || in->serial.load(seq_cst) == number; };
  if (in != nullptr) {
    front* const idle =
        rename_front(serial(), number, [](const front& f, std::uint64_t /*known_as*/) { return f.retired(); });
    if (idle != nullptr) {
      idle->of_lane.store(in, seq_cst);
      idle->renew();
      if (still()) return shown(idle);
      idle->retire();  // own, and empty
      return nullptr;
    }
  }
  front* f = nullptr;
  for (front& each : made_fronts()) {
    if (!each.try_attach()) continue;
    f = &each;
    break;
  }
  if (f == nullptr) f = new_front();
  if (f == nullptr) return nullptr;
  f->of_lane.store(in, seq_cst);
  f->renew();
  if (still() && remember_front(number, f, serial())) return shown(f);
  if (in != nullptr) { const std::lock_guard pass(pass_mutex_); }  // it may be at this front
  f->detach();
  adopt(*f);
  return nullptr;
}

front* pool::state::new_front() noexcept {
  // A thread past the last front comes by in each call: it must not take the mutex. The number only grows.
  if (front_count_.load(relaxed) == most_fronts) return nullptr;
  const std::lock_guard lock(front_mutex_);
  const std::size_t index = front_count_.load(relaxed);  // changed under this mutex only
  if (index == most_fronts) return nullptr;
  auto* const f = new (&fronts_[index]) front;
  f->number = static_cast<std::uint32_t>(index + 1);
  std::uint32_t* blocks = &front_blocks_[index * blocks_per_front_];
  for (std::size_t c = 0; c < classes_; ++c) {
    front_magazine& m = f->magazines[c];
    const block_shape shape = rules_[c].shape;
    m.capacity = rules_[c].capacity;
    m.shift = shape.order + granule_shift_ - store_.tree().spacing(shape.order);
    m.blocks = blocks;
    m.words = store_.tree().words(shape.order);
    m.offset_mask = (std::uint64_t{1} << (shape.order + granule_shift_)) - 1;
    m.unrequested = block_word::live(shape.sixteenths, rules_[c].bytes, f->number);
    m.cached = block_word::cached(shape.sixteenths);
    blocks += m.capacity;
    f->returns[c].blocks = blocks;
    blocks += rules_[c].batch;
    f->returns[c].unused = blocks;
    blocks += rules_[c].batch;
  }
  f->publish_at = least_publish;
  if (!asymmetric_barrier::available()) f->require_exchange();
  f->attach();
  writes_plain(f);
  front_count_.store(index + 1, seq_cst);  // made_fronts()
  return f;
}

void pool::state::detach(front& of) noexcept {
  const auto wait_for_pass = [&] { const std::lock_guard pass(pass_mutex_); };  // it is just emptying this front
  for (std::size_t c = 0; c < classes_; ++c) {
    while (of.returns[c].count.load(relaxed) != 0)  // own
      if (!send_returns(of, c)) wait_for_pass();
  }
  for (bool drained = false; !drained;) {
    {
      const slow_section marked(*this, &of);
      if (const front::stay inside(of); inside) {
        drain(of);
        depot_.keep(of.spare);
        drained = true;
      }
    }
    if (!drained) {
      of.renew();  // one that was retired is empty
      wait_for_pass();
    }
  }
  publish_requested(of);
  // A per-thread stream ends with its thread, and only here an event can be put behind its work. Its front may have become
  // another stream's since.
  if (lanes_ != nullptr) {
    const std::lock_guard lock(pass_mutex_);
    lanes_->each([&](lane& in) {
      if (in.serial.load(relaxed) != 0 && in.owner != 0 && lanes::reaches(in)) release_lane_locked(in);
    });
  }
  of.detach();
  // From here on the front may be another thread's, its marks included.
  const slow_section marked(*this, nullptr);
  adopt(of);
}

void pool::state::before_fork() noexcept {
  keepers_.before_fork();
  pass_mutex_.lock();
  front_mutex_.lock();
  notes_.mutex.lock();
  if (lanes_ != nullptr) lanes_->lock();
}

/// In the child, fronts of threads that are gone are anybody's. What such a thread had in hand at that instant is lost to
/// the child: a few blocks at most.
void pool::state::after_fork(bool child) noexcept {
  if (child) {
    const std::size_t count = front_count_.load(relaxed);  // no other thread
    for (std::size_t i = 0; i < count; ++i)
      if (!holds_front(&fronts_[i])) fronts_[i].abandon();
    frontless_ended_.store(frontless_begun_.load(relaxed), relaxed);
    store_.memory().forget_source_calls();
  }
  if (lanes_ != nullptr) lanes_->unlock();
  notes_.mutex.unlock();
  front_mutex_.unlock();
  pass_mutex_.unlock();
  keepers_.after_fork();
}

// --------------------------------------------------------------------------------------------------------- figures

void pool::state::count_free(front* of, std::size_t bytes) noexcept {
  if (of != nullptr) {
    front::add(of->frees, 1);
    return discount_requested(*of, bytes);
  }
  published_requested_.fetch_sub(static_cast<std::int64_t>(bytes), relaxed);  // a figure
  frees_.fetch_add(1, relaxed);  // a figure
}

void* pool::state::raise_highest(front& of, void* block) noexcept {
  const std::int64_t highest = of.highest.load(relaxed) - of.room.load(relaxed);  // own figures
  of.highest.store(highest, relaxed);
  of.room.store(0, relaxed);
  if (highest > of.publish_at) publish_requested(of);
  return block;
}

void pool::state::count_taken(front* of, std::uint64_t bytes) noexcept {
  if (of != nullptr)
    front::add(of->taken, bytes);
  else
    taken_.fetch_add(bytes, relaxed);  // a figure
}

void pool::state::raise_peak_requested(std::int64_t reached) noexcept {
  std::int64_t peak = peak_requested_.load(relaxed);  // a figure
  while (peak < reached && !peak_requested_.compare_exchange_weak(peak, reached, relaxed, relaxed)) {
  }
}

void pool::state::publish_requested(front& of) noexcept {
  const std::int64_t highest = of.highest.load(relaxed);  // own figures
  const std::int64_t before = published_requested_.fetch_add(highest - of.room.load(relaxed), relaxed);
  raise_peak_requested(before + highest);
  of.highest.store(0, relaxed);
  of.room.store(0, relaxed);
  const std::int64_t least = std::clamp(peak_requested_.load(relaxed) / 128, least_publish, most_publish);
  const std::uint64_t calls = of.allocations.load(relaxed) + of.frees.load(relaxed);
  const bool often = calls - of.published_at_call < calls_per_publish;
  of.publish_at = std::clamp(often ? 2 * of.publish_at : of.publish_at / 2, least, most_publish);
  of.published_at_call = calls;
}

std::int64_t pool::state::requested_now() const noexcept {
  std::int64_t sum = published_requested_.load(relaxed);  // figures
  for (const front& each : made_fronts()) sum += each.highest.load(relaxed) - each.room.load(relaxed);
  return sum;
}

statistics pool::state::stats() const noexcept {
  statistics s;
  std::uint64_t taken = taken_.load(relaxed);  // figures, all of them
  std::uint64_t cached = 0;
  s.allocations = allocations_.load(relaxed);
  s.frees = frees_.load(relaxed);
  const std::int64_t requested = requested_now();
  std::int64_t peak = std::max(peak_requested_.load(relaxed), requested);
  for (const front& f : made_fronts()) {
    taken += f.taken.load(relaxed);
    s.allocations += f.allocations.load(relaxed);
    s.frees += f.frees.load(relaxed);
    peak = std::max(peak, requested + f.room.load(relaxed));
    cached += f.inbox_bytes.load(relaxed);
    for (std::size_t c = 0; c < classes_; ++c)
      cached += (f.magazines[c].count.load(relaxed) + f.returns[c].count.load(relaxed)) * rules_[c].bytes;
  }
  for (std::size_t c = 0; c < classes_; ++c)
    cached += std::uint64_t{shelves_.height(c)} * rules_[c].batch * rules_[c].bytes;
  cached += kept_bytes_.load(relaxed);
  if (lanes_) {
    lanes_->each([&](const lane& in) {
      cached += in.held.load(relaxed);
      for (std::size_t c = 0; c < classes_; ++c)
        cached += std::uint64_t{in.shelves.height(c)} * rules_[c].batch * rules_[c].bytes;
    });
  }
  s.requested = static_cast<std::size_t>(std::max<std::int64_t>(requested, 0));
  s.cached = static_cast<std::size_t>(cached);
  s.allocated = static_cast<std::size_t>(taken > cached ? taken - cached : 0);
  s.committed = store_.memory().committed();
  s.peak_requested = static_cast<std::size_t>(std::max<std::int64_t>(peak, 0));
  s.peak_committed = store_.memory().peak_committed();
  s.capacity = shape().capacity;
  s.limit = shape().limit;
  s.failed = failed_.load(relaxed);
  s.bad_frees = bad_frees_.load(relaxed);
  s.passes = passes_.load(relaxed);
  return s;
}

std::vector<tag_statistics> pool::state::tags() const {
  std::vector<tag_statistics> all;
  if (!tags_.on()) return all;
  const std::size_t fronts = made_fronts().size();
  for (std::uint32_t number = 0; number < all_tag_names.count(); ++number) {
    const auto of = tags_.look(static_cast<std::uint16_t>(number), fronts);
    if (of.allocations == 0) continue;
    all.push_back({tag::of_number(static_cast<std::uint16_t>(number)), of.requested, of.allocated, of.peak_requested,
                   of.allocations, of.frees});
  }
  std::ranges::stable_sort(all, std::ranges::greater{}, &tag_statistics::requested);
  return all;
}

// ----------------------------------------------------------------------------------------------------------- looks

bool pool::state::contains(const void* pointer) const noexcept {
  return store_.memory().offset(pointer).has_value();
}

bool pool::state::owns(const void* pointer) const noexcept {
  const auto offset = store_.memory().offset(pointer);
  if (!offset) return false;
  const block_store::found at = store_.find(*offset);
  return at.exists && at.word.state() == block_state::live && *offset - at.offset < at.length;
}

std::size_t pool::state::block_size(const void* pointer) const noexcept {
  const auto offset = store_.memory().offset(pointer);
  const block_store::found block = offset ? store_.find_live(*offset) : block_store::found{};
  if (block.exists) store_.memory().tools().length_asked(pointer, block.length - block.word.unused(), block.length);
  return block.length;
}

void pool::state::visit(void (*show)(void*, const block_info&), void* context) const {
  store_.each_block([&](node n, block_word word) {
    if (word.state() == block_state::none) return;
    block_info info;
    info.address = base_ + shape().bytes(shape().granule(n));
    info.state = word.state();
    info.bytes = store_.length(n, word.sixteenths() == 0 ? whole : word.sixteenths());
    if (info.bytes == 0) return;  // a slot without memory
    if (info.state == block_state::live) {
      info.requested = info.bytes - word.unused();
      if (tags_.on()) info.tag = tag::of_number(tags_.at(shape().granule(n)));
    }
    show(context, info);
  });
}

}  // namespace orderly
