#include "reserved_array.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace orderly::detail {

void* reserve_zeroed(std::size_t bytes) noexcept {
  if (bytes == 0) return nullptr;
  void* address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) return nullptr;
  // A table is touched here and there: with huge pages each touch could cost 2 MiB, and a core dump could hold it all.
  madvise(address, bytes, MADV_NOHUGEPAGE);
  madvise(address, bytes, MADV_DONTDUMP);
  return address;
}

void release_zeroed(void* address, std::size_t bytes) noexcept {
  if (address != nullptr) munmap(address, bytes);
}

void touch_ahead([[maybe_unused]] void* address, [[maybe_unused]] std::size_t bytes) noexcept {
#if defined(MADV_POPULATE_WRITE)
  static const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto start = reinterpret_cast<std::uintptr_t>(address) & ~(page - 1);
  const auto end = (reinterpret_cast<std::uintptr_t>(address) + bytes + page - 1) & ~(page - 1);
  madvise(reinterpret_cast<void*>(start), end - start, MADV_POPULATE_WRITE);  // refused: the first touch will do it
#endif
}

}  // namespace orderly::detail
