/// \file
/// Streams that run on CPU threads: for programs without a device, and for tests of those with one.
///
/// A software stream keeps what a device's stream promises and nothing more. Work runs in the order in which it
/// entered; two streams are ordered by events alone. With workers, the queues carry happens-before from the thread that
/// enqueues to the thread that runs, never back: only a completed event and synchronize() bring it back. So
/// ThreadSanitizer reports a program that reuses memory in another stream, or on the host, without the event it needs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "orderly/export.h"
#include "orderly/stream.hpp"

namespace orderly {

/// When queued work runs. All but `workers` run it on the threads that call, inside their calls, one piece at a time;
/// with one calling thread the whole run is the same each time.
enum class software_schedule {
  workers,  ///< each stream has a thread
  eager,    ///< at once
  lazy,     ///< when somebody waits for it, and then no more than that needs; query() runs nothing
  random,   ///< each call runs a number of pieces, and picks the streams, by the seed
};

/// Calls of the driver since its device was made, refused ones included.
struct software_calls {
  std::uint64_t records = 0;
  std::uint64_t waits = 0;
  std::uint64_t queries = 0;
  std::uint64_t synchronizations = 0;  ///< of events
  std::uint64_t releases = 0;
  std::uint64_t events = 0;            ///< made so far; a record uses a released one again where it can
};

/// Where software streams run.
///
/// Thread safety: every function of it, of its driver and of its streams may be called from several threads at once.
/// Progress: locks, held briefly; under the schedules without workers, as long as work runs. Work must not call any of
/// them.
///
/// Lifetime: streams and holders of the driver may outlive it. When the last of them goes, all work is done, and that
/// thread waits for it.
class ORDERLY_API software_device {
 public:
  /// Throws std::system_error when no thread can be started.
  explicit software_device(software_schedule schedule = software_schedule::workers, std::uint64_t seed = 0);
  software_device(software_device&& other) noexcept;
  software_device& operator=(software_device&& other) noexcept;
  ~software_device();

  /// The device as a stream_pool sees it. A null handle names no stream of it; any other handle must be one of its
  /// streams' or of a destroyed one. An event of a stream that captures cannot be queried or waited for until the
  /// capture ends.
  [[nodiscard]] std::shared_ptr<stream_driver> driver() const noexcept;

  [[nodiscard]] software_calls calls() const noexcept;

 private:
  friend class software_stream;
  class ORDERLY_LOCAL state;
  std::shared_ptr<state> state_;
};

/// Work that a stream captured instead of running it. It may be launched any number of times; each launch runs copies.
/// A graph is gone (stream_driver::when_graph_is_gone) when its last copy is destroyed and its last launch has run.
class software_graph {
 public:
  software_graph() = default;
  [[nodiscard]] std::size_t size() const noexcept { return work_.size(); }

 private:
  friend class software_stream;
  std::vector<std::function<void()>> work_;
  std::vector<std::shared_ptr<void>> kept_;  ///< tell somebody when the last copy of the graph goes
};

/// A stream. Its handle is valid while it lives, and may name another stream afterwards.
///
/// Destruction returns at once. Work in the queue still runs, and events recorded in the stream still complete; under
/// the lazy schedule when somebody waits for them.
class ORDERLY_API software_stream {
 public:
  /// Throws std::system_error when no thread can be started.
  explicit software_stream(const software_device& device);
  software_stream(software_stream&& other) noexcept;
  software_stream& operator=(software_stream&& other) noexcept;
  ~software_stream();

  [[nodiscard]] stream_handle handle() const noexcept { return handle_; }

  /// Queues work; an exception that leaves it ends the program. The queue has no bound. While the stream captures, the
  /// work is kept for the graph. Throws std::bad_alloc; then nothing was queued.
  void enqueue(std::function<void()> work);

  /// Waits for all work that is in the stream now. False: refused, the stream captures. Throws std::bad_alloc.
  bool synchronize();

  /// False: the stream captures already.
  [[nodiscard]] bool begin_capture() noexcept;

  /// What was enqueued since begin_capture(). Empty if that was not called.
  [[nodiscard]] software_graph end_capture() noexcept;

  /// Queues a graph's work as one piece. As enqueue().
  void launch(const software_graph& graph);

 private:
  std::shared_ptr<software_device::state> state_;
  stream_handle handle_ = nullptr;
};

}  // namespace orderly
