/// \file
/// A pool on software streams, and a resource of it. Serves C++17.
#pragma once

#include <cstddef>
#include <memory>

#include "cuda/memory_resource.hpp"
#include "orderly/software_stream.hpp"

namespace orderly::test {

template <class Resource>
struct resource_bench {
  explicit resource_bench(std::size_t capacity = std::size_t{16} << 20)
      : device(software_schedule::lazy), pool(make_pool(device, capacity)), stream(device), resource(make_resource()) {}

  [[nodiscard]] static std::shared_ptr<stream_pool> make_pool(const software_device& on, std::size_t capacity) {
    stream_options settings;
    settings.memory.capacity = capacity;
    settings.memory.on_bad_free = on_bad_free::count;
    return std::make_shared<stream_pool>(make_host_source(), on.driver(), settings);
  }
  [[nodiscard]] Resource make_resource() const {
    const auto idle = std::make_shared<software_stream>(device);
    return {pool, 0, std::shared_ptr<void>(idle, idle->handle())};
  }
  [[nodiscard]] ::cuda::stream_ref in() const { return static_cast<cudaStream_t>(stream.handle()); }
  [[nodiscard]] std::size_t live() const { return pool->stats().memory.requested; }

  software_device device;
  std::shared_ptr<stream_pool> pool;
  software_stream stream;
  Resource resource;
};

}  // namespace orderly::test
