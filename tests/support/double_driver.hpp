/// \file
/// A stream driver with doors, for tests that stop, refuse or look at single calls.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "orderly/software_stream.hpp"
#include "orderly/stream.hpp"

namespace orderly::test {

/// The software streams' driver, with a door at each call, and with one more handle that names another stream in every
/// thread that has one.
class double_driver final : public stream_driver {
 public:
  explicit double_driver(std::shared_ptr<stream_driver> inner) : inner_(std::move(inner)) {}

  std::uint64_t identity(stream_handle stream) noexcept override {
    if (identified) identified();
    if (unknown_while_capturing && inner_->capture(named(stream)) != 0) return 0;
    return inner_->identity(named(stream));
  }
  bool is_per_thread(stream_handle stream) noexcept override { return stream == per_thread(); }
  std::uint64_t capture(stream_handle stream) noexcept override {
    captures_asked.fetch_add(1, std::memory_order_relaxed);
    if (capture_asked) capture_asked();
    return inner_->capture(named(stream));
  }
  event_handle record(stream_handle stream) noexcept override {
    if (refuse_record && refuse_record(stream)) return nullptr;
    event_handle const event = inner_->record(named(stream));
    if (recorded) recorded(stream);
    return event;
  }
  bool wait(stream_handle stream, event_handle event) noexcept override {
    return !(refuse_wait && refuse_wait(stream)) && inner_->wait(named(stream), event);
  }
  event_status query(event_handle event) noexcept override {
    if (asked) asked();
    if (fail_query && fail_query()) return event_status::failed;
    return inner_->query(event);
  }
  bool synchronize(event_handle event) noexcept override { return inner_->synchronize(event); }
  void release(event_handle event) noexcept override {
    inner_->release(event);
    if (let_go) let_go();
  }
  bool synchronize_all() noexcept override {
    const bool known = inner_->synchronize_all();
    if (idle) idle();
    return known;
  }
  bool when_graph_is_gone(stream_handle stream, void (*gone)(void*), void* context) noexcept override {
    return inner_->when_graph_is_gone(named(stream), gone, context);
  }

  bool copy(stream_handle stream, void* to, const void* from, std::size_t bytes) noexcept override {
    return !(refuse_copy && refuse_copy(stream)) && inner_->copy(named(stream), to, from, bytes);
  }

  [[nodiscard]] stream_handle per_thread() noexcept { return &mark_; }
  static inline thread_local software_stream* own = nullptr;  ///< what per_thread() names in this thread

  // Set while nobody calls.
  bool unknown_while_capturing = false;
  std::function<bool(stream_handle)> refuse_record;
  std::function<bool(stream_handle)> refuse_wait;
  std::function<bool(stream_handle)> refuse_copy;
  std::function<bool()> fail_query;
  std::function<void(stream_handle)> recorded;
  std::function<void()> asked;
  std::function<void()> let_go;
  std::function<void()> idle;  ///< the device was, a moment ago
  std::function<void()> capture_asked;
  std::function<void()> identified;

  std::atomic<std::uint64_t> captures_asked = 0;

 private:
  [[nodiscard]] stream_handle named(stream_handle stream) noexcept {
    if (stream != per_thread()) return stream;
    return own != nullptr ? own->handle() : nullptr;
  }
  std::shared_ptr<stream_driver> inner_;
  char mark_ = 0;
};

}  // namespace orderly::test
