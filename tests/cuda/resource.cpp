// Pools as cuda::mr resources: the concepts of the CCCL at hand, and what the handle does, on software streams.
// Compiled for each CCCL that there is, as C++17 and C++20, for both meanings of stream 0.
#include "orderly/cuda/resource.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <set>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/memory_resource.hpp"
#include "cuda/resource_bench.hpp"
#include "orderly/software_stream.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

using device_accessible = mr::device_accessible;
using host_accessible = mr::host_accessible;

static_assert(serves_streams<cuda_device_resource>);
static_assert(serves_hosts<cuda_device_resource>);
static_assert(serves_streams_with<cuda_device_resource, device_accessible>);
static_assert(serves_hosts_with<cuda_device_resource, device_accessible>);
static_assert(!serves_streams_with<cuda_device_resource, host_accessible>);
static_assert(!serves_hosts_with<cuda_device_resource, host_accessible>);
static_assert(serves_streams_with<cuda_pinned_resource, device_accessible, host_accessible>);
static_assert(serves_hosts_with<cuda_pinned_resource, host_accessible, device_accessible>);
static_assert(serves_streams_with<cuda_managed_resource, device_accessible, host_accessible>);
static_assert(serves_streams_with<cuda_resource<host_accessible>, host_accessible>);
static_assert(!serves_streams_with<cuda_resource<host_accessible>, device_accessible>);
static_assert(cuda_device_resource::default_alignment == 256);
static_assert(std::is_nothrow_copy_constructible_v<cuda_device_resource>);
static_assert(std::is_nothrow_copy_assignable_v<cuda_device_resource>);
static_assert(std::is_constructible_v<device_ref, cuda_device_resource&>);
static_assert(std::is_constructible_v<device_ref, cuda_pinned_resource&>);
static_assert(std::is_constructible_v<device_sync_ref, cuda_device_resource&>);
static_assert(!std::is_constructible_v<device_ref, cuda_resource<host_accessible>&>);
#if ORDERLY_CUDA_MR_RENAMED
static_assert(std::is_same_v<std::decay_t<decltype(mr::get_memory_resource(std::declval<cuda_device_resource&>()))>,
                             cuda_device_resource>);
#endif
#if ORDERLY_TEST_ANY_RESOURCE
static_assert(serves_streams_with<mr::any_resource<device_accessible>, device_accessible>);
static_assert(std::is_constructible_v<mr::any_resource<device_accessible>, cuda_device_resource>);
static_assert(std::is_constructible_v<mr::any_synchronous_resource<device_accessible>, cuda_device_resource>);
static_assert(!std::is_constructible_v<mr::any_resource<host_accessible>, cuda_device_resource>);
static_assert(serves_streams_with<mr::shared_resource<cuda_device_resource>, device_accessible>);
static_assert(
    std::is_same_v<cuda_pinned_resource::default_queries, mr::properties_list<device_accessible, host_accessible>>);
#endif

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

using bench = resource_bench<cuda_device_resource>;

/// What type erasure makes of a resource must do the same.
template <class Check>
void each_way(cuda_device_resource& resource, const Check& check) {
  check(resource);
  device_ref erased(resource);
  check(erased);
#if ORDERLY_TEST_ANY_RESOURCE
  mr::any_resource<device_accessible> any(resource);
  check(any);
  auto shared = mr::make_shared_resource<cuda_device_resource>(resource);
  check(shared);
#endif
}

bool is_aligned(const void* block, std::size_t alignment) {
  return reinterpret_cast<std::uintptr_t>(block) % alignment == 0;
}

}  // namespace

TEST_CASE("blocks in a stream and outside of streams: sizes, alignments, and nothing is left") {
  bench b(64 * mib);
  each_way(b.resource, [&](auto& resource) {
    std::set<void*> distinct;
    std::vector<std::pair<void*, std::size_t>> in_stream;
    std::vector<std::pair<void*, std::size_t>> outside;
    for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{4}, 5 * kib, mib, mib + 1}) {
      for (const std::size_t alignment : {std::size_t{1}, std::size_t{16}, std::size_t{256}, 4 * kib, 64 * kib}) {
        CAPTURE(bytes);
        CAPTURE(alignment);
        in_stream.emplace_back(allocate(resource, b.in(), bytes, alignment), bytes);
        outside.emplace_back(allocate_sync(resource, bytes, alignment), bytes);
        for (void* const block : {in_stream.back().first, outside.back().first}) {
          CHECK(is_aligned(block, alignment));
          CHECK(distinct.insert(block).second);
          CHECK(b.pool->owns(block));
        }
        if (bytes > 1 * kib) continue;  // these stay for a while
        deallocate(resource, b.in(), in_stream.back().first, bytes, alignment);
        deallocate_sync(resource, outside.back().first, bytes, alignment);
        for (auto* const kept : {&in_stream, &outside}) {
          distinct.erase(kept->back().first);
          kept->pop_back();
        }
      }
      for (const auto& [block, length] : in_stream) deallocate(resource, b.in(), block, length);
      for (const auto& [block, length] : outside) deallocate_sync(resource, block, length);
      in_stream.clear();
      outside.clear();
      distinct.clear();
    }
    CHECK(b.live() == 0);
    CHECK(b.pool->stats().memory.bad_frees == 0);
  });
}

