/// \file
/// A kernel for the benchmarks. The file beside this one needs nvcc, which knows nothing of the rest.
#pragma once

namespace orderly::bench {

/// Queues a kernel of one block that is busy for that many clocks of a multiprocessor, and then writes to the first
/// eight bytes of `temporary`, unless that is null. False: not launched.
bool launch_busy(void* stream, void* temporary, long long clocks);

}  // namespace orderly::bench
