/// \file
/// cuda::mr over a pool in stream order: cuda_resource is a memory resource for CUB, Thrust, RMM and whoever else takes
/// one; make_resource_source() lets a pool take its memory from another's resource. C++17 or later, nvcc or a host
/// compiler with CCCL on its include path. Link with the library orderly_cuda.
///
/// CCCL 3.1 (CUDA 13.1) has other names than CCCL before (CUDA 12.3 to 13.0). The resource has the later ones always,
/// and the earlier ones too where the CCCL at hand asks for them:
///
///                     from 3.1                            before
///   in a stream       allocate(stream, bytes, alignment)  allocate_async(bytes, alignment, stream)
///   outside streams   allocate_sync(bytes, alignment)     allocate(bytes, alignment)
///   concepts          resource, synchronous_resource      async_resource, resource
///
/// Up to 3.0 all of it, and in 3.1 resource_ref, is behind LIBCUDACXX_ENABLE_EXPERIMENTAL_MEMORY_RESOURCE, which this
/// header defines if nobody has. So it comes before other includes of cuda/memory_resource, or the program defines the
/// macro itself.
#pragma once

#if !__has_include(<cuda/memory_resource>)
#error "orderly/cuda/resource.hpp needs cuda/memory_resource: CUDA 12.3 or later, with CCCL on the include path"
#endif

#include <cuda/std/version>

#if defined(CCCL_VERSION) && CCCL_VERSION >= 3001000
#define ORDERLY_CUDA_MR_RENAMED 1
#else
#define ORDERLY_CUDA_MR_RENAMED 0
#endif

#if !defined(CCCL_VERSION) || CCCL_VERSION < 3002000
#ifndef LIBCUDACXX_ENABLE_EXPERIMENTAL_MEMORY_RESOURCE
#if defined(_CUDA_MEMORY_RESOURCE) && !ORDERLY_CUDA_MR_RENAMED  // was included, and is empty
#error \
    "include orderly/cuda/resource.hpp first, or define LIBCUDACXX_ENABLE_EXPERIMENTAL_MEMORY_RESOURCE for the program"
#endif
#define LIBCUDACXX_ENABLE_EXPERIMENTAL_MEMORY_RESOURCE
#endif
#endif

#include <cuda/memory_resource>
#include <cuda/stream_ref>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "orderly/cuda.hpp"
#include "orderly/source.hpp"
#include "orderly/stream.hpp"
#include "orderly/stream_pool.hpp"

