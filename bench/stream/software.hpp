/// \file
/// Software streams, each with a thread, and a buffer of host memory.
#pragma once

#include <list>
#include <new>
#include <vector>

#include "orderly/software_stream.hpp"
#include "stream/world.hpp"

namespace orderly::bench {

class software_world {
 public:
  static constexpr std::string_view name = "software";
  [[nodiscard]] static bool available() { return true; }

  [[nodiscard]] std::shared_ptr<stream_driver> driver() { return device_.driver(); }
  [[nodiscard]] std::unique_ptr<memory_source> source(std::size_t bytes) {
    buffer_.reset(new (std::align_val_t{4096}) std::byte[bytes]);
    return make_fixed_buffer_source(buffer_.get(), bytes);
  }
  [[nodiscard]] stream_handle make_stream() { return streams_.emplace_back(device_).handle(); }
  void finish() {
    for (software_stream& each : streams_) each.synchronize();
  }
  [[nodiscard]] std::uint64_t calls() const {
    const software_calls made = device_.calls();
    return made.records + made.waits + made.queries + made.synchronizations;
  }

 private:
  struct aligned_delete {
    void operator()(std::byte* bytes) const noexcept { ::operator delete[](bytes, std::align_val_t{4096}); }
  };
  std::unique_ptr<std::byte[], aligned_delete> buffer_;
  software_device device_;
  std::list<software_stream> streams_;
};

}  // namespace orderly::bench
