/// \file
/// Threads that are stopped at any instruction, and a look at whether the others get on without them.
///
/// A signal's handler parks its thread: it notes where the thread was and reads from an eventfd until somebody writes to
/// it; both are async-signal-safe. With `steps` the processor's single-step flag takes the thread that many instructions
/// further first, so that instructions are hit evenly, and not only those that take long or end a system call.
#pragma once

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

#include <pthread.h>
#include <sys/eventfd.h>
#include <ucontext.h>
#include <unistd.h>

namespace orderly::test {

/// Where a thread was when it was parked.
struct parking {
  std::uintptr_t instruction = 0;
  unsigned operation = 0;  ///< that begin() told; 0: none
  bool awaited = false;    ///< await() was called since
};

/// A thread that can be parked. It calls enter() first and leave() last, and begin() and end() around each operation.
class parkable {
 public:
  parkable() : gate_(eventfd(0, 0)) {
    if (gate_ < 0) throw std::runtime_error("no eventfd");
    static std::once_flag once;
    std::call_once(once, install);
  }
  parkable(const parkable&) = delete;
  parkable& operator=(const parkable&) = delete;
  ~parkable() { close(gate_); }

  void enter() noexcept {
    thread_ = pthread_self();
    mine = this;
    there_.store(true, std::memory_order_release);
  }
  void leave() noexcept { mine = nullptr; }

  void begin(unsigned operation) noexcept {
    awaited_ = false;
    operation_.store(operation, std::memory_order_relaxed);
    std::atomic_signal_fence(std::memory_order_seq_cst);  // for the handler, which runs on this thread
  }
  /// From here to the end of the calling thread's operation others may rightly wait for it. A plain write, because
  /// ThreadSanitizer runs handlers in front of atomic operations: none comes between the call and its mark.
  static void await() noexcept {
    if (mine == nullptr) return;
    mine->awaited_ = true;
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  void end() noexcept {
    std::atomic_signal_fence(std::memory_order_seq_cst);
    operation_.store(0, std::memory_order_relaxed);
    done_.store(done_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }

  // What follows is called by the thread that parks others.

  [[nodiscard]] bool there() const noexcept { return there_.load(std::memory_order_acquire); }
  [[nodiscard]] std::uint64_t done() const noexcept { return done_.load(std::memory_order_relaxed); }

  /// Parks the thread `steps` instructions from where it is; see parked(). The thread may call it itself: it goes
  /// on, and is parked so many instructions later.
  void park(unsigned steps) noexcept {
    parked_.store(false, std::memory_order_relaxed);
    steps_.store(steps, std::memory_order_relaxed);
    pthread_kill(thread_, SIGUSR1);
  }
  [[nodiscard]] bool parked() const noexcept { return parked_.load(std::memory_order_acquire); }
  /// Before the thread parks itself: parked() tells of that.
  void forget() noexcept { parked_.store(false, std::memory_order_relaxed); }
  [[nodiscard]] parking where() const noexcept { return where_; }
  void release() noexcept {
    const std::uint64_t one = 1;
    while (write(gate_, &one, sizeof one) < 0 && errno == EINTR) {
    }
  }
  /// The thread is not parked any more, not even by a signal that is still on its way.
  void release_for_good() noexcept {
    open_.store(true, std::memory_order_relaxed);
    release();  // whoever did not see the gate open finds this
  }

 private:
  static void install() {
    struct sigaction action {};
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    action.sa_sigaction = on_signal;
    sigfillset(&action.sa_mask);
    if (sigaction(SIGUSR1, &action, nullptr) != 0) throw std::runtime_error("no handler for SIGUSR1");
#if defined(__x86_64__)
    action.sa_sigaction = on_step;
    if (sigaction(SIGTRAP, &action, nullptr) != 0) throw std::runtime_error("no handler for SIGTRAP");
#endif
  }

#if defined(__x86_64__)
  static constexpr greg_t single_step = 0x100;
  [[nodiscard]] static greg_t& flags(void* context) noexcept {
    return static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_EFL];
  }
  [[nodiscard]] static std::uintptr_t instruction(const ucontext_t& at) noexcept {
    return static_cast<std::uintptr_t>(at.uc_mcontext.gregs[REG_RIP]);
  }
  static void on_step(int, siginfo_t*, void* context) {
    const unsigned left = mine->steps_.load(std::memory_order_relaxed) - 1;
    mine->steps_.store(left, std::memory_order_relaxed);
    if (left != 0) return;
    flags(context) &= ~single_step;
    mine->stay(context);
  }
#elif defined(__aarch64__)
  [[nodiscard]] static std::uintptr_t instruction(const ucontext_t& at) noexcept { return at.uc_mcontext.pc; }
#endif

  static void on_signal(int, siginfo_t*, void* context) {
    if (mine == nullptr) return;
#if defined(__x86_64__)
    if (mine->steps_.load(std::memory_order_relaxed) != 0) {
      flags(context) |= single_step;
      return;
    }
#endif
    mine->stay(context);
  }

  void stay(void* context) noexcept {
    const int error = errno;
    where_ = {instruction(*static_cast<ucontext_t*>(context)), operation_.load(std::memory_order_relaxed), awaited_};
    parked_.store(true, std::memory_order_release);
    std::uint64_t released;
    while (!open_.load(std::memory_order_relaxed) && read(gate_, &released, sizeof released) < 0 && errno == EINTR) {
    }
    errno = error;
  }

  static inline thread_local constinit parkable* mine = nullptr;

  int gate_;
  pthread_t thread_{};
  parking where_;
  bool awaited_ = false;
  std::atomic<bool> open_ = false;
  std::atomic<bool> there_ = false;
  std::atomic<bool> parked_ = false;
  std::atomic<unsigned> steps_ = 0;
  std::atomic<unsigned> operation_ = 0;
  std::atomic<std::uint64_t> done_ = 0;
};

#if defined(__x86_64__)  // elsewhere no thread is stopped at a chosen instruction

/// An operation that a thread of its own does as often as another thread asks for it, and that is stopped on the way.
template <class Operation>
class stepped {
 public:
  explicit stepped(Operation operation) : operation_(std::move(operation)), thread_([this] { work(); }) {}
  stepped(const stepped&) = delete;
  stepped& operator=(const stepped&) = delete;
  ~stepped() {
    begun_.store(no_more, std::memory_order_release);
    thread_.join();
  }

