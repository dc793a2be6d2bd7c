/// \file
/// tensor_shelves: where a tensor cache keeps records, by label. A label is a layout's fingerprint and the lane that the
/// record was freed in; the bytes of the layout go with it.
///
/// Representation  Rows of eight shelves. A label's row follows from its lane and from about how many bytes it has, so
///                 that what may stand in for it is in the same row, or one other. A shelf has a list for each of several
///                 groups of threads (stripes), so that threads hardly ever meet at a head.
/// Invariants      I1  A head changes only by CAS, and each success adds one to its tag.
///                 I2  A shelf's label changes only under the caller's mutex, and only from or to "none". Between a label
///                     and the next, each list of the shelf is taken whole, which adds one to its tag even if it is empty.
///                 I3  put() and take() look at the label after they have loaded the head that their CAS expects. So if the
///                     label changed before the CAS, either the look sees none (or another), or the CAS fails.
///                 What is in a shelf's lists was therefore put there under the shelf's label.
/// Ordering        P   put (c) release -> take (d) or a failed (f), close (h), acquire: the link stored by (b), and the
///                     record's plain members. By I1 every later head is in (c)'s release sequence.
///                 L   close: label none (g), then the heads (h) release -> (a) or (d) acquire, then the look at the label
///                     (e): that head with the old label is never seen. label_as (j) release -> (e) acquire: the lane that
///                     goes with the label.
///                 U   A record is found by whoever empties the shelf, or the shelf counts as used again: `used` := 0 (l),
///                     then each head changes (h) release -> (a) acquire, if (c) comes later, for it expects what (a) has
///                     read; then the look at `used` (k) sees (l) or something newer. If (c) comes earlier, (h) finds the
///                     record.
/// Linearization   put: (c). take: (f); where it finds nothing, the last (d), or (e) that saw another label.
/// ABA             as in free_list.hpp: 2^32 changes of one head between (d) and (f).
/// Progress        put and take are lock-free: a CAS fails only because another one succeeded. The rest is the mutex's.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "atomic.hpp"
#include "free_list.hpp"
#include "reserved_array.hpp"

namespace orderly::detail {

class tensor_shelves {
 public:
  static constexpr std::uint32_t shelves_per_row = 8;
  static constexpr std::uint32_t none = ~std::uint32_t{0};

  struct label {
    std::uint64_t fingerprint = 0;  ///< not 0
    std::uint64_t lane = 0;
    std::uint64_t bytes = 0;
  };

  /// `rows` and `stripes`: powers of two. `links`: those of the records. False: the system refused.
  [[nodiscard]] bool open(std::uint32_t rows, std::uint32_t stripes, const link_table& links) noexcept {
    links_ = links;
    stripes_ = stripes;
    row_mask_ = rows - 1;
    return rows_.reserve(rows) && lists_.reserve(std::size_t{rows} * shelves_per_row * stripes);
  }

  [[nodiscard]] std::uint32_t size() const noexcept { return (row_mask_ + 1) * shelves_per_row; }
  [[nodiscard]] std::uint32_t stripes() const noexcept { return stripes_; }

  /// The first shelf of the row of whatever has about so many bytes: the same eighth of a power of two; `further`: the next.
  [[nodiscard]] std::uint32_t row(std::uint64_t lane, std::uint64_t bytes, std::uint32_t further = 0) const noexcept {
    const auto log2 = static_cast<unsigned>(63 - __builtin_clzll(bytes | 8));
    const std::uint64_t eighth = std::uint64_t{log2} * 8 + (bytes >> (log2 - 3) & 7) + further;
    constexpr std::uint64_t spread = 0x9e3779b97f4a7c15;  // 2^64 over the golden ratio
    return (static_cast<std::uint32_t>((lane * 512 + eighth) * spread >> 32) & row_mask_) * shelves_per_row;
  }

  /// The shelf with that label in a row, or none: a hint, as put() and take() look again.
  [[nodiscard]] std::uint32_t find(std::uint32_t row, const label& of) const noexcept {
    for (std::uint32_t shelf = row; shelf < row + shelves_per_row; ++shelf)
      if (has(shelf, of)) return shelf;
    return none;
  }

  /// A shelf's label: a hint, but for whoever has the mutex.
  [[nodiscard]] label look(std::uint32_t shelf) const noexcept {
    const labels& of = rows_[shelf / shelves_per_row];
    const std::uint32_t at = shelf % shelves_per_row;
    // Relaxed: a hint, or the mutex's.
    return {of.fingerprint[at].load(relaxed), of.lane[at].load(relaxed), of.bytes[at].load(relaxed)};
  }

