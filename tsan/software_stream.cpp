/// \file
/// Programs that use a buffer in two software streams, right and wrong. ThreadSanitizer can tell them apart only as
/// long as the streams bring nothing back to the host but what events bring.
///
/// In all of them stream `a` writes the buffer, and when it has, the host has stream `b` write it. Between the two:
///
///   software_stream early         nothing but other work for `a`: must be reported
///   software_stream stale         waits for an event that was recorded before the write: must be reported
///   software_stream pending       asks for an event behind the write that is not complete yet: must be reported
///   software_stream destroyed     destroys `a`: must be reported
///   software_stream recycled      records an event again that `a` has waited for: must be reported
///   software_stream ordered       makes `b` wait for an event of `a`: nothing to report
///   software_stream queried       asks for an event of `a` until it is complete: nothing to report
///   software_stream synchronized  waits for `a`: nothing to report
#include "orderly/software_stream.hpp"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <string_view>
#include <thread>
#include <vector>

namespace {

/// Tells that work has run, and orders nothing.
class sign {
 public:
  void show() noexcept { shown_.store(true, std::memory_order_relaxed); }
  void await() const noexcept {
    while (!shown_.load(std::memory_order_relaxed)) std::this_thread::yield();
  }

 private:
  std::atomic<bool> shown_ = false;
};

int run(std::string_view mode) {
  using enum orderly::event_status;
  std::vector<int> buffer(16);
  sign written;
  sign passed;
  sign go_on;
  const orderly::software_device device;
  const std::shared_ptr<orderly::stream_driver> driver = device.driver();
  std::optional<orderly::software_stream> a(std::in_place, device);
  orderly::software_stream b(device);
  orderly::software_stream c(device);

  const orderly::event_handle before = driver->record(a->handle());
  a->enqueue([&] {
    for (int& value : buffer) value = 1;
    written.show();
  });
  a->enqueue([&] {
    if (mode == "pending") go_on.await();
  });
  const orderly::event_handle behind = driver->record(a->handle());
  written.await();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // the workers fall asleep, and have to be woken

  bool as_expected = true;
  if (mode == "stale") as_expected = driver->synchronize(before) && driver->query(before) == complete;
  if (mode == "pending") {
    as_expected = driver->query(behind) == pending;
    go_on.show();
  }
  if (mode == "destroyed") a.reset();
  if (mode == "recycled") {
    const orderly::event_handle event = driver->record(c.handle());
    as_expected = driver->wait(a->handle(), event);
    driver->release(event);
    a->enqueue([&] { passed.show(); });
    passed.await();
    as_expected = as_expected && driver->record(c.handle()) == event;
  }
  if (mode == "ordered") as_expected = driver->wait(b.handle(), behind);
  if (mode == "queried") {
    while (driver->query(behind) == pending) std::this_thread::yield();
  }
  if (mode == "synchronized") as_expected = a->synchronize();

  int unrelated = 0;
  for (int count = 0; a && count < 100; ++count) a->enqueue([&] { ++unrelated; });
  orderly::software_stream made_later(device);
  b.enqueue([&] {
    for (int& value : buffer) value = 2;
  });
  as_expected = b.synchronize() && as_expected;
  if (a) as_expected = a->synchronize() && as_expected && unrelated == 100;
  driver->release(before);
  driver->release(behind);
  return as_expected && buffer.back() == 2 ? 0 : 2;
}

}  // namespace

int main(int count, char** arguments) {
  const std::string_view mode = count == 2 ? arguments[1] : "";
  for (const std::string_view known :
       {"early", "stale", "pending", "destroyed", "recycled", "ordered", "queried", "synchronized"}) {
    if (mode == known) return run(mode);
  }
  std::fputs("usage: software_stream early|stale|pending|destroyed|recycled|ordered|queried|synchronized\n", stderr);
  return 3;
}