  /// Begins the operation, and returns when it is stopped, `steps` instructions from shortly before it. False: it was
  /// over by then. finish() must follow.
  [[nodiscard]] bool stop(unsigned steps) noexcept {
    self_.forget();
    steps_ = steps;
    begun_.store(++round_, std::memory_order_release);
    while (!self_.parked()) std::this_thread::yield();
    return self_.where().operation != 0;
  }
  /// Lets the operation go on, and returns when it is over.
  void finish() noexcept {
    self_.release();
    while (over_.load(std::memory_order_acquire) != round_) std::this_thread::yield();
  }

 private:
  static constexpr std::uint64_t no_more = UINT64_MAX;

  void work() {
    self_.enter();
    for (std::uint64_t round = 1;; ++round) {
      std::uint64_t begun = begun_.load(std::memory_order_acquire);
      for (; begun < round; begun = begun_.load(std::memory_order_acquire)) std::this_thread::yield();
      if (begun == no_more) break;
      self_.begin(1);
      self_.park(steps_);
      operation_();
      self_.end();
      over_.store(round, std::memory_order_release);
    }
    self_.leave();
  }

  Operation operation_;
  parkable self_;
  unsigned steps_ = 0;
  std::uint64_t round_ = 0;
  std::atomic<std::uint64_t> begun_ = 0;
  std::atomic<std::uint64_t> over_ = 0;
  std::thread thread_;  // last: it uses all the others
};

#endif

/// Waits until `met()` holds. False: it took longer than that.
template <class Met>
[[nodiscard]] bool comes_true(const Met& met, std::chrono::steady_clock::duration within) {
  const auto end = std::chrono::steady_clock::now() + within;
  while (!met()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return true;
}

}  // namespace orderly::test