TEST_CASE("the forms without an alignment align to 256") {
  bench b;
  void* const in_stream = b.resource.allocate(b.in(), 1);
  void* const outside = b.resource.allocate_sync(1);
  b.resource.deallocate(b.in(), in_stream, 1);
  b.resource.deallocate_sync(outside, 1);
#if !ORDERLY_CUDA_MR_RENAMED
  void* const earlier_in_stream = b.resource.allocate_async(1, b.in());
  void* const earlier_outside = b.resource.allocate(1);
  CHECK(is_aligned(earlier_in_stream, 256));
  CHECK(is_aligned(earlier_outside, 256));
  b.resource.deallocate_async(earlier_in_stream, 1, b.in());
  b.resource.deallocate(earlier_outside, 1);
#endif
  CHECK(is_aligned(in_stream, 256));
  CHECK(is_aligned(outside, 256));
  CHECK(b.live() == 0);
}

TEST_CASE("what cannot be had is thrown, with the reason; a wrong free is not") {
  bench b;
  each_way(b.resource, [&](auto& resource) {
    const std::uint64_t before = b.pool->stats().memory.bad_frees;
    constexpr std::size_t pebibyte = std::size_t{1} << 50;
    for (const std::size_t bytes : {17 * mib, pebibyte, SIZE_MAX}) {
      try {
        static_cast<void>(allocate(resource, b.in(), bytes));
        FAIL("more memory than there is");
      } catch (const std::bad_alloc& refusal) {
        CHECK(std::string(refusal.what()).find("out of memory") != std::string::npos);
      }
      CHECK_THROWS_AS(static_cast<void>(allocate_sync(resource, bytes)), out_of_memory);
    }
    for (const std::size_t alignment : {std::size_t{0}, std::size_t{3}, std::size_t{384}, 32 * mib}) {
      CHECK_THROWS_AS(static_cast<void>(allocate(resource, b.in(), 1, alignment)), std::invalid_argument);
      CHECK_THROWS_AS(static_cast<void>(allocate_sync(resource, 1, alignment)), std::invalid_argument);
    }
    auto* const block = static_cast<char*>(allocate(resource, b.in(), 1000));
    int foreign = 0;
    deallocate(resource, b.in(), block + 256, 1000);
    deallocate(resource, b.in(), block, 5000);
    deallocate(resource, b.in(), &foreign, sizeof foreign);
    deallocate_sync(resource, block + 1, 1000);
    deallocate(resource, b.in(), block, 0);
    deallocate_sync(resource, block, 0);
    CHECK(b.live() == 1000);
    CHECK(b.pool->stats().memory.bad_frees == before + 6);
    deallocate(resource, b.in(), nullptr, 1000);
    deallocate_sync(resource, nullptr, 1000);
    deallocate(resource, b.in(), block, 1000);
    CHECK(b.pool->stats().memory.bad_frees == before + 6);
    deallocate_sync(resource, block, 1000);
    CHECK(b.pool->stats().memory.bad_frees == before + 7);
    CHECK(b.live() == 0);
  });
}

TEST_CASE("outside of streams memory is free of every stream's work, and nobody waits if it was before") {
  bench b;
  each_way(b.resource, [&](auto& resource) {
    const std::uint64_t waits = b.device.calls().synchronizations;
    deallocate_sync(resource, allocate_sync(resource, mib), mib);
    CHECK(b.device.calls().synchronizations == waits);
    CHECK(b.pool->synchronize());
    const std::uint64_t before = b.device.calls().synchronizations;
    void* const block = allocate(resource, b.in(), 16 * mib);
    b.stream.enqueue([block] { std::memset(block, 1, 16 * mib); });
    deallocate(resource, b.in(), block, 16 * mib);
    auto* const again = static_cast<char*>(allocate_sync(resource, 16 * mib));
    CHECK(again == block);
    CHECK(b.device.calls().synchronizations == before + 1);
    CHECK(again[0] == 1);
    CHECK(again[16 * mib - 1] == 1);
    std::memset(again, 0, 16 * mib);
    CHECK(b.pool->synchronize());
    CHECK(again[0] == 0);
    deallocate_sync(resource, again, 16 * mib);
    const software_calls calls = b.device.calls();
    for (int i = 0; i < 100; ++i) deallocate_sync(resource, allocate_sync(resource, 16 * mib), 16 * mib);
    CHECK(b.device.calls().records == calls.records);
    CHECK(b.device.calls().synchronizations == calls.synchronizations);
    CHECK(b.pool->synchronize());
  });
}

