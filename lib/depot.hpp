/// \file
/// The depot: full magazines, by class. A front that overflows leaves one, a front that runs dry takes one, each with one
/// CAS on the class's list and one on the list of empty magazines. (Bonwick and Adams, USENIX 2001.)
///
/// Magazines also serve as parcels: what a thread frees of another front's blocks goes to that front's inbox, a list too.
///
/// Representation  Magazines lie in one table and are named by index. A magazine is in one class's list (full), in an inbox,
///                 in the list of empty ones, or held by a thread.
/// Ordering        The entries are plain: the pusher writes them before the list's push (release), the popper reads them
///                 after its pop (acquire); see P in free_list.hpp.
/// Bounds          A class counts its magazines, from before a push to after a pop. A class that holds as many as it may
///                 refuses: what a depot cannot hold goes to the buddy, and merges.
/// Linearization   As free_list. ABA: as there. Progress: lock-free.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>

#include "atomic.hpp"
#include "free_list.hpp"
#include "reserved_array.hpp"

namespace orderly::detail {

inline constexpr std::size_t max_classes = 128;       ///< of fronts and depots
inline constexpr std::size_t max_magazine_blocks = bounds::magazine_blocks;

class depot {
 public:
  /// False: the system refused the table.
  [[nodiscard]] bool open(std::uint32_t magazines) noexcept {
    return magazines_.reserve(magazines) && links_.reserve(magazines);
  }

  /// An empty magazine that a thread keeps from its last pop for its next push, so that the list of empty ones, which all
  /// threads share, is hardly used. Given back with `keep`.
  class spare {
    friend class depot;
    std::uint32_t number_ = 0;  // index plus one; 0: none
  };

  struct alignas(64) shelf {
    free_list full;
    atomic<std::uint32_t> filled{0};
  };

  /// The full magazines of one lane, by class.
  struct shelves {
    std::array<shelf, max_classes> by_class{};

    /// Magazines of a class; exact while nobody pushes or pops.
    [[nodiscard]] std::uint32_t height(std::size_t of_class) const noexcept {
      return by_class[of_class].filled.load(relaxed);  // a figure
    }
  };

  /// Leaves a full magazine. False: the class holds `highest` already, or there is no empty magazine.
  [[nodiscard]] bool push(shelves& on, std::size_t of_class, std::span<const std::uint32_t> blocks, std::uint32_t highest,
                          spare* mine = nullptr) noexcept {
    shelf& at = on.by_class[of_class];
    if (at.filled.fetch_add(1, relaxed) >= highest) {  // a bound; the list hands over
      at.filled.fetch_sub(1, relaxed);
      return false;
    }
    const auto index = mine != nullptr && mine->number_ != 0 ? std::optional(std::exchange(mine->number_, 0) - 1)
                                                             : empty_magazine();
    if (!index) {
      at.filled.fetch_sub(1, relaxed);
      return false;
    }
    magazine& m = magazines_[*index];
    writes_plain(&m);
    std::copy(blocks.begin(), blocks.end(), m.blocks.begin());
    m.count = static_cast<std::uint32_t>(blocks.size());
    at.full.push(links_.data(), *index);
    return true;
  }

  /// Takes a full magazine. Returns the number of blocks copied to `out`, 0 if there is none.
  [[nodiscard]] std::size_t pop(shelves& from, std::size_t of_class, std::span<std::uint32_t, max_magazine_blocks> out,
                                spare* mine = nullptr) noexcept {
    shelf& at = from.by_class[of_class];
    const auto index = at.full.try_pop(links_.data());
    if (!index) return 0;
    at.filled.fetch_sub(1, relaxed);  // a bound
    const magazine& m = magazines_[*index];
    reads_plain(&m);
    const std::size_t count = m.count;
    std::copy_n(m.blocks.begin(), count, out.begin());
    if (mine != nullptr && mine->number_ == 0)
      mine->number_ = *index + 1;
    else
      empty_.push(links_.data(), *index);
    return count;
  }

  /// Takes a spare magazine back.
  void keep(spare& of) noexcept {
    if (of.number_ != 0) empty_.push(links_.data(), std::exchange(of.number_, 0) - 1);
  }

  /// Puts blocks of a class into a parcel on an inbox, each with the bytes of it that were not requested; `note` goes with
  /// it. False: there is no empty magazine.
  [[nodiscard]] bool send(free_list& inbox, std::size_t of_class, std::span<const std::uint32_t> blocks,
                          const std::uint32_t* unused, void* note = nullptr) noexcept {
    const auto index = empty_magazine();
    if (!index) return false;
    magazine& m = magazines_[*index];
    writes_plain(&m);
    std::copy(blocks.begin(), blocks.end(), m.blocks.begin());
    m.count = static_cast<std::uint32_t>(blocks.size());
    if (unused != nullptr) std::copy_n(unused, blocks.size(), m.unused.begin());
    m.note = note;
    m.of_class = static_cast<std::uint32_t>(of_class);
    inbox.push(links_.data(), *index);
    return true;
  }

