/// \file
/// What tells in a stress test that a block had two owners: a stamp inside the block, and a map beside the range.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace orderly::test {

/// Eight bytes at each end of a block that name its owner. The accesses are plain on purpose: only the owner touches
/// a block, so a race that ThreadSanitizer sees here is an ordering that the pool failed to give. They read, compare
/// and write, so that no compiler can drop them. The block must have at least 16 bytes.
class stamp {
 public:
  stamp(void* block, std::size_t bytes) noexcept
      : begin_(static_cast<unsigned char*>(block)), end_(begin_ + bytes - sizeof(std::uint64_t)) {}

  /// Takes the block over, whatever it holds.
  void put(std::uint64_t owner) const noexcept {
    write(begin_, owner);
    write(end_, ~owner);
  }

  /// True if both ends still name the owner. Leaves the stamp as it was.
  [[nodiscard]] bool holds(std::uint64_t owner) const noexcept {
    const std::uint64_t first = read(begin_);
    const std::uint64_t last = read(end_);
    write(begin_, first);
    write(end_, last);
    return first == owner && last == ~owner;
  }

  /// True if both ends still named the owner. Afterwards they name nobody.
  [[nodiscard]] bool remove(std::uint64_t owner) const noexcept {
    const bool held = holds(owner);
    write(begin_, 0);
    write(end_, 0);
    return held;
  }

 private:
  static std::uint64_t read(const unsigned char* place) noexcept {
    std::uint64_t value;
    std::memcpy(&value, place, sizeof value);
    return value;
  }
  static void write(unsigned char* place, std::uint64_t value) noexcept { std::memcpy(place, &value, sizeof value); }

  unsigned char* begin_;
  unsigned char* end_;
};

/// The owner of every granule of a range, kept outside it. Its accesses are relaxed, so it orders nothing between the
/// threads that it watches. Overlaps show whatever the blocks' bytes say.
class shadow {
 public:
  shadow(const void* base, std::size_t bytes, std::size_t granule)
      : base_(reinterpret_cast<std::uintptr_t>(base)), bytes_(bytes), granule_(granule),
        owners_(static_cast<std::uint32_t*>(std::calloc(bytes / granule + 1, sizeof(std::uint32_t)))) {
    if (owners_ == nullptr) throw std::bad_alloc();
  }

  [[nodiscard]] bool contains(const void* block, std::size_t bytes) const noexcept {
    const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(block);
    return address >= base_ && bytes <= bytes_ && address - base_ <= bytes_ - bytes;
  }

  /// False: some granule of the block has an owner already, or lies outside the range.
  [[nodiscard]] bool claim(const void* block, std::size_t bytes, std::uint32_t owner) noexcept {
    return change(block, bytes, 0, owner);
  }

  /// False: some granule of the block was not the owner's.
  [[nodiscard]] bool release(const void* block, std::size_t bytes, std::uint32_t owner) noexcept {
    return change(block, bytes, owner, 0);
  }

 private:
  struct free_memory {
    void operator()(std::uint32_t* memory) const noexcept { std::free(memory); }
  };

  bool change(const void* block, std::size_t bytes, std::uint32_t from, std::uint32_t to) noexcept {
    if (!contains(block, bytes)) return false;
    const std::size_t first = (reinterpret_cast<std::uintptr_t>(block) - base_) / granule_;
    bool as_expected = true;
    for (std::size_t index = first; index < first + (bytes + granule_ - 1) / granule_; ++index) {
      as_expected &= std::atomic_ref(owners_.get()[index]).exchange(to, std::memory_order_relaxed) == from;
    }
    return as_expected;
  }

  std::uintptr_t base_;
  std::size_t bytes_;
  std::size_t granule_;
  std::unique_ptr<std::uint32_t[], free_memory> owners_;
};

}  // namespace orderly::test