namespace orderly {

namespace detail {

[[nodiscard]] inline std::string failure_or_none() {
  const std::string failure = cuda_failure();
  return failure.empty() ? "none" : failure;
}

[[nodiscard]] inline std::shared_ptr<stream_pool> make_pool_of(std::unique_ptr<memory_source> source, int device,
                                                               const stream_options& settings) {
  std::shared_ptr<stream_driver> driver = make_cuda_stream_driver(device);
  if (source == nullptr || driver == nullptr)
    throw std::runtime_error("orderly: CUDA device " + std::to_string(device) +
                             " cannot be used; is there a driver, and such a device (cudaGetDeviceCount)? The last "
                             "failure: " + failure_or_none());
  return std::make_shared<stream_pool>(std::move(source), std::move(driver), settings);
}

}  // namespace detail

// Stream 0 means what its caller is compiled for. So the type differs where that does.
#if defined(CUDA_API_PER_THREAD_DEFAULT_STREAM) || defined(__CUDA_API_PER_THREAD_DEFAULT_STREAM)
inline namespace per_thread_default_stream {
inline constexpr bool stream_0_is_per_thread = true;
#else
inline namespace legacy_default_stream {
inline constexpr bool stream_0_is_per_thread = false;
#endif

/// A copyable handle of a pool, which lives as long as its last handle; it is never empty. `Properties`: those of the
/// pool's memory, cuda::mr::device_accessible, cuda::mr::host_accessible or both.
///
/// Thread safety: as stream_pool's, also of one handle. Progress: in streams as stream_pool's. Outside of streams, an
/// allocation waits if the pool takes memory for it that work of streams still uses, until that work is done; so the
/// work must not wait for the caller. It waits for nothing otherwise, and a free for nothing at all.
///
/// Alignments: every power of two up to the pool's chunk; where the pool's memory is one plain allocation, as
/// cudaMalloc's, up to what that is aligned to. Default: 256. Beyond it, allocations throw std::invalid_argument. A
/// request of size 0 is one of 1.
///
/// A pool must meet a stream before it captures (make_cuda_stream_driver). Before a stream is destroyed, the program
/// calls upstream().release_stream(), or sets stream_options::safe_mode. Stream 0 is the legacy default stream, and the
/// per-thread one where the type of the resource was named in code that is compiled for it.
///
/// Two handles are equal when they share a pool: then one may free what the other allocated.
template <class... Properties>
class cuda_resource {
  static_assert(sizeof...(Properties) != 0, "name the properties of the memory, say cuda::mr::device_accessible");

 public:
  static constexpr std::size_t default_alignment = 256;

  /// `device`: whose streams and memory the pool has. Throws std::invalid_argument for a null pool,
  /// std::runtime_error where the device cannot be had.
  cuda_resource(std::shared_ptr<stream_pool> pool, int device)
      : cuda_resource(std::move(pool), device, make_cuda_stream(device)) {}

  /// The same for streams of any kind. `idle`: the handle of a stream of the pool's driver into which nobody ever puts
  /// work; the handle's last copy gives it up before it gives up the pool. Frees and allocations outside of streams are
  /// ordered in it.
  cuda_resource(std::shared_ptr<stream_pool> pool, int device, std::shared_ptr<void> idle)
      : shared_(std::make_shared<shared>(std::move(pool), device, std::move(idle))) {}

  // No move: a handle that was moved from would be none. Not defaulted: nvcc would take them for device functions, too.
  cuda_resource(const cuda_resource& other) noexcept : shared_(other.shared_) {}
  cuda_resource& operator=(const cuda_resource& other) noexcept {
    shared_ = other.shared_;
    return *this;
  }

  [[nodiscard]] stream_pool& upstream() const noexcept { return *shared_->pool; }
  [[nodiscard]] int device() const noexcept { return shared_->device; }

  /// A block for work that enters the stream from now on. Throws out_of_memory, which is a std::bad_alloc, and as
  /// stream_pool::allocate().
  [[nodiscard]] void* allocate(::cuda::stream_ref stream, std::size_t bytes,
                               std::size_t alignment = default_alignment) {
    return shared_->pool->allocate(bytes, alignment, handle(stream));
  }
  /// Frees a block: work that is in the stream now may still use it, no other stream's. A wrong free changes nothing,
  /// and goes to the pool's options::on_bad_free.
  void deallocate(::cuda::stream_ref stream, void* pointer, std::size_t bytes,
                  std::size_t = default_alignment) noexcept {
    shared_->pool->deallocate(pointer, got(bytes), handle(stream));
  }

  /// A block that every stream and, where the memory allows it, the host may use at once. Throws as allocate();
  /// std::runtime_error when the device has failed.
  [[nodiscard]] void* allocate_sync(std::size_t bytes, std::size_t alignment = default_alignment) {
    return shared_->pool->allocate_settled(bytes, alignment, shared_->idle.get());
  }
  /// Frees a block that nobody uses any more. A wrong free as above.
  void deallocate_sync(void* pointer, std::size_t bytes, std::size_t = default_alignment) noexcept {
    shared_->pool->deallocate(pointer, got(bytes), shared_->idle.get());
  }

#if !ORDERLY_CUDA_MR_RENAMED
  [[nodiscard]] void* allocate_async(std::size_t bytes, std::size_t alignment, ::cuda::stream_ref stream) {
    return allocate(stream, bytes, alignment);
  }
  [[nodiscard]] void* allocate_async(std::size_t bytes, ::cuda::stream_ref stream) { return allocate(stream, bytes); }
  void deallocate_async(void* pointer, std::size_t bytes, std::size_t, ::cuda::stream_ref stream) noexcept {
    deallocate(stream, pointer, bytes);
  }
  void deallocate_async(void* pointer, std::size_t bytes, ::cuda::stream_ref stream) noexcept {
    deallocate(stream, pointer, bytes);
  }
  [[nodiscard]] void* allocate(std::size_t bytes, std::size_t alignment = default_alignment) {
    return allocate_sync(bytes, alignment);
  }
  void deallocate(void* pointer, std::size_t bytes, std::size_t = default_alignment) noexcept {
    deallocate_sync(pointer, bytes);
  }
#endif

  [[nodiscard]] friend bool operator==(const cuda_resource& a, const cuda_resource& b) noexcept {
    return a.shared_->pool == b.shared_->pool;
  }
  [[nodiscard]] friend bool operator!=(const cuda_resource& a, const cuda_resource& b) noexcept { return !(a == b); }

  template <class Property, std::enable_if_t<(std::is_same_v<Property, Properties> || ...), int> = 0>
  friend constexpr void get_property(const cuda_resource&, Property) noexcept {}

#if defined(CCCL_VERSION) && CCCL_VERSION >= 3002000
  /// For containers that take a resource without being told what it is.
  using default_queries = ::cuda::mr::properties_list<Properties...>;
#endif
#if ORDERLY_CUDA_MR_RENAMED
  /// So that the resource is an environment that names itself.
  [[nodiscard]] const cuda_resource& query(const ::cuda::mr::get_memory_resource_t&) const noexcept { return *this; }
#endif

 private:
  struct shared {
    shared(std::shared_ptr<stream_pool> of, int on, std::shared_ptr<void> stream)
        : pool(std::move(of)), device(on), idle(std::move(stream)) {
      if (pool == nullptr) throw std::invalid_argument("orderly::cuda_resource: the pool is null");
      if (idle == nullptr)
        throw std::runtime_error("orderly::cuda_resource: no stream can be made on device " + std::to_string(device) +
                                 "; is it there (cudaGetDeviceCount), and has it memory left? The last failure: " +
                                 detail::failure_or_none());
    }
    shared(const shared&) = delete;
    shared& operator=(const shared&) = delete;
    ~shared() {
      if (pool != nullptr && idle != nullptr) pool->release_stream(idle.get());
    }

    std::shared_ptr<stream_pool> pool;
    int device;
    std::shared_ptr<void> idle;
  };

  [[nodiscard]] static stream_handle handle(::cuda::stream_ref stream) noexcept {
    constexpr auto per_thread = std::uintptr_t{2};  // cudaStreamPerThread
    if (stream_0_is_per_thread && stream.get() == nullptr) return reinterpret_cast<stream_handle>(per_thread);
    return stream.get();
  }

  /// A request of no bytes got a block of one.
  [[nodiscard]] static constexpr std::size_t got(std::size_t bytes) noexcept { return bytes == 0 ? 1 : bytes; }

  std::shared_ptr<shared> shared_;
};

using cuda_device_resource = cuda_resource<::cuda::mr::device_accessible>;
using cuda_pinned_resource = cuda_resource<::cuda::mr::device_accessible, ::cuda::mr::host_accessible>;
using cuda_managed_resource = cuda_resource<::cuda::mr::device_accessible, ::cuda::mr::host_accessible>;

/// A new pool of a device's memory, and its first handle: make_cuda_device_source() and make_cuda_stream_driver() in a
/// stream_pool. Throws std::runtime_error where CUDA or the device is missing, and as stream_pool's constructor.
[[nodiscard]] inline cuda_device_resource make_cuda_device_resource(int device, std::size_t bytes = 0,
                                                                    const stream_options& settings = {}) {
  return {detail::make_pool_of(make_cuda_device_source(device, bytes), device, settings), device};
}

/// The same of page-locked host memory, for the streams of a device.
[[nodiscard]] inline cuda_pinned_resource make_cuda_pinned_resource(int device, std::size_t bytes,
                                                                    const stream_options& settings = {}) {
  return {detail::make_pool_of(make_cuda_pinned_source(bytes), device, settings), device};
}

/// The same of managed memory.
[[nodiscard]] inline cuda_managed_resource make_cuda_managed_resource(int device, std::size_t bytes,
                                                                      const stream_options& settings = {}) {
  return {detail::make_pool_of(make_cuda_managed_source(device, bytes), device, settings), device};
}

}  // inline namespace

namespace detail {

/// One allocation of a resource, handed out as one range at a time.
template <class Resource>
class resource_source final : public memory_source {
#if ORDERLY_CUDA_MR_RENAMED
  static_assert(::cuda::mr::synchronous_resource<Resource>, "a cuda::mr resource is needed");
#else
  static_assert(::cuda::mr::resource<Resource>, "a cuda::mr resource is needed");
#endif

 public:
  resource_source(Resource resource, std::size_t bytes) : resource_(std::move(resource)), bytes_(bytes) {}

  [[nodiscard]] std::size_t granularity() const noexcept override { return plain_alignment; }
  [[nodiscard]] std::size_t capacity() const noexcept override { return bytes_; }
  [[nodiscard]] bool is_virtual() const noexcept override { return false; }

  [[nodiscard]] void* reserve(std::size_t bytes, std::size_t alignment) noexcept override {
    const bool too_much = bytes_ != 0 && bytes > bytes_;
    if (allocation_ != nullptr || too_much || bytes == 0 || bytes + alignment < bytes) return nullptr;
    // CUDA's own resources align to 256 and no more. Large allocations mostly are more aligned than that.
    if (!take(bytes)) return nullptr;
    if (aligned(alignment) == allocation_) return allocation_;
    give_back();
    return take(bytes + alignment) ? aligned(alignment) : nullptr;
  }
  void release(void*, std::size_t) noexcept override { give_back(); }

  [[nodiscard]] bool commit(void*, std::size_t) noexcept override { return true; }
  [[nodiscard]] bool decommit(void*, std::size_t) noexcept override { return false; }

 private:
  static constexpr std::size_t plain_alignment = 256;

  [[nodiscard]] void* aligned(std::size_t alignment) const noexcept {
    const auto start = reinterpret_cast<std::uintptr_t>(allocation_);
    const std::uintptr_t end = (start + alignment - 1) & ~(static_cast<std::uintptr_t>(alignment) - 1);
    return static_cast<std::byte*>(allocation_) + (end - start);
  }

  [[nodiscard]] bool take(std::size_t length) noexcept {
    try {
#if ORDERLY_CUDA_MR_RENAMED
      allocation_ = resource_.allocate_sync(length, plain_alignment);
#else
      allocation_ = resource_.allocate(length, plain_alignment);
#endif
    } catch (...) {
      return false;  // the pool says which of its requests failed
    }
    length_ = length;
    return allocation_ != nullptr;
  }

  void give_back() noexcept {
#if ORDERLY_CUDA_MR_RENAMED
    resource_.deallocate_sync(allocation_, length_, plain_alignment);
#else
    resource_.deallocate(allocation_, length_, plain_alignment);
#endif
    allocation_ = nullptr;
  }

  Resource resource_;
  std::size_t bytes_;
  void* allocation_ = nullptr;
  std::size_t length_ = 0;
};

}  // namespace detail

/// A source that takes its memory, one allocation for the whole pool, from any synchronous cuda::mr resource, an
/// any_resource say, and gives it back with the pool. `bytes`: the capacity; 0: that of the pool, which must then be
/// given.
template <class Resource>
[[nodiscard]] std::unique_ptr<memory_source> make_resource_source(Resource resource, std::size_t bytes) {
  return std::make_unique<detail::resource_source<Resource>>(std::move(resource), bytes);
}

}  // namespace orderly
