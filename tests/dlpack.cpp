// DLPack: what a consumer sees of a cache's tensor, what becomes of it, and that nothing a producer says is believed.
#include "orderly/dlpack.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "orderly/pool.hpp"
#include "support/audit.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/stream_bench.hpp"
#include "support/threads.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

/// A producer's tensor, whose deleter counts.
template <class Managed>
struct produced {
  Managed managed{};
  std::vector<std::int64_t> shape{2, 3};
  std::vector<std::int64_t> strides{3, 1};
  alignas(8) std::byte memory[64] = {};
  int deleted = 0;

  produced() {
    DLTensor& t = managed.dl_tensor;
    t.data = memory;
    t.device.device_type = kDLCPU;
    t.dtype.code = kDLFloat;
    t.dtype.bits = 32;
    t.dtype.lanes = 1;
    t.ndim = 2;
    t.shape = shape.data();
    t.strides = strides.data();
    managed.manager_ctx = this;
    managed.deleter = [](Managed* self) { ++static_cast<produced*>(self->manager_ctx)->deleted; };
#if ORDERLY_DLPACK_VERSIONED
    if constexpr (std::is_same_v<Managed, DLManagedTensorVersioned>) managed.version = {DLPACK_MAJOR_VERSION, 0};
#endif
  }
  produced(const produced&) = delete;
  produced& operator=(const produced&) = delete;

  /// The message with which it is refused; empty: it is taken. It is deleted then, and only then.
  [[nodiscard]] std::string refusal() {
    const int before = deleted;
    std::string why;
    try {
      const dlpack_tensor taken = from_dlpack(&managed);
      CHECK(deleted == before);
    } catch (const std::invalid_argument& refused) {
      why = refused.what();
    }
    CHECK(deleted == before + (why.empty() ? 1 : 0));
    return why;
  }
};

[[nodiscard]] bool tells(const std::string& message, const char* part) {
  return message.find("from_dlpack") != std::string::npos && message.find(part) != std::string::npos;
}

