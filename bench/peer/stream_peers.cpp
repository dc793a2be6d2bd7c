/// The peers that know streams, for the replay. Streams are software streams, made when they are first named.

#include <array>
#include <atomic>
#include <mutex>
#include <optional>

#include "orderly/software_stream.hpp"
#include "orderly/stream_pool.hpp"
#include "peer/orderly.hpp"
#include "peer/peer.hpp"
#include "peer/watched.hpp"
#include "stream/peers.hpp"
#include "stream/software.hpp"

namespace orderly::bench {
namespace {

/// A stream in which no more than so much work waits.
class bounded_stream {
 public:
  bounded_stream(const software_device& device, std::size_t most) : stream_(device), most_(most) {}
  [[nodiscard]] stream_handle handle() const noexcept { return stream_.handle(); }
  void write(void* to) {
    if (queued_ - done_.load(std::memory_order_acquire) >= most_) stream_.synchronize();  // the work below
    ++queued_;
    stream_.enqueue([to, this] {
      *static_cast<char*>(to) = 1;
      done_.fetch_add(1, std::memory_order_release);  // whoever counts it may read what was written
    });
  }
  void finish() { stream_.synchronize(); }

 private:
  software_stream stream_;
  std::size_t most_;
  std::size_t queued_ = 0;  // by the one thread whose stream it is
  std::atomic<std::size_t> done_{0};
};

class stream_set {
 public:
  explicit stream_set(const arena_config& config) : run_ahead_(config.run_ahead), device_(config.schedule) {}
  ~stream_set() {
    for (auto& each : streams_) delete each.load(std::memory_order_relaxed);  // no other thread
  }
  stream_set(const stream_set&) = delete;
  stream_set& operator=(const stream_set&) = delete;

  [[nodiscard]] const software_device& device() const noexcept { return device_; }
  [[nodiscard]] bounded_stream& operator[](std::size_t number) {
    std::atomic<bounded_stream*>& slot = streams_.at(number);
    if (bounded_stream* const made = slot.load(std::memory_order_acquire)) return *made;  // the store below
    const std::lock_guard lock(mutex_);
    if (slot.load(std::memory_order_relaxed) == nullptr)  // changed under this mutex only
      slot.store(new bounded_stream(device_, run_ahead_), std::memory_order_release);
    return *slot.load(std::memory_order_relaxed);
  }
  void finish() {
    for (auto& each : streams_)
      if (bounded_stream* const made = each.load(std::memory_order_acquire)) made->finish();  // operator[]
  }

 private:
  std::size_t run_ahead_;
  software_device device_;
  std::mutex mutex_;
  std::array<std::atomic<bounded_stream*>, 1024> streams_{};
};

/// What both schemes share: `Pool` has try_allocate and deallocate with a stream's handle.
template <class Pool>
class adapter final : public any_peer {
 public:
  explicit adapter(const arena_config& config) : streams_(config), pool_(config, streams_.device()) {}
  ~adapter() override { streams_.finish(); }  // work in streams writes to the pool's memory

  void* allocate(std::size_t bytes) noexcept override { return allocate_in(0, bytes); }
  bool deallocate(void* pointer, std::size_t bytes) noexcept override { return deallocate_in(0, pointer, bytes); }
  void* allocate_in(std::size_t stream, std::size_t bytes) noexcept override {
    return pool_.allocate(bytes, streams_[stream].handle());
  }
  bool deallocate_in(std::size_t stream, void* pointer, std::size_t bytes) noexcept override {
    return pool_.deallocate(pointer, bytes, streams_[stream].handle());
  }
  void use_in(std::size_t stream, void* pointer) override { streams_[stream].write(pointer); }
  [[nodiscard]] std::size_t committed() const noexcept override { return pool_.committed(); }
  [[nodiscard]] std::size_t peak_committed() const noexcept override { return pool_.peak_committed(); }
  [[nodiscard]] std::optional<stream_work> made() const noexcept override { return pool_.made(); }
  [[nodiscard]] const pool_view* inside() const noexcept override {
    if constexpr (requires { pool_.inside(); }) return pool_.inside();
    return nullptr;
  }

