/// \file
/// A stand-in for the CUDA runtime whose streams are orderly's software streams: what runs late on a device runs late
/// here, on CPU threads, and what lacks an order is a data race. Programs that link it need no device.
///
/// It has what orderly calls, and of the rest what tests of orderly call. Device memory is host memory. The default
/// streams are streams like others: nothing waits for them implicitly. Nothing captures.
#pragma once

#include <cstddef>
#include <cstdint>

namespace orderly::test {

/// Devices that there are. Before the first call of CUDA; two without this call.
void set_software_cuda_devices(int count) noexcept;

/// Memory that each device has free as long as none is allocated.
void set_software_cuda_memory(std::size_t bytes) noexcept;

/// Calls that memory has been asked for with, on all devices.
[[nodiscard]] std::uint64_t software_cuda_allocations() noexcept;

}  // namespace orderly::test
