/// \file
/// Work for streams that a test can hold up.
#pragma once

#include <cuda_runtime_api.h>

namespace orderly::test {

/// Waits until *gate, in page-locked memory, is not 0, ten seconds at most; then stores `value` at `target`.
cudaError_t write_behind_gate(cudaStream_t stream, const unsigned* gate, unsigned* target, unsigned value);

/// Stores *from at `to`.
cudaError_t copy_word(cudaStream_t stream, const unsigned* from, unsigned* to);

}  // namespace orderly::test
