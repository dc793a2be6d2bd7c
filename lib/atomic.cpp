#include "atomic.hpp"

#include <mutex>

#if defined(__linux__)
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace orderly::detail {

bool asymmetric_barrier::available_ = false;
bool asymmetric_barrier::forgone_ = false;

void asymmetric_barrier::forgo() noexcept { forgone_ = true; }

void asymmetric_barrier::prepare() noexcept {
  // call_once orders this write before every read: whoever reads has constructed a pool, or was given one.
  static std::once_flag once;
  std::call_once(once, [] {
#if defined(__linux__) && defined(SYS_membarrier)
    if (forgone_) return;
    const long supported = syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);
    available_ = supported > 0 && (supported & MEMBARRIER_CMD_PRIVATE_EXPEDITED) != 0 &&
                 syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
#endif
  });
}

bool asymmetric_barrier::heavy() noexcept {
#if defined(__linux__) && defined(SYS_membarrier)
  if (available_) return syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0;
#endif
  return true;  // the frequent side has paid
}

}  // namespace orderly::detail
