/// \file
/// A pool as a resource of RMM: what cuda_resource is, with RMM's own exception where memory is short, so that RMM's
/// adaptors (failure_callback_resource_adaptor, say) and libraries above it (cuDF, cuML) see what they wait for.
///
///   rmm::mr::set_current_device_resource(orderly::make_rmm_device_resource(0, std::size_t{8} << 30));
///
/// Needs RMM of 26.06 or later, whose resources are cuda::mr's, and the CCCL that it comes with. Link with the libraries
/// orderly_cuda and rmm.
#pragma once

#if !__has_include(<rmm/error.hpp>)
#error "orderly/cuda/rmm.hpp needs rmm/error.hpp: RMM on the include path, with its CCCL"
#endif

#include "orderly/cuda/resource.hpp"  // first: it sets what older CCCLs need

#include <rmm/error.hpp>

#include <cstddef>
#include <utility>

#include "orderly/error.hpp"

namespace orderly {

#if defined(CUDA_API_PER_THREAD_DEFAULT_STREAM) || defined(__CUDA_API_PER_THREAD_DEFAULT_STREAM)
inline namespace per_thread_default_stream {
#else
inline namespace legacy_default_stream {
#endif

/// Everything is as with cuda_resource (construction, thread safety, progress, alignments, streams, equality), but for
/// one thing: where memory is short, allocations throw rmm::out_of_memory, which is a std::bad_alloc too, with the text of
/// orderly::out_of_memory. Other exceptions stay what they are.
template <class... Properties>
class rmm_resource : public cuda_resource<Properties...> {
  using base = cuda_resource<Properties...>;

 public:
  using base::base;
  rmm_resource(const base& other) noexcept : base(other) {}

  [[nodiscard]] void* allocate(::cuda::stream_ref stream, std::size_t bytes,
                               std::size_t alignment = base::default_alignment) {
    return translated([&] { return base::allocate(stream, bytes, alignment); });
  }
  [[nodiscard]] void* allocate_sync(std::size_t bytes, std::size_t alignment = base::default_alignment) {
    return translated([&] { return base::allocate_sync(bytes, alignment); });
  }

#if !ORDERLY_CUDA_MR_RENAMED
  [[nodiscard]] void* allocate_async(std::size_t bytes, std::size_t alignment, ::cuda::stream_ref stream) {
    return allocate(stream, bytes, alignment);
  }
  [[nodiscard]] void* allocate_async(std::size_t bytes, ::cuda::stream_ref stream) { return allocate(stream, bytes); }
  [[nodiscard]] void* allocate(std::size_t bytes, std::size_t alignment = base::default_alignment) {
    return allocate_sync(bytes, alignment);
  }
#else
  /// So that the resource is an environment that names itself.
  [[nodiscard]] const rmm_resource& query(const ::cuda::mr::get_memory_resource_t&) const noexcept { return *this; }
#endif

 private:
  template <class Allocate>
  [[nodiscard]] static void* translated(const Allocate& allocate) {
    try {
      return allocate();
    } catch (const orderly::out_of_memory& refused) {
      throw rmm::out_of_memory(refused.what());
    }
  }
};

using rmm_device_resource = rmm_resource<::cuda::mr::device_accessible>;
using rmm_pinned_resource = rmm_resource<::cuda::mr::device_accessible, ::cuda::mr::host_accessible>;
using rmm_managed_resource = rmm_resource<::cuda::mr::device_accessible, ::cuda::mr::host_accessible>;

/// As make_cuda_device_resource() and the others.
[[nodiscard]] inline rmm_device_resource make_rmm_device_resource(int device, std::size_t bytes = 0,
                                                                  const stream_options& settings = {}) {
  return make_cuda_device_resource(device, bytes, settings);
}
[[nodiscard]] inline rmm_pinned_resource make_rmm_pinned_resource(int device, std::size_t bytes,
                                                                  const stream_options& settings = {}) {
  return make_cuda_pinned_resource(device, bytes, settings);
}
[[nodiscard]] inline rmm_managed_resource make_rmm_managed_resource(int device, std::size_t bytes,
                                                                    const stream_options& settings = {}) {
  return make_cuda_managed_resource(device, bytes, settings);
}

}  // inline namespace

}  // namespace orderly
