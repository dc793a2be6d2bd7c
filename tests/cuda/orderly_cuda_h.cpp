// The C interface to pools of device memory, from C++: orderly/orderly_cuda.h. c_api.c uses it from C. Runs on a
// device, and against the stand-in of software_cuda.cpp.
#include "orderly/orderly_cuda.h"

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/portable.hpp"
#include "support/threads.hpp"

using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

/// A handle that is destroyed at the end of its scope, when no stream has work left in its memory.
class handle {
 public:
  explicit handle(std::size_t capacity, std::size_t granule = 0) {
    const orderly_options settings{capacity, granule, 0, 0};
    REQUIRE_MESSAGE(orderly_pool_create_cuda(0, &settings, &pool_) == ORDERLY_OK, orderly_last_error());
  }
  handle(const handle&) = delete;
  handle& operator=(const handle&) = delete;
  ~handle() {
    CHECK(orderly_synchronize(pool_) == ORDERLY_OK);
    orderly_pool_destroy(pool_);
  }
  [[nodiscard]] orderly_pool* get() const noexcept { return pool_; }
  [[nodiscard]] orderly_stats stats() const {
    orderly_stats stats;
    REQUIRE(orderly_pool_stats(pool_, &stats) == ORDERLY_OK);
    return stats;
  }

 private:
  orderly_pool* pool_ = nullptr;
};

void copy(cudaStream_t in, const void* from, void* to, std::size_t bytes = sizeof(unsigned)) {
  REQUIRE(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, in) == cudaSuccess);
}

bool last_error_has(const std::string& part) { return std::strstr(orderly_last_error(), part.c_str()) != nullptr; }

}  // namespace

TEST_CASE("without the device there is a code, a message, and no handle") {
  int devices = 0;
  REQUIRE(cudaGetDeviceCount(&devices) == cudaSuccess);
  for (const int device : {-1, devices, 9999}) {
    CAPTURE(device);
    orderly_pool* pool = reinterpret_cast<orderly_pool*>(256);
    CHECK(orderly_pool_create_cuda(device, nullptr, &pool) == ORDERLY_ERROR_SOURCE_FAILED);
    CHECK(pool == nullptr);
    CHECK(last_error_has("no CUDA device " + std::to_string(device)));
  }
  CHECK(cudaGetLastError() == cudaSuccess);
}

TEST_CASE("options out of range, and memory that the device has not") {
  const orderly_options wrong[] = {{mib, 3, 0, 0}, {mib, 128 * kib, 0, 0}, {100, 0, 0, 0}, {SIZE_MAX, 0, 0, 0}};
  for (const orderly_options& settings : wrong) {
    orderly_pool* pool = reinterpret_cast<orderly_pool*>(256);
    CHECK(orderly_pool_create_cuda(0, &settings, &pool) == ORDERLY_ERROR_INVALID_ARGUMENT);
    CHECK(pool == nullptr);
    CHECK(std::strlen(orderly_last_error()) > 0);
  }
  CHECK(orderly_pool_create_cuda(0, nullptr, nullptr) == ORDERLY_ERROR_INVALID_ARGUMENT);
  const orderly_options plenty{std::size_t{1} << 44, std::size_t{64} << 10, 0, 0};
  orderly_pool* pool = reinterpret_cast<orderly_pool*>(256);
  CHECK(orderly_pool_create_cuda(0, &plenty, &pool) == ORDERLY_ERROR_SOURCE_FAILED);
  CHECK(pool == nullptr);
  CHECK(last_error_has("lower the capacity"));
  CHECK(cudaGetLastError() == cudaSuccess);
}

