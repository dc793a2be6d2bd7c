/// \file
/// What tools that watch memory are told of a pool's: where a live block lies, and how much of it was asked for. The
/// system tells them of whole mappings only; without this a use after free inside the pool, or an access past the end
/// of a block, looks like any other access.
///
///   AddressSanitizer  in builds with -fsanitize=address, by itself
///   Memcheck          in builds with -Dvalgrind=enabled
///
/// Other builds contain nothing of it: the class is empty, and so are its functions.
///
/// Who may tell. Of a block, the thread that has it in hand, while nobody else can get it:
///   handed_out()  before the block's word becomes live
///   taken_back()  after the check that the free is a good one, when the word says that this thread has the block, and
///                 before the block goes into any list. So a refused free tells nothing, and the next owner is never
///                 told of before the last one's end. (Two frees that race may break that, see block_word.hpp: then the
///                 tool may report the next owner, of a program that is wrong.)
///   committed(), decommitted()  the owner of the chunks, as with the source's own functions (chunk_table.hpp)
///
/// Rule. Memory that the host may touch (memory_source::is_host_memory) is accessible just where it was requested, from
/// handed_out() to taken_back(). Whoever asks for a block's length may use that much of it.
///
/// Pools with streams. Work that is in a stream may use a block after the host has freed it, and the next owner may have
/// it at once, for work behind that. Which bytes are in use is then known to nobody on the host, so there all that is
/// committed is accessible, and only what was decommitted, which no stream can use, is not.
#pragma once

#include <cstddef>
#include <cstdint>

#include "atomic.hpp"
#include "geometry.hpp"
#include "orderly/source.hpp"
#include "reserved_array.hpp"

#if defined(__SANITIZE_ADDRESS__)
#define ORDERLY_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ORDERLY_ADDRESS_SANITIZER 1
#endif
#endif

#if defined(ORDERLY_ADDRESS_SANITIZER) || defined(ORDERLY_VALGRIND)
#define ORDERLY_ANNOTATED 1
#endif

namespace orderly::detail {

/// Who decides when a block is free: the program, or what streams have done.
enum class free_order : std::uint8_t { program, stream };

#ifdef ORDERLY_ANNOTATED

class annotations {
 public:
  /// Nothing is told before. Pre: nothing is committed, unless the range is flat. False: no memory.
  [[nodiscard]] bool begin(const memory_source& source, const geometry& shape, std::byte* base, free_order by) noexcept;
  /// The range is as it was before begin(). No other thread.
  void end() noexcept;

  /// The source has committed the range, or decommitted it, whose contents are lost.
  void committed(void* address, std::size_t bytes) noexcept;
  void decommitted(void* address, std::size_t bytes) noexcept;

  void handed_out(void* block, std::size_t requested, std::size_t length) noexcept;
  void taken_back(void* block, std::size_t requested, std::size_t length) noexcept;
  /// The program knows how long the block is, and may use all of it.
  void length_asked(const void* block, std::size_t requested, std::size_t length) const noexcept;

 private:
  [[nodiscard]] bool blocks_are_told() const noexcept { return base_ != nullptr && order_ == free_order::program; }
  void touch(const void* address, std::size_t bytes) noexcept;

  std::byte* base_ = nullptr;  ///< null: nothing is told
  std::size_t bytes_ = 0;
  free_order order_ = free_order::program;
  /// The range, in units, of which a bit says that something was told in it: telling of a whole range at its end would
  /// cost as much as the range is long.
  std::size_t unit_ = 0;
  reserved_array<atomic<std::uint64_t>> touched_;
};

#else

class annotations {
 public:
  [[nodiscard]] bool begin(const memory_source&, const geometry&, std::byte*, free_order) noexcept { return true; }
  void end() noexcept {}
  void committed(void*, std::size_t) noexcept {}
  void decommitted(void*, std::size_t) noexcept {}
  void handed_out(void*, std::size_t, std::size_t) noexcept {}
  void taken_back(void*, std::size_t, std::size_t) noexcept {}
  void length_asked(const void*, std::size_t, std::size_t) const noexcept {}
};

#endif

}  // namespace orderly::detail