  /// Puts a record whose link is the caller's on a shelf. False: the shelf has another label, and nothing has happened.
  /// `now`: for oldest(); not 0.
  [[nodiscard]] bool put(std::uint32_t shelf, const label& of, std::uint32_t record, std::uint32_t stripe,
                         std::uint64_t now) noexcept {
    atomic<std::uint64_t>& head = list(shelf, stripe).head;
    std::uint64_t expected = head.load(acquire);                                           // (a) L
    do {
      if (!has(shelf, of)) return false;                                                   // (e) L
      const tagged_head seen(expected);
      links_[record].store(seen.empty() ? last : seen.top(), relaxed);                     // (b) published by (c)
      // On failure acquire: as (a).
    } while (!head.compare_exchange_weak(expected, tagged_head(expected).with_top(link_to(record)).bits(), release,
                                         acquire));                                        // (c) P
    touch(shelf, now);
    return true;
  }

  /// Takes a record that was put there under that label, the calling stripe's newest first.
  [[nodiscard]] std::optional<std::uint32_t> take(std::uint32_t shelf, const label& of, std::uint32_t stripe,
                                                  std::uint64_t now) noexcept {
    for (std::uint32_t i = 0; i < stripes_; ++i) {
      atomic<std::uint64_t>& head = list(shelf, (stripe + i) & (stripes_ - 1)).head;
      std::uint64_t expected = head.load(acquire);                                         // (d) P, L
      for (;;) {
        const tagged_head seen(expected);
        if (seen.empty()) break;
        if (!has(shelf, of)) return std::nullopt;                                          // (e) L
        const link_code next = links_[linked_index(seen.top())].load(relaxed);             // may be out of date; then (f) fails
        if (head.compare_exchange_weak(expected, seen.with_top(next).bits(), relaxed, acquire)) {  // (f) P: (d) acquired
          touch(shelf, now);
          return linked_index(seen.top());
        }
      }
    }
    return std::nullopt;
  }

  // What follows is for whoever has the mutex.

  /// The shelf that was used longest ago, of those on which something lies, in the whole table; or none.
  [[nodiscard]] std::uint32_t oldest() const noexcept { return oldest_of(0, size()); }

  /// The shelf of a row that the next label may have: one without a label, one with nothing on it, the one used longest ago.
  [[nodiscard]] std::uint32_t least_needed(std::uint32_t row) const noexcept {
    for (std::uint32_t shelf = row; shelf < row + shelves_per_row; ++shelf)
      if (look(shelf).fingerprint == 0) return shelf;
    for (std::uint32_t shelf = row; shelf < row + shelves_per_row; ++shelf)
      if (used(shelf).load(relaxed) == 0) return shelf;  // a look: close() finds what has come since
    return oldest_of(row, row + shelves_per_row);
  }

  /// Records that were taken off a shelf, each stripe's by itself, the oldest first.
  struct contents {
    static constexpr std::uint32_t most_stripes = 16;
    std::array<link_code, most_stripes> first;
    std::uint64_t used = 0;
  };

  /// Takes everything off a shelf, which keeps its label.
  [[nodiscard]] contents empty(std::uint32_t shelf) noexcept {
    contents all;
    all.used = used(shelf).exchange(0, relaxed);                                           // (l) U: (h) publishes it
    take_lists(shelf, all);
    return all;
  }

  /// Puts back what is left.
  void restore(std::uint32_t shelf, contents& all) noexcept {
    bool any = false;
    for (std::uint32_t stripe = 0; stripe < stripes_; ++stripe) {
      while (all.first[stripe] > last) {
        any = true;
        push(shelf, stripe, pop(all, stripe));
      }
    }
    std::uint64_t nothing = 0;
    // If it is not 0 it was used since. Relaxed: who empties it next has the mutex.
    if (any) static_cast<void>(used(shelf).compare_exchange_strong(nothing, all.used, relaxed, relaxed));
  }

  /// The record at the front of a stripe; `none` if it is empty.
  [[nodiscard]] static std::uint32_t front(const contents& of, std::uint32_t stripe) noexcept {
    return of.first[stripe] > last ? linked_index(of.first[stripe]) : none;
  }
  /// Takes it out. Pre: there is one.
  std::uint32_t pop(contents& from, std::uint32_t stripe) const noexcept {
    const std::uint32_t record = linked_index(from.first[stripe]);
    from.first[stripe] = links_[record].load(relaxed);  // ours since take_lists()
    return record;
  }