TEST_CASE("the options reach the pool; a limit lowers the capacity, and the chunk plays no part") {
  const orderly_options settings{4 * mib, 1024, 12345, mib};
  orderly_pool* pool = nullptr;
  REQUIRE(orderly_pool_create_cuda(0, &settings, &pool) == ORDERLY_OK);
  orderly_stats stats;
  REQUIRE(orderly_pool_stats(pool, &stats) == ORDERLY_OK);
  CHECK(stats.capacity == mib);
  CHECK(stats.committed == mib);
  void* const block = orderly_allocate_async(pool, 1, nullptr);
  CHECK(orderly_block_size(pool, block) == 1024);
  CHECK(orderly_allocate_async(pool, mib + 1, nullptr) == nullptr);
  CHECK(last_error_has(std::to_string(mib + 1)));
  CHECK(orderly_deallocate_async(pool, block, 1, nullptr) == ORDERLY_OK);
  orderly_pool_destroy(pool);
}

TEST_CASE("all options, and each kind of memory") {
  orderly_settings settings{};
  settings.size = sizeof settings;
  settings.capacity = 16 * mib;
  settings.granule = 1024;
  settings.account_tags = 1;
  settings.wait_before_refusing = 1;
  for (const int kind : {ORDERLY_CUDA_DEVICE, ORDERLY_CUDA_VIRTUAL, ORDERLY_CUDA_PINNED, ORDERLY_CUDA_MANAGED}) {
    CAPTURE(kind);
    settings.reserve = kind == ORDERLY_CUDA_VIRTUAL ? 4 * mib : 0;
    orderly_pool* pool = nullptr;
    REQUIRE_MESSAGE(orderly_pool_create_cuda_with(0, kind, &settings, &pool) == ORDERLY_OK, orderly_last_error());
    orderly_stats stats;
    REQUIRE(orderly_pool_stats(pool, &stats) == ORDERLY_OK);
    CHECK(stats.capacity == 16 * mib);
    CHECK(stats.committed == (kind == ORDERLY_CUDA_VIRTUAL ? 4 * mib : 16 * mib));
    const orderly_tag before = orderly_tag_set(orderly_tag_named("weights"));
    void* const block = orderly_allocate_async(pool, 1, nullptr);
    CHECK(orderly_tag_set(before) == orderly_tag_named("weights"));
    CHECK(orderly_block_size(pool, block) == 1024);
    orderly_tag_stats tags[2];
    CHECK(orderly_pool_tags(pool, tags, 2) == 1);
    CHECK(tags[0].allocated == 1024);
    CHECK(orderly_allocate_async(pool, 16 * mib, nullptr) == nullptr);
    CHECK(last_error_has("out of memory: 16777216 bytes requested"));
    CHECK(orderly_report(pool, 16 * mib, nullptr, 0) > 0);
    CHECK(orderly_deallocate_async(pool, block, 1, nullptr) == ORDERLY_OK);
    orderly_pool_destroy(pool);
  }
  orderly_pool* pool = reinterpret_cast<orderly_pool*>(256);
  for (const int kind : {-1, 4, 9999}) {
    CHECK(orderly_pool_create_cuda_with(0, kind, &settings, &pool) == ORDERLY_ERROR_INVALID_ARGUMENT);
    CHECK(pool == nullptr);
    CHECK(last_error_has(std::to_string(kind) + " is no kind of memory"));
  }
  CHECK(orderly_pool_create_cuda_with(0, 0, &settings, nullptr) == ORDERLY_ERROR_INVALID_ARGUMENT);
  CHECK(orderly_pool_create_cuda_with(9999, 0, &settings, &pool) == ORDERLY_ERROR_SOURCE_FAILED);
  settings.size = 0;
  CHECK(orderly_pool_create_cuda_with(0, 0, &settings, &pool) == ORDERLY_ERROR_INVALID_ARGUMENT);
  CHECK(last_error_has("sizeof(orderly_settings)"));
  CHECK(cudaGetLastError() == cudaSuccess);
}

TEST_CASE("without options a pool has most of what is free") {
  std::size_t free = 0;
  std::size_t total = 0;
  REQUIRE(cudaMemGetInfo(&free, &total) == cudaSuccess);
  orderly_pool* pool = nullptr;
  REQUIRE_MESSAGE(orderly_pool_create_cuda(0, nullptr, &pool) == ORDERLY_OK, orderly_last_error());
  orderly_stats stats;
  REQUIRE(orderly_pool_stats(pool, &stats) == ORDERLY_OK);
  CHECK(stats.capacity > free / 2);
  CHECK(stats.capacity < free);
  orderly_pool_destroy(pool);
}

