/// \file
/// Tensors to other libraries and from them, by DLPack. Needs dlpack/dlpack.h, 0.6 or later; with one of 1.0 or later the
/// versioned form, too, where ORDERLY_DLPACK_VERSIONED is 1.
///
/// Streams are the program's: DLPack has none. Whoever hands a tensor on makes the consumer's stream wait for what fills
/// it, and the consumer's last work on it must be ordered before the deleter's call, or before work that is in the stream
/// then in which the tensor is freed.
#pragma once

#if !__has_include(<dlpack/dlpack.h>)
#error "orderly/dlpack.hpp needs dlpack/dlpack.h on the include path: Debian's libdlpack-dev, say"
#endif

#include <dlpack/dlpack.h>

#if defined(DLPACK_MAJOR_VERSION) && DLPACK_MAJOR_VERSION >= 1
#define ORDERLY_DLPACK_VERSIONED 1
#else
#define ORDERLY_DLPACK_VERSIONED 0
#endif

#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "orderly/tensor.hpp"
#include "orderly/tensor_cache.hpp"

namespace orderly {

namespace detail {

template <class Managed>
[[nodiscard]] Managed* give_out_managed(exported_tensor given) noexcept {
  static_assert(sizeof(Managed) <= exported_tensor::export_bytes && alignof(Managed) <= 16);
  static_assert(std::is_trivially_destructible_v<Managed>);
  auto* const made = ::new (given.storage) Managed{};
  DLTensor& t = made->dl_tensor;
  const tensor& of = given.of;
  t.data = of.data;
  t.device.device_type = static_cast<DLDeviceType>(of.device.type);
  t.device.device_id = of.device.id;
  t.ndim = static_cast<std::int32_t>(of.shape.size());
  t.dtype.code = of.type.code;
  t.dtype.bits = of.type.bits;
  t.dtype.lanes = of.type.lanes;
  // DLPack has no const here; consumers do not write what describes a tensor.
  t.shape = const_cast<std::int64_t*>(of.shape.data());
  t.strides = const_cast<std::int64_t*>(of.strides.data());
  t.byte_offset = 0;
  made->manager_ctx = given.storage;
  made->deleter = [](Managed* self) {
    if (self != nullptr) release_export(self->manager_ctx);
  };
  return made;
}

/// What is wrong with a foreign tensor, in `why`; or its layout.
[[nodiscard]] inline std::optional<tensor_layout> check_dlpack(const DLTensor& t, std::string& why) {
  const auto refuse = [&](std::string what) {
    why = "orderly::from_dlpack: " + std::move(what);
    return std::nullopt;
  };
  if (t.ndim < 0 || static_cast<std::size_t>(t.ndim) > tensor_layout::most_dimensions)
    return refuse(std::to_string(t.ndim) + " dimensions; 0 to " + std::to_string(tensor_layout::most_dimensions) +
                  " are possible");
  if (t.ndim != 0 && t.shape == nullptr) return refuse("the shape is null, for " + std::to_string(t.ndim) + " dimensions");
  const std::span<const std::int64_t> shape(t.shape, static_cast<std::size_t>(t.ndim));
  const tensor_type type{t.dtype.code, t.dtype.bits, t.dtype.lanes};
  std::string inner;
  const auto layout = t.strides == nullptr
                          ? tensor_layout::make(shape, type, tensor_order::row_major, &inner)
                          : tensor_layout::make(shape, std::span<const std::int64_t>(t.strides, shape.size()), type, &inner);
  if (!layout) return refuse(std::move(inner));
  if (layout->elements() != 0) {
    if (t.data == nullptr) return refuse("the data is null, for " + std::to_string(layout->elements()) + " elements");
    const std::uint64_t most = std::numeric_limits<std::uintptr_t>::max() - reinterpret_cast<std::uintptr_t>(t.data);
    if (t.byte_offset > most || layout->bytes() > most - t.byte_offset)
      return refuse("the elements end past the end of the address space: byte_offset " + std::to_string(t.byte_offset));
  }
  return layout;
}

}  // namespace detail

/// Makes a tensor of the cache DLPack's: it is freed by the managed tensor's deleter, on any thread, in `stream` (by
/// default the one that it was allocated for); also when the cache is gone by then, or its pool. The handle is that of a
/// freed tensor from now on. Everything lies in the tensor's record: nothing is allocated.
/// Throws as tensor_cache::give_out(); then the tensor is as it was. Never null.
[[nodiscard]] inline DLManagedTensor* to_dlpack(tensor_cache& cache, const tensor& of) {
  return detail::give_out_managed<DLManagedTensor>(cache.give_out(of));
}
[[nodiscard]] inline DLManagedTensor* to_dlpack(tensor_cache& cache, const tensor& of, stream_handle stream) {
  return detail::give_out_managed<DLManagedTensor>(cache.give_out(of, stream));
}

#if ORDERLY_DLPACK_VERSIONED
namespace detail {
[[nodiscard]] inline DLManagedTensorVersioned* give_out_versioned(const exported_tensor& given) noexcept {
  DLManagedTensorVersioned* const made = give_out_managed<DLManagedTensorVersioned>(given);
  made->version.major = DLPACK_MAJOR_VERSION;
  made->version.minor = DLPACK_MINOR_VERSION;
  made->flags = 0;
#ifdef DLPACK_FLAG_BITMASK_IS_SUBBYTE_TYPE_PADDED
  if (given.of.type.bits * given.of.type.lanes % 8 != 0) made->flags |= DLPACK_FLAG_BITMASK_IS_SUBBYTE_TYPE_PADDED;
#endif
  return made;
}
}  // namespace detail

/// The same in the form of DLPack 1.0.
[[nodiscard]] inline DLManagedTensorVersioned* to_dlpack_versioned(tensor_cache& cache, const tensor& of) {
  return detail::give_out_versioned(cache.give_out(of));
}
[[nodiscard]] inline DLManagedTensorVersioned* to_dlpack_versioned(tensor_cache& cache, const tensor& of,
                                                                   stream_handle stream) {
  return detail::give_out_versioned(cache.give_out(of, stream));
}
#endif

/// Another library's tensor, which goes back to it (its deleter is called) when this does. Movable. Its layout is checked,
/// as tensor_layout's; the memory cannot be. Layouts in which elements overlap, an expanded tensor's, are refused: their
/// owner makes them contiguous. Elements of less than a byte are taken to be padded to one, as DLPack before 1.1 has it.
///
/// Thread safety: as any value. Nothing of it is any cache's.
class dlpack_tensor {
 public:
  dlpack_tensor(dlpack_tensor&& other) noexcept
      : layout_(other.layout_), data_(other.data_), device_(other.device_), read_only_(other.read_only_),
        owner_(std::exchange(other.owner_, nullptr)), release_(other.release_) {}
  dlpack_tensor& operator=(dlpack_tensor&& other) noexcept {
    if (this == &other) return *this;
    reset();
    layout_ = other.layout_;
    data_ = other.data_;
    device_ = other.device_;
    read_only_ = other.read_only_;
    owner_ = std::exchange(other.owner_, nullptr);
    release_ = other.release_;
    return *this;
  }
  ~dlpack_tensor() { reset(); }

