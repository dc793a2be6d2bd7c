/// \file
/// Streams and events as a pool sees them. A stream runs the work that is put into it in order; an event marks a position
/// in it. CUDA streams are one kind, the software streams of orderly/software_stream.hpp another; a new kind is one class
/// that implements stream_driver.
#pragma once

#include <cstddef>
#include <cstdint>

#include "orderly/export.h"

namespace orderly {

/// Names a stream: what its kind uses for that, a cudaStream_t or the address of a software stream. A handle may be used
/// again for another stream after its stream was destroyed.
using stream_handle = void*;

/// Names an event that a driver recorded. Null: none.
using event_handle = void*;

enum class event_status {
  complete,  ///< all work before the event is done
  pending,   ///< not yet
  failed,    ///< the driver cannot tell, now or ever: the device has failed, or the question is not allowed here
};

/// What a pool needs of a kind of streams.
///
/// Thread safety: every function may be called from several threads at once. Progress: a driver may take locks; the pool
/// calls it off its hot path only. None of them waits for a device, except those that say so. Inside a call it must not
/// fork, and not make or destroy a pool.
class ORDERLY_API stream_driver {
 public:
  static constexpr std::uint64_t unknown_capture = UINT64_MAX;

  stream_driver() = default;
  stream_driver(const stream_driver&) = delete;
  stream_driver& operator=(const stream_driver&) = delete;
  virtual ~stream_driver();

  /// A number that no other stream of the process ever has. 0: the handle names no stream, or it cannot be told now (some
  /// drivers refuse while the stream captures).
  [[nodiscard]] virtual std::uint64_t identity(stream_handle stream) noexcept = 0;

  /// True if the handle names another stream in every thread, as CUDA's per-thread default stream does.
  [[nodiscard]] virtual bool is_per_thread(stream_handle stream) noexcept = 0;

  /// The number of the capture that the stream takes part in; 0: none; unknown_capture: that cannot be told now. While a
  /// stream captures, no event may be recorded in it or awaited by it.
  [[nodiscard]] virtual std::uint64_t capture(stream_handle stream) noexcept = 0;

  /// Calls `gone(context)` once, when the graph that the stream captures into now is gone with all that was made of it,
  /// and no launch of it runs any more. The call may come on any thread, and from inside the streams' own machinery: it
  /// must be brief, and call neither the driver nor a pool. False: the stream does not capture, or refused; `gone` is not
  /// called then. Kinds without captures need not implement it.
  [[nodiscard]] virtual bool when_graph_is_gone(stream_handle stream, void (*gone)(void* context),
                                                void* context) noexcept;

  /// Records an event behind all work that is in the stream now. Null: refused.
  [[nodiscard]] virtual event_handle record(stream_handle stream) noexcept = 0;

  /// Work that enters the stream from now on begins after the event. The calling thread does not wait. False: refused.
  [[nodiscard]] virtual bool wait(stream_handle stream, event_handle event) noexcept = 0;

  [[nodiscard]] virtual event_status query(event_handle event) noexcept = 0;

  /// Waits for the event. False: it will never come.
  [[nodiscard]] virtual bool synchronize(event_handle event) noexcept = 0;

  /// Waits until all work is done that streams of the device were given before, also those destroyed since. False: it
  /// cannot tell. Kinds that cannot need not implement it.
  [[nodiscard]] virtual bool synchronize_all() noexcept;

  /// Ends the use of an event of record(), complete or not. Waits that were put into streams stay.
  virtual void release(event_handle event) noexcept = 0;

  /// Copies in the stream: behind the work that is in it now, before work that enters it later. The ranges do not overlap.
  /// False: refused, and nothing was put into the stream. Kinds that cannot copy need not implement it.
  [[nodiscard]] virtual bool copy(stream_handle stream, void* to, const void* from, std::size_t bytes) noexcept;
};

}  // namespace orderly