TEST_CASE("a destroyed pool gives the device its memory back") {
  std::size_t free = 0;
  std::size_t total = 0;
  REQUIRE(cudaMemGetInfo(&free, &total) == cudaSuccess);
  const orderly_options settings{free / 4, 0, 0, 0};
  for (int round = 0; round < 10; ++round) {
    orderly_pool* pool = nullptr;
    REQUIRE_MESSAGE(orderly_pool_create_cuda(0, &settings, &pool) == ORDERLY_OK, orderly_last_error());
    orderly_pool_destroy(pool);
  }
}

TEST_CASE("a pool without streams refuses what has a stream") {
  orderly_pool* pool = nullptr;
  REQUIRE(orderly_pool_create_host(nullptr, &pool) == ORDERLY_OK);
  void* const block = orderly_allocate(pool, 1000);
  const std::pair<const char*, std::function<int()>> calls[] = {
      {"orderly_deallocate_async", [&] { return orderly_deallocate_async(pool, block, 1000, nullptr); }},
      {"orderly_record_stream", [&] { return orderly_record_stream(pool, block, nullptr); }},
      {"orderly_release_stream", [&] { return orderly_release_stream(pool, nullptr); }},
      {"orderly_begin_capture", [&] { return orderly_begin_capture(pool, nullptr); }},
      {"orderly_end_capture", [&] { return orderly_end_capture(pool, nullptr); }},
      {"orderly_synchronize", [&] { return orderly_synchronize(pool); }},
      {"orderly_stream_synchronize", [&] { return orderly_stream_synchronize(pool, nullptr); }},
  };
  for (const auto& call : calls) {
    CAPTURE(call.first);
    CHECK(call.second() == ORDERLY_ERROR_INVALID_ARGUMENT);
    CHECK(last_error_has(std::string(call.first) + ":"));
  }
  CHECK(orderly_allocate_async(pool, 1, nullptr) == nullptr);
  CHECK(last_error_has("orderly_allocate_async:"));
  CHECK(orderly_deallocate(pool, block, 1000) == ORDERLY_OK);
  orderly_pool_destroy(pool);
}

TEST_CASE("a destroyed handle is recognised by every function") {
  const orderly_options settings{mib, 0, 0, 0};
  orderly_pool* pool = nullptr;
  REQUIRE(orderly_pool_create_cuda(0, &settings, &pool) == ORDERLY_OK);
  void* const block = orderly_allocate_async(pool, 1000, nullptr);
  orderly_pool_destroy(pool);
  orderly_stats stats;
  for (orderly_pool* const gone : {pool, static_cast<orderly_pool*>(nullptr)}) {
    const int code = ORDERLY_ERROR_POOL_GONE;
    CHECK(orderly_allocate_async(gone, 1000, nullptr) == nullptr);
    CHECK(orderly_deallocate_async(gone, block, 1000, nullptr) == code);
    CHECK(orderly_record_stream(gone, block, nullptr) == code);
    CHECK(orderly_release_stream(gone, nullptr) == code);
    CHECK(orderly_begin_capture(gone, nullptr) == code);
    CHECK(orderly_end_capture(gone, nullptr) == code);
    CHECK(orderly_synchronize(gone) == code);
    CHECK(orderly_stream_synchronize(gone, nullptr) == code);
    CHECK(orderly_allocate(gone, 1000) == nullptr);
    CHECK(orderly_deallocate(gone, block, 1000) == code);
    CHECK(orderly_defragment(gone) == code);
    CHECK(orderly_trim(gone, 0) == code);
    CHECK(orderly_pool_stats(gone, &stats) == code);
    CHECK(orderly_block_size(gone, block) == 0);
    CHECK(orderly_owns(gone, block) == 0);
    orderly_pool_destroy(gone);
  }
}

