/// \file
/// What lib/atomic.hpp declares, for the explorer: every operation is a step that the explorer places in an order of its
/// own, and a load may return what an older store wrote; see explorer.hpp. The layout is that of the library's own door, and
/// zero bytes are a valid initial value.
#pragma once

#include <atomic>  // the orders alone
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <type_traits>
#include <utility>

namespace orderly::model {

using order = std::memory_order;

/// Where an operation is written. Not std::source_location, which not every compiler here has.
struct place {
  const char* file;
  unsigned line;
  [[nodiscard]] static constexpr place current(const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) noexcept {
    return {file, line};
  }
};

/// A read-modify-write that does not depend on what is read.
enum class change : std::uint8_t { exchange, add, subtract, keep_bits, set_bits };

[[nodiscard]] std::uint64_t load(const void* at, unsigned bytes, order how, const place& from) noexcept;
void store(void* at, unsigned bytes, std::uint64_t value, order how, const place& from) noexcept;
std::uint64_t modify(void* at, unsigned bytes, change what, std::uint64_t operand, order how, const place& from) noexcept;
[[nodiscard]] bool compare_exchange(void* at, unsigned bytes, std::uint64_t& expected, std::uint64_t desired, order success,
                                    order failure, const place& from) noexcept;
[[nodiscard]] bool heavy_barrier(const place& from) noexcept;
[[nodiscard]] bool barrier_available() noexcept;
void lock(bool& locked, const place& from) noexcept;
[[nodiscard]] bool try_lock(bool& locked, const place& from) noexcept;
void unlock(bool& locked, const place& from) noexcept;
void await(const void* on) noexcept;
void block(const void* on, const place& from) noexcept;
void unblock(const void* on, bool all, const place& from) noexcept;
void yield(const place& from) noexcept;
void rest(const place& from) noexcept;
[[nodiscard]] bool others_are_stopped() noexcept;
void touch(const void* data, bool writes) noexcept;

}  // namespace orderly::model

namespace orderly::detail {

inline constexpr auto relaxed = std::memory_order_relaxed;
inline constexpr auto acquire = std::memory_order_acquire;
inline constexpr auto release = std::memory_order_release;
inline constexpr auto acq_rel = std::memory_order_acq_rel;
inline constexpr auto seq_cst = std::memory_order_seq_cst;

inline constexpr std::size_t interference = 128;

/// Figures; see lib/atomic.hpp. A tag has four bits: sixteen changes of a head within one window are an ABA.
namespace bounds {
inline constexpr std::uint64_t tags = 16;
inline constexpr std::size_t magazine_blocks = 4;
inline constexpr std::uint32_t magazines = 64;
inline constexpr std::size_t fronts = 8;
inline constexpr unsigned least_root_chunks_log2 = 3;
inline constexpr unsigned most_root_chunks_log2 = 3;
inline constexpr std::uint64_t spare_roots = 4;
inline constexpr std::uint32_t relocatable_pages = 4;
inline constexpr std::uint32_t relocatable_records = 2;
inline constexpr std::uint32_t tag_names = 5;
inline constexpr std::uint32_t tensor_rows = 1;
inline constexpr std::uint32_t tensor_stripes = 2;
inline constexpr std::size_t tensors = 8;
inline constexpr int spins = 1;
inline constexpr int yields = 1;
}  // namespace bounds

template <class T>
class atomic {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(std::uint64_t));
  using place = model::place;

 public:
  static constexpr bool is_always_lock_free = true;

  constexpr atomic() noexcept = default;
  constexpr atomic(T initial) noexcept : value_(initial) {}
  atomic(const atomic&) = delete;
  atomic& operator=(const atomic&) = delete;