 private:
  stream_set streams_;
  Pool pool_;
};

/// Commits host memory by chunk, or divides a flat buffer of all that may be held.
template <bool Flat, bool Waits>
class orderly_streams {
 public:
  orderly_streams(const arena_config& config, const software_device& device)
      : buffer_(Flat ? std::optional<lazy_buffer>(std::in_place, held(config)) : std::nullopt),
        pool_(Flat ? make_fixed_buffer_source(buffer_->begin(), held(config)) : watched_host_source(config.watcher),
              device.driver(),
              settings(config)) {}

  [[nodiscard]] void* allocate(std::size_t bytes, stream_handle stream) noexcept {
    return pool_.try_allocate(bytes, stream);
  }
  [[nodiscard]] bool deallocate(void* pointer, std::size_t bytes, stream_handle stream) noexcept {
    return pool_.try_deallocate(pointer, bytes, stream) == error::none;
  }
  // All of a flat buffer is there from the start; its smallest limit tells more.
  [[nodiscard]] std::size_t committed() const noexcept { return Flat ? 0 : pool_.stats().memory.committed; }
  [[nodiscard]] std::size_t peak_committed() const noexcept { return Flat ? 0 : pool_.stats().memory.peak_committed; }
  [[nodiscard]] stream_work made() const noexcept {
    const stream_statistics now = pool_.stats();
    return {now.events_recorded, now.waits};
  }
  [[nodiscard]] const pool_view* inside() const noexcept { return Flat ? nullptr : &view_; }

 private:
  [[nodiscard]] static std::size_t held(const arena_config& config) noexcept {
    return config.limit != 0 ? config.limit : config.capacity;
  }
  [[nodiscard]] static stream_options settings(const arena_config& config) {
    stream_options all;
    const double preset = all.memory.slack;
    all.memory = orderly_peer::options_for(config);
    if (config.slack < 0) all.memory.slack = preset;
    all.wait_before_refusing = Waits;
    if (Flat) all.memory.capacity = all.memory.limit = all.memory.chunk = 0;
    return all;
  }
  std::optional<lazy_buffer> buffer_;
  stream_pool pool_;
  view_of<stream_pool> view_{pool_};
};

class classic_streams {
 public:
  classic_streams(const arena_config& config, const software_device& device)
      : world_{device.driver()}, pool_(world_, config.limit != 0 ? config.limit : config.capacity) {}

  [[nodiscard]] void* allocate(std::size_t bytes, stream_handle stream) noexcept {
    return pool_.allocate(bytes, stream);
  }
  [[nodiscard]] bool deallocate(void* pointer, std::size_t bytes, stream_handle stream) noexcept {
    pool_.deallocate(pointer, bytes, stream);
    return true;
  }
  [[nodiscard]] std::size_t committed() const noexcept { return pool_.divided(); }
  [[nodiscard]] std::size_t peak_committed() const noexcept { return pool_.divided(); }
  [[nodiscard]] stream_work made() const noexcept {
    const stream_counts now = pool_.counts();
    return {now.records, now.waits};
  }

 private:
  /// As much of a world as the scheme asks for.
  struct world {
    std::shared_ptr<stream_driver> driver_of_device;
    std::optional<lazy_buffer> buffer{};
    [[nodiscard]] std::shared_ptr<stream_driver> driver() { return driver_of_device; }
    [[nodiscard]] std::unique_ptr<memory_source> source(std::size_t bytes) {
      return make_fixed_buffer_source(buffer.emplace(bytes).begin(), bytes);
    }
  };
  world world_;
  classic_peer<world> pool_;
};

template <class Pool>
std::unique_ptr<any_peer> make(const arena_config& config) {
  return std::make_unique<adapter<Pool>>(config);
}

}  // namespace

std::span<const peer_entry> stream_peers() noexcept {
  static constexpr std::array<peer_entry, 4> entries{{
      {"orderly-streams", true, make<orderly_streams<false, false>>},
      {"orderly-waiting-streams", true, make<orderly_streams<false, true>>},
      {"orderly-flat-streams", true, make<orderly_streams<true, false>>},
      {"classic-streams", true, make<classic_streams>},
  }};
  return entries;
}

}  // namespace orderly::bench