  /// Takes a shelf's label off, and all that was put there under it.
  [[nodiscard]] contents close(std::uint32_t shelf) noexcept {
    rows_[shelf / shelves_per_row].fingerprint[shelf % shelves_per_row].store(0, relaxed);  // (g) L: (h) publishes it
    return empty(shelf);
  }

  /// Gives a shelf without a label one.
  void label_as(std::uint32_t shelf, const label& of) noexcept {
    labels& at = rows_[shelf / shelves_per_row];
    at.lane[shelf % shelves_per_row].store(of.lane, relaxed);    // published by (j), as the next
    at.bytes[shelf % shelves_per_row].store(of.bytes, relaxed);
    at.fingerprint[shelf % shelves_per_row].store(of.fingerprint, release);                // (j) L
  }

 private:
  struct alignas(64) labels {
    std::array<atomic<std::uint64_t>, shelves_per_row> fingerprint;  ///< 0: no label
    std::array<atomic<std::uint64_t>, shelves_per_row> lane;
    std::array<atomic<std::uint64_t>, shelves_per_row> bytes;
    std::array<atomic<std::uint64_t>, shelves_per_row> last_use;  ///< a time; 0: nothing lies there
  };
  struct alignas(64) one_list {
    atomic<std::uint64_t> head;
  };

  [[nodiscard]] bool has(std::uint32_t shelf, const label& of) const noexcept {
    const labels& at = rows_[shelf / shelves_per_row];
    return at.fingerprint[shelf % shelves_per_row].load(acquire) == of.fingerprint &&      // (e) L
           at.lane[shelf % shelves_per_row].load(relaxed) == of.lane;  // L
  }
  [[nodiscard]] atomic<std::uint64_t>& used(std::uint32_t shelf) const noexcept {
    return rows_[shelf / shelves_per_row].last_use[shelf % shelves_per_row];
  }
  [[nodiscard]] one_list& list(std::uint32_t shelf, std::uint32_t stripe) const noexcept {
    return lists_[std::size_t{shelf} * stripes_ + stripe];
  }

  /// Hardly ever writes: time goes on with misses only.
  void touch(std::uint32_t shelf, std::uint64_t now) noexcept {
    if (used(shelf).load(relaxed) != now) used(shelf).store(now, relaxed);                 // (k) U: (a) acquired
  }

  [[nodiscard]] std::uint32_t oldest_of(std::uint32_t from, std::uint32_t to) const noexcept {
    std::uint32_t found = none;
    std::uint64_t time = ~std::uint64_t{0};
    for (std::uint32_t shelf = from; shelf < to; ++shelf) {
      const std::uint64_t each = used(shelf).load(relaxed);  // who asks sees what was put there before, as programs order it
      if (each == 0 || each >= time) continue;
      time = each;
      found = shelf;
    }
    return found;
  }

  void take_lists(std::uint32_t shelf, contents& all) noexcept {
    for (std::uint32_t stripe = 0; stripe < stripes_; ++stripe) {
      atomic<std::uint64_t>& head = list(shelf, stripe).head;
      std::uint64_t expected = head.load(relaxed);  // a guess
      // (h) Also of an empty list: I2. Acquire P, release L and U.
      while (!head.compare_exchange_weak(expected, tagged_head(expected).with_top(last).bits(), acq_rel, relaxed)) {
      }
      link_code turned = last;
      for (link_code at = tagged_head(expected).top(); at > last;) {
        const std::uint32_t record = linked_index(at);
        at = links_[record].load(relaxed);  // ours: P
        links_[record].store(turned, relaxed);
        turned = link_to(record);
      }
      all.first[stripe] = turned;
    }
  }

  /// Pre: the shelf's label is the record's; it cannot change.
  void push(std::uint32_t shelf, std::uint32_t stripe, std::uint32_t record) noexcept {
    atomic<std::uint64_t>& head = list(shelf, stripe).head;
    std::uint64_t expected = head.load(relaxed);  // a guess
    do {
      const tagged_head seen(expected);
      links_[record].store(seen.empty() ? last : seen.top(), relaxed);                     // as (b)
    } while (!head.compare_exchange_weak(expected, tagged_head(expected).with_top(link_to(record)).bits(), release,
                                         relaxed));                                        // as (c)
  }

  link_table links_;
  std::uint32_t stripes_ = 1;
  std::uint32_t row_mask_ = 0;
  reserved_array<labels> rows_;
  reserved_array<one_list> lists_;
};

}  // namespace orderly::detail
