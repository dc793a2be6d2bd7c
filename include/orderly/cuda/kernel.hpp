/// \file
/// Memory inside kernels: the one header for device code. C++17; a lease, a ring or a set of them is a plain struct
/// that a kernel takes by value. The host makes them: orderly/cuda_kernel.hpp.
///
///   lease   One large block, cut into items of one size. An allocation is a ticket: a fetch-add on one counter, one
///           for all lanes of a warp that allocate together. A free sets the item's bit, once. What was freed is not
///           handed out again within the lease; it goes back to the pool when the lease does.
///   ring    Items of one size that lie anywhere. An allocation is a ticket below the end that was fixed before the
///           kernel; a free puts the item behind that end, for kernels that come after kernel_ring::turn(). Blocks of
///           the pool that are not the ring's own can be freed into it too; the host checks them.
///   set     Several of either, for several sizes in one kernel.
///
/// A dry lease or ring answers null, at once; nothing here waits for another thread or for the host. A bad free answers
/// false and changes nothing.
///
/// Ordering   Items carry no order within a kernel: whoever hands one from thread to thread does it with an order of
///            its own. Between kernels the stream's order does. So all atomics are relaxed; their scope is the device,
///            since the host looks only after an event.
/// Wrap       Counters have 64 bits. Dry attempts go on counting in a lease: at 4 x 10^10 a second it wraps after 14
///            years.
/// Threads    All functions may be called by any threads of any blocks, in divergent code too. Needs compute
///            capability 7.0.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda/atomic>
#define ORDERLY_DEVICE __device__
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 700
#error "orderly/cuda/kernel.hpp needs compute capability 7.0 or later"
#endif
#else
#define ORDERLY_DEVICE
#endif

namespace orderly::cuda {

/// Items of one block of the pool. As it is made here it is dry.
struct lease {
  std::uintptr_t base = 0;           ///< of the first item
  std::uint64_t* tickets = nullptr;  ///< given out so far; more than `count`: dry
  std::uint32_t* freed = nullptr;    ///< a bit for each item
  std::uint32_t count = 0;           ///< items
  std::uint32_t shift = 0;           ///< log2 of an item's bytes

  /// Bytes of an item.
  [[nodiscard]] ORDERLY_DEVICE std::uint64_t item_bytes() const { return std::uint64_t{1} << shift; }

  /// True if the address lies in an item, handed out or not.
  [[nodiscard]] ORDERLY_DEVICE bool holds(const void* pointer) const {
    return (reinterpret_cast<std::uintptr_t>(pointer) - base) >> shift < count;  // below the base it is a huge number
  }

#if defined(__CUDACC__)
  /// An item, or null: the lease is dry, and stays so.
  [[nodiscard]] __device__ void* allocate() const;

  /// Frees an item of this lease. False: the pointer is none, or was not handed out, or is freed already.
  __device__ bool deallocate(void* pointer) const;
#endif
};

/// Neighbouring items of a ring.
struct ring_run {
  std::uintptr_t base = 0;
  std::uint32_t first = 0;  ///< number of its first item
  std::uint32_t count = 0;
};

/// What changes of a ring, each on a line of its own: threads add to them all the time.
struct ring_state {
  alignas(128) std::uint64_t taken = 0;     ///< tickets given out; never above `end` once a kernel is over
  alignas(128) std::uint64_t put = 0;       ///< items put in so far, the first ones included
  alignas(128) std::uint64_t end = 0;       ///< tickets that may be taken: `put` as it was before the kernel
  alignas(128) std::uint64_t returned = 0;  ///< blocks that are not the ring's; more than there is room for: refused
};

/// Items of one size, in runs of neighbours. Ticket t takes item t, if it is the first time round, else what place
/// t % places has. A kernel takes tickets in [taken, end) and puts in at most as many as there are items, from `end`
/// on; there are at least twice as many places as items. So no kernel writes a place that it reads.
struct ring {
  ring_state* state = nullptr;
  const ring_run* runs = nullptr;   ///< in the order of their addresses
  std::uint32_t* freed = nullptr;   ///< a bit for each item: it was freed and not handed out since
  std::uint32_t* places = nullptr;  ///< numbers of items
  void** returns = nullptr;         ///< blocks for the host
  std::uint32_t place_mask = 0;
  std::uint32_t room = 0;  ///< in `returns`
  std::uint32_t run_count = 0;
  std::uint32_t count = 0;  ///< items
  std::uint32_t shift = 0;  ///< log2 of an item's bytes

  [[nodiscard]] ORDERLY_DEVICE std::uint64_t item_bytes() const { return std::uint64_t{1} << shift; }

