/// \file
/// Ways to look into orderly's pools, for pictures of them.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <type_traits>

#include "orderly/source.hpp"
#include "orderly/stats.hpp"
#include "orderly/stream_pool.hpp"
#include "peer/peer.hpp"

namespace orderly::bench {

/// Host memory, with somebody who is told of it.
class watched_source final : public memory_source {
 public:
  explicit watched_source(memory_watcher& by) : by_(by) {}

  [[nodiscard]] std::size_t granularity() const noexcept override { return host_->granularity(); }
  [[nodiscard]] std::size_t preferred_chunk() const noexcept override { return host_->preferred_chunk(); }
  [[nodiscard]] std::size_t capacity() const noexcept override { return host_->capacity(); }
  [[nodiscard]] bool is_virtual() const noexcept override { return host_->is_virtual(); }
  [[nodiscard]] bool is_host_memory() const noexcept override { return host_->is_host_memory(); }
  [[nodiscard]] void* reserve(std::size_t bytes, std::size_t alignment) noexcept override {
    return host_->reserve(bytes, alignment);
  }
  void release(void* address, std::size_t bytes) noexcept override { host_->release(address, bytes); }
  [[nodiscard]] bool commit(void* address, std::size_t bytes) noexcept override {
    const bool done = host_->commit(address, bytes);
    if (done) by_.committed(address, bytes);
    return done;
  }
  [[nodiscard]] bool decommit(void* address, std::size_t bytes) noexcept override {
    const bool done = host_->decommit(address, bytes);
    if (done) by_.decommitted(address, bytes);
    return done;
  }

 private:
  std::unique_ptr<memory_source> host_ = make_host_source();
  memory_watcher& by_;
};

[[nodiscard]] inline std::unique_ptr<memory_source> watched_host_source(memory_watcher* watcher) {
  if (watcher == nullptr) return make_host_source();
  return std::make_unique<watched_source>(*watcher);
}

/// `Pool` is pool or stream_pool, and outlives the view.
template <class Pool>
class view_of final : public pool_view {
 public:
  explicit view_of(const Pool& of) : of_(of) {}

  [[nodiscard]] statistics stats() const noexcept override {
    if constexpr (std::is_same_v<Pool, stream_pool>) {
      return of_.stats().memory;
    } else {
      return of_.stats();
    }
  }
  [[nodiscard]] std::size_t granule() const noexcept override { return of_.granule(); }
  [[nodiscard]] std::size_t block_size(const void* pointer) const noexcept override { return of_.block_size(pointer); }
  void each_block(const std::function<void(const block_info&)>& visit) const override { of_.for_each_block(visit); }

 private:
  const Pool& of_;
};

}  // namespace orderly::bench
