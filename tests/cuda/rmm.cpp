// A pool as a resource of RMM: where memory is short, RMM's exception, which RMM's own adaptor acts upon; for the rest, the
// resource it is. On software streams, against RMM's headers: its library needs a newer C++ library than many systems have, so
// what it defines of its exceptions is defined here.
#include "orderly/cuda/rmm.hpp"

#include <doctest/doctest.h>

#include <rmm/mr/failure_callback_resource_adaptor.hpp>
#include <rmm/resource_ref.hpp>

#include <cstddef>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "cuda/memory_resource.hpp"
#include "cuda/resource_bench.hpp"

RMM_NAMESPACE_BEGIN
bad_alloc::bad_alloc(const char* msg) : _what(std::string(std::bad_alloc::what()) + ": " + msg) {}
bad_alloc::bad_alloc(std::string const& msg) : bad_alloc(msg.c_str()) {}
const char* bad_alloc::what() const noexcept { return _what.c_str(); }
out_of_memory::out_of_memory(const char* msg) : bad_alloc(std::string("out_of_memory: ") + msg) {}
out_of_memory::out_of_memory(std::string const& msg) : out_of_memory(msg.c_str()) {}
RMM_NAMESPACE_END

using namespace orderly;
using namespace orderly::test;

namespace {

using device_accessible = mr::device_accessible;

static_assert(serves_streams_with<rmm_device_resource, device_accessible>);
static_assert(serves_hosts_with<rmm_device_resource, device_accessible>);
static_assert(serves_streams_with<rmm_pinned_resource, device_accessible, mr::host_accessible>);
static_assert(std::is_base_of_v<std::bad_alloc, rmm::out_of_memory>);

constexpr std::size_t mib = std::size_t{1} << 20;

using bench = resource_bench<rmm_device_resource>;

template <class Allocate>
void check_refusal(const Allocate& allocate) {
  try {
    static_cast<void>(allocate());
    FAIL("more memory than there is");
  } catch (const rmm::out_of_memory& refused) {
    const std::string text = refused.what();
    CHECK(text.find("out_of_memory") != std::string::npos);  // RMM's
    CHECK(text.find("17825792 bytes requested") != std::string::npos);  // the pool's
  }
}

}  // namespace

TEST_CASE("where memory is short RMM's exception is thrown, also through RMM's own types") {
  bench b;
  check_refusal([&] { return b.resource.allocate(b.in(), 17 * mib, 256); });
  check_refusal([&] { return b.resource.allocate_sync(17 * mib, 256); });
  rmm::device_async_resource_ref erased(b.resource);
  check_refusal([&] { return erased.allocate(b.in(), 17 * mib, 256); });
  check_refusal([&] { return erased.allocate_sync(17 * mib, 256); });
  mr::any_resource<device_accessible> any(b.resource);
  check_refusal([&] { return any.allocate(b.in(), 17 * mib, 256); });
  const rmm_device_resource named = b.resource.query(mr::get_memory_resource_t{});
  check_refusal([&] { return rmm_device_resource(named).allocate_sync(17 * mib); });
  CHECK_THROWS_AS((void)b.resource.allocate(b.in(), 1, 3), std::invalid_argument);
  CHECK(b.live() == 0);
}

TEST_CASE("blocks come and go, and handles of a pool are equal") {
  bench b;
  rmm::device_async_resource_ref erased(b.resource);
  void* const block = erased.allocate(b.in(), 1000, 256);
  CHECK(b.live() == 1000);
  const rmm_device_resource other = b.resource;
  CHECK(other == b.resource);
  CHECK_FALSE(other != b.resource);
  CHECK_FALSE(bench().resource == other);
  const cuda_device_resource plain = b.resource;
  CHECK(rmm_device_resource(plain) == b.resource);
  erased.deallocate(b.in(), block, 1000, 256);
  CHECK(b.live() == 0);
}

TEST_CASE("RMM's adaptor calls back, and the allocation is tried again") {
  bench b;
  void* held = b.resource.allocate(b.in(), 8 * mib, 256);
  void* const other = b.resource.allocate(b.in(), 8 * mib, 256);
  struct context {
    bench* of;
    void** held;
    int calls = 0;
  } told{&b, &held};
  rmm::mr::failure_callback_resource_adaptor<> adaptor(
      b.resource,
      [](std::size_t, void* argument) {
        auto& at = *static_cast<context*>(argument);
        ++at.calls;
        if (*at.held == nullptr) return false;
        at.of->resource.deallocate(at.of->in(), std::exchange(*at.held, nullptr), 8 * mib, 256);
        return true;
      },
      &told);
  void* const block = adaptor.allocate(b.in(), 8 * mib, 256);
  CHECK(told.calls == 1);
  CHECK_THROWS_AS((void)adaptor.allocate(b.in(), 17 * mib, 256), rmm::out_of_memory);
  CHECK(told.calls == 2);
  adaptor.deallocate(b.in(), block, 8 * mib, 256);
  b.resource.deallocate(b.in(), other, 8 * mib, 256);
  CHECK(b.live() == 0);
}