TEST_CASE("blocks of another kind of pool are known as such") {
  orderly_pool* host = nullptr;
  REQUIRE(orderly_pool_create_host(nullptr, &host) == ORDERLY_OK);
  const handle first(mib);
  const handle second(mib);
  void* const on_host = orderly_allocate(host, 1000);
  void* const on_device = orderly_allocate_async(first.get(), 1000, nullptr);
  CHECK(orderly_deallocate_async(first.get(), on_host, 1000, nullptr) == ORDERLY_ERROR_WRONG_POOL);
  CHECK(orderly_deallocate(host, on_device, 1000) == ORDERLY_ERROR_WRONG_POOL);
  CHECK(orderly_deallocate_async(second.get(), on_device, 1000, nullptr) == ORDERLY_ERROR_WRONG_POOL);
  CHECK(orderly_record_stream(second.get(), on_device, nullptr) == ORDERLY_ERROR_WRONG_POOL);
  CHECK(last_error_has("orderly_record_stream"));
  CHECK(orderly_owns(second.get(), on_device) == 0);
  CHECK(orderly_deallocate_async(first.get(), on_device, 1000, nullptr) == ORDERLY_OK);
  CHECK(orderly_deallocate(host, on_host, 1000) == ORDERLY_OK);
  orderly_pool_destroy(host);
}

TEST_CASE("calls without a stream mean the legacy default stream") {
  const stream other;
  const handle pool(mib);
  void* const block = orderly_allocate(pool.get(), 10 * kib);
  const host_gate busy(other.get());
  CHECK(orderly_deallocate(pool.get(), block, 10 * kib) == ORDERLY_OK);
  // The same stream has it again at once; another is given something else as long as there is something.
  void* const elsewhere = orderly_allocate_async(pool.get(), 10 * kib, other.get());
  CHECK(elsewhere != block);
  CHECK(orderly_allocate_async(pool.get(), 10 * kib, nullptr) == block);
  CHECK(orderly_deallocate_async(pool.get(), block, 10 * kib, nullptr) == ORDERLY_OK);
  CHECK(orderly_allocate_aligned(pool.get(), 10 * kib, 256) == block);
  CHECK(orderly_allocate_aligned(pool.get(), 10 * kib, std::size_t{1} << 62) == nullptr);
  CHECK(last_error_has("alignment"));
  CHECK(orderly_deallocate(pool.get(), block, 10 * kib) == ORDERLY_OK);
  CHECK(orderly_deallocate_async(pool.get(), elsewhere, 10 * kib, other.get()) == ORDERLY_OK);
}

TEST_CASE("a block that its stream still writes is another's behind that work") {
  const stream writer;
  const stream taker;
  const handle pool(64 * kib);
  const host_array<unsigned> shared(3);
  *shared.at(0) = 1;
  *shared.at(1) = 2;
  void* const block = orderly_allocate_async(pool.get(), 64 * kib, writer.get());
  REQUIRE(block != nullptr);
  host_gate late(writer.get());
  copy(writer.get(), shared.at(0), block);
  CHECK(orderly_deallocate_async(pool.get(), block, 64 * kib, writer.get()) == ORDERLY_OK);
  CHECK(orderly_allocate_async(pool.get(), 64 * kib, taker.get()) == block);
  copy(taker.get(), shared.at(1), block);
  late.open();
  copy(taker.get(), block, shared.at(2));
  CHECK(cudaStreamSynchronize(taker.get()) == cudaSuccess);
  CHECK(cudaStreamSynchronize(writer.get()) == cudaSuccess);
  copy(taker.get(), block, shared.at(2));
  CHECK(cudaStreamSynchronize(taker.get()) == cudaSuccess);
  CHECK(*shared.at(2) == 2);
  CHECK(orderly_deallocate_async(pool.get(), block, 64 * kib, taker.get()) == ORDERLY_OK);
}