  /// Of the first element: with byte_offset. Null where there are no elements, as the owner likes.
  [[nodiscard]] void* data() const noexcept { return data_; }
  [[nodiscard]] const tensor_layout& layout() const noexcept { return layout_; }
  [[nodiscard]] std::span<const std::int64_t> shape() const noexcept { return layout_.shape(); }
  [[nodiscard]] std::span<const std::int64_t> strides() const noexcept { return layout_.strides(); }
  [[nodiscard]] tensor_type type() const noexcept { return layout_.type(); }
  [[nodiscard]] tensor_device device() const noexcept { return device_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return layout_.bytes(); }
  /// The owner says that nobody may write to it. Only the versioned form can say so.
  [[nodiscard]] bool read_only() const noexcept { return read_only_; }
  /// False: it was moved from.
  [[nodiscard]] explicit operator bool() const noexcept { return owner_ != nullptr; }

 private:
  friend dlpack_tensor from_dlpack(DLManagedTensor* of);
#if ORDERLY_DLPACK_VERSIONED
  friend dlpack_tensor from_dlpack(DLManagedTensorVersioned* of);
#endif

  template <class Managed>
  dlpack_tensor(Managed* of, const tensor_layout& layout, bool read_only) noexcept
      : layout_(layout), data_(of->dl_tensor.data),
        device_{static_cast<std::int32_t>(of->dl_tensor.device.device_type), of->dl_tensor.device.device_id},
        read_only_(read_only), owner_(of), release_([](void* owner) {
          auto* const managed = static_cast<Managed*>(owner);
          if (managed->deleter != nullptr) managed->deleter(managed);
        }) {
    if (data_ != nullptr) data_ = static_cast<std::byte*>(data_) + of->dl_tensor.byte_offset;
  }

  void reset() noexcept {
    if (void* const owner = std::exchange(owner_, nullptr)) release_(owner);
  }

  tensor_layout layout_;
  void* data_;
  tensor_device device_;
  bool read_only_;
  void* owner_;
  void (*release_)(void*);
};

/// Takes over a managed tensor. Throws std::invalid_argument, with the values, for null; for as many dimensions as
/// tensor_layout cannot have, or negative; a null shape; a negative extent; a type of no bits or no lanes; sizes that do
/// not fit; strides that are negative or make elements overlap; null data with elements; elements past the end of the
/// address space. Then the tensor is still the caller's.
[[nodiscard]] inline dlpack_tensor from_dlpack(DLManagedTensor* of) {
  if (of == nullptr) throw std::invalid_argument("orderly::from_dlpack: the tensor is null");
  std::string why;
  const auto layout = detail::check_dlpack(of->dl_tensor, why);
  if (!layout) throw std::invalid_argument(why);
  return {of, *layout, false};
}

#if ORDERLY_DLPACK_VERSIONED
/// The same; also for another major version than this header's.
[[nodiscard]] inline dlpack_tensor from_dlpack(DLManagedTensorVersioned* of) {
  if (of == nullptr) throw std::invalid_argument("orderly::from_dlpack: the tensor is null");
  if (of->version.major != DLPACK_MAJOR_VERSION)
    throw std::invalid_argument("orderly::from_dlpack: a tensor of DLPack " + std::to_string(of->version.major) + "." +
                                std::to_string(of->version.minor) + "; this program knows " +
                                std::to_string(DLPACK_MAJOR_VERSION));
  std::string why;
  const auto layout = detail::check_dlpack(of->dl_tensor, why);
  if (!layout) throw std::invalid_argument(why);
  return {of, *layout, (of->flags & DLPACK_FLAG_BITMASK_READ_ONLY) != 0};
}
#endif

}  // namespace orderly
