#include "annotate.hpp"

#ifdef ORDERLY_ANNOTATED

#include <algorithm>
#include <bit>

#ifdef ORDERLY_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#include <sanitizer/lsan_interface.h>
#endif
#ifdef ORDERLY_VALGRIND
#include <valgrind/memcheck.h>
#endif

namespace orderly::detail {
namespace {

// Each in the words of every tool there is. A pool is known to Memcheck by the start of its range.

void forbid(const void* address, std::size_t bytes) noexcept {
#ifdef ORDERLY_ADDRESS_SANITIZER
  __asan_poison_memory_region(address, bytes);
#endif
#ifdef ORDERLY_VALGRIND
  VALGRIND_MAKE_MEM_NOACCESS(address, bytes);
#endif
}

/// `defined`: what is read there is the program's business.
void permit(const void* address, std::size_t bytes, [[maybe_unused]] bool defined) noexcept {
#ifdef ORDERLY_ADDRESS_SANITIZER
  __asan_unpoison_memory_region(address, bytes);
#endif
#ifdef ORDERLY_VALGRIND
  if (defined)
    VALGRIND_MAKE_MEM_DEFINED(address, bytes);
  else
    VALGRIND_MAKE_MEM_UNDEFINED(address, bytes);
#endif
}

/// Blocks may hold the only pointers to what the program has on the heap. LeakSanitizer looks into mappings of which it
/// was told, and there not into what is forbidden; Memcheck looks into every mapping.
void look_for_pointers([[maybe_unused]] const void* address, [[maybe_unused]] std::size_t bytes,
                       [[maybe_unused]] bool look) noexcept {
#ifdef ORDERLY_ADDRESS_SANITIZER
  if (look)
    __lsan_register_root_region(address, bytes);
  else
    __lsan_unregister_root_region(address, bytes);
#endif
}

}  // namespace

bool annotations::begin(const memory_source& source, const geometry& shape, std::byte* base, free_order by) noexcept {
  if (!source.is_host_memory()) return true;
  const std::uint64_t granules = shape.flat ? shape.tree_granules : shape.total_granules;
  const std::size_t bytes = shape.bytes(granules);
  const std::size_t unit = shape.flat ? bytes : shape.bytes(std::uint64_t{1} << shape.root_order);
  if (!touched_.reserve(bytes / unit / 64 + 1)) return false;
  base_ = base;
  bytes_ = bytes;
  unit_ = unit;
  order_ = by;
#ifdef ORDERLY_VALGRIND
  if (blocks_are_told()) VALGRIND_CREATE_MEMPOOL(base_, 0, 0);
#endif
  if (shape.flat) committed(base_, bytes_);
  return true;
}

void annotations::end() noexcept {
  if (base_ == nullptr) return;
#ifdef ORDERLY_VALGRIND
  if (blocks_are_told()) VALGRIND_DESTROY_MEMPOOL(base_);
#endif
  for (std::size_t word = 0; word < touched_.size(); ++word) {
    for (std::uint64_t bits = touched_[word].load(relaxed); bits != 0; bits &= bits - 1) {  // no other thread
      const std::size_t start = (word * 64 + static_cast<std::size_t>(std::countr_zero(bits))) * unit_;
      const std::size_t bytes = std::min(unit_, bytes_ - start);
      permit(base_ + start, bytes, true);
      look_for_pointers(base_ + start, bytes, false);
    }
  }
  base_ = nullptr;
}

/// The first time in a unit, pointers are looked for there from now on.
void annotations::touch(const void* address, std::size_t bytes) noexcept {
  const auto start = static_cast<std::size_t>(static_cast<const std::byte*>(address) - base_);
  for (std::size_t unit = start / unit_; unit <= (start + bytes - 1) / unit_; ++unit) {
    const std::uint64_t bit = std::uint64_t{1} << (unit % 64);
    if ((touched_[unit / 64].fetch_or(bit, relaxed) & bit) != 0) continue;  // a set; nothing is handed over
    look_for_pointers(base_ + unit * unit_, std::min(unit_, bytes_ - unit * unit_), true);
  }
}

void annotations::committed(void* address, std::size_t bytes) noexcept {
  if (base_ == nullptr) return;
  touch(address, bytes);
  if (blocks_are_told())
    forbid(address, bytes);
  else
    permit(address, bytes, true);
}

void annotations::decommitted(void* address, std::size_t bytes) noexcept {
  if (base_ != nullptr) forbid(address, bytes);
}

void annotations::handed_out(void* block, std::size_t requested, std::size_t length) noexcept {
  if (!blocks_are_told()) return;
#ifdef ORDERLY_VALGRIND
  VALGRIND_MEMPOOL_ALLOC(base_, block, requested);
#endif
  permit(block, requested, false);
  forbid(static_cast<std::byte*>(block) + requested, length - requested);
}

void annotations::taken_back(void* block, std::size_t /*requested*/, std::size_t length) noexcept {
  if (!blocks_are_told()) return;
#ifdef ORDERLY_VALGRIND
  VALGRIND_MEMPOOL_FREE(base_, block);
#endif
  forbid(block, length);
}

void annotations::length_asked(const void* block, std::size_t requested, std::size_t length) const noexcept {
  if (blocks_are_told()) permit(static_cast<const std::byte*>(block) + requested, length - requested, true);
}

}  // namespace orderly::detail

#endif