TEST_CASE("a block that was recorded for another stream stays out of use until that stream is done with it") {
  const stream owner;
  const stream reader;
  const handle pool(64 * kib);
  const host_array<unsigned> shared(2);
  *shared.at(0) = 7;
  void* const block = orderly_allocate_async(pool.get(), 64 * kib, owner.get());
  REQUIRE(block != nullptr);
  copy(owner.get(), shared.at(0), block);
  CHECK(cudaStreamSynchronize(owner.get()) == cudaSuccess);
  CHECK(orderly_record_stream(pool.get(), block, reader.get()) == ORDERLY_OK);
  host_gate late(reader.get());
  copy(reader.get(), block, shared.at(1));
  CHECK(orderly_deallocate_async(pool.get(), block, 64 * kib, owner.get()) == ORDERLY_OK);
  CHECK(orderly_allocate_async(pool.get(), 64 * kib, owner.get()) == block);  // behind an event
  REQUIRE(cudaMemsetAsync(block, 0, sizeof(unsigned), owner.get()) == cudaSuccess);
  late.open();
  CHECK(cudaStreamSynchronize(reader.get()) == cudaSuccess);
  CHECK(cudaStreamSynchronize(owner.get()) == cudaSuccess);
  CHECK(*shared.at(1) == 7);
  CHECK(orderly_deallocate_async(pool.get(), block, 64 * kib, owner.get()) == ORDERLY_OK);
}

