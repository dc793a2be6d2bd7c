/// \file
/// What tests of pools in stream order share: a device with software streams and a pool of theirs, work that notices when
/// it is not alone with a block, and the end of a test, where everything has come back.
#pragma once

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "orderly/software_stream.hpp"
#include "orderly/stream_pool.hpp"
#include "support/audit.hpp"
#include "support/threads.hpp"

namespace orderly::test {

inline constexpr std::size_t kib = 1024;
inline constexpr std::size_t mib = 1024 * kib;

/// A device, streams and a pool of theirs.
struct bench {
  using driver_wrapper = std::shared_ptr<stream_driver> (*)(std::shared_ptr<stream_driver> inner);

  /// `wrap`, if given, makes the pool's driver of the device's.
  explicit bench(std::size_t streams, std::size_t capacity, software_schedule schedule = software_schedule::lazy,
                 stream_options settings = {}, std::uint64_t seed = 0, bool flat = false, driver_wrapper wrap = nullptr)
      : device(schedule, seed),
        driver(wrap == nullptr ? device.driver() : wrap(device.driver())),
        buffer(flat ? new (std::align_val_t{4096}) std::byte[capacity] : nullptr) {
    settings.memory.capacity = capacity;
    if (!settings.memory.on_bad_free) settings.memory.on_bad_free = on_bad_free::count;
    tested.emplace(flat ? make_fixed_buffer_source(buffer.get(), capacity) : make_host_source(), driver, settings);
    for (std::size_t i = 0; i < streams; ++i) stream.emplace_back(device);
  }
  [[nodiscard]] stream_handle operator[](std::size_t i) const { return stream[i].handle(); }

  struct aligned_delete {
    void operator()(std::byte* bytes) const noexcept { ::operator delete[](bytes, std::align_val_t{4096}); }
  };

  software_device device;
  std::shared_ptr<stream_driver> driver;
  std::unique_ptr<std::byte[], aligned_delete> buffer;
  std::optional<stream_pool> tested;
  std::vector<software_stream> stream;
};

/// Work that writes a block late, and finds fault with whoever else writes it in between: plain writes, so that
/// ThreadSanitizer reports an order that is missing.
inline void use(software_stream& in, void* block, std::size_t bytes, std::uint64_t mark, findings& found) {
  in.enqueue([=, &found] {
    auto* const words = static_cast<std::uint64_t*>(block);
    const std::size_t last = bytes / sizeof(std::uint64_t) - 1;
    words[0] = mark;
    words[last] = ~mark;
    words[last / 2] = mark;
    found.expect(words[0] == mark || last == 0, "another stream wrote the block's start");
    found.expect(words[last] == ~mark || last / 2 == last, "another stream wrote the block's end");
  });
}

/// Everything that the pool has is everybody's, and merged.
inline void check_idle(stream_pool& tested) {
  CHECK(tested.synchronize());
  check_sound(tested);
  const stream_statistics stats = tested.stats();
  CHECK(stats.memory.requested == 0);
  CHECK(stats.memory.allocated == 0);
  CHECK(stats.held == 0);
  CHECK(stats.memory.cached == 0);
  tested.trim();
  CHECK(tested.stats().memory.committed == 0);
}

}  // namespace orderly::test
