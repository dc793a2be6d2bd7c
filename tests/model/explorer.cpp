#include "explorer.hpp"

#include <cxxabi.h>
#include <link.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <string>
#include <utility>

#include "reserved_array.hpp"
#include "run.hpp"

namespace orderly::model {
namespace {

constexpr unsigned main_thread = most_threads;  ///< setup and check
constexpr unsigned most_fibers = most_threads + 1;
constexpr std::size_t stack_bytes = std::size_t{512} << 10;
constexpr std::size_t arena_bytes = std::size_t{64} << 20;
constexpr std::size_t table_bytes = std::size_t{256} << 20;
constexpr std::size_t view_bytes = std::size_t{1} << 30;
constexpr std::uint64_t most_operations = 200000;  ///< of one execution: more are no progress
constexpr std::uint32_t most_objects = 8192;
constexpr unsigned most_options = 63;
constexpr unsigned most_lines = 2000;
constexpr std::size_t page_bytes = 4096;
constexpr unsigned least_states_log2 = 16;
constexpr unsigned most_states_log2 = 28;  ///< 2 GiB of states; then old ones make room for new ones

/// The explorer's own memory, apart from the scenarios'.
template <class T>
struct own_memory {
  using value_type = T;
  own_memory() = default;
  template <class U>
  own_memory(const own_memory<U>& /*other*/) noexcept {}
  T* allocate(std::size_t count) {
    void* const memory = std::malloc(count * sizeof(T));
    if (memory == nullptr) std::abort();
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, std::size_t /*count*/) noexcept { std::free(memory); }
  friend bool operator==(const own_memory& /*a*/, const own_memory& /*b*/) noexcept { return true; }
};
template <class T>
using own_vector = std::vector<T, own_memory<T>>;
using own_string = std::basic_string<char, std::char_traits<char>, own_memory<char>>;

[[nodiscard]] std::byte* map_memory(std::size_t bytes) {
  static std::uintptr_t hint = std::uintptr_t{0x600} << 32;  // the same addresses in each run, where that can be had
  void* const memory = mmap(reinterpret_cast<void*>(hint), bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  hint += 2 * bytes;
  return static_cast<std::byte*>(memory);
}

/// Memory that is given out from the front, and dropped as a whole.
struct arena {
  std::byte* begin = nullptr;
  std::size_t size = 0;
  std::size_t used = 0;
  void map(std::size_t bytes) {
    begin = map_memory(bytes);
    size = bytes;
  }
  [[nodiscard]] void* take(std::size_t bytes, std::size_t alignment) {
    used = (used + alignment - 1) & ~(alignment - 1);
    if (bytes > size - used) return nullptr;
    return begin + std::exchange(used, used + bytes);
  }
  [[nodiscard]] bool contains(const void* address) const {
    const auto* const at = static_cast<const std::byte*>(address);
    return at >= begin && at < begin + size;
  }
};

using clocks = std::array<std::uint32_t, most_fibers>;
using stamp = std::int16_t;  ///< number of a store of an object

/// What a thread has seen; what a store shows.
struct view {
  clocks when{};
  std::uint64_t sum = 0;  ///< of the stamps, each times its factor
  [[nodiscard]] stamp* of() noexcept { return reinterpret_cast<stamp*>(this + 1); }
};

struct message {
  std::uint64_t value;
  view* shown;         ///< null: nothing
  std::uint64_t past;  ///< a hash of all that who acquires it learns of; 0: nothing
};

/// An object that threads operate on.
struct object {
  std::uintptr_t address = 0;
  unsigned touched = 0;  ///< by threads, as bits
  bool written = false;
  bool shared = false;
  bool learnt = false;  ///< shared from the next execution on
  std::uint32_t id = 0;       ///< of a shared one
  std::uint64_t execution = 0;
  own_vector<message> stores;
  stamp agreed = 0;  ///< the newest store that a seq_cst operation has read or written
};

enum class kind : std::uint8_t { none, load, change, begin, end, barrier, pause };

struct operation {
  object* on = nullptr;
  kind what = kind::none;
  bool sequential = false;
};

/// May what comes next of one thread do something else after what another has done? `old`: that was a load of an old value,
/// which a seq_cst load may forbid that comes before it. A load of the newest value forbids only what it may do as well.
[[nodiscard]] bool conflict(const operation& next, const operation& done, bool old) noexcept {
  if (next.what >= kind::barrier || done.what >= kind::barrier) return true;
  if (next.what >= kind::begin && done.what >= kind::begin) return next.what != done.what;
  if (next.on != done.on) return false;
  return next.what == kind::change || done.what == kind::change || (next.sequential && done.sequential && old);
}

/// Not std::has_single_bit, which calls a function where the processor may lack the instruction.
[[nodiscard]] constexpr bool at_most_one_bit(std::uint64_t bits) noexcept { return (bits & (bits - 1)) == 0; }

/// Hashes: of one value behind another, in order.
[[nodiscard]] constexpr std::uint64_t fold(std::uint64_t before, std::uint64_t more) noexcept {
  std::uint64_t z = before * 0x9fb21c651e98df25 + more + 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

/// What each object's part of a view is multiplied by, before the sum.
constexpr auto factors = [] {
  std::array<std::uint64_t, most_objects> all{};
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = fold(0x243f6a8885a308d3, i) | 1;
  return all;
}();

/// What is part of a thread's history beside what it reads.
enum class happening : std::uint64_t { waited = 1, noticed, chose, barrier, told, paused, looked, began, ended };

/// States that have been seen, each with the least that had been spent when it was. Of a bounded size: what is forgotten is
/// searched again.
class state_set {
 public:
  state_set() = default;
  state_set(const state_set&) = delete;
  state_set& operator=(const state_set&) = delete;
  ~state_set() { std::free(entries_); }

  void clear() {
    std::free(entries_);
    log2_ = least_states_log2;
    entries_ = make(log2_);
    count_ = 0;
  }

  /// True: it was there, with no more spent and no more threads asleep. If not, it is from now on.
  [[nodiscard]] bool seen(std::uint64_t state, unsigned preemptions, unsigned stale, std::uint32_t asleep) {
    const std::uint64_t spent = std::min(preemptions, 15U) << 8 | std::min(stale, 15U) << 4 | asleep;
    std::uint64_t* const bucket = bucket_of(state);
    std::uint64_t* room = nullptr;
    for (std::uint64_t* each = bucket; each != bucket + bucket_entries; ++each) {
      if (*each == 0) {
        room = room != nullptr ? room : each;
        continue;
      }
      if ((*each ^ state) >> spent_bits != 0) continue;
      if (covers(*each, spent)) return true;
      if (covers(spent, *each)) room = each;
    }
    count_ += room != nullptr && *room == 0;
    if (room == nullptr) room = bucket + (state >> 40) % bucket_entries;
    *room = (state & ~spent_mask) | spent;
    if (count_ > (std::uint64_t{1} << log2_) / 2 && log2_ < most_states_log2) grow();
    return false;
  }

 private:
  static constexpr unsigned spent_bits = 12;
  static constexpr std::uint64_t spent_mask = (1U << spent_bits) - 1;
  static constexpr std::size_t bucket_entries = 8;

  [[nodiscard]] static bool covers(std::uint64_t a, std::uint64_t b) {
    return (a >> 8 & 15) <= (b >> 8 & 15) && (a >> 4 & 15) <= (b >> 4 & 15) && (a & ~b & 15) == 0;
  }
  [[nodiscard]] static std::uint64_t* make(unsigned log2) {
    auto* const made = static_cast<std::uint64_t*>(std::calloc(std::size_t{1} << log2, sizeof(std::uint64_t)));
    if (made == nullptr) std::abort();
    return made;
  }
  /// The lowest bits of a state, which an entry has no room for, are those of its bucket.
  [[nodiscard]] std::uint64_t* bucket_of(std::uint64_t state) const {
    return entries_ + (state & ((std::uint64_t{1} << (log2_ - 3)) - 1)) * bucket_entries;
  }
  void grow() {
    std::uint64_t* const old = entries_;
    const std::size_t size = std::size_t{1} << log2_;
    entries_ = make(++log2_);
    for (std::size_t i = 0; i < size; ++i) {
      if (old[i] == 0) continue;
      std::uint64_t* at = bucket_of((old[i] & ~spent_mask) | (i / bucket_entries & spent_mask));
      while (*at != 0) ++at;
      *at = old[i];
    }
    std::free(old);
  }

  std::uint64_t* entries_ = nullptr;
  unsigned log2_ = 0;
  std::uint64_t count_ = 0;
};
static_assert(least_states_log2 - 3 >= 12);

struct thread_exit {
  void (*destroy)(void*);
  void* of;
};

struct fiber {
  unsigned id = 0;
  ucontext_t context{};
  jmp_buf base{};
  jmp_buf where{};
  std::byte* stack = nullptr;
  own_vector<std::byte> locals;                     ///< thread-local variables, while another fiber runs
  std::array<std::byte, 2 * sizeof(void*)> caught{};  ///< of exceptions in flight
  arena memory;
  own_vector<thread_exit> exits;

  bool begun = false;
  bool finished = false;
  bool parked = false;
  bool shows = true;    ///< others may notice what it has done since it might have stopped
  bool paused = false;  ///< until another has made a step
  std::uint32_t owed = 0;        ///< bits of fibers that come first: they have not run between its last two pauses
  std::uint32_t ran_since = ~0U;  ///< bits of fibers that ran since its last pause
  bool asleep = false;  ///< until another has made a step that conflicts
  object* waits_for = nullptr;      ///< a mutex
  const void* blocked_on = nullptr;  ///< a condition
  const void* awaits = nullptr;      ///< the same, and before it is
  operation next;
  view* seen = nullptr;
  std::uint64_t operations = 0;
  std::uint64_t steps = 0;
  std::uint64_t history = 0;  ///< a hash of all that it has learnt, in order
  std::uint64_t values = 0;   ///< of the values alone

  [[nodiscard]] bool stopped() const noexcept {
    return finished || parked || waits_for != nullptr || blocked_on != nullptr;
  }
  [[nodiscard]] bool can_run() const noexcept { return !stopped() && !paused; }
};

/// A choice of the search that has alternatives.
struct branch {
  std::uint8_t taken;
  std::uint64_t allowed;
};

/// A choice that was not the first option; what is repeated.
struct decision {
  char what;  ///< '>' a thread, '~' an old value, so many stores back, '?' choose(), '!' parked
  unsigned value;
  std::uint64_t at;  ///< operations of the thread that chooses
};

enum class mode : std::uint8_t { exhaustive, random, repeated };
enum class ending : std::uint8_t { complete, parked, pruned, learnt, failed };

struct race_record {
  std::uintptr_t address = 0;
  std::uint64_t execution = 0;
  unsigned writer = 0;
  std::uint32_t written = 0;
  clocks read{};
};

constexpr std::size_t table_size = std::size_t{1} << 16;

struct engine {
  // Of the process.
  std::array<fiber, most_fibers> fibers;
  arena tables;
  own_vector<std::size_t> table_pages;  ///< those that any execution has written to
  arena views;
  std::byte* locals = nullptr;
  std::size_t locals_bytes = 0;
  own_vector<std::byte> fresh_locals;
  struct segment {
    std::byte* begin;
    own_vector<std::byte> image;
  };
  own_vector<segment> segments;  ///< what each execution starts with: the program's data, and what it took before
  struct allocation {
    std::byte* begin;
    std::size_t size;
    bool live;
  };
  own_vector<allocation> first;  ///< what it took before
  std::size_t first_used = 0;
  bool warming = false;
  std::array<std::byte, 2 * sizeof(void*)>* caught = nullptr;

  // Of a scenario.
  const scenario_info* info = nullptr;
  std::array<object*, table_size> objects{};
  own_vector<object*> all_objects;
  std::array<race_record, table_size> plain_data{};
  std::uint32_t shared = 0;
  own_vector<object*> shared_objects;  ///< by id
  own_vector<object*> learnt;          ///< shared from the next execution on
  unsigned bound = 0;
  unsigned stale_bound = 0;
  bool sleeping = true;  ///< who was preempted sleeps
  bool merging = true;   ///< a state is searched once
  state_set states;
  bool collecting = false;
  own_vector<std::uint64_t> results;  ///< of the executions, if they are collected
  mode by = mode::exhaustive;
  own_vector<branch> branches;
  std::uint64_t execution = 0;  ///< never the same again
  unsigned victim = most_threads;
  std::uint64_t victim_stops_at = 0;

  // Of an execution.
  bool inside = false;  ///< memory is the execution's
  bool exploring = false;
  bool printing = false;
  mutable unsigned lines = 0;  ///< printed of an execution; past `most_lines` the rest is left out
  fiber* current = nullptr;
  scenario* running = nullptr;
  jmp_buf stop{};
  ending how_ended = ending::complete;
  std::size_t depth = 0;
  unsigned preemptions = 0;
  unsigned stale = 0;
  std::uint64_t total = 0;
  std::uint64_t ticks = 0;
  std::uint64_t all_stores = 0;     ///< a sum over all stores
  std::uint64_t newest_stores = 0;  ///< over each object's newest
  std::uint64_t all_agreed = 0;  ///< of what is agreed on, each times its factor
  std::uint64_t ended = 0;  ///< a sum over the ticks that were ends
  unsigned refusals = 0;   ///< of the barrier
  view* agreed = nullptr;  ///< of barriers
  own_vector<std::size_t> old_values;  ///< that a load may return
  own_vector<decision> decisions;
  own_string failure;
  own_vector<decision> script;
  std::size_t script_at = 0;

  // Random.
  std::uint64_t random_state = 0;
  std::array<std::uint64_t, most_threads> priority{};
  std::array<std::uint64_t, 8> change_at{};
  unsigned changes = 0;
  std::uint64_t random_steps = 0;

  [[nodiscard]] std::uint64_t random() noexcept {
    std::uint64_t z = random_state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

  // ------------------------------------------------------------------------------------------------------- endings

  [[noreturn]] void end(ending as) noexcept {
    how_ended = learnt.empty() ? as : ending::learnt;
    exploring = false;
    printing = printing && as == ending::failed;
    put_locals(*current, fibers[main_thread]);
    current = &fibers[main_thread];
    _longjmp(stop, 1);
  }
  [[noreturn]] void fail(const char* text) noexcept {
    failure = text;
    if (printing) std::printf("  thread %s: FAILS: %s\n", name(*current).data(), text);
    end(ending::failed);
  }

  [[nodiscard]] static std::array<char, 8> name(const fiber& f) noexcept {
    std::array<char, 8> text{};
    if (f.id == main_thread)
      std::snprintf(text.data(), text.size(), "main");
    else
      std::snprintf(text.data(), text.size(), "%u", f.id);
    return text;
  }

  // -------------------------------------------------------------------------------------------------------- fibers

  void put_locals(fiber& from, fiber& to) noexcept {
    if (&from == &to) return;
    std::memcpy(from.locals.data(), locals, locals_bytes);
    std::memcpy(locals, to.locals.data(), locals_bytes);
    from.caught = *caught;
    *caught = to.caught;
  }

  void transfer(fiber& to) noexcept {
    fiber& from = *current;
    if (&to == &from) return;
    put_locals(from, to);
    current = &to;
    if (_setjmp(from.where) != 0) return;
    if (to.begun || to.id == main_thread) _longjmp(to.where, 1);
    to.begun = true;
    _longjmp(to.base, 1);
  }

  void run_exits(fiber& of) {
    while (!of.exits.empty()) {
      const thread_exit last = of.exits.back();
      of.exits.pop_back();
      last.destroy(last.of);
    }
  }

  [[noreturn]] void thread_body(fiber& f) noexcept {
    running->thread(f.id);
    if (info->of.exits) run_exits(f);
    count_operation();  // a choice of its own
    f.finished = true;
    if (printing) std::printf("  thread %u ends\n", f.id);
    decide();
    std::abort();
  }

  // ------------------------------------------------------------------------------------------------------- choices

  void note(char what, unsigned value) { decisions.push_back({what, value, current->operations}); }

  /// The next of the choices that are repeated, if it is meant here.
  [[nodiscard]] const decision* scripted(char what) noexcept {
    if (script_at == script.size()) return nullptr;
    const decision& d = script[script_at];
    if (d.what != what || d.at != current->operations) return nullptr;
    ++script_at;
    return &d;
  }

  [[nodiscard]] unsigned search(std::uint64_t allowed) {
    if (allowed == 0) end(ending::pruned);
    if (!learnt.empty()) return static_cast<unsigned>(std::countr_zero(allowed));
    if (at_most_one_bit(allowed)) return static_cast<unsigned>(std::countr_zero(allowed));
    if (depth == branches.size()) branches.push_back({static_cast<std::uint8_t>(std::countr_zero(allowed)), allowed});
    const branch& b = branches[depth++];
    if (b.allowed != allowed) fail("the scenario is not deterministic: a choice has other options than before");
    return b.taken;
  }

  [[nodiscard]] unsigned choose_value(unsigned count) {
    unsigned taken = 0;
    if (count > most_options) fail("too many options for the explorer");
    if (by == mode::exhaustive) {
      taken = search((std::uint64_t{1} << count) - 1);
    } else if (by == mode::random) {
      taken = static_cast<unsigned>(random() % count);
    } else if (const decision* const d = scripted('?')) {
      taken = d->value < count ? d->value : 0;
    }
    if (taken != 0) note('?', taken);
    remember(happening::chose, taken);
    current->values = fold(current->values, taken);
    return taken;
  }

  /// Bits of the threads that can run.
  [[nodiscard]] std::uint32_t able_to_run() const noexcept {
    std::uint32_t able = 0;
    for (unsigned i = 0; i < info->of.threads; ++i) able |= std::uint32_t{fibers[i].can_run()} << i;
    return able;
  }

  /// Who goes on. Returns when the current fiber does.
  void decide() noexcept {
    fiber& from = *current;
    std::array<fiber*, most_threads> options;
    unsigned count = 0;
    const unsigned threads = info->of.threads;
    // Fair, or two threads that wait for a third would wake each other for ever (Musuvathi and Qadeer, PLDI 2008).
    const auto collect = [&] {
      count = 0;
      const std::uint32_t able = able_to_run();
      const auto may_run = [&](const fiber& f) { return f.can_run() && (f.owed & able) == 0; };
      if (may_run(from)) options[count++] = &from;
      for (unsigned i = 1; i <= threads; ++i) {
        fiber& each = fibers[(from.id == main_thread ? i - 1 : from.id + i) % threads];
        if (&each != &from && may_run(each)) options[count++] = &each;
      }
    };
    const bool voluntary = !from.can_run();
    collect();
    if (count == 0) {
      bool any = false;
      for (fiber& each : fibers) any = any || std::exchange(each.paused, false);
      if (any) collect();
    }
    if (count == 0) return end_of_threads();
    unsigned taken = 0;
    if (by == mode::exhaustive) {
      std::uint64_t allowed = 0;
      for (unsigned i = 0; i < count; ++i) {
        const bool free = voluntary || i == 0 || preemptions < bound;
        if (free && !options[i]->asleep) allowed |= std::uint64_t{1} << i;
      }
      // What is repeated has been seen. Where nothing is to be chosen, a look now and then costs less.
      const bool look = voluntary || !at_most_one_bit(allowed) || from.steps % 8 == 0;
      if (look && merging && depth == branches.size() && learnt.empty() &&
          states.seen(state(), preemptions, stale, asleep()))
        end(ending::pruned);
      taken = search(allowed);
    } else if (by == mode::random) {
      ++random_steps;
      for (unsigned i = 0; i < changes; ++i)
        if (change_at[i] == random_steps && from.id != main_thread) priority[from.id] = i;
      for (unsigned i = 1; i < count; ++i)
        if (priority[options[i]->id] > priority[options[taken]->id]) taken = i;
    } else if (const decision* const d = scripted('>')) {
      for (unsigned i = 0; i < count; ++i)
        if (options[i]->id == d->value) taken = i;
    }
    fiber& to = *options[taken];
    if (taken != 0) {
      note('>', to.id);
      if (!voluntary) {
        ++preemptions;
        from.asleep = sleeping && by == mode::exhaustive && from.next.what != kind::none;
      }
    }
    if (printing && &to != &from)
      std::printf("  -> thread %u%s\n", to.id, !voluntary ? ", which preempts" : "");
    for (fiber& each : fibers) {
      each.owed &= ~(std::uint32_t{1} << to.id);
      each.ran_since |= std::uint32_t{1} << to.id;
    }
    transfer(to);
  }

  void remember(happening what, std::uint64_t more = 0) noexcept {
    current->history = fold(fold(current->history, static_cast<std::uint64_t>(what)), more);
  }

  [[nodiscard]] std::uint32_t asleep() const noexcept {
    std::uint32_t all = 0;
    for (unsigned i = 0; i < info->of.threads; ++i) all |= std::uint32_t{fibers[i].asleep} << i;
    return all;
  }

  /// A hash of all that what comes depends on, but for what may be spent; see explorer.hpp.
  [[nodiscard]] std::uint64_t state() const noexcept {
    const bool old = stale != stale_bound;
    // Who has run last is no matter where all that can run may go on at no cost.
    std::uint64_t all = fold(current->can_run() ? current->id : main_thread, old ? all_stores : newest_stores);
    if (old) all = fold(fold(all, all_agreed), agreed->sum);
    for (unsigned i = 0; i < info->of.threads; ++i) {
      const fiber& f = fibers[i];
      const unsigned flags = unsigned{f.begun} | unsigned{f.finished} << 1 | unsigned{f.parked} << 2 |
                             unsigned{f.paused} << 3 | unsigned{f.waits_for != nullptr} << 4 |
                             unsigned{f.blocked_on != nullptr} << 5 | unsigned{f.awaits != nullptr} << 6;
      all = fold(fold(all, f.history), flags);
      if (f.finished || f.parked) continue;
      all = fold(all, std::uint64_t{f.owed} << 32 | f.ran_since);
      if (old) all = fold(all, f.seen->sum);
    }
    return all;
  }

  /// What the execution came to: what each thread has read, and what lies there in the end.
  [[nodiscard]] std::uint64_t result() const noexcept {
    std::uint64_t all = 0;
    for (const object* const x : shared_objects)
      if (x->execution == execution) all += fold(x->address, x->stores.back().value);
    for (unsigned i = 0; i < info->of.threads; ++i) all = fold(all, fibers[i].values);
    return all;
  }

  void end_of_threads() noexcept {
    bool parked = false;
    for (unsigned i = 0; i < info->of.threads; ++i) {
      const fiber& f = fibers[i];
      if (!f.finished && !f.parked) {
        fail(f.waits_for != nullptr ? "deadlock: every thread that is left waits for a mutex, or is parked"
                                    : "deadlock: every thread that is left waits, or is parked");
      }
      parked = parked || f.parked;
    }
    if (parked) end(ending::parked);
    transfer(fibers[main_thread]);
  }

  // --------------------------------------------------------------------------------------------------------- steps

  [[nodiscard]] object& find(const void* at) {
    const auto address = reinterpret_cast<std::uintptr_t>(at);
    for (std::size_t slot = (address * 0x9e3779b97f4a7c15) >> 48;; slot = (slot + 1) % table_size) {
      object*& entry = objects[slot];
      if (entry == nullptr) {
        if (all_objects.size() == most_objects) fail("too many atomic objects for the explorer");
        entry = new (own_memory<object>().allocate(1)) object;
        entry->address = address;
        all_objects.push_back(entry);
      }
      if (entry->address == address) return *entry;
    }
  }

  void count_operation() noexcept {
    ++current->operations;
    if (++total > most_operations) fail("no progress: the step limit is reached");
  }

  void share(object& x) {
    x.shared = true;
    x.id = shared++;
    shared_objects.push_back(&x);
  }

  /// Null: no step, since no other thread has to do with the object.
  [[nodiscard]] object* enter(const void* at, unsigned bytes, bool writes) noexcept {
    count_operation();
    object& x = find(at);
    x.touched |= 1U << current->id;
    x.written = x.written || writes;
    if (!x.shared && (by == mode::repeated || (x.written && !at_most_one_bit(x.touched)))) {
      // From the next execution on; this one goes on for what else it may teach.
      if (by != mode::repeated) {
        if (!x.learnt) learnt.push_back(&x);
        x.learnt = true;
      } else {
        share(x);
      }
    }
    if (!x.shared) {
      for (unsigned i = 0; i < info->of.threads; ++i)
        if (i != current->id) fibers[i].paused = false;
      return nullptr;
    }
    if (x.execution != execution) {
      x.execution = execution;
      x.stores.clear();
      x.stores.push_back({inline_value(at, bytes), nullptr, 0});
      x.agreed = 0;
    }
    return &x;
  }

  /// Before an operation: others may come first.
  void before(const operation& next) noexcept {
    fiber& f = *current;
    f.next = next;
    if (by == mode::exhaustive && may_park(f) && search(3) == 1) park();
    if (by == mode::random && f.id == victim && f.steps == victim_stops_at) park();
    if (by == mode::repeated && scripted('!') != nullptr) park();
    ++f.steps;
    decide();
    f.asleep = false;
  }

  /// One of those that may stop does, before any of its steps. Not after a step that has shown the others nothing: they may
  /// do the same, and more, if it has stopped before that.
  [[nodiscard]] bool may_park(fiber& f) const noexcept {
    if ((info->of.parked >> f.id & 1) == 0 || !(std::exchange(f.shows, false) || !merging)) return false;
    for (const fiber& each : fibers)
      if (each.parked) return false;
    return true;
  }

  void park() noexcept {
    note('!', 0);
    current->parked = true;
    if (printing) std::printf("  thread %u is parked\n", current->id);
    decide();
    std::abort();
  }

  void after(const operation& done, bool old = false) noexcept {
    fiber& f = *current;
    ++f.seen->when[f.id];
    f.shows = f.shows || done.what != kind::load;
    for (unsigned i = 0; i < info->of.threads; ++i) {
      fiber& each = fibers[i];
      if (&each == &f) continue;
      if (done.what != kind::pause) each.paused = false;
    }
    wake(done, old);
  }

  /// Those whose next operation may do something else now than before.
  void wake(const operation& done, bool old) noexcept {
    for (unsigned i = 0; i < info->of.threads; ++i) {
      fiber& each = fibers[i];
      if (&each != current && each.asleep && conflict(each.next, done, old)) each.asleep = false;
    }
  }

  [[nodiscard]] static std::uint64_t inline_value(const void* at, unsigned bytes) noexcept {
    const auto as = [at]<class T>(T value) {
      std::memcpy(&value, at, sizeof value);
      return std::uint64_t{value};
    };
    switch (bytes) {  // known sizes, or each would be a call
      case 1: return as(std::uint8_t{});
      case 2: return as(std::uint16_t{});
      case 4: return as(std::uint32_t{});
      default: return as(std::uint64_t{});
    }
  }
  static void set_inline(void* at, unsigned bytes, std::uint64_t value) noexcept {
    switch (bytes) {
      case 1: std::memcpy(at, &value, 1); break;
      case 2: std::memcpy(at, &value, 2); break;
      case 4: std::memcpy(at, &value, 4); break;
      default: std::memcpy(at, &value, 8);
    }
  }

  [[nodiscard]] view* new_view() noexcept {
    const std::size_t stamps = by == mode::repeated ? most_objects : shared;
    void* const memory = views.take(sizeof(view) + ((stamps + 15) & ~std::size_t{15}) * sizeof(stamp), 64);
    if (memory == nullptr) fail("no memory for views: the scenario is too long");
    std::memset(memory, 0, sizeof(view) + stamps * sizeof(stamp));
    return new (memory) view;
  }
  static void advance(view& of, std::size_t id, stamp to) noexcept {
    of.sum += static_cast<std::uint64_t>(to - of.of()[id]) * factors[id];
    of.of()[id] = to;
  }
  void join_stamps(view& to, view& from) noexcept {
    const std::size_t stamps = shared;
    stamp* const a = to.of();
    const stamp* const b = from.of();
    for (std::size_t i = 0; i < stamps; ++i)
      if (b[i] > a[i]) advance(to, i, b[i]);
  }
  void join(view& to, view* from) noexcept {
    if (from == nullptr) return;
    for (unsigned i = 0; i < most_fibers; ++i) to.when[i] = std::max(to.when[i], from->when[i]);
    join_stamps(to, *from);
  }
  [[nodiscard]] view* copy_of(view& from) noexcept {
    view* const copy = new_view();
    std::memcpy(copy, &from, sizeof(view) + shared * sizeof(stamp));
    return copy;
  }

  [[nodiscard]] static bool acquires(order how) noexcept {
    return how == order::acquire || how == order::acq_rel || how == order::seq_cst || how == order::consume;
  }
  [[nodiscard]] static bool releases(order how) noexcept {
    return how == order::release || how == order::acq_rel || how == order::seq_cst;
  }

  void agree(object& x, stamp on) noexcept {
    all_agreed += static_cast<std::uint64_t>(on - x.agreed) * factors[x.id];
    x.agreed = on;
  }

  /// Reads the store with that number.
  [[nodiscard]] std::uint64_t read(object& x, std::size_t number, order how) noexcept {
    view& seen = *current->seen;
    const auto at = static_cast<stamp>(number);
    if (at > seen.of()[x.id]) advance(seen, x.id, at);
    if (acquires(how)) join(seen, x.stores[number].shown);
    if (how == order::seq_cst && at > x.agreed) agree(x, at);
    fiber& f = *current;
    const message& m = x.stores[number];
    f.history = fold(fold(f.history, 2 * x.id), m.value);
    if (acquires(how)) f.history = fold(f.history, m.past);
    f.values = fold(f.values, m.value);
    return m.value;
  }

  /// What an object's newest store adds to the state, and what each store adds while old ones may be read.
  [[nodiscard]] static std::uint64_t part_of_newest(const object& x) noexcept {
    return fold(fold(x.stores.back().value, x.stores.back().past), factors[x.id]);
  }
  [[nodiscard]] static std::uint64_t part_among_old(const object& x) noexcept {
    const view* const shown = x.stores.back().shown;
    return fold(fold(part_of_newest(x), shown == nullptr ? 0 : shown->sum), x.stores.size());
  }

  /// `continues`: as a read-modify-write, which shows what the store shows that it replaces.
  void write(object& x, void* at, unsigned bytes, std::uint64_t value, order how, bool continues) noexcept {
    view& seen = *current->seen;
    const auto number = static_cast<stamp>(x.stores.size());
    if (x.stores.size() == 32000) fail("too many stores to one object");
    advance(seen, x.id, number);
    fiber& f = *current;
    f.history = fold(f.history, 2 * x.id + 1);
    message next{value, nullptr, 0};
    if (continues) {
      next.shown = x.stores.back().shown;
      next.past = x.stores.back().past;
    }
    if (releases(how)) {
      view* const continued = std::exchange(next.shown, copy_of(seen));
      join(*next.shown, continued);
      next.past = fold(f.history, next.past);
    }
    newest_stores -= part_of_newest(x);
    x.stores.push_back(next);
    newest_stores += part_of_newest(x);
    all_stores += part_among_old(x);
    if (how == order::seq_cst) agree(x, number);
    set_inline(at, bytes, value);
  }

  [[nodiscard]] bool shows_no_more(view* a, view* b) const noexcept {
    if (a == nullptr || a == b) return true;
    if (b == nullptr) return false;
    for (unsigned i = 0; i < most_fibers; ++i)
      if (a->when[i] > b->when[i]) return false;
    return std::equal(a->of(), a->of() + shared, b->of(), std::less_equal<>());
  }

  /// Number of the store that a load reads. `only`: those whose value is another.
  [[nodiscard]] std::size_t pick(object& x, order how, const std::uint64_t* only = nullptr) {
    const std::size_t newest = x.stores.size() - 1;
    const std::size_t oldest = static_cast<std::size_t>(
        std::max(current->seen->of()[x.id], how == order::seq_cst ? x.agreed : stamp{0}));
    if (oldest == newest || (by == mode::exhaustive && stale == stale_bound)) return newest;
    std::size_t taken = newest;
    if (by == mode::repeated) {
      if (const decision* const d = scripted('~')) taken = newest - std::min<std::size_t>(d->value, newest - oldest);
    } else {
      old_values.clear();
      for (std::size_t i = oldest; i < newest; ++i) {
        const message& m = x.stores[i];
        if (only != nullptr && m.value == *only) continue;
        // An older store of that value that hands over no more: who knows less may do all that who knows more may do.
        const bool covered = merging && std::any_of(old_values.begin(), old_values.end(), [&](std::size_t other) {
          const message& o = x.stores[other];
          return o.value == m.value && (!acquires(how) || shows_no_more(o.shown, m.shown));
        });
        if (!covered) old_values.push_back(i);
      }
      if (old_values.empty()) return newest;
      if (by == mode::exhaustive && old_values.size() >= most_options) fail("too many old values for the explorer");
      const auto count = static_cast<unsigned>(old_values.size()) + 1;
      unsigned at = 0;
      if (by == mode::exhaustive)
        at = search((std::uint64_t{1} << count) - 1);
      else if (random() % 8 == 0)
        at = static_cast<unsigned>(random() % count);
      if (at != 0) taken = old_values[old_values.size() - at];
    }
    if (taken == newest) return newest;
    note('~', static_cast<unsigned>(newest - taken));
    ++stale;
    return taken;
  }

  void print(const char* what, const object& x, std::uint64_t value, order how, const place& from,
             const char* remark = "") const {
    if (!printing || ++lines > most_lines) return;
    static constexpr std::array orders{"relaxed", "consume", "acquire", "release", "acq_rel", "seq_cst"};
    const char* const slash = std::strrchr(from.file, '/');
    std::printf("  thread %u  op %-4llu %-8s object %-4u %#llx  %s  %s:%u%s\n", current->id,
                static_cast<unsigned long long>(current->operations), what, x.id, static_cast<unsigned long long>(value),
                orders[static_cast<std::size_t>(how)], slash != nullptr ? slash + 1 : from.file,
                from.line, remark);
  }
  void print(const char* what, const place& from) const {
    if (!printing || ++lines > most_lines) return;
    const char* const slash = std::strrchr(from.file, '/');
    std::printf("  thread %u  op %-4llu %s  %s:%u\n", current->id, static_cast<unsigned long long>(current->operations), what,
                slash != nullptr ? slash + 1 : from.file, from.line);
  }

  // ---------------------------------------------------------------------------------------------------- executions

  void restore() noexcept {
    for (const segment& each : segments) std::memcpy(each.begin, each.image.data(), each.image.size());
    for (fiber& f : fibers) {
      f.memory.used = 0;
      std::memcpy(f.locals.data(), fresh_locals.data(), locals_bytes);
      f.caught = {};
      f.exits.clear();
      f.begun = f.finished = f.parked = f.paused = f.asleep = false;
      f.shows = true;
      f.owed = 0;
      f.ran_since = ~0U;
      f.waits_for = nullptr;
      f.blocked_on = f.awaits = nullptr;
      f.next = {};
      f.operations = f.steps = 0;
      f.history = fold(0, f.id);  // whose it is: two threads that have done the same hand on what each has written
      f.values = 0;
    }
    fibers[main_thread].finished = true;  // it waits for the others
    fibers[main_thread].memory.used = first_used;
    for (const std::size_t page : table_pages) std::memset(tables.begin + page * page_bytes, 0, page_bytes);
    tables.used = 0;
    views.used = 0;
    std::memcpy(locals, fresh_locals.data(), locals_bytes);
    *caught = {};
  }

  void clear_scenario() {
    for (object* const each : all_objects) {
      each->~object();
      std::free(each);
    }
    all_objects.clear();
    objects.fill(nullptr);
    shared = 0;
    shared_objects.clear();
    learnt.clear();
    branches.clear();
    states.clear();
  }

  [[nodiscard]] ending run() {
    restore();
    ++execution;
    depth = preemptions = stale = 0;
    total = ticks = ended = all_stores = newest_stores = all_agreed = random_steps = 0;
    refusals = 0;
    script_at = 0;
    decisions.clear();
    current = &fibers[main_thread];
    how_ended = ending::complete;
    if (_setjmp(stop) == 0) {
      inside = true;
      {
        const std::unique_ptr<scenario> made = info->make();
        running = made.get();
        for (fiber& f : fibers) {
          f.seen = new_view();
          f.seen->when[f.id] = 1;
          f.operations = f.steps = 0;
        }
        agreed = new_view();
        total = 0;
        exploring = true;
        decide();
        exploring = false;
        if (collecting) results.push_back(result());
        running->check();
        end_threads();
      }
      run_exits(fibers[main_thread]);
    }
    inside = false;
    exploring = false;
    if (!learnt.empty()) how_ended = ending::learnt;
    for (object* const x : learnt) share(*x);
    learnt.clear();
    return how_ended;
  }

  void end_threads() {
    for (unsigned i = 0; i < info->of.threads; ++i) {
      fiber& f = fibers[i];
      as(f, [&] { run_exits(f); });
    }
  }

  template <class Body>
  void as(fiber& f, const Body& body) {
    fiber& before = *current;
    put_locals(before, f);
    current = &f;
    body();
    put_locals(f, before);
    current = &before;
  }
};

engine* the = nullptr;

void fiber_main() {
  fiber& f = *the->current;
  if (_setjmp(f.base) == 0) _longjmp(the->stop, 1);
  the->thread_body(*the->current);
}

int note_segment(dl_phdr_info* of, std::size_t /*size*/, void* /*context*/) {
  // The first is the program itself; the libraries that it uses keep their data.
  ElfW(Addr) fixed_begin = 0;
  ElfW(Addr) fixed_end = 0;
  for (unsigned i = 0; i < of->dlpi_phnum; ++i) {
    const auto& header = of->dlpi_phdr[i];
    if (header.p_type == PT_GNU_RELRO) {
      fixed_begin = of->dlpi_addr + header.p_vaddr;
      fixed_end = (fixed_begin + header.p_memsz + 4095) & ~ElfW(Addr){4095};
    }
  }
  for (unsigned i = 0; i < of->dlpi_phnum; ++i) {
    const auto& header = of->dlpi_phdr[i];
    if (header.p_type == PT_TLS) {
      the->locals = static_cast<std::byte*>(of->dlpi_tls_data);
      the->locals_bytes = header.p_memsz;
      the->fresh_locals.assign(header.p_memsz, std::byte{0});
      std::memcpy(the->fresh_locals.data(), reinterpret_cast<const void*>(of->dlpi_addr + header.p_vaddr), header.p_filesz);
    }
    if (header.p_type != PT_LOAD || (header.p_flags & PF_W) == 0) continue;
    ElfW(Addr) begin = of->dlpi_addr + header.p_vaddr;
    const ElfW(Addr) end = begin + header.p_memsz;
    if (fixed_begin <= begin && begin < fixed_end) begin = std::min<ElfW(Addr)>(fixed_end, end);
    auto* const at = reinterpret_cast<std::byte*>(begin);
    the->segments.push_back({at, own_vector<std::byte>(at, at + (end - begin))});
  }
  return 1;
}

void on_signal(int number, siginfo_t* about, void* /*context*/) {
  // Most of a table is never used. What is not written to need not be zeroed.
  if (number == SIGSEGV && the != nullptr && the->tables.contains(about->si_addr)) {
    const std::ptrdiff_t at = static_cast<std::byte*>(about->si_addr) - the->tables.begin;
    const std::size_t page = static_cast<std::size_t>(at) / page_bytes;
    if (mprotect(the->tables.begin + page * page_bytes, page_bytes, PROT_READ | PROT_WRITE) != 0) std::abort();
    the->table_pages.push_back(page);
    return;
  }
  if (the == nullptr || !the->inside) {
    static_cast<void>(signal(number, SIG_DFL));
    static_cast<void>(raise(number));
    return;
  }
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), "signal %d", number);
  the->fail(text.data());
}

std::vector<scenario_info>& registered_scenarios() {
  static std::vector<scenario_info> all;
  return all;
}

[[nodiscard]] own_string text_of(const own_vector<decision>& decisions) {
  own_string text;
  for (const decision& d : decisions) {
    std::array<char, 48> one;
    std::snprintf(one.data(), one.size(), "%s%c%u@%llu", text.empty() ? "" : ",", d.what, d.value,
                  static_cast<unsigned long long>(d.at));
    text += one.data();
  }
  return text.empty() ? "-" : text;
}

/// Tells the find, and repeats it step by step.
void report(const scenario_info& of, std::uint64_t number) {
  engine& e = *the;
  if (of.of.must_fail) {
    std::printf("%s/%s: in execution %llu: %s\n", of.group, of.name, static_cast<unsigned long long>(number),
                e.failure.c_str());
    return;
  }
  const own_string first = e.failure;
  e.script = e.decisions;
  std::printf("%s/%s: FAILED in execution %llu: %s\n", of.group, of.name, static_cast<unsigned long long>(number),
              first.c_str());
  std::printf("  repeat with: --scenario %s/%s --replay '%s'\n", of.group, of.name, text_of(e.script).c_str());
  std::fflush(stdout);
  e.clear_scenario();
  e.by = mode::repeated;
  e.victim = most_threads;
  e.printing = true;
  e.lines = 0;
  if (e.run() != ending::failed || e.failure != first)
    std::printf("  repeated, it ends otherwise: %s\n", e.how_ended == ending::failed ? e.failure.c_str() : "well");
  e.printing = false;
  std::fflush(stdout);
}

}  // namespace

// -------------------------------------------------------------------------------------------------- the door's side

std::uint64_t load(const void* at, unsigned bytes, order how, const place& from) noexcept {
  engine* const e = the;
  if (e == nullptr || !e->exploring) return engine::inline_value(at, bytes);
  object* const x = e->enter(at, bytes, false);
  if (x == nullptr) return engine::inline_value(at, bytes);
  const operation now{x, kind::load, how == order::seq_cst};
  e->before(now);
  const std::size_t number = e->pick(*x, how);
  const std::uint64_t value = e->read(*x, number, how);
  e->print("load", *x, value, how, from, number + 1 != x->stores.size() ? "  old" : "");
  e->after(now, number + 1 != x->stores.size());
  return value;
}

void store(void* at, unsigned bytes, std::uint64_t value, order how, const place& from) noexcept {
  engine* const e = the;
  if (e == nullptr || !e->exploring) {
    engine::set_inline(at, bytes, value);
    return;
  }
  object* const x = e->enter(at, bytes, true);
  if (x == nullptr) {
    engine::set_inline(at, bytes, value);
    return;
  }
  const operation now{x, kind::change, how == order::seq_cst};
  e->before(now);
  e->write(*x, at, bytes, value, how, false);
  e->print("store", *x, value, how, from);
  e->after(now);
}

namespace {

[[nodiscard]] std::uint64_t changed(std::uint64_t value, change what, std::uint64_t operand, unsigned bytes) noexcept {
  switch (what) {
    case change::exchange: value = operand; break;
    case change::add: value += operand; break;
    case change::subtract: value -= operand; break;
    case change::keep_bits: value &= operand; break;
    case change::set_bits: value |= operand; break;
  }
  return bytes == sizeof value ? value : value & ((std::uint64_t{1} << 8 * bytes) - 1);
}

}  // namespace

std::uint64_t modify(void* at, unsigned bytes, change what, std::uint64_t operand, order how, const place& from) noexcept {
  engine* const e = the;
  object* const x = e == nullptr || !e->exploring ? nullptr : e->enter(at, bytes, true);
  if (x == nullptr) {
    const std::uint64_t old = engine::inline_value(at, bytes);
    const std::uint64_t value = changed(old, what, operand, bytes);
    engine::set_inline(at, bytes, value);
    return old;
  }
  const operation now{x, kind::change, how == order::seq_cst};
  e->before(now);
  const std::size_t newest = x->stores.size() - 1;
  const std::uint64_t old = e->read(*x, newest, how);
  const std::uint64_t value = changed(old, what, operand, bytes);
  e->write(*x, at, bytes, value, how, true);
  e->print("modify", *x, value, how, from);
  e->after(now);
  return old;
}

bool compare_exchange(void* at, unsigned bytes, std::uint64_t& expected, std::uint64_t desired, order success,
                      order failure, const place& from) noexcept {
  engine* const e = the;
  object* const x = e == nullptr || !e->exploring ? nullptr : e->enter(at, bytes, true);
  if (x == nullptr) {
    const std::uint64_t old = engine::inline_value(at, bytes);
    if (old == expected) {
      engine::set_inline(at, bytes, desired);
      return true;
    }
    expected = old;
    return false;
  }
  e->before({x, kind::change, success == order::seq_cst || failure == order::seq_cst});
  const std::size_t number = e->pick(*x, failure, &expected);
  const std::size_t newest = x->stores.size() - 1;
  if (number == newest && x->stores[newest].value == expected) {
    static_cast<void>(e->read(*x, newest, success));
    e->write(*x, at, bytes, desired, success, true);
    e->print("exchange", *x, desired, success, from);
    e->after({x, kind::change, success == order::seq_cst});
    return true;
  }
  expected = e->read(*x, number, failure);
  e->print("refused", *x, expected, failure, from, number != newest ? "  old" : "");
  e->after({x, kind::load, failure == order::seq_cst}, number != newest);
  return false;
}

bool barrier_available() noexcept { return the == nullptr || the->info == nullptr || the->info->of.barrier; }

bool heavy_barrier(const place& from) noexcept {
  engine* const e = the;
  if (e == nullptr || !e->exploring) return true;
  e->count_operation();
  if (!e->info->of.barrier) return true;
  const operation now{nullptr, kind::barrier, true};
  e->before(now);
  e->remember(happening::barrier);
  if (e->refusals < e->info->of.barrier_refusals && e->choose_value(2) != 0) {
    ++e->refusals;
    e->print("barrier, refused", from);
    e->after(now);
    return false;
  }
  // Each thread's barrier is ordered with the caller's, before and after; not with other threads'.
  view& mine = *e->current->seen;
  e->join_stamps(*e->agreed, mine);
  view& all = *e->copy_of(*e->agreed);
  for (unsigned i = 0; i < e->info->of.threads; ++i) {
    fiber& each = e->fibers[i];
    if (&each == e->current) continue;
    e->join_stamps(*each.seen, *e->agreed);
    e->join_stamps(all, *each.seen);
  }
  e->join_stamps(mine, all);
  e->join_stamps(*e->agreed, all);
  e->print("barrier", from);
  e->after(now);
  return true;
}

void lock(bool& locked, const place& from) noexcept {
  engine* const e = the;
  object* const x = e == nullptr || !e->exploring ? nullptr : e->enter(&locked, 1, true);
  if (x == nullptr) {
    if (locked) fail("a mutex is locked that is locked already, and nobody will unlock it");
    locked = true;
    return;
  }
  const operation now{x, kind::change, false};
  e->before(now);
  while (locked) {
    e->count_operation();  // a choice of its own
    e->current->waits_for = x;
    e->wake(now, false);  // who was preempted before it unlocks: after that, this one would not have waited
    e->remember(happening::waited);
    e->print("waits for mutex", from);
    e->decide();
    e->current->asleep = false;
  }
  const std::size_t newest = x->stores.size() - 1;
  static_cast<void>(e->read(*x, newest, order::acquire));
  e->write(*x, &locked, 1, 1, order::relaxed, true);
  e->print("lock", *x, 1, order::acquire, from);
  e->after(now);
}

bool try_lock(bool& locked, const place& from) noexcept {
  engine* const e = the;
  object* const x = e == nullptr || !e->exploring ? nullptr : e->enter(&locked, 1, true);
  if (x == nullptr) return !std::exchange(locked, true);
  const operation now{x, kind::change, false};
  e->before(now);
  if (locked) {
    e->remember(happening::noticed);
    e->current->values = fold(e->current->values, 1);
    e->print("try_lock", *x, 1, order::relaxed, from, "  refused");
    e->after({x, kind::load, false});
    return false;
  }
  const std::size_t newest = x->stores.size() - 1;
  static_cast<void>(e->read(*x, newest, order::acquire));
  e->write(*x, &locked, 1, 1, order::relaxed, true);
  e->print("try_lock", *x, 1, order::acquire, from);
  e->after(now);
  return true;
}

void unlock(bool& locked, const place& from) noexcept {
  engine* const e = the;
  object* const x = e == nullptr || !e->exploring ? nullptr : e->enter(&locked, 1, true);
  if (x == nullptr) {
    locked = false;
    return;
  }
  const operation now{x, kind::change, false};
  e->before(now);
  e->write(*x, &locked, 1, 0, order::release, false);
  for (fiber& each : e->fibers)
    if (each.waits_for == x) each.waits_for = nullptr;
  e->print("unlock", *x, 0, order::release, from);
  e->after(now);
}

/// From now on a notification counts: before the mutex is unlocked.
void await(const void* on) noexcept {
  if (the != nullptr && the->exploring) the->current->awaits = on;
}

void block(const void* on, const place& from) noexcept {
  engine* const e = the;
  if (e == nullptr || !e->exploring) fail("a wait that nobody ends");
  e->count_operation();
  e->remember(happening::told, e->current->awaits == on);
  if (e->current->awaits != on) return;  // notified already
  e->current->blocked_on = on;
  e->print("waits for condition", from);
  e->after({nullptr, kind::pause, true});
  e->decide();
  e->current->asleep = false;
}

void unblock(const void* on, bool all, const place& from) noexcept {
  engine* const e = the;
  if (e == nullptr || !e->exploring) return;
  e->count_operation();
  const operation now{nullptr, kind::barrier, true};
  e->before(now);
  e->remember(happening::told);
  for (fiber& each : e->fibers) {
    if (each.awaits != on) continue;
    each.awaits = each.blocked_on = nullptr;
    if (!all) break;
  }
  e->print("notify", from);
  e->after(now);
}

void yield(const place& from) noexcept {
  engine* const e = the;
  if (e == nullptr || !e->exploring) return;
  e->count_operation();
  e->remember(happening::paused);
  fiber& f = *e->current;
  f.next = {nullptr, kind::pause, true};
  f.paused = true;
  f.owed = e->able_to_run() & ~f.ran_since;
  f.ran_since = 0;
  e->print("yield", from);
  e->after(f.next);
  e->decide();
  f.asleep = false;
}

/// So long that every store has become visible; it hands nothing over.
void rest(const place& from) noexcept {
  engine* const e = the;
  if (e == nullptr || !e->exploring) return;
  yield(from);
  for (const object* const each : e->all_objects)
    if (each->shared && each->execution == e->execution)
      engine::advance(*e->current->seen, each->id, static_cast<stamp>(each->stores.size() - 1));
}

bool others_are_stopped() noexcept {
  engine* const e = the;
  if (e == nullptr || !e->exploring) return true;
  bool all = true;
  e->wake({nullptr, kind::barrier, true}, false);  // who is asleep may stop after its next operation
  for (unsigned i = 0; i < e->info->of.threads; ++i) all = all && (&e->fibers[i] == e->current || e->fibers[i].stopped());
  e->remember(happening::looked, all);
  return all;
}

void touch(const void* data, bool writes) noexcept {
  engine* const e = the;
  if (e == nullptr || !e->exploring) return;
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  std::size_t slot = (address * 0x9e3779b97f4a7c15) >> 48;
  while (e->plain_data[slot].address != address && e->plain_data[slot].execution == e->execution)
    slot = (slot + 1) % table_size;
  e->current->shows = true;
  race_record& r = e->plain_data[slot];
  if (r.execution != e->execution) r = {address, e->execution, 0, 0, {}};
  const fiber& f = *e->current;
  const clocks& seen = f.seen->when;
  const auto race = [&](unsigned with, bool other_writes) {
    fail("data race: thread %u %s plain data at %p, which thread %u has %s, and nothing orders the two", f.id,
         writes ? "writes" : "reads", data, with, other_writes ? "written" : "read");
  };
  if (r.written != 0 && seen[r.writer] < r.written) race(r.writer, true);
  if (!writes) {
    r.read[f.id] = seen[f.id];
    return;
  }
  for (unsigned i = 0; i < most_fibers; ++i)
    if (seen[i] < r.read[i]) race(i, false);
  r.writer = f.id;
  r.written = seen[f.id];
  r.read = {};
}

// ---------------------------------------------------------------------------------------------- the scenarios' side

registration::registration(const char* group, const char* name, const traits& of, maker make) {
  registered_scenarios().push_back({group, name, of, make});
}

void fail(const char* format, ...) noexcept {
  std::array<char, 512> text;
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text.data(), text.size(), format, arguments);
  va_end(arguments);
  if (the == nullptr || !the->inside) {
    std::fprintf(stderr, "%s\n", text.data());
    std::abort();
  }
  the->fail(text.data());
}

unsigned choose(unsigned count) noexcept {
  if (count < 2) return 0;
  the->count_operation();
  return the->choose_value(count);
}

void as_thread(unsigned self, const std::function<void()>& body) { the->as(the->fibers[self], body); }

void run_thread(const std::function<void()>& body) {
  fiber& f = *the->current;
  own_vector<std::byte> outer(the->locals, the->locals + the->locals_bytes);
  own_vector<thread_exit> exits;
  exits.swap(f.exits);
  std::memcpy(the->locals, the->fresh_locals.data(), the->locals_bytes);
  body();
  the->run_exits(f);
  exits.swap(f.exits);
  std::memcpy(the->locals, outer.data(), the->locals_bytes);
}

void end_threads() { the->end_threads(); }

std::uint64_t tick(bool ends) noexcept {
  engine& e = *the;
  if (!e.exploring) return e.ticks++;
  e.count_operation();
  const operation now{nullptr, ends ? kind::end : kind::begin, false};
  e.before(now);
  e.remember(ends ? happening::ended : happening::began, ends ? 0 : e.ended);
  if (ends) e.ended += e.current->history;
  e.after(now);
  return e.ticks++;
}

unsigned self() noexcept { return the->current->id; }

// ------------------------------------------------------------------------------------------------------------- runs

const std::vector<scenario_info>& all_scenarios() { return registered_scenarios(); }

void prepare(void (*warm_up)()) {
  the = new (std::malloc(sizeof(engine))) engine;
  engine& e = *the;
  e.tables.map(table_bytes);
  e.views.map(view_bytes);
  e.caught = reinterpret_cast<std::array<std::byte, 2 * sizeof(void*)>*>(abi::__cxa_get_globals());
  for (unsigned i = 0; i < most_fibers; ++i) {
    e.fibers[i].id = i;
    e.fibers[i].memory.map(arena_bytes);
  }
  static_cast<void>(dl_iterate_phdr(note_segment, nullptr));
  e.segments.clear();
  for (fiber& f : e.fibers) f.locals = e.fresh_locals;
  for (unsigned i = 0; i < most_threads; ++i) {
    fiber& f = e.fibers[i];
    f.stack = map_memory(stack_bytes);
    static_cast<void>(getcontext(&f.context));
    f.context.uc_stack.ss_sp = f.stack;
    f.context.uc_stack.ss_size = stack_bytes;
    f.context.uc_link = nullptr;
    makecontext(&f.context, fiber_main, 0);
    e.current = &f;
    if (_setjmp(e.stop) == 0) static_cast<void>(setcontext(&f.context));
  }
  e.current = &e.fibers[main_thread];
  // What the library makes once in a process belongs to the state that each execution starts with.
  e.inside = e.warming = true;
  warm_up();
  e.run_exits(*e.current);
  e.inside = e.warming = false;
  std::memcpy(e.locals, e.fresh_locals.data(), e.locals_bytes);
  e.first_used = e.fibers[main_thread].memory.used;

  stack_t apart{};
  apart.ss_sp = map_memory(stack_bytes);
  apart.ss_size = stack_bytes;
  static_cast<void>(sigaltstack(&apart, nullptr));
  for (const int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) {
    struct sigaction action {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_ONSTACK | SA_NODEFER | SA_SIGINFO;
    static_cast<void>(sigaction(number, &action, nullptr));
  }
  static_cast<void>(dl_iterate_phdr(note_segment, nullptr));
  std::memset(e.tables.begin, 0, e.tables.used);
  if (mprotect(e.tables.begin, e.tables.size, PROT_READ) != 0) std::abort();
  for (const auto& each : e.first)
    if (each.live) e.segments.push_back({each.begin, own_vector<std::byte>(each.begin, each.begin + each.size)});
}

outcome explore(const scenario_info& of, const limits& within, std::vector<std::uint64_t>* results) {
  engine& e = *the;
  outcome all;
  e.info = &of;
  e.clear_scenario();
  e.bound = within.preemptions;
  e.stale_bound = within.stale;
  e.sleeping = within.sleeping;
  e.merging = within.merging;
  e.collecting = results != nullptr;
  e.results.clear();
  e.victim = most_threads;
  const auto found = [&] {
    e.collecting = false;
    all.failed = true;
    report(of, all.executions + all.pruned + 1);
  };
  const auto distinct = [&] {
    std::sort(e.results.begin(), e.results.end());
    e.results.erase(std::unique(e.results.begin(), e.results.end()), e.results.end());
  };
  // A few random ones first: they learn most of what is shared. What must be found is for the search to find.
  e.by = mode::random;
  for (std::uint64_t i = 0; i < 20;) {
    start_random(i);
    const ending how = e.run();
    if (how == ending::failed && !of.of.must_fail) return found(), all;
    if (how != ending::learnt) ++i;
  }
  e.by = mode::exhaustive;
  e.results.clear();
  std::size_t kept = 0;
  for (bool more = true; more;) {
    const ending how = e.run();
    if (how == ending::failed) return found(), all;
    if (how == ending::learnt) {
      ++all.restarts;
      all.executions = all.pruned = 0;
      e.branches.clear();
      e.states.clear();
      e.results.clear();
      continue;
    }
    ++(how == ending::pruned ? all.pruned : all.executions);
    if (e.results.size() > 2 * kept + 1000000) distinct(), kept = e.results.size();
    more = false;
    while (!e.branches.empty() && !more) {
      branch& last = e.branches.back();
      const std::uint64_t later = last.allowed & ~((std::uint64_t{2} << last.taken) - 1);
      more = later != 0;
      if (more)
        last.taken = static_cast<std::uint8_t>(std::countr_zero(later));
      else
        e.branches.pop_back();
    }
  }
  all.shared = e.shared;
  e.collecting = false;
  distinct();
  if (results != nullptr) results->assign(e.results.begin(), e.results.end());
  return all;
}

outcome sample(const scenario_info& of, std::uint64_t seed, std::uint64_t executions) {
  engine& e = *the;
  outcome all;
  e.info = &of;
  e.clear_scenario();
  e.victim = most_threads;
  e.by = mode::random;
  while (all.executions < executions) {
    start_random(seed + all.executions);
    if (of.of.parked != 0) {
      do e.victim = static_cast<unsigned>(e.random() % of.of.threads);
      while ((of.of.parked >> e.victim & 1) == 0);
      e.victim_stops_at = e.random() % 64;
    }
    const ending how = e.run();
    if (how == ending::learnt) continue;
    ++all.executions;
    if (how != ending::failed) continue;
    all.failed = true;
    report(of, all.executions);
    break;
  }
  all.shared = e.shared;
  return all;
}

void start_random(std::uint64_t seed) {
  engine& e = *the;
  e.random_state = seed * 0xd1342543de82ef95;
  for (auto& each : e.priority) each = 1000 + e.random() % 1000;
  e.changes = static_cast<unsigned>(e.random() % e.change_at.size());
  const std::uint64_t length = std::uint64_t{16} << (e.random() % 6);
  for (unsigned i = 0; i < e.changes; ++i) e.change_at[i] = 1 + e.random() % length;
}

bool replay(const scenario_info& of, const char* script) {
  engine& e = *the;
  e.info = &of;
  e.clear_scenario();
  e.victim = most_threads;
  e.by = mode::repeated;
  e.script.clear();
  for (const char* at = script; *at != '\0' && *at != '-';) {
    decision d{};
    int length = 0;
    unsigned long long when = 0;
    if (std::sscanf(at, "%c%u@%llu%n", &d.what, &d.value, &when, &length) != 3) {
      std::fprintf(stderr, "what is to be repeated is not understood from here on: %s\n", at);
      return false;
    }
    d.at = when;
    e.script.push_back(d);
    at += length;
    if (*at == ',') ++at;
  }
  e.printing = true;
  e.lines = 0;
  const ending how = e.run();
  e.printing = false;
  std::printf("%s/%s: %s\n", of.group, of.name, how == ending::failed ? e.failure.c_str() : "ends well");
  return how != ending::failed;
}

}  // namespace orderly::model

// ------------------------------------------------------------------------------- what the process takes from its system

namespace {

using orderly::model::the;

[[nodiscard]] void* take(std::size_t bytes, std::size_t alignment) {
  if (the == nullptr || !the->inside) {
    void* const memory = std::aligned_alloc(alignment, (bytes + alignment - 1) & ~(alignment - 1));
    if (memory == nullptr) std::abort();
    return memory;
  }
  void* const memory = the->current->memory.take(bytes, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  if (the->warming) the->first.push_back({static_cast<std::byte*>(memory), bytes, true});
  return memory;
}

void give(void* memory) noexcept {
  if (memory == nullptr || the == nullptr) return;
  if (the->warming)
    for (auto& each : the->first) each.live = each.live && each.begin != memory;
  for (const auto& each : the->fibers)
    if (each.memory.contains(memory)) return;
  if (!the->inside) std::free(memory);
}

constexpr std::size_t usual = alignof(std::max_align_t);

}  // namespace

void* operator new(std::size_t bytes) { return take(bytes, usual); }
void* operator new[](std::size_t bytes) { return take(bytes, usual); }
void* operator new(std::size_t bytes, std::align_val_t alignment) { return take(bytes, static_cast<std::size_t>(alignment)); }
void* operator new[](std::size_t bytes, std::align_val_t alignment) {
  return take(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { give(memory); }
void operator delete[](void* memory) noexcept { give(memory); }
void operator delete(void* memory, std::size_t) noexcept { give(memory); }
void operator delete[](void* memory, std::size_t) noexcept { give(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { give(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { give(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { give(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { give(memory); }

/// The exits of fibers, which the system knows nothing of.
extern "C" int __cxa_thread_atexit(void (*destroy)(void*), void* of, void* library) noexcept;
extern "C" int __cxa_thread_atexit(void (*destroy)(void*), void* of, void* /*library*/) noexcept {
  if (the != nullptr) the->current->exits.push_back({destroy, of});
  return 0;
}

namespace orderly::detail {

void* reserve_zeroed(std::size_t bytes) noexcept { return bytes == 0 ? nullptr : the->tables.take(bytes, 256); }
void release_zeroed(void* /*address*/, std::size_t /*bytes*/) noexcept {}
void touch_ahead(void* /*address*/, std::size_t /*bytes*/) noexcept {}

}  // namespace orderly::detail
