/// \file
/// A pool as Python's objects share it: the object that the program made it with, and every tensor in it. It goes with
/// the last of them, in whatever order they are collected, also at the interpreter's exit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include "interpreter.hpp"
#include "orderly/pool.hpp"
#include "orderly/stream_pool.hpp"

namespace orderly::python {

/// A device as DLPack numbers it.
struct place {
  std::int32_t type = nanobind::device::cpu::value;
  std::int32_t id = 0;

  [[nodiscard]] bool is_host() const noexcept {
    return type == nanobind::device::cpu::value || type == nanobind::device::cuda_host::value;
  }
  [[nodiscard]] bool is_cuda() const noexcept { return type != nanobind::device::cpu::value; }
  [[nodiscard]] std::string name() const;
  friend bool operator==(const place&, const place&) = default;
};

/// A program's functions for a pool's options::on_…. The pool's Python object owns them, so that a cycle through them
/// is collected; when that object is gone they are null, and the pool goes on without.
struct handlers {
  nanobind::object out_of_memory;
  nanobind::object bad_free;

  /// Has the pool call what is given here. Pre: the GIL is held.
  static void install(const std::shared_ptr<handlers>& given, options& settings);
};

struct software_stream_object;

/// Pre, for every member function and the destructor: the GIL is held. Those that may wait give it up meanwhile.
class memory {
 public:
  /// `keeps`: what must live as long as the memory, the buffer that it lies in, say.
  memory(pool&& plain, place where, nanobind::object keeps);
  /// `idle`: where blocks are allocated that are for no stream; null: they are for the default stream.
  memory(stream_pool&& in_streams, std::shared_ptr<stream_driver> driver, place where, stream_handle idle);
  memory(const memory&) = delete;
  memory& operator=(const memory&) = delete;
  ~memory();

  /// As the pools'. Throws what they throw, and python_error if a handler has raised.
  [[nodiscard]] void* allocate(std::size_t bytes, std::size_t alignment, stream_handle stream) {
    if (alignment <= 1) [[likely]] {
      void* block = nullptr;
      if (plain_)
        block = plain_->allocate_at_hand(bytes);
      else if (stream != settled)
        block = streams_ ? streams_->allocate_at_hand(bytes, stream) : nullptr;
      if (block != nullptr) return block;
    }
    return allocate_slowly(bytes, alignment, stream);
  }
  [[nodiscard]] checked_block allocate_checked(std::size_t bytes, std::size_t alignment, stream_handle stream);

  [[nodiscard]] error deallocate(void* pointer, std::size_t bytes, stream_handle stream, bad_free* report) {
    const bool done = plain_ ? plain_->deallocate_at_hand(pointer, bytes)
                             : streams_ && streams_->deallocate_at_hand(pointer, bytes, actual(stream));
    return done ? error::none : deallocate_slowly(pointer, bytes, stream, report);
  }
  [[nodiscard]] error deallocate(const checked_block& block, std::size_t bytes, stream_handle stream, bad_free* report);
  /// Of those who cannot raise: to the handler. Also without the GIL.
  void report(const bad_free& refused) const noexcept;

  [[nodiscard]] error record_stream(void* pointer, stream_handle stream);
  /// As stream_pool::divide(); for no stream, divide_settled(). invalid_argument: the pool has no streams.
  [[nodiscard]] error divide(void* pointer, std::size_t part_bytes, std::span<const std::uint32_t> live,
                             stream_handle stream, std::string& why);
  [[nodiscard]] error begin_capture(stream_handle stream);
  [[nodiscard]] error end_capture(stream_handle stream);
  bool release_stream(stream_handle stream);
  [[nodiscard]] bool synchronize();
  [[nodiscard]] bool stream_synchronize(stream_handle stream);
  /// Work that enters `later` from now on begins after what is in `earlier`. False: the driver refused.
  [[nodiscard]] bool order(stream_handle earlier, stream_handle later);

  /// Calls without the GIL, and the pool stays meanwhile.
  template <class Call>
  auto unlocked(const Call& call) {
    const in_call running(*this);
    return without_gil(call);
  }

  std::size_t defragment();
  std::size_t trim(std::size_t keep_bytes);
  std::size_t reserve(std::size_t bytes);

  [[nodiscard]] nanobind::dict stats() const;
  [[nodiscard]] nanobind::dict snapshot() const;
  /// By name; empty if no account is kept.
  [[nodiscard]] nanobind::dict tags() const;
  [[nodiscard]] memory_report report_for(std::size_t bytes) const;
  [[nodiscard]] bool owns(const void* pointer) const noexcept;
  [[nodiscard]] std::size_t block_size(const void* pointer) const noexcept;
  [[nodiscard]] std::size_t granule() const noexcept;
  [[nodiscard]] std::size_t capacity() const noexcept;
  [[nodiscard]] const pool* plain() const noexcept { return plain_ ? &*plain_ : nullptr; }
  [[nodiscard]] pool* plain() noexcept { return plain_ ? &*plain_ : nullptr; }
  [[nodiscard]] stream_pool* in_streams() noexcept { return streams_ ? &*streams_ : nullptr; }
  [[nodiscard]] bool has_streams() const noexcept { return driver_ != nullptr; }
  [[nodiscard]] bool is_open() const noexcept { return plain_ || streams_; }
  [[nodiscard]] const place& where() const noexcept { return where_; }

  /// Gives the memory back now, with all blocks. Raises RuntimeError while another thread is inside a call.
  void close();

  /// The stream has to live as long as the pool knows it.
  void keep(stream_handle stream, const std::shared_ptr<software_stream_object>& object);
  /// The same of another library's: its object destroys the stream.
  void keep(stream_handle stream, nanobind::handle object);

  /// Waits for all work in streams: it may use the memory, or blocks of it, that are about to go. Pre: there are streams,
  /// and the GIL is not held.
  void finish() noexcept { finish(*streams_); }

  /// In place of a stream: for no stream, where the pool has streams of its own.
  static inline char settled_place = 0;
  static inline const stream_handle settled = &settled_place;

  std::shared_ptr<handlers> asks;
  bool account_tags = false;
  std::size_t sets = 0;     ///< of relocatable blocks, alive
  std::size_t tensors = 0;  ///< alive
  bool hooked = false;      ///< another library's allocator uses the pool, for ever

 private:
  /// A call without the GIL, which the pool must survive.
  class in_call {
   public:
    explicit in_call(const memory& of) : of_(of) { ++of.calls_; }
    in_call(const in_call&) = delete;
    in_call& operator=(const in_call&) = delete;
    ~in_call() { --of_.calls_; }

   private:
    const memory& of_;
  };

  void finish(stream_pool& of) const noexcept;
  [[nodiscard]] stream_handle actual(stream_handle stream) const noexcept { return stream == settled ? idle_ : stream; }
  [[nodiscard]] void* allocate_slowly(std::size_t bytes, std::size_t alignment, stream_handle stream);
  [[nodiscard]] error deallocate_slowly(void* pointer, std::size_t bytes, stream_handle stream, bad_free* report);
  void require_open() const;

  nanobind::object keeps_;
  std::map<stream_handle, std::shared_ptr<software_stream_object>> kept_;
  std::map<stream_handle, nanobind::object> kept_objects_;
  std::shared_ptr<stream_driver> driver_;
  std::optional<pool> plain_;
  std::optional<stream_pool> streams_;
  place where_;
  stream_handle idle_ = nullptr;
  mutable std::size_t calls_ = 0;  ///< that run without the GIL
};

}  // namespace orderly::python
