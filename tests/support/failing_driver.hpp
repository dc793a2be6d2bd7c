/// \file
/// A stream driver whose k-th call fails, of whatever kind it is.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "orderly/stream.hpp"
#include "support/fault_plan.hpp"

namespace orderly::test {

/// Obeys `plan`, which outlives it. What the driver below does of its own for a call is not refused.
class failing_driver final : public stream_driver {
 public:
  failing_driver(std::shared_ptr<stream_driver> inner, fault_plan& plan) : inner_(std::move(inner)), plan_(plan) {}

  std::uint64_t identity(stream_handle stream) noexcept override {
    return plan_.refuses() ? 0 : inner_->identity(stream);
  }
  bool is_per_thread(stream_handle stream) noexcept override { return inner_->is_per_thread(stream); }
  std::uint64_t capture(stream_handle stream) noexcept override {
    return plan_.refuses() ? unknown_capture : inner_->capture(stream);
  }
  bool when_graph_is_gone(stream_handle stream, void (*gone)(void*), void* context) noexcept override {
    return !plan_.refuses() && inner_->when_graph_is_gone(stream, gone, context);
  }
  event_handle record(stream_handle stream) noexcept override {
    event_handle const event = plan_.refuses() ? nullptr : inner_->record(stream);
    if (event != nullptr) ++events_;
    return event;
  }
  bool wait(stream_handle stream, event_handle event) noexcept override {
    return !plan_.refuses() && inner_->wait(stream, event);
  }
  event_status query(event_handle event) noexcept override {
    return plan_.refuses() ? event_status::failed : inner_->query(event);
  }
  bool synchronize(event_handle event) noexcept override { return !plan_.refuses() && inner_->synchronize(event); }
  bool synchronize_all() noexcept override { return !plan_.refuses() && inner_->synchronize_all(); }
  void release(event_handle event) noexcept override {
    --events_;
    inner_->release(event);
  }

  bool copy(stream_handle stream, void* to, const void* from, std::size_t bytes) noexcept override {
    return !plan_.refuses() && inner_->copy(stream, to, from, bytes);
  }

  /// Recorded and not released.
  [[nodiscard]] std::ptrdiff_t events() const noexcept { return events_.load(); }

 private:
  std::shared_ptr<stream_driver> inner_;
  fault_plan& plan_;
  std::atomic<std::ptrdiff_t> events_{0};
};

}  // namespace orderly::test