TEST_CASE("synchronizing waits for work that may use what was freed, in one stream or in all") {
  for (const bool only_one : {true, false}) {
    CAPTURE(only_one);
    const stream writer;
    const handle pool(64 * kib);
    const host_array<unsigned> shared(2);
    *shared.at(0) = 9;
    void* const block = orderly_allocate_async(pool.get(), 64 * kib, writer.get());
    REQUIRE(block != nullptr);
    host_gate late(writer.get());
    copy(writer.get(), shared.at(0), block);
    copy(writer.get(), block, shared.at(1));
    CHECK(orderly_deallocate_async(pool.get(), block, 64 * kib, writer.get()) == ORDERLY_OK);
    int code = -1;
    std::atomic<bool> returned = false;
    std::thread waiter([&] {
      code = only_one ? orderly_stream_synchronize(pool.get(), writer.get()) : orderly_synchronize(pool.get());
      returned = true;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK_FALSE(returned);
    late.open();
    waiter.join();
    CHECK(code == ORDERLY_OK);
    CHECK(*shared.at(1) == 9);
    CHECK(orderly_trim(pool.get(), 0) == ORDERLY_OK);
    CHECK(pool.stats().cached == 0);
  }
}

TEST_CASE("streams come and go") {
  const handle pool(64 * kib);
  for (int round = 0; round < 100; ++round) {
    const stream passing;
    void* const block = orderly_allocate_async(pool.get(), 64 * kib, passing.get());
    REQUIRE_MESSAGE(block != nullptr, orderly_last_error());
    REQUIRE(cudaMemsetAsync(block, round, 64 * kib, passing.get()) == cudaSuccess);
    CHECK(orderly_deallocate_async(pool.get(), block, 64 * kib, passing.get()) == ORDERLY_OK);
    CHECK(orderly_release_stream(pool.get(), passing.get()) == ORDERLY_OK);
  }
}

TEST_CASE("captures are begun and ended once, and memory that no graph keeps comes back") {
  const handle pool(64 * kib);
  const stream in;
  CHECK(orderly_end_capture(pool.get(), in.get()) == ORDERLY_ERROR_INVALID_ARGUMENT);
  CHECK(last_error_has("orderly_end_capture:"));
  CHECK(orderly_begin_capture(pool.get(), in.get()) == ORDERLY_OK);
  CHECK(orderly_begin_capture(pool.get(), in.get()) == ORDERLY_ERROR_INVALID_ARGUMENT);
  CHECK(last_error_has("orderly_begin_capture:"));
  void* const block = orderly_allocate_async(pool.get(), 64 * kib, in.get());
  CHECK(orderly_deallocate_async(pool.get(), block, 64 * kib, in.get()) == ORDERLY_OK);
  CHECK(orderly_end_capture(pool.get(), in.get()) == ORDERLY_ERROR_INVALID_ARGUMENT);  // the stream did not capture
  CHECK(orderly_synchronize(pool.get()) == ORDERLY_OK);
  void* const again = orderly_allocate_async(pool.get(), 64 * kib, nullptr);
  CHECK(again == block);
  CHECK(orderly_deallocate_async(pool.get(), again, 64 * kib, nullptr) == ORDERLY_OK);
  CHECK(orderly_release_stream(pool.get(), in.get()) == ORDERLY_OK);
}

TEST_CASE("threads and streams at random: no write is lost or misplaced") {
  constexpr std::size_t threads = 4;
  constexpr unsigned rounds = 1000;
  const host_array<unsigned> sent(threads * rounds);
  const host_array<unsigned> seen(threads * rounds);
  std::vector<unsigned> refused(threads);
  findings found;
  {
    const std::vector<stream> streams(threads);
    const handle pool(4 * mib);
    run_threads(threads, [&](std::size_t self) {
      std::mt19937 random(static_cast<unsigned>(self));
      for (unsigned round = 0; round < rounds; ++round) {
        const std::size_t at = self * rounds + round;
        cudaStream_t const in = streams[random() % threads].get();
        const std::size_t bytes = std::size_t{256} << random() % 12;
        auto* const block = static_cast<unsigned*>(orderly_allocate_async(pool.get(), bytes, in));
        if (block == nullptr) {
          ++refused[self];
          continue;
        }
        *sent.at(at) = static_cast<unsigned>(at) + 1;
        unsigned* const end = block + bytes / sizeof(unsigned) - 1;
        found.expect(cudaMemcpyAsync(end, sent.at(at), sizeof *end, cudaMemcpyDefault, in) == cudaSuccess, "copy");
        found.expect(cudaMemcpyAsync(seen.at(at), end, sizeof *end, cudaMemcpyDefault, in) == cudaSuccess, "copy");
        const int code = orderly_deallocate_async(pool.get(), block, bytes, in);
        found.expect(code == ORDERLY_OK, "free: ", code);
        const int bad = orderly_deallocate_async(pool.get(), &round, 0, in);
        found.expect(bad == ORDERLY_ERROR_FOREIGN_POINTER, "foreign: ", bad);
      }
    });
    CHECK(orderly_synchronize(pool.get()) == ORDERLY_OK);
    CHECK(pool.stats().requested == 0);
    CHECK(pool.stats().bad_frees == threads * rounds - refused[0] - refused[1] - refused[2] - refused[3]);
  }
  ORDERLY_CHECK_FINDINGS(found);
  std::size_t wrong = 0;
  for (std::size_t at = 0; at < threads * rounds; ++at) wrong += *seen.at(at) != *sent.at(at);
  CHECK(wrong == 0);
  for (const unsigned count : refused) CHECK(count < rounds / 2);
}

#ifdef ORDERLY_SOFTWARE_CUDA  // CUDA itself does not tell what is no stream
TEST_CASE("a handle that names no stream is refused with a message") {
  const handle pool(mib);
  void* const stranger = reinterpret_cast<void*>(std::uintptr_t{4096});
  CHECK(orderly_allocate_async(pool.get(), 100, stranger) == nullptr);
  CHECK(last_error_has("is not a stream"));
  void* const block = orderly_allocate_async(pool.get(), 100, nullptr);
  CHECK(orderly_deallocate_async(pool.get(), block, 100, stranger) == ORDERLY_ERROR_INVALID_ARGUMENT);
  CHECK(last_error_has("no stream"));
  CHECK(orderly_record_stream(pool.get(), block, stranger) == ORDERLY_ERROR_INVALID_ARGUMENT);
  CHECK(orderly_stream_synchronize(pool.get(), stranger) == ORDERLY_ERROR_STREAM_FAILED);
  CHECK(orderly_release_stream(pool.get(), stranger) == ORDERLY_OK);
  CHECK(orderly_deallocate_async(pool.get(), block, 100, nullptr) == ORDERLY_OK);
}
#endif