template <class Managed>
void check_round_trip(Managed* (*out)(tensor_cache&, const tensor&)) {
  pool tested(options{.capacity = 16 * mib, .on_bad_free = on_bad_free::count});
  {
    tensor_cache cache(tested, {.device = {13, 2}});
    const tensor some = cache.empty({4, 6}, tensor_type{4, 16, 2});
    Managed* const managed = out(cache, some);
    const DLTensor& t = managed->dl_tensor;
    CHECK(t.data == some.data);
    CHECK(t.ndim == 2);
    CHECK(t.shape[0] == 4);
    CHECK(t.shape[1] == 6);
    CHECK(t.strides[0] == 6);
    CHECK(t.strides[1] == 1);
    CHECK(t.dtype.code == 4);
    CHECK(t.dtype.bits == 16);
    CHECK(t.dtype.lanes == 2);
    CHECK(t.device.device_type == kDLCUDAManaged);
    CHECK(t.device.device_id == 2);
    CHECK(t.byte_offset == 0);
    CHECK(cache.try_free(some) == error::double_free);
    CHECK(cache.stats().exported == 1);
    {
      dlpack_tensor view = from_dlpack(managed);
      CHECK(view);
      CHECK(view.data() == some.data);
      CHECK(view.bytes() == some.bytes);
      CHECK(view.type() == some.type);
      CHECK(view.device() == some.device);
      CHECK_FALSE(view.read_only());
      CHECK(std::equal(view.shape().begin(), view.shape().end(), some.shape.begin(), some.shape.end()));
      std::memset(view.data(), 1, view.bytes());
      dlpack_tensor other = std::move(view);
      CHECK_FALSE(view);
      view = std::move(other);
      dlpack_tensor& itself = view;
      view = std::move(itself);
      CHECK(view);
      CHECK(cache.stats().exported == 1);
    }
    CHECK(cache.stats().exported == 0);
    CHECK(cache.stats().kept_tensors == 1);
    const tensor again = cache.empty({4, 6}, tensor_type{4, 16, 2});
    CHECK(again.data == some.data);
    std::thread([&, last = out(cache, again)] { last->deleter(last); }).join();
    CHECK(cache.stats().kept_tensors == 1);
    managed->deleter(nullptr);  // some consumers do
  }
  check_idle(tested);
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("out and in again: the same tensor, freed by the deleter, on any thread") {
  check_round_trip<DLManagedTensor>([](tensor_cache& c, const tensor& t) { return to_dlpack(c, t); });
#if ORDERLY_DLPACK_VERSIONED
  check_round_trip<DLManagedTensorVersioned>([](tensor_cache& c, const tensor& t) { return to_dlpack_versioned(c, t); });
#endif
}

TEST_CASE("a bad tensor does not get out, and a scalar and one without elements do") {
  pool tested(options{.capacity = 16 * mib, .on_bad_free = on_bad_free::count});
  tensor_cache cache(tested);
  CHECK_THROWS_AS((void)to_dlpack(cache, tensor{}), bad_free_error);
  const tensor some = cache.empty({3}, tensor_types::int8);
  cache.free(some);
  CHECK_THROWS_AS((void)to_dlpack(cache, some), bad_free_error);
  CHECK_THROWS_AS((void)to_dlpack(cache, cache.empty({3}, tensor_types::int8), &cache), bad_free_error);  // no streams here
  {
    const dlpack_tensor scalar = from_dlpack(to_dlpack(cache, cache.empty(tensor_layout())));
    CHECK(scalar.layout().dimensions() == 0);
    CHECK(scalar.bytes() == 4);
    const dlpack_tensor none = from_dlpack(to_dlpack(cache, cache.empty({0, 5}, tensor_types::float32)));
    CHECK(none.data() == nullptr);
    CHECK(none.shape()[1] == 5);
  }
  CHECK(cache.stats().exported == 0);
}

TEST_CASE("the deleter runs when the cache is gone, and when the pool is, too") {
  std::optional<pool> tested(std::in_place, options{.capacity = 16 * mib});
  std::optional<tensor_cache> cache(std::in_place, *tested);
  DLManagedTensor* const first = to_dlpack(*cache, cache->empty({1000}, tensor_types::int8));
  DLManagedTensor* const second = to_dlpack(*cache, cache->empty({1000}, tensor_types::int8));
  cache.reset();
  CHECK(first->dl_tensor.shape[0] == 1000);
  first->deleter(first);
  CHECK(tested->stats().allocations - tested->stats().frees == 1);
  SUBCASE("the pool is there") {
    second->deleter(second);
    check_idle(*tested);
  }
  SUBCASE("the pool is gone") {
    tested.reset();
    second->deleter(second);
  }
}

TEST_CASE("in the stream that was named, the deleter frees") {
  bench b(2, 64 * mib);
  tensor_cache cache(*b.tested);
  const tensor_layout layout({1 << 20}, tensor_types::int8);
  DLManagedTensor* const own = to_dlpack(cache, cache.empty(layout, b[0]));
  void* const memory = own->dl_tensor.data;
  own->deleter(own);
  DLManagedTensor* const other = to_dlpack(cache, cache.empty(layout, b[0]), b[1]);
  CHECK(other->dl_tensor.data == memory);
  other->deleter(other);
  const tensor in_first = cache.empty(layout, b[0]);
  CHECK(in_first.data != memory);
  CHECK(cache.empty(layout, b[1]).data == memory);
}

TEST_CASE("what a producer may say: strides or none, gaps, an offset, nothing at all, no deleter") {
  produced<DLManagedTensor> p;
  DLTensor& t = p.managed.dl_tensor;
  CHECK(p.refusal().empty());
  t.strides = nullptr;
  CHECK(from_dlpack(&p.managed).strides()[0] == 3);
  t.byte_offset = 8;
  CHECK(from_dlpack(&p.managed).data() == p.memory + 8);
  t.strides = p.strides.data();
  p.strides = {4, 1};
  CHECK(from_dlpack(&p.managed).bytes() == 28);
  p.shape = {1, 3};
  p.strides = {-5, 1};  // of an extent of 1
  t.shape = p.shape.data();
  t.strides = p.strides.data();
  CHECK(p.refusal().empty());
  p.shape[0] = 0;
  t.data = nullptr;
  CHECK(from_dlpack(&p.managed).data() == nullptr);
  t.ndim = 0;
  t.shape = nullptr;
  t.strides = nullptr;
  t.data = p.memory;
  CHECK(from_dlpack(&p.managed).bytes() == 4);
  p.managed.deleter = nullptr;
  static_cast<void>(from_dlpack(&p.managed));
}

TEST_CASE("what a producer must not say is refused with the values, and stays the producer's") {
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  const auto refused = [](const auto& spoil, const char* part) {
    CAPTURE(part);
    produced<DLManagedTensor> p;
    spoil(p.managed.dl_tensor, p);
    CHECK(tells(p.refusal(), part));
  };
  CHECK_THROWS_AS((void)from_dlpack(static_cast<DLManagedTensor*>(nullptr)), std::invalid_argument);
  refused([](DLTensor& t, auto&) { t.ndim = -1; }, "-1 dimensions");
  refused([](DLTensor& t, auto&) { t.ndim = 33; }, "33 dimensions");
  refused([](DLTensor& t, auto&) { t.ndim = std::numeric_limits<int>::max(); }, "dimensions");
  refused([](DLTensor& t, auto&) { t.ndim = std::numeric_limits<int>::min(); }, "dimensions");
  refused([](DLTensor& t, auto&) { t.shape = nullptr; }, "shape is null");
  refused([](DLTensor& t, auto&) { t.data = nullptr; }, "data is null, for 6 elements");
  refused([](DLTensor& t, auto&) { t.dtype.lanes = 0; }, "0 lanes");
  refused([](DLTensor& t, auto&) { t.dtype.bits = 0; }, "0 bits");
  refused([](DLTensor&, auto& p) { p.shape[0] = -2; }, "(-2, 3)");
  refused([](DLTensor& t, auto& p) { p.shape[0] = most; t.strides = nullptr; }, "2^63 - 1");
  refused([](DLTensor&, auto& p) { p.shape[0] = most; p.shape[1] = most; }, "2^63 - 1");
  refused([](DLTensor&, auto& p) { p.strides[0] = 0; }, "overlap");
  refused([](DLTensor&, auto& p) { p.strides[0] = 2; }, "overlap");
  refused([](DLTensor&, auto& p) { p.strides[1] = -1; }, "negative");
  refused([](DLTensor&, auto& p) { p.strides[0] = most; }, "2^63 - 1");
  refused([](DLTensor& t, auto&) { t.byte_offset = ~std::uint64_t{0}; }, "address space");
  refused([](DLTensor& t, auto&) { t.byte_offset = ~reinterpret_cast<std::uintptr_t>(t.data) - 8; }, "address space");
}

#if ORDERLY_DLPACK_VERSIONED
TEST_CASE("the versioned form: its version, its flags") {
  produced<DLManagedTensorVersioned> p;
  CHECK(p.refusal().empty());
  CHECK_FALSE(from_dlpack(&p.managed).read_only());
  p.managed.flags = DLPACK_FLAG_BITMASK_READ_ONLY;
  CHECK(from_dlpack(&p.managed).read_only());
  p.managed.version.major = DLPACK_MAJOR_VERSION + 1;
  CHECK(tells(p.refusal(), "this program knows"));
  CHECK_THROWS_AS((void)from_dlpack(static_cast<DLManagedTensorVersioned*>(nullptr)), std::invalid_argument);
  p.managed.version.major = DLPACK_MAJOR_VERSION;
  p.managed.dl_tensor.ndim = -1;
  CHECK(tells(p.refusal(), "-1 dimensions"));

  pool tested(options{.capacity = 16 * mib});
  tensor_cache cache(tested);
  DLManagedTensorVersioned* const whole = to_dlpack_versioned(cache, cache.empty({3}, tensor_types::float32));
  CHECK(whole->version.major == DLPACK_MAJOR_VERSION);
  CHECK(whole->flags == 0);
  whole->deleter(whole);
#ifdef DLPACK_FLAG_BITMASK_IS_SUBBYTE_TYPE_PADDED
  DLManagedTensorVersioned* const part = to_dlpack_versioned(cache, cache.empty({3}, tensor_type{0, 4, 1}));
  CHECK(part->flags == DLPACK_FLAG_BITMASK_IS_SUBBYTE_TYPE_PADDED);
  part->deleter(part);
#endif
}
#endif

TEST_CASE("random descriptors: taken or refused, never believed") {
  random_engine random = make_random(7);
  const auto any = [&]() -> std::int64_t {
    switch (uniform(random, 0, 5)) {
      case 0: return static_cast<std::int64_t>(random());
      case 1: return std::numeric_limits<std::int64_t>::max() - static_cast<std::int64_t>(uniform(random, 0, 2));
      case 2: return -static_cast<std::int64_t>(uniform(random, 0, 3));
      case 3: return std::int64_t{1} << uniform(random, 0, 62);
      default: return static_cast<std::int64_t>(uniform(random, 0, 5));
    }
  };
  std::size_t taken = 0;
  for (std::size_t round = 0; round < scaled(50000); ++round) {
    produced<DLManagedTensor> p;
    DLTensor& t = p.managed.dl_tensor;
    p.shape.assign(40, 1);
    p.strides.assign(40, 1);
    t.ndim = static_cast<int>(uniform(random, 0, 9)) - 1;
    if (uniform(random, 0, 9) == 0) t.ndim = static_cast<int>(random());
    for (std::size_t i = 0; i < 8; ++i) {
      p.shape[i] = any();
      p.strides[i] = any();
    }
    t.shape = uniform(random, 0, 9) == 0 ? nullptr : p.shape.data();
    t.strides = uniform(random, 0, 1) == 0 ? nullptr : p.strides.data();
    if (uniform(random, 0, 9) == 0) t.data = nullptr;
    t.dtype.bits = static_cast<std::uint8_t>(uniform(random, 0, 64));
    t.dtype.lanes = static_cast<std::uint16_t>(uniform(random, 0, 3));
    t.byte_offset = uniform(random, 0, 3) == 0 ? random() : 0;
    taken += p.refusal().empty();
  }
  CHECK(taken != 0);
}

}

TEST_SUITE("stress") {

TEST_CASE("deleters on other threads, while the cache goes and when it is gone") {
  const std::size_t rounds = scaled(300);
  pool tested(options{.capacity = 64 * mib});
  for (std::size_t round = 0; round < rounds; ++round) {
    std::optional<tensor_cache> cache(std::in_place, tested);
    std::vector<DLManagedTensor*> all;
    for (int i = 0; i < 64; ++i) all.push_back(to_dlpack(*cache, cache->empty({i % 4 * 1000 + 1000}, tensor_types::int8)));
    std::atomic<std::size_t> next = 0;
    run_threads(4, [&](std::size_t self) {
      if (self == 0) return cache.reset();
      for (std::size_t i; (i = next.fetch_add(1)) < all.size();) all[i]->deleter(all[i]);
    });
  }
  check_idle(tested);
}

}
