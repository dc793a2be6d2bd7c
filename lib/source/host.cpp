#include "orderly/source.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>

#include "atomic.hpp"

namespace orderly {
namespace {

/// ThreadSanitizer maps program memory into 1.5 TiB of addresses; a pool of the machine's size asks for more than that.
#if defined(__SANITIZE_THREAD__)
constexpr std::size_t most_capacity = std::size_t{4} << 30;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
constexpr std::size_t most_capacity = std::size_t{4} << 30;
#else
constexpr std::size_t most_capacity = SIZE_MAX;
#endif
#else
constexpr std::size_t most_capacity = SIZE_MAX;
#endif

class host_source final : public memory_source {
 public:
  explicit host_source(bool guarded) noexcept : protected_(guarded) {}

  [[nodiscard]] std::size_t granularity() const noexcept override { return page_; }
  [[nodiscard]] std::size_t preferred_chunk() const noexcept override { return page_ > 65536 ? page_ : 65536; }
  [[nodiscard]] std::size_t capacity() const noexcept override {
    const std::size_t physical = static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) * page_;
    return physical < most_capacity ? physical : most_capacity;
  }
  [[nodiscard]] bool is_virtual() const noexcept override { return true; }
  [[nodiscard]] bool is_host_memory() const noexcept override { return true; }

  [[nodiscard]] void* reserve(std::size_t bytes, std::size_t alignment) noexcept override {
    const std::size_t extra = alignment > page_ ? alignment : 0;
    if (bytes + extra < bytes) return nullptr;
    void* const raw = map(bytes + extra);
    if (raw == nullptr) return nullptr;
    const auto start = reinterpret_cast<std::uintptr_t>(raw);
    const std::uintptr_t aligned = (start + alignment - 1) & ~(static_cast<std::uintptr_t>(alignment) - 1);
    auto* const address = static_cast<std::byte*>(raw) + (aligned - start);
    if (aligned != start) munmap(raw, aligned - start);
    if (const std::size_t behind = extra - (aligned - start); behind != 0) munmap(address + bytes, behind);
    return address;
  }

  void release(void* address, std::size_t bytes) noexcept override { munmap(address, bytes); }

  [[nodiscard]] bool commit(void* address, std::size_t bytes) noexcept override {
    if (!protected_ || mprotect(address, bytes, PROT_READ | PROT_WRITE) == 0) return true;
    last_refusal_.store(errno, detail::relaxed);  // a look at the same call, or at another's
    return false;
  }

  void why_refused(char* text, std::size_t bytes) const noexcept override {
    const int code = last_refusal_.load(detail::relaxed);
    std::snprintf(text, bytes, "mprotect: errno %d%s", code,
                  code == ENOMEM ? ", no memory or too many ranges (vm.overcommit_memory, vm.max_map_count)" : "");
  }

  [[nodiscard]] bool decommit(void* address, std::size_t bytes) noexcept override {
    if (madvise(address, bytes, MADV_DONTNEED) != 0) return false;
    return !protected_ || mprotect(address, bytes, PROT_NONE) == 0;
  }

 private:
  /// Where the system counts reserved pages against what it has (overcommit mode 2), a range is reserved without access
  /// and opened by commit(); elsewhere the first touch commits, and commit() costs nothing.
  [[nodiscard]] void* map(std::size_t bytes) noexcept {
    constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* address = protected_ ? MAP_FAILED : mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (address == MAP_FAILED) {
      address = mmap(nullptr, bytes, PROT_NONE, flags, -1, 0);
      protected_ = protected_ || address != MAP_FAILED;
    }
    return address == MAP_FAILED ? nullptr : address;
  }

  std::size_t page_ = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  bool protected_;  ///< what is not committed cannot be touched
  detail::atomic<int> last_refusal_{0};  ///< errno
};

}  // namespace

std::unique_ptr<memory_source> make_host_source() { return std::make_unique<host_source>(false); }
std::unique_ptr<memory_source> make_guarded_host_source() { return std::make_unique<host_source>(true); }

}  // namespace orderly