  [[nodiscard]] T load(model::order how, const place& from = place::current()) const noexcept {
    return value_of(model::load(&value_, sizeof(T), how, from));
  }
  void store(T value, model::order how, const place& from = place::current()) noexcept {
    model::store(&value_, sizeof(T), bits_of(value), how, from);
  }
  T exchange(T value, model::order how, const place& from = place::current()) noexcept {
    return modify(model::change::exchange, value, how, from);
  }
  T fetch_add(T value, model::order how, const place& from = place::current()) noexcept {
    return modify(model::change::add, value, how, from);
  }
  T fetch_sub(T value, model::order how, const place& from = place::current()) noexcept {
    return modify(model::change::subtract, value, how, from);
  }
  T fetch_and(T value, model::order how, const place& from = place::current()) noexcept {
    return modify(model::change::keep_bits, value, how, from);
  }
  T fetch_or(T value, model::order how, const place& from = place::current()) noexcept {
    return modify(model::change::set_bits, value, how, from);
  }
  [[nodiscard]] bool compare_exchange_strong(T& expected, T desired, model::order success, model::order failure,
                                             const place& from = place::current()) noexcept {
    std::uint64_t seen = bits_of(expected);
    const bool done = model::compare_exchange(&value_, sizeof(T), seen, bits_of(desired), success, failure, from);
    if (!done) expected = value_of(seen);
    return done;
  }
  /// Never fails for no reason: its users loop, and a loop more is no new behaviour.
  [[nodiscard]] bool compare_exchange_weak(T& expected, T desired, model::order success, model::order failure,
                                           const place& from = place::current()) noexcept {
    return compare_exchange_strong(expected, desired, success, failure, from);
  }

 private:
  static std::uint64_t bits_of(const T& value) noexcept {
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    return bits;
  }
  static T value_of(std::uint64_t bits) noexcept {
    T value;
    std::memcpy(&value, &bits, sizeof(T));
    return value;
  }
  T modify(model::change what, T operand, model::order how, const place& from) noexcept {
    return value_of(model::modify(&value_, sizeof(T), what, bits_of(operand), how, from));
  }

  T value_{};
};

static_assert(sizeof(atomic<std::uint32_t>) == sizeof(std::uint32_t));
static_assert(sizeof(atomic<bool>) == sizeof(bool));

class mutex {
 public:
  constexpr mutex() noexcept = default;
  mutex(const mutex&) = delete;
  mutex& operator=(const mutex&) = delete;
  void lock(const model::place& from = model::place::current()) noexcept { model::lock(locked_, from); }
  [[nodiscard]] bool try_lock(const model::place& from = model::place::current()) noexcept {
    return model::try_lock(locked_, from);
  }
  void unlock(const model::place& from = model::place::current()) noexcept { model::unlock(locked_, from); }

 private:
  bool locked_ = false;
};

using recursive_mutex = std::recursive_mutex;  // of observed pools, which no scenario has

class condition_variable {
 public:
  template <class Lock, class Condition>
  void wait(Lock& lock, Condition holds, const model::place& from = model::place::current()) {
    while (!holds()) {
      model::await(this);
      lock.unlock();
      model::block(this, from);
      lock.lock();
    }
  }
  void notify_one(const model::place& from = model::place::current()) noexcept { model::unblock(this, false, from); }
  void notify_all(const model::place& from = model::place::current()) noexcept { model::unblock(this, true, from); }
};

inline void yield(const model::place& from = model::place::current()) noexcept { model::yield(from); }
inline void rest(std::chrono::microseconds /*time*/, const model::place& from = model::place::current()) noexcept {
  model::rest(from);
}

/// Time passes when nobody else can do anything any more; then there is one more look.
class deadline {
 public:
  explicit deadline(std::chrono::seconds /*from_now*/) noexcept {}
  [[nodiscard]] bool over() noexcept {
    const bool stopped = model::others_are_stopped();
    return std::exchange(stopped_before_, stopped) && stopped;
  }

 private:
  bool stopped_before_ = false;
};

inline void reads_plain(const void* data) noexcept { model::touch(data, false); }
inline void writes_plain(const void* data) noexcept { model::touch(data, true); }

class asymmetric_barrier {
 public:
  [[nodiscard]] static bool available() noexcept { return model::barrier_available(); }
  static void light() noexcept {}
  [[nodiscard]] static bool heavy(const model::place& from = model::place::current()) noexcept {
    return model::heavy_barrier(from);
  }
  static void prepare() noexcept {}
  static void forgo() noexcept {}
};

}  // namespace orderly::detail
