#include "hooks.hpp"

#include <sys/syscall.h>
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <ctime>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "memory.hpp"
#include "pools.hpp"

namespace orderly::python {

namespace nb = nanobind;
using namespace nb::literals;

namespace {

/// The pool that a hook serves from. Its memory stays open.
struct source {
  std::shared_ptr<memory> of;
  pool* plain;
};

void* allocate(void* context, std::size_t bytes) noexcept {
  return static_cast<const source*>(context)->plain->try_allocate(bytes);
}

bool free(void* context, void* block, std::size_t bytes) noexcept {
  const source& from = *static_cast<const source*>(context);
  if (!from.plain->owns(block)) return false;  // and is no bad free: the caller asks one pool after the other
  bad_free report;
  if (from.plain->try_deallocate(block, bytes, &report) != error::none) from.of->report(report);
  return true;
}

/// The one recording of the process.
class recorder {
 public:
  void start() {
    const std::lock_guard lock(mutex_);
    live_.clear();
    events_.clear();
    running_ = true;
  }

  /// What is noted from now on is not; what was, is still to be taken.
  void stop() {
    const std::lock_guard lock(mutex_);
    running_ = false;
    live_.clear();
  }

  void allocated(void* block, std::size_t bytes) noexcept {
    const std::lock_guard lock(mutex_);
    if (!running_) return;
    try {
      if (block != nullptr) live_[block] = bytes;
      note(block == nullptr ? action::failure : action::allocate, block, bytes);
    } catch (const std::bad_alloc&) {
      lost_ = true;
    }
  }

  void freed(void* block) noexcept {
    const std::lock_guard lock(mutex_);
    if (!running_) return;
    const auto known = live_.find(block);
    if (known == live_.end()) return;
    try {
      note(action::free, block, known->second);
    } catch (const std::bad_alloc&) {
      lost_ = true;
    }
    live_.erase(known);
  }

  /// The rows since the last time, as text in the columns of RMM's logs.
  [[nodiscard]] std::string take() {
    std::vector<event> events;
    {
      const std::lock_guard lock(mutex_);
      events.swap(events_);
    }
    std::string text;
    text.reserve(events.size() * 64);
    for (const event& each : events) write(each, text);
    return text;
  }

  [[nodiscard]] bool lost() const noexcept { return lost_; }

 private:
  enum class action : std::uint8_t { allocate, free, failure };
  struct event {
    std::chrono::system_clock::time_point time;
    void* block;
    std::size_t bytes;
    pid_t thread;
    action what;
  };

  void note(action what, void* block, std::size_t bytes) {
    thread_local const auto thread = static_cast<pid_t>(syscall(SYS_gettid));
    events_.push_back({std::chrono::system_clock::now(), block, bytes, thread, what});
  }

  static void write(const event& each, std::string& text) {
    constexpr const char* names[] = {"allocate", "free", "allocate failure"};
    const auto since = each.time.time_since_epoch();
    const std::time_t seconds = std::chrono::duration_cast<std::chrono::seconds>(since).count();
    const auto micros = std::chrono::duration_cast<std::chrono::microseconds>(since).count() % 1'000'000;
    std::tm local{};
    localtime_r(&seconds, &local);
    char line[128];
    const int length =
        std::snprintf(line, sizeof line, "%d,%02d:%02d:%02d.%06d,%s,0x%zx,%zu,0x0\n", each.thread, local.tm_hour,
                      local.tm_min, local.tm_sec, static_cast<int>(micros), names[static_cast<unsigned>(each.what)],
                      reinterpret_cast<std::size_t>(each.block), each.bytes);
    text.append(line, static_cast<std::size_t>(length));
  }

  std::mutex mutex_;
  std::unordered_map<void*, std::size_t> live_;
  std::vector<event> events_;
  bool running_ = false;
  bool lost_ = false;
};

/// For ever: a thread may be inside while the process ends.
recorder& recording() {
  static auto* const only = new recorder;
  return *only;
}

template <class Function>
std::uintptr_t address_of(Function* function) noexcept {
  return reinterpret_cast<std::uintptr_t>(function);
}

}  // namespace

recorder_hook the_recorder_hook() noexcept {
  return {[](void* block, std::size_t bytes) noexcept { recording().allocated(block, bytes); },
          [](void* block) noexcept { recording().freed(block); }};
}

void bind_hooks(nb::module_& m) {
  m.def(
      "_pool_hook",
      [](nb::handle pool) {
        std::shared_ptr<memory> of = memory_of(pool);
        if (of->plain() == nullptr || !of->is_open())
          raise(PyExc_ValueError, "the pool must be an open one in host memory without streams");
        of->hooked = true;
        auto* const context = new source{of, of->plain()};
        return nb::make_tuple(address_of(&allocate), address_of(&free), address_of(context));
      },
      "pool"_a);
  m.def("_recorder_hook", [] {
    const recorder_hook hook = the_recorder_hook();
    return nb::make_tuple(address_of(hook.allocated), address_of(hook.freed));
  });
  // Rows for what has an address and a length, but no memory.
  m.def(
      "_record_allocated",
      [](std::uintptr_t address, std::size_t bytes) {
        recording().allocated(reinterpret_cast<void*>(address), bytes);  // only written down
      },
      "address"_a, "bytes"_a);
  m.def(
      "_record_freed", [](std::uintptr_t address) { recording().freed(reinterpret_cast<void*>(address)); },
      "address"_a);
  m.def("_record_start", [] { recording().start(); });
  m.def("_record_stop", [] { recording().stop(); });
  m.def("_record_take", [] {
    const std::string text = without_gil([] { return recording().take(); });
    return nb::bytes(text.data(), text.size());
  });
}

}  // namespace orderly::python
