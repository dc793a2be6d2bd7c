/// \file
/// Lanes on the host, for the algorithms of orderly/cuda/kernel.hpp: each thread alone, or 32 threads as a warp.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>

namespace orderly::test {

/// Atomics as a device's, of device scope and relaxed.
struct host_words {
  static std::uint64_t add(std::uint64_t* at, std::uint64_t amount) {
    return std::atomic_ref(*at).fetch_add(amount, std::memory_order_relaxed);
  }
  static std::uint64_t read(std::uint64_t* at) { return std::atomic_ref(*at).load(std::memory_order_relaxed); }
  static std::uint32_t set(std::uint32_t* at, std::uint32_t bits) {
    return std::atomic_ref(*at).fetch_or(bits, std::memory_order_relaxed);
  }
  static std::uint32_t clear(std::uint32_t* at, std::uint32_t bits) {
    return std::atomic_ref(*at).fetch_and(~bits, std::memory_order_relaxed);
  }
};

/// A thread whose warp has no other lane here.
struct lone_lane : host_words {
  struct team {
    static unsigned rank() { return 0; }
    static unsigned size() { return 1; }
    static bool leads() { return true; }
    template <class T>
    static T from_leader(T value) {
      return value;
    }
    static std::uint32_t merged(std::uint32_t bits) { return bits; }
    static unsigned count(bool flag) { return flag ? 1 : 0; }
    static unsigned ones(std::uint32_t bits) { return static_cast<unsigned>(std::popcount(bits)); }
    static bool first_of(std::uint32_t) { return true; }
  };
  static team alike(std::uint64_t) { return {}; }
};

/// Where the lanes of a warp meet: those of a mask exchange a value each.
class host_warp {
 public:
  using values = std::array<std::uint64_t, 32>;

  values exchange(std::uint32_t mask, unsigned lane, std::uint64_t value) {
    std::unique_lock lock(mutex_);
    meeting& at = meetings_[mask];
    // The last meeting of these lanes may still be breaking up.
    changed_.wait(lock, [&] { return !at.leaving; });
    at.all[lane] = value;
    if (++at.present == std::popcount(mask)) {
      at.leaving = true;
      changed_.notify_all();
    }
    changed_.wait(lock, [&] { return at.leaving; });
    const values all = at.all;
    if (--at.present == 0) {
      at.leaving = false;
      changed_.notify_all();
    }
    return all;
  }

 private:
  struct meeting {
    values all{};
    int present = 0;
    bool leaving = false;
  };
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint32_t, meeting> meetings_;
};

/// One lane for one call, which all 32 lanes make at once, with pointers that lead to the same first meeting. At that
/// they make teams; later in the call each lane is alone, as lanes may be.
class warp_lane : public host_words {
 public:
  warp_lane(host_warp& of, unsigned own) : warp_(of), own_(own) {}

  class team {
   public:
    team(host_warp& of, std::uint32_t mask, unsigned own) : warp_(of), mask_(mask), own_(own) {}
    [[nodiscard]] unsigned rank() const { return static_cast<unsigned>(std::popcount(mask_ & ((1U << own_) - 1))); }
    [[nodiscard]] unsigned size() const { return static_cast<unsigned>(std::popcount(mask_)); }
    [[nodiscard]] bool leads() const { return leader() == own_; }
    template <class T>
    [[nodiscard]] T from_leader(T value) const {
      return static_cast<T>(meet(value)[leader()]);
    }
    [[nodiscard]] std::uint32_t merged(std::uint32_t bits) const {
      std::uint32_t all = 0;
      each(meet(bits), [&](unsigned, std::uint64_t value) { all |= static_cast<std::uint32_t>(value); });
      return all;
    }
    [[nodiscard]] unsigned count(bool flag) const {
      unsigned sum = 0;
      each(meet(flag), [&](unsigned, std::uint64_t value) { sum += value != 0; });
      return sum;
    }
    [[nodiscard]] static unsigned ones(std::uint32_t bits) { return static_cast<unsigned>(std::popcount(bits)); }
    [[nodiscard]] bool first_of(std::uint32_t bits) const {
      bool first = true;
      each(meet(bits), [&](unsigned lane, std::uint64_t value) { first = first && !(lane < own_ && value == bits); });
      return first;
    }

   private:
    [[nodiscard]] unsigned leader() const { return static_cast<unsigned>(std::countr_zero(mask_)) % 32; }
    [[nodiscard]] host_warp::values meet(std::uint64_t value) const {
      if (size() != 1) return warp_.exchange(mask_, own_, value);
      host_warp::values alone{};
      alone[own_] = value;
      return alone;
    }
    template <class Visit>
    void each(const host_warp::values& all, const Visit& visit) const {
      for (unsigned lane = 0; lane < 32; ++lane)
        if ((mask_ >> lane & 1) != 0) visit(lane, all[lane]);
    }

    host_warp& warp_;
    std::uint32_t mask_;
    unsigned own_;
  };

  [[nodiscard]] team alike(std::uint64_t label) const {
    if (met_) return {warp_, 1U << own_, own_};
    met_ = true;
    const host_warp::values labels = warp_.exchange(~std::uint32_t{0}, own_, label);
    std::uint32_t mask = 0;
    for (unsigned lane = 0; lane < 32; ++lane) mask |= std::uint32_t{labels[lane] == label} << lane;
    return {warp_, mask, own_};
  }

 private:
  host_warp& warp_;
  unsigned own_;
  mutable bool met_ = false;
};

}  // namespace orderly::test
