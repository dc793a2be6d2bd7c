/// \file
/// The arena: one reserved address range, and the account of what of it is committed.
///
/// committed() counts bytes that the source has committed or is just committing; it never exceeds the limit, because a
/// thread charges the account before it asks the source and refunds what the source refused. Whoever commits or decommits
/// a chunk owns it (see chunk_table), so no two calls to the source overlap.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "annotate.hpp"
#include "atomic.hpp"
#include "block_word.hpp"
#include "chunk_table.hpp"
#include "geometry.hpp"
#include "orderly/source.hpp"

namespace orderly::detail {

/// Up to where a thread may commit: to the soft limit, above which memory that lies idle is to be moved first, or to
/// the hard one.
enum class ceiling : std::uint8_t { soft, hard };

enum class refusal : std::uint8_t {
  none,
  no_node,     ///< every block is in use or cached
  soft_limit,
  hard_limit,
  source,      ///< the source refused to commit
  order,       ///< the stream cannot be made to wait for the last users
};

/// A trim under way. Free nodes that the source does not take back stay owned until its end: their lists would show them
/// again and again, and what lies behind them never.
struct trimming {
  static constexpr std::size_t most_refused = 16;  ///< a source that refuses as many is asked no more

  std::size_t bytes = 0;  ///< to be released, if as much is idle; with `most` in whole chunks, and at most that
  std::size_t most = 0;   ///< that may be released
  std::size_t released = 0;
  std::array<node, most_refused> refused{};
  std::size_t refused_count = 0;

  [[nodiscard]] bool over() const noexcept { return released >= bytes || refused_count == most_refused; }
  /// At least a chunk, until it is over.
  [[nodiscard]] std::size_t room() const noexcept { return most - released; }
};

class arena {
 public:
  arena(std::unique_ptr<memory_source> source, const geometry& shape) noexcept;
  arena(const arena&) = delete;
  arena& operator=(const arena&) = delete;
  ~arena();

  /// Reserves the range. False: the source, or the system for the tables, refused.
  [[nodiscard]] bool open() noexcept;

  /// From now on tools are told of the range; see annotate.hpp. Before the first commit. False: no memory.
  [[nodiscard]] bool annotate(free_order by) noexcept { return tools_.begin(*source_, shape_, base_, by); }
  [[nodiscard]] annotations& tools() noexcept { return tools_; }
  [[nodiscard]] const annotations& tools() const noexcept { return tools_; }

  /// While set, whoever takes a block leaves committed what it has too much: a stream may still use it. Set before such
  /// blocks are given, which the taker's claim acquires (W in buddy.hpp).
  void hold_back(bool on) noexcept { held_back_.store(on, relaxed); }
  [[nodiscard]] bool held_back() const noexcept { return held_back_.load(relaxed); }

  /// True while a thread waits for the source: it holds what it holds, but it will get on. A look, from time to time, at a
  /// count: who came or left just now may be missed under any order.
  [[nodiscard]] bool in_source() const noexcept { return in_source_.load(relaxed) != 0; }

  /// After a commit that the source refused to this thread: what it says of that.
  void why_refused(std::span<char> text) const noexcept {
    text[0] = '\0';
    source_->why_refused(text.data(), text.size());
  }

  /// After a fork, in the child: who was in the source is gone.
  void forget_source_calls() noexcept { in_source_.store(0, relaxed); }  // no other thread

  [[nodiscard]] const geometry& shape() const noexcept { return shape_; }
  [[nodiscard]] const chunk_table& chunks() const noexcept { return chunks_; }
  [[nodiscard]] std::byte* base() const noexcept { return base_; }
  [[nodiscard]] void* address(std::uint64_t granule) const noexcept { return base_ + shape_.bytes(granule); }

  /// Offset of an address in the range in bytes; nothing if it lies outside.
  [[nodiscard]] std::optional<std::uint64_t> offset(const void* pointer) const noexcept;

  /// Commits what is missing of the first `granules` of a node of the tree. Pre: the caller owns the node, and it is at
  /// least a chunk. On refusal nothing has changed.
  [[nodiscard]] refusal commit(node n, std::uint64_t granules, ceiling up_to) noexcept;

  /// Sets an owned chunk aside for small blocks, or not.
  void set_small(node chunk, bool small) noexcept { chunks_.set_small(chunk, small); }

  /// Decommits the committed chunks of an owned node of at least a chunk, or the last `most` of them. Returns the bytes; 0
  /// also if the source refused.
  std::size_t decommit(node n, std::uint64_t most = ~std::uint64_t{0}) noexcept;

  /// The same for a range outside the tree, given in chunks from the node's start: [from, to). What was committed at once
  /// is decommitted at once, or else the source may refuse.
  [[nodiscard]] refusal commit(node n, std::uint64_t from, std::uint64_t to, ceiling up_to) noexcept;
  [[nodiscard]] bool decommit(node n, std::uint64_t from, std::uint64_t to) noexcept;

  [[nodiscard]] std::size_t committed() const noexcept { return committed_.load(relaxed); }  // a figure, no hand-over
  [[nodiscard]] std::size_t peak_committed() const noexcept { return peak_committed_.load(relaxed); }
  [[nodiscard]] std::size_t soft_limit() const noexcept { return soft_limit_.load(relaxed); }
  void set_soft_limit(std::size_t bytes) noexcept { soft_limit_.store(bytes, relaxed); }  // advice, no hand-over

 private:
  [[nodiscard]] refusal charge(std::size_t bytes, ceiling up_to, std::size_t& reached) noexcept;
  void note_peak(std::size_t reached) noexcept;
  void refund(std::size_t bytes) noexcept { committed_.fetch_sub(bytes, relaxed); }  // a sum; nothing is published

  /// The source, for one call, which is counted.
  class counted_source {
   public:
    explicit counted_source(arena& of) noexcept : of_(of) { of_.in_source_.fetch_add(1, relaxed); }  // see in_source()
    counted_source(const counted_source&) = delete;
    counted_source& operator=(const counted_source&) = delete;
    ~counted_source() { of_.in_source_.fetch_sub(1, relaxed); }
    [[nodiscard]] bool commit(void* address, std::size_t bytes) const noexcept {
      return told(of_.source_->commit(address, bytes), address, bytes);
    }
    [[nodiscard]] bool commit_together(void* address, std::size_t bytes) const noexcept {
      return told(of_.source_->commit_together(address, bytes), address, bytes);
    }
    [[nodiscard]] bool decommit(void* address, std::size_t bytes) const noexcept {
      if (!of_.source_->decommit(address, bytes)) return false;
      of_.tools_.decommitted(address, bytes);
      return true;
    }

   private:
    [[nodiscard]] bool told(bool done, void* address, std::size_t bytes) const noexcept {
      if (done) of_.tools_.committed(address, bytes);
      return done;
    }

    arena& of_;
  };
  [[nodiscard]] counted_source into_source() noexcept { return counted_source(*this); }

  std::unique_ptr<memory_source> source_;
  geometry shape_;
  std::byte* base_ = nullptr;
  chunk_table chunks_;
  atomic<std::uint32_t> in_source_{0};
  atomic<bool> held_back_{false};
  alignas(64) atomic<std::size_t> committed_{0};
  atomic<std::size_t> peak_committed_{0};
  atomic<std::size_t> soft_limit_{0};
  annotations tools_;
};

}  // namespace orderly::detail
