/// \file
/// cuda::mr under one set of names, whichever CCCL the test is compiled with.
#pragma once

#include "orderly/cuda/resource.hpp"

#if defined(CCCL_VERSION) && CCCL_VERSION >= 3002000
#define ORDERLY_TEST_ANY_RESOURCE 1
#else
#define ORDERLY_TEST_ANY_RESOURCE 0
#endif

namespace orderly::test {

namespace mr = ::cuda::mr;

#if ORDERLY_CUDA_MR_RENAMED
template <class Resource>
inline constexpr bool serves_streams = mr::resource<Resource>;
template <class Resource>
inline constexpr bool serves_hosts = mr::synchronous_resource<Resource>;
template <class Resource, class... Properties>
inline constexpr bool serves_streams_with = mr::resource_with<Resource, Properties...>;
template <class Resource, class... Properties>
inline constexpr bool serves_hosts_with = mr::synchronous_resource_with<Resource, Properties...>;
using device_ref = mr::resource_ref<mr::device_accessible>;
using device_sync_ref = mr::synchronous_resource_ref<mr::device_accessible>;

template <class Resource>
[[nodiscard]] void* allocate(Resource& from, ::cuda::stream_ref in, std::size_t bytes, std::size_t alignment = 256) {
  return from.allocate(in, bytes, alignment);
}
template <class Resource>
void deallocate(Resource& from, ::cuda::stream_ref in, void* block, std::size_t bytes, std::size_t alignment = 256) {
  from.deallocate(in, block, bytes, alignment);
}
template <class Resource>
[[nodiscard]] void* allocate_sync(Resource& from, std::size_t bytes, std::size_t alignment = 256) {
  return from.allocate_sync(bytes, alignment);
}
template <class Resource>
void deallocate_sync(Resource& from, void* block, std::size_t bytes, std::size_t alignment = 256) {
  from.deallocate_sync(block, bytes, alignment);
}
#else
template <class Resource>
inline constexpr bool serves_streams = mr::async_resource<Resource>;
template <class Resource>
inline constexpr bool serves_hosts = mr::resource<Resource>;
template <class Resource, class... Properties>
inline constexpr bool serves_streams_with = mr::async_resource_with<Resource, Properties...>;
template <class Resource, class... Properties>
inline constexpr bool serves_hosts_with = mr::resource_with<Resource, Properties...>;
using device_ref = mr::async_resource_ref<mr::device_accessible>;
using device_sync_ref = mr::resource_ref<mr::device_accessible>;

template <class Resource>
[[nodiscard]] void* allocate(Resource& from, ::cuda::stream_ref in, std::size_t bytes, std::size_t alignment = 256) {
  return from.allocate_async(bytes, alignment, in);
}
template <class Resource>
void deallocate(Resource& from, ::cuda::stream_ref in, void* block, std::size_t bytes, std::size_t alignment = 256) {
  from.deallocate_async(block, bytes, alignment, in);
}
template <class Resource>
[[nodiscard]] void* allocate_sync(Resource& from, std::size_t bytes, std::size_t alignment = 256) {
  return from.allocate(bytes, alignment);
}
template <class Resource>
void deallocate_sync(Resource& from, void* block, std::size_t bytes, std::size_t alignment = 256) {
  from.deallocate(block, bytes, alignment);
}
#endif

}  // namespace orderly::test
