/// \file
/// A stand-in for the CUDA runtime whose streams are orderly's software streams: what runs late on a device runs late
/// here, on CPU threads, and what lacks an order is a data race. Programs that link it need no device.
///
/// It has what orderly calls, and of the rest what tests of orderly call. Device memory is host memory. The default
/// streams are streams like others: nothing waits for them implicitly. Captures work, launches of graphs do not exist. It
/// fails where a test wants it to, by function here, by number with faults.hpp; what frees has its effect even so.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "orderly/software_stream.hpp"

namespace orderly::test {

/// What tests tell it, and see of it. While several threads call it, it must be left alone.
struct software_cuda {
  int devices = 2;
  std::size_t memory = std::size_t{256} << 20;  ///< that each device has free as long as none is allocated
  bool driver_functions = true;
  bool peers = true;                             ///< devices reach each other
  int handle_types = 0x1;                        ///< in which memory can be shared: file descriptors
  std::map<std::string, cudaError_t> failures;  ///< what calls of these functions return

  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;  ///< of every stream, if not none
  int capture_begins_after = -1;                                  ///< then it becomes active: that many more questions

  bool logs = false;
  std::vector<std::string> calls;  ///< by name, while it logs
  std::uint64_t allocations = 0;   ///< calls that memory was asked for with
  bool unsafe_call = false;        ///< one that another thread's capture would not have survived
};
extern software_cuda stand_in;

/// As at the start of a process, but for what was allocated or created and is there yet. For the calling thread, too.
void restart_software_cuda(software_schedule schedule = software_schedule::workers, std::uint64_t seed = 0);

[[nodiscard]] software_stream& stream_of(cudaStream_t stream);
/// Of an event, a stream, or an address inside a block. -1: there is no such thing.
[[nodiscard]] int device_of(void* thing);
/// The thread's.
[[nodiscard]] cudaStreamCaptureMode capture_mode() noexcept;
void set_last_error(cudaError_t error) noexcept;

}  // namespace orderly::test
