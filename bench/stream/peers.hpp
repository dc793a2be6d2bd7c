/// \file
/// Pools in stream order, each over any world: orderly, and the scheme that most pools use.
///
///   static constexpr std::string_view name;
///   peer(World&, std::size_t bytes);
///   void* allocate(std::size_t bytes, stream_handle) noexcept;   null: refused
///   void deallocate(void*, std::size_t bytes, stream_handle) noexcept;
#pragma once

#include <bit>
#include <deque>
#include <map>
#include <mutex>
#include <utility>

#include "orderly/pool.hpp"
#include "orderly/stream_pool.hpp"
#include "stream/world.hpp"

namespace orderly::bench {

/// How a pool keeps track of its streams: the default, by handle; with a question at each call whether the stream captures;
/// or with its identity at each call and an event at each free.
enum class care { plain, watching, safe };

template <stream_world World, care How = care::plain>
class orderly_stream_peer {
 public:
  static constexpr std::string_view name = How == care::plain      ? "orderly"
                                           : How == care::watching ? "orderly-watching-captures"
                                                                   : "orderly-safe-mode";

  orderly_stream_peer(World& world, std::size_t bytes) : pool_(world.source(bytes), world.driver(), settings()) {}
  [[nodiscard]] void* allocate(std::size_t bytes, stream_handle stream) noexcept {
    return pool_.try_allocate(bytes, stream);
  }
  void deallocate(void* block, std::size_t bytes, stream_handle stream) noexcept {
    pool_.deallocate(block, bytes, stream);
  }
  [[nodiscard]] stream_counts counts() const noexcept {
    const stream_statistics made = pool_.stats();
    return {made.events_recorded, made.waits};
  }

 private:
  [[nodiscard]] static stream_options settings() {
    stream_options s;
    s.memory.on_bad_free = on_bad_free::abort;
    s.watch_captures = How == care::watching;
    s.safe_mode = How == care::safe;
    return s;
  }
  stream_pool pool_;
};

/// orderly's pool without streams, on the same memory: what order costs.
template <stream_world World>
class orderly_host_peer {
 public:
  static constexpr std::string_view name = "orderly-without-streams";

  orderly_host_peer(World& world, std::size_t bytes)
      : pool_(world.source(bytes), options{.on_out_of_memory = {}, .on_bad_free = on_bad_free::abort}) {}
  [[nodiscard]] void* allocate(std::size_t bytes, stream_handle) noexcept { return pool_.try_allocate(bytes); }
  void deallocate(void* block, std::size_t bytes, stream_handle) noexcept { pool_.deallocate(block, bytes); }

 private:
  pool pool_;
};

/// One mutex, a list of free blocks per size and stream, an event recorded at every free: the scheme of RMM's pool and
/// of others. Blocks of another stream are taken when their event has passed, or else behind a wait. Sizes are rounded
/// to powers of two, and the memory is divided once and for all. Of the world it needs driver() and source().
template <class World>
class classic_peer {
 public:
  static constexpr std::string_view name = "classic";

  classic_peer(World& world, std::size_t bytes)
      : driver_(world.driver()), source_(world.source(bytes)), bytes_(bytes),
        base_(static_cast<std::byte*>(source_->reserve(bytes, 256))), next_(base_) {}
  classic_peer(const classic_peer&) = delete;
  classic_peer& operator=(const classic_peer&) = delete;
  ~classic_peer() {
    for (auto& [size, streams] : free_)
      for (auto& [stream, blocks] : streams)
        for (freed& each : blocks) driver_->release(each.event);
    source_->release(base_, bytes_);
  }

  [[nodiscard]] void* allocate(std::size_t bytes, stream_handle stream) noexcept {
    const std::size_t size = std::bit_ceil(bytes);
    const std::lock_guard lock(mutex_);
    auto& streams = free_[size];
    if (auto& mine = streams[stream]; !mine.empty()) return take(mine);
    if (next_ + size <= base_ + bytes_) return std::exchange(next_, next_ + size);
    for (auto& [other, blocks] : streams) {
      if (blocks.empty()) continue;
      if (driver_->query(blocks.front().event) != event_status::complete) {
        if (!driver_->wait(stream, blocks.front().event)) continue;
        ++counts_.waits;
      }
      return take(blocks);
    }
    return nullptr;
  }
  void deallocate(void* block, std::size_t bytes, stream_handle stream) noexcept {
    const std::lock_guard lock(mutex_);
    ++counts_.records;
    free_[std::bit_ceil(bytes)][stream].push_back({block, driver_->record(stream)});
  }
  [[nodiscard]] stream_counts counts() const noexcept {
    const std::lock_guard lock(mutex_);
    return counts_;
  }
  /// Bytes divided into blocks so far.
  [[nodiscard]] std::size_t divided() const noexcept {
    const std::lock_guard lock(mutex_);
    return static_cast<std::size_t>(next_ - base_);
  }

 private:
  struct freed {
    void* block;
    event_handle event;
  };
  [[nodiscard]] void* take(std::deque<freed>& from) noexcept {
    const freed taken = from.front();
    from.pop_front();
    driver_->release(taken.event);
    return taken.block;
  }

  std::shared_ptr<stream_driver> driver_;
  std::unique_ptr<memory_source> source_;
  std::size_t bytes_;
  std::byte* base_;
  std::byte* next_;
  mutable std::mutex mutex_;
  stream_counts counts_;
  std::map<std::size_t, std::map<stream_handle, std::deque<freed>>> free_;
};

}  // namespace orderly::bench