  struct parcel {
    std::size_t of_class = 0;
    std::size_t count = 0;  ///< 0: the inbox was empty
    void* note = nullptr;
    std::array<std::uint32_t, max_magazine_blocks> blocks;
    std::array<std::uint32_t, max_magazine_blocks> unused;
  };

  /// Takes a parcel from an inbox.
  [[nodiscard]] parcel receive(free_list& inbox) noexcept {
    parcel p;
    if (const auto index = inbox.try_pop(links_.data())) open_parcel(*index, p);
    return p;
  }

  /// The parcels of an inbox, taken out of it all at once, in no order that is told.
  class chain {
    friend class depot;
    link_code first_ = last;
  };
  [[nodiscard]] chain receive_all(free_list& inbox) noexcept {
    chain all;
    all.first_ = inbox.take_all();
    return all;
  }
  [[nodiscard]] parcel receive(chain& from) noexcept {
    parcel p;
    if (from.first_ <= last) return p;
    const std::uint32_t index = linked_index(from.first_);
    from.first_ = links_[index].load(relaxed);  // ours since take_all(), P
    open_parcel(index, p);
    return p;
  }
  /// The same, but the parcel stays the chain's first.
  [[nodiscard]] parcel look(const chain& at) const noexcept {
    parcel p;
    if (at.first_ > last) copy(linked_index(at.first_), p);
    return p;
  }
  /// Puts the first parcel of a chain into an inbox, which takes no magazine. Pre: there is one.
  void forward(chain& from, free_list& inbox) noexcept {
    const std::uint32_t index = linked_index(from.first_);
    from.first_ = links_[index].load(relaxed);  // ours, as in receive()
    inbox.push(links_.data(), index);
  }
  /// One chain of two.
  void join(chain& to, chain& other) noexcept {
    while (other.first_ > last) {
      const std::uint32_t index = linked_index(other.first_);
      other.first_ = links_[index].load(relaxed);  // ours, as in receive()
      links_[index].store(to.first_, relaxed);
      to.first_ = link_to(index);
    }
  }
  /// Puts the parcels of a chain into an inbox. Returns how many.
  std::uint32_t give_back(chain& from, free_list& inbox) noexcept {
    std::uint32_t count = 0;
    for (; from.first_ > last; ++count) {
      const std::uint32_t index = linked_index(from.first_);
      from.first_ = links_[index].load(relaxed);  // ours, as in receive()
      inbox.push(links_.data(), index);
    }
    return count;
  }
  [[nodiscard]] static bool empty(const chain& of) noexcept { return of.first_ <= last; }

 private:
  void open_parcel(std::uint32_t index, parcel& p) noexcept {
    copy(index, p);
    empty_.push(links_.data(), index);
  }
  void copy(std::uint32_t index, parcel& p) const noexcept {
    const magazine& m = magazines_[index];
    reads_plain(&m);
    p.of_class = m.of_class;
    p.count = m.count;
    p.note = m.note;
    std::copy_n(m.blocks.begin(), p.count, p.blocks.begin());
    std::copy_n(m.unused.begin(), p.count, p.unused.begin());
  }

  struct magazine {
    std::uint32_t count;
    std::uint32_t of_class;  ///< of a parcel, like the rest
    void* note;
    std::array<std::uint32_t, max_magazine_blocks> blocks;
    std::array<std::uint32_t, max_magazine_blocks> unused;  ///< of a parcel
  };

  /// An empty magazine, owned by the caller. A magazine's link is never `unlinked` between push and pop, and nobody but
  /// its holder pushes it, so I1 of free_list.hpp holds without winning the link.
  [[nodiscard]] std::optional<std::uint32_t> empty_magazine() noexcept {
    if (const auto index = empty_.try_pop(links_.data())) return index;
    std::uint32_t next = next_.load(relaxed);  // only the count is exchanged
    while (next < magazines_.size())
      if (next_.compare_exchange_weak(next, next + 1, relaxed, relaxed)) return next;
    return std::nullopt;
  }

  reserved_array<magazine> magazines_;
  reserved_array<atomic<link_code>> links_;
  alignas(64) free_list empty_;
  alignas(64) atomic<std::uint32_t> next_{0};
};

}  // namespace orderly::detail