  /// True if the address lies in an item, handed out or not.
  [[nodiscard]] ORDERLY_DEVICE bool holds(const void* pointer) const;

#if defined(__CUDACC__)
  /// An item, or null: the ring is dry until it is turned.
  [[nodiscard]] __device__ void* allocate() const;

  /// Frees an item of this ring. Any other pointer is passed to the host, which frees it as a block of the pool, or
  /// reports it as a bad free. False: it points into an item, or at one that was not handed out or is freed already; or
  /// it is none of the ring's, and there is no room for it.
  __device__ bool deallocate(void* pointer) const;
#endif
};

/// Up to `most` leases, or rings, of several sizes, as one.
template <class Kind, unsigned most = 4>
struct set {
  Kind of[most];  ///< the smallest items first
  unsigned count = 0;

  /// False: it is full.
  bool add(const Kind& member) {
    if (count == most) return false;
    unsigned at = count++;
    for (; at != 0 && of[at - 1].shift > member.shift; --at) of[at] = of[at - 1];
    of[at] = member;
    return true;
  }

#if defined(__CUDACC__)
  /// An item of at least `bytes`: of the smallest size that is not dry. Null: all that are large enough are dry, or
  /// none is large enough.
  [[nodiscard]] __device__ void* allocate(std::size_t bytes) const;