TEST_CASE("handles of one pool are equal and free each other's blocks; the pool goes with the last") {
  bench b;
  bench other;
  cuda_device_resource copy(b.resource);
  cuda_device_resource apart = b.make_resource();
  CHECK(copy == b.resource);
  CHECK(apart == b.resource);
  CHECK(other.resource != b.resource);
  void* const first = allocate_sync(b.resource, 100);
  void* const second = allocate(copy, b.in(), 100);
  deallocate_sync(apart, first, 100);
  deallocate(apart, b.in(), second, 100);
  CHECK(b.live() == 0);
  CHECK(b.pool->stats().memory.bad_frees == 0);
  CHECK(&copy.upstream() == b.pool.get());
  CHECK(copy.device() == 0);

  const std::weak_ptr<stream_pool> watched = b.pool;
  b.pool = other.pool;
  copy = other.resource;
  b.resource = std::move(copy);
  CHECK(b.resource == other.resource);
  CHECK(copy == other.resource);  // still a handle
  CHECK(apart != b.resource);
#if ORDERLY_TEST_ANY_RESOURCE
  mr::any_resource<device_accessible> any(apart);
  const mr::any_resource<device_accessible> same(any);
  CHECK(any == same);
  CHECK(any != mr::any_resource<device_accessible>(other.resource));
  apart = other.resource;
  CHECK_FALSE(watched.expired());
  deallocate_sync(any, allocate_sync(any, 100), 100);
  any = mr::any_resource<device_accessible>(apart);
  CHECK_FALSE(watched.expired());
#endif
  static_cast<void>(apart);
}

TEST_CASE("with its last handle a resource gives up its stream, and then the pool") {
  bench b;
  const std::weak_ptr<stream_pool> watched = b.pool;
  {
    cuda_device_resource passing = b.make_resource();
    const cuda_device_resource copy(passing);
    deallocate_sync(passing, allocate_sync(passing, 100), 100);
    CHECK(b.pool->stats().streams == 1);
  }
  CHECK(b.pool->stats().streams == 0);
  b.pool = nullptr;
  CHECK_FALSE(watched.expired());
  b.resource = bench().resource;
  CHECK(watched.expired());
}

TEST_CASE("a resource needs a pool and a stream; a missing device is named") {
  bench b;
  CHECK_THROWS_AS(cuda_device_resource(nullptr, 0, std::make_shared<int>()), std::invalid_argument);
  CHECK_THROWS_WITH_AS(cuda_device_resource(b.pool, 0, nullptr), doctest::Contains("no stream can be made on device 0"),
                       std::runtime_error);
  CHECK_THROWS_WITH_AS(cuda_device_resource(b.pool, 1000), doctest::Contains("device 1000"), std::runtime_error);
  CHECK_THROWS_WITH_AS(static_cast<void>(make_cuda_device_resource(1000)), doctest::Contains("device 1000"),
                       std::runtime_error);
  CHECK_THROWS_WITH_AS(static_cast<void>(make_cuda_pinned_resource(1000, mib)), doctest::Contains("device 1000"),
                       std::runtime_error);
  CHECK_THROWS_WITH_AS(static_cast<void>(make_cuda_managed_resource(1000, mib)), doctest::Contains("device 1000"),
                       std::runtime_error);
}

namespace {

/// Streams that have no work; remembers who was asked for.
class listening_driver final : public stream_driver {
 public:
  std::uint64_t identity(stream_handle stream) noexcept override {
    heard.push_back(stream);
    return heard.size();
  }
  bool is_per_thread(stream_handle) noexcept override { return false; }
  std::uint64_t capture(stream_handle) noexcept override { return 0; }
  event_handle record(stream_handle) noexcept override { return this; }
  bool wait(stream_handle, event_handle) noexcept override { return true; }
  event_status query(event_handle) noexcept override { return event_status::complete; }
  bool synchronize(event_handle) noexcept override { return true; }
  void release(event_handle) noexcept override {}

  std::vector<stream_handle> heard;
};

}  // namespace

