/// \file
/// Threads that take turns: one of them runs at a time, so that what they do together is the same in each run.
#pragma once

#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <semaphore>
#include <thread>
#include <utility>
#include <vector>

namespace orderly::test {

class lockstep_threads {
 public:
  /// `count` in all; number 0 is the thread that calls run().
  explicit lockstep_threads(std::size_t count) {
    for (std::size_t i = 1; i < count; ++i) others_.push_back(std::make_unique<other>());
  }

  [[nodiscard]] std::size_t count() const noexcept { return others_.size() + 1; }

  /// body() on that thread. Returns when it has returned; an exception comes back, too.
  void run(std::size_t number, const std::function<void()>& body) {
    if (number == 0) return body();
    other& chosen = *others_[number - 1];
    chosen.body = &body;
    chosen.begin.release();
    chosen.end.acquire();
    if (chosen.thrown) std::rethrow_exception(std::exchange(chosen.thrown, nullptr));
  }

 private:
  struct other {
    other() : thread([this] { serve(); }) {}
    ~other() {
      body = nullptr;
      begin.release();
      thread.join();
    }
    void serve() {
      for (begin.acquire(); body != nullptr; begin.acquire()) {
        try {
          (*body)();
        } catch (...) {
          thrown = std::current_exception();
        }
        end.release();
      }
    }

    std::binary_semaphore begin{0};
    std::binary_semaphore end{0};
    const std::function<void()>* body = nullptr;
    std::exception_ptr thrown;
    std::thread thread;  // last: it uses the others
  };

  std::vector<std::unique_ptr<other>> others_;
};

}  // namespace orderly::test