  /// Frees an item of any member. False: as the member says, or it is no member's.
  __device__ bool deallocate(void* pointer) const;
#endif
};

namespace detail {

/// The run that an item or an address lies in, if any does: the last one that starts at or before it.
template <class Starts>
[[nodiscard]] ORDERLY_DEVICE inline std::uint32_t last_run(const ring& in, const Starts& starts) {
  std::uint32_t low = 0;
  std::uint32_t end = in.run_count;
  while (end - low > 1) {
    const std::uint32_t middle = low + (end - low) / 2;
    if (starts(in.runs[middle]))
      low = middle;
    else
      end = middle;
  }
  return low;
}

[[nodiscard]] ORDERLY_DEVICE inline std::uintptr_t address_of(const ring& in, std::uint32_t item) {
  const ring_run run = in.runs[last_run(in, [=](const ring_run& each) { return each.first <= item; })];
  return run.base + (std::uintptr_t{item - run.first} << in.shift);
}

/// Where a pointer leads.
struct place_in_ring {
  bool inside = false;   ///< of some item
  bool aligned = false;  ///< its start
  std::uint32_t item = 0;
};
[[nodiscard]] ORDERLY_DEVICE inline place_in_ring find(const ring& in, const void* pointer) {
  place_in_ring at;
  if (in.count == 0) return at;
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  const ring_run run = in.runs[last_run(in, [=](const ring_run& each) { return each.base <= address; })];
  const std::uintptr_t offset = address - run.base;  // below the base it is a huge number
  at.inside = offset >> in.shift < run.count;
  at.aligned = (offset & ((std::uintptr_t{1} << in.shift) - 1)) == 0;
  at.item = run.first + static_cast<std::uint32_t>(offset >> in.shift);
  return at;
}

// What follows is written over the lanes that run it together: those of a warp here, and others in tests without a
// device.
//   lanes.alike(label)   the team of those lanes that are here now with the same label
//   team.rank() size() leads()     of this lane; the first one leads
//   team.from_leader(value)        the leader's value
//   team.merged(bits)              all lanes' bits
//   team.count(flag) ones(bits)    lanes with the flag; bits that are set
//   team.first_of(bits)            this lane is the first of those with these bits
//   lanes.add(at, n) set(at, bits) clear(at, bits) read(at)   atomic, relaxed; the first three answer what was there

/// Sets an item's bit. True: it was this lane that set it. `known` false: the lane takes part, and sets nothing.
template <class Lanes, class Team>
[[nodiscard]] ORDERLY_DEVICE inline bool set_once(std::uint32_t* word, std::uint32_t bit, bool known,
                                                  const Lanes& lanes, const Team& team) {
  const std::uint32_t mine = known ? bit : 0;
  const std::uint32_t all = team.merged(mine);
  std::uint32_t before = 0;
  // Of all threads that set a bit, one finds it clear: the check of a free. Relaxed: see Ordering.
  if (team.leads() && all != 0) before = lanes.set(word, all);
  before = team.from_leader(before);
  bool won = known && (before & bit) == 0;
  if (team.count(known) != team.ones(all)) won = team.first_of(mine) && won;  // an item was freed by two lanes
  return won;
}

template <class Lanes>
[[nodiscard]] ORDERLY_DEVICE inline void* take(const lease& from, const Lanes& lanes) {
  if (from.count == 0) return nullptr;
  const auto team = lanes.alike(reinterpret_cast<std::uintptr_t>(from.tickets));
  std::uint64_t first = 0;
  // Tickets only: the stream ordered what they stand for before the kernel, so relaxed.
  if (team.leads()) first = lanes.add(from.tickets, team.size());
  const std::uint64_t ticket = team.from_leader(first) + team.rank();
  return ticket < from.count ? reinterpret_cast<void*>(from.base + (ticket << from.shift)) : nullptr;
}

template <class Lanes>
[[nodiscard]] ORDERLY_DEVICE inline bool give(const lease& to, const void* pointer, const Lanes& lanes) {
  const std::uintptr_t offset = reinterpret_cast<std::uintptr_t>(pointer) - to.base;
  if (!to.holds(pointer) || (offset & (to.item_bytes() - 1)) != 0) return false;
  const auto item = static_cast<std::uint32_t>(offset >> to.shift);
  std::uint32_t* const word = to.freed + item / 32;
  const auto team = lanes.alike(reinterpret_cast<std::uintptr_t>(word));
  std::uint64_t handed_out = 0;
  // The counter only grows, so a value from before does no harm: whoever holds an item knows of its ticket.
  if (team.leads()) handed_out = lanes.read(to.tickets);
  const bool known = item < team.from_leader(handed_out);
  return set_once(word, std::uint32_t{1} << item % 32, known, lanes, team);
}

template <class Lanes>
[[nodiscard]] ORDERLY_DEVICE inline void* take(const ring& from, const Lanes& lanes) {
  if (from.count == 0) return nullptr;
  const auto team = lanes.alike(reinterpret_cast<std::uintptr_t>(from.state));
  const std::uint64_t end = from.state->end;  // no kernel writes it
  std::uint64_t first = 0;
  if (team.leads()) {
    first = lanes.add(&from.state->taken, team.size());  // tickets, as of a lease
    // What goes past the end is taken back, so that `taken` is exact once the kernel is over. Nobody is misled
    // meanwhile: `taken` gets past the end only when all tickets before it are given out, and is never below it again.
    if (first + team.size() > end) {
      const std::uint64_t excess = first + team.size() - end;
      lanes.add(&from.state->taken, 0 - (excess < team.size() ? excess : team.size()));
    }
  }
  const std::uint64_t ticket = team.from_leader(first) + team.rank();
  if (ticket >= end) return nullptr;
  if (ticket < from.count) return reinterpret_cast<void*>(address_of(from, static_cast<std::uint32_t>(ticket)));
  const std::uint32_t item = from.places[ticket & from.place_mask];
  // Freed in an earlier kernel, and this lane's alone. Others set or clear other bits of the word, so atomic.
  lanes.clear(from.freed + item / 32, std::uint32_t{1} << item % 32);
  return reinterpret_cast<void*>(address_of(from, item));
}

template <class Lanes>
[[nodiscard]] ORDERLY_DEVICE inline bool give(const ring& to, void* pointer, const Lanes& lanes) {
  const place_in_ring at = find(to, pointer);
  if (!at.inside) {
    if (pointer == nullptr || to.room == 0) return false;
    const auto team = lanes.alike(reinterpret_cast<std::uintptr_t>(to.returns));
    std::uint64_t first = 0;
    if (team.leads()) first = lanes.add(&to.state->returned, team.size());  // tickets
    const std::uint64_t ticket = team.from_leader(first) + team.rank();
    if (ticket >= to.room) return false;
    to.returns[ticket] = pointer;  // this lane's alone by its ticket; the host reads it after the kernel
    return true;
  }
  if (!at.aligned) return false;
  std::uint32_t* const word = to.freed + at.item / 32;
  const auto same_word = lanes.alike(reinterpret_cast<std::uintptr_t>(word));
  std::uint64_t handed_out = 0;
  if (same_word.leads()) handed_out = lanes.read(&to.state->taken);  // as in a lease, the first time round
  const bool known = at.item < same_word.from_leader(handed_out);
  if (!set_once(word, std::uint32_t{1} << at.item % 32, known, lanes, same_word)) return false;
  const auto team = lanes.alike(reinterpret_cast<std::uintptr_t>(to.state));
  std::uint64_t first = 0;
  if (team.leads()) first = lanes.add(&to.state->put, team.size());  // tickets
  to.places[(team.from_leader(first) + team.rank()) & to.place_mask] =
      at.item;  // this lane's alone; read after the kernel
  return true;
}

template <class Kind, unsigned most, class Lanes>
[[nodiscard]] ORDERLY_DEVICE inline void* take(const set<Kind, most>& from, std::size_t bytes, const Lanes& lanes) {
  void* item = nullptr;
  for (unsigned at = 0; at < from.count && item == nullptr; ++at)
    if (bytes <= from.of[at].item_bytes()) item = take(from.of[at], lanes);
  return item;
}

template <class Kind, unsigned most, class Lanes>
[[nodiscard]] ORDERLY_DEVICE inline bool give(const set<Kind, most>& to, void* pointer, const Lanes& lanes) {
  for (unsigned at = 0; at < to.count; ++at)
    if (to.of[at].holds(pointer)) return give(to.of[at], pointer, lanes);
  return false;
}

#if defined(__CUDACC__)

/// The lanes of a warp.
class warp_team {
 public:
  __device__ warp_team(unsigned lanes, unsigned own) : lanes_(lanes), own_(own) {}