TEST_CASE("stream 0 is the one that its user is compiled for; other handles are passed on as they are") {
  const auto driver = std::make_shared<listening_driver>();
  stream_options settings;
  settings.memory.capacity = mib;
  const auto pool = std::make_shared<stream_pool>(make_host_source(), driver, settings);
  cuda_device_resource resource(pool, 0, std::shared_ptr<void>(driver, driver.get()));
  for (const cudaStream_t stream : {cudaStream_t{}, cudaStreamLegacy, cudaStreamPerThread})
    deallocate(resource, stream, allocate(resource, stream, 100), 100);
#ifdef CUDA_API_PER_THREAD_DEFAULT_STREAM
  CHECK(driver->heard == std::vector<stream_handle>{cudaStreamPerThread, cudaStreamLegacy});
#else
  CHECK(driver->heard == std::vector<stream_handle>{nullptr, cudaStreamLegacy, cudaStreamPerThread});
#endif
}

namespace {

struct upstream_books {
  std::size_t live = 0;
  std::size_t most = SIZE_MAX;
  std::size_t shift = 0;  ///< moves addresses off large alignments
};

/// As CUDA's own: throws what it likes, and aligns to 256 at most.
class strict_resource {
 public:
  explicit strict_resource(upstream_books& books) : books_(&books) {}

  void* allocate_sync(std::size_t bytes, std::size_t alignment) {
    if (alignment > 256) throw std::invalid_argument("alignment");
    if (bytes > books_->most) throw 42;
    auto* const block = static_cast<char*>(::operator new(bytes + 8 * kib, std::align_val_t{4 * kib}));
    books_->live += bytes;
    return block + books_->shift;
  }
  void deallocate_sync(void* block, std::size_t bytes, std::size_t) noexcept {
    books_->live -= bytes;
    ::operator delete(static_cast<char*>(block) - books_->shift, std::align_val_t{4 * kib});
  }
  void* allocate(std::size_t bytes, std::size_t alignment) { return allocate_sync(bytes, alignment); }
  void deallocate(void* block, std::size_t bytes, std::size_t alignment) noexcept {
    deallocate_sync(block, bytes, alignment);
  }

  friend bool operator==(const strict_resource& a, const strict_resource& b) { return a.books_ == b.books_; }
  [[maybe_unused]] friend bool operator!=(const strict_resource& a, const strict_resource& b) { return !(a == b); }
  [[maybe_unused]] friend void get_property(const strict_resource&, device_accessible) noexcept {}

 private:
  upstream_books* books_;
};

/// What a source does with an upstream that has `bytes`, and a pool with it.
template <class Resource>
void check_source(const Resource& upstream, std::size_t bytes) {
  const auto source = make_resource_source(upstream, bytes);
  CHECK(source->capacity() == bytes);
  CHECK_FALSE(source->is_virtual());
  CHECK(source->reserve(bytes + 1, 256) == nullptr);
  CHECK(source->reserve(0, 256) == nullptr);
  CHECK(source->reserve(bytes, SIZE_MAX / 2 + 1) == nullptr);
  for (const std::size_t alignment : {std::size_t{256}, 4 * kib, 4 * kib}) {
    void* const range = source->reserve(bytes, alignment);
    REQUIRE(range != nullptr);
    CHECK(is_aligned(range, alignment));
    std::memset(range, 1, bytes);
    CHECK(source->reserve(256, 256) == nullptr);  // one range at a time
    source->release(range, bytes);
  }
  const software_device device;
  const software_stream stream(device);
  stream_pool pool(make_resource_source(upstream, bytes), device.driver());
  void* const block = pool.allocate(bytes / 2, stream.handle());
  std::memset(block, 1, bytes / 2);
  pool.deallocate(block, bytes / 2, stream.handle());
  CHECK(pool.capacity() == bytes);
}

}  // namespace

TEST_CASE("a pool may take its memory from a resource, a pool's own or another") {
  upstream_books books;
  for (const std::size_t shift : {std::size_t{0}, std::size_t{256}}) {
    books.shift = shift;
    check_source(strict_resource(books), mib);
    CHECK(books.live == 0);
#if ORDERLY_TEST_ANY_RESOURCE
    check_source(mr::any_synchronous_resource<device_accessible>(strict_resource(books)), mib);
    CHECK(books.live == 0);
#endif
  }
  books.most = mib - 1;
  CHECK(make_resource_source(strict_resource(books), mib)->reserve(mib, 256) == nullptr);
  const software_device device;
  CHECK_THROWS_AS(stream_pool(make_resource_source(strict_resource(books), mib), device.driver()), out_of_memory);
  CHECK(books.live == 0);

  bench b;
  check_source(b.resource, mib);
  check_source(device_sync_ref(b.resource), mib);
#if ORDERLY_TEST_ANY_RESOURCE
  check_source(mr::any_resource<device_accessible>(b.resource), mib);
#endif
  CHECK(b.live() == 0);
  CHECK(b.pool->stats().memory.bad_frees == 0);
}
