/// \file
/// Streams as Python names them.
#pragma once

#include <memory>

#include <nanobind/nanobind.h>

#include "memory.hpp"
#include "orderly/software_stream.hpp"
#include "orderly/stream.hpp"

namespace orderly::python {

/// A software device, which Python's device, its streams and the pools with such streams share. Its end waits for all
/// work, which may need the GIL.
class software {
 public:
  software(software_schedule schedule, std::uint64_t seed);
  software(const software&) = delete;
  software& operator=(const software&) = delete;
  ~software();

  [[nodiscard]] const software_device& device() const noexcept { return *device_; }

 private:
  std::optional<software_device> device_;
};

struct software_stream_object {
  std::shared_ptr<software> on;
  software_stream stream;
};

/// What Python holds.
struct device_object {
  std::shared_ptr<software> on;
};
struct stream_object {
  std::shared_ptr<software_stream_object> of;
};

/// What was given as the argument `stream`: None, a SoftwareStream, an integer, PyTorch's, CuPy's or CUDA Python's
/// stream. Raises TypeError, and ValueError where the pool has no such streams.
[[nodiscard]] stream_handle stream_of(nanobind::handle given, memory& pool);

void bind_streams(nanobind::module_& m);

}  // namespace orderly::python