  [[nodiscard]] __device__ unsigned rank() const { return __popc(lanes_ & ((1U << own_) - 1)); }
  [[nodiscard]] __device__ unsigned size() const { return __popc(lanes_); }
  [[nodiscard]] __device__ bool leads() const { return leader() == own_; }
  template <class T>
  [[nodiscard]] __device__ T from_leader(T value) const {
    return __shfl_sync(lanes_, value, static_cast<int>(leader()));
  }
  [[nodiscard]] __device__ std::uint32_t merged(std::uint32_t bits) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return __reduce_or_sync(lanes_, bits);
#else
    std::uint32_t all = 0;
    for (unsigned rest = lanes_; rest != 0; rest &= rest - 1) all |= __shfl_sync(lanes_, bits, __ffs(rest) - 1);
    return all;
#endif
  }
  [[nodiscard]] __device__ unsigned count(bool flag) const { return __popc(__ballot_sync(lanes_, flag)); }
  [[nodiscard]] __device__ unsigned ones(std::uint32_t bits) const { return __popc(bits); }
  [[nodiscard]] __device__ bool first_of(std::uint32_t bits) const {
    return __ffs(__match_any_sync(lanes_, bits)) - 1 == static_cast<int>(own_);
  }

 private:
  [[nodiscard]] __device__ unsigned leader() const { return __ffs(lanes_) - 1; }

  unsigned lanes_;
  unsigned own_;
};

class warp {
 public:
  [[nodiscard]] __device__ warp_team alike(std::uint64_t label) const {
    const unsigned here = __activemask();  // opportunistic: whoever happens to be here
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    int all_alike = 0;
    __match_all_sync(here, label, &all_alike);  // the common case, and faster
    return {all_alike != 0 ? here : __match_any_sync(here, label), thread % 32};
  }

  __device__ std::uint64_t add(std::uint64_t* at, std::uint64_t amount) const {
    return word<std::uint64_t>(*at).fetch_add(amount, ::cuda::memory_order_relaxed);
  }
  [[nodiscard]] __device__ std::uint64_t read(std::uint64_t* at) const {
    return word<std::uint64_t>(*at).load(::cuda::memory_order_relaxed);
  }
  __device__ std::uint32_t set(std::uint32_t* at, std::uint32_t bits) const {
    return word<std::uint32_t>(*at).fetch_or(bits, ::cuda::memory_order_relaxed);
  }
  __device__ std::uint32_t clear(std::uint32_t* at, std::uint32_t bits) const {
    return word<std::uint32_t>(*at).fetch_and(~bits, ::cuda::memory_order_relaxed);
  }

 private:
  template <class T>
  using word = ::cuda::atomic_ref<T, ::cuda::thread_scope_device>;
};

#endif

}  // namespace detail

inline ORDERLY_DEVICE bool ring::holds(const void* pointer) const { return detail::find(*this, pointer).inside; }

#if defined(__CUDACC__)
inline __device__ void* lease::allocate() const { return detail::take(*this, detail::warp()); }
inline __device__ bool lease::deallocate(void* pointer) const { return detail::give(*this, pointer, detail::warp()); }
inline __device__ void* ring::allocate() const { return detail::take(*this, detail::warp()); }
inline __device__ bool ring::deallocate(void* pointer) const { return detail::give(*this, pointer, detail::warp()); }
template <class Kind, unsigned most>
inline __device__ void* set<Kind, most>::allocate(std::size_t bytes) const {
  return detail::take(*this, bytes, detail::warp());
}
template <class Kind, unsigned most>
inline __device__ bool set<Kind, most>::deallocate(void* pointer) const {
  return detail::give(*this, pointer, detail::warp());
}
#endif

}  // namespace orderly::cuda

#undef ORDERLY_DEVICE
