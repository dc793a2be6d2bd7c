/// \file
/// Software streams, each with a thread, and a buffer of host memory.
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <list>
#include <map>
#include <new>

#include "orderly/software_stream.hpp"
#include "stream/world.hpp"

namespace orderly::bench {

/// Addresses of which the system provides those that are touched.
class lazy_buffer {
 public:
  explicit lazy_buffer(std::size_t bytes) : bytes_(bytes) {
    void* const made = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (made == MAP_FAILED) throw std::bad_alloc();
    begin_ = static_cast<std::byte*>(made);
  }
  lazy_buffer(const lazy_buffer&) = delete;
  lazy_buffer& operator=(const lazy_buffer&) = delete;
  ~lazy_buffer() { munmap(begin_, bytes_); }
  [[nodiscard]] std::byte* begin() const noexcept { return begin_; }

 private:
  std::size_t bytes_;
  std::byte* begin_;
};

class software_world {
 public:
  static constexpr std::string_view name = "software";
  [[nodiscard]] static bool available() { return true; }

  [[nodiscard]] std::shared_ptr<stream_driver> driver() { return driver_; }
  [[nodiscard]] std::unique_ptr<memory_source> source(std::size_t bytes) {
    return make_fixed_buffer_source(buffers_.emplace_back(bytes).begin(), bytes);
  }
  [[nodiscard]] stream_handle make_stream() {
    software_stream made(device_);
    const stream_handle handle = made.handle();
    streams_.emplace(handle, std::move(made));
    return handle;
  }
  void finish(stream_handle stream) { streams_.at(stream).synchronize(); }
  void finish() {
    for (auto& each : streams_) each.second.synchronize();
  }
  void occupy(stream_handle stream) {
    using clock = std::chrono::steady_clock;
    streams_.at(stream).enqueue([] {
      for (const auto end = clock::now() + std::chrono::microseconds(20); clock::now() < end;) {
      }
    });
  }
  void record(mark& at, stream_handle stream) {
    at.event = driver_->record(stream);
    own_calls_.fetch_add(1, std::memory_order_relaxed);  // a figure
  }
  void wait(stream_handle stream, mark& at) {
    static_cast<void>(driver_->wait(stream, at.event));
    driver_->release(at.event);
    own_calls_.fetch_add(1, std::memory_order_relaxed);  // a figure
  }
  [[nodiscard]] std::uint64_t calls() const {
    const software_calls made = device_.calls();
    return made.records + made.waits + made.queries + made.synchronizations -
           own_calls_.load(std::memory_order_relaxed);  // a figure
  }

 private:
  std::list<lazy_buffer> buffers_;
  software_device device_;
  std::shared_ptr<stream_driver> driver_ = device_.driver();
  std::map<stream_handle, software_stream> streams_;  // not changed while threads are at work
  std::atomic<std::uint64_t> own_calls_{0};
};

}  // namespace orderly::bench
