// The library that PyTorch loads, loaded as PyTorch does it. Where there is no device, that is what it says.
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include <dlfcn.h>

#include "orderly/cuda/torch.h"
#include "support/process.hpp"

using namespace orderly::test;

namespace {

class library {
 public:
  library() : handle_(dlopen(ORDERLY_TORCH_LIBRARY, RTLD_NOW | RTLD_LOCAL)) {
    REQUIRE_MESSAGE(handle_ != nullptr, dlerror());
  }
  library(const library&) = delete;
  library& operator=(const library&) = delete;
  ~library() = default;  // it stays: it has thread-local variables and exit handlers

  [[nodiscard]] bool exports(const char* name) const { return dlsym(handle_, name) != nullptr; }

  template <class Function>
  [[nodiscard]] Function* find(const char* name) const {
    REQUIRE_MESSAGE(exports(name), name);
    return reinterpret_cast<Function*>(dlsym(handle_, name));
  }

 private:
  void* handle_;
};

}  // namespace

TEST_CASE("all functions are there, and nothing of orderly's else") {
  const library loaded;
  for (const char* const name :
       {"orderly_torch_alloc", "orderly_torch_try_alloc", "orderly_torch_free", "orderly_torch_record_stream",
        "orderly_torch_reset", "orderly_torch_memory_fraction", "orderly_torch_base_alloc", "orderly_torch_init",
        "orderly_torch_memory_stats"}) {
    CAPTURE(name);
    CHECK(loaded.exports(name));
  }
  for (const char* const name : {"orderly_allocate", "orderly_pool_create_cuda", "_ZN7orderly10cuda_callsEv"}) {
    CAPTURE(name);
    CHECK_FALSE(loaded.exports(name));
  }
}

TEST_CASE("an allocation, or the reason why there is none, in an exception that comes through") {
  const library loaded;
  auto* const alloc = loaded.find<decltype(orderly_torch_alloc)>("orderly_torch_alloc");
  auto* const try_alloc = loaded.find<decltype(orderly_torch_try_alloc)>("orderly_torch_try_alloc");
  auto* const free = loaded.find<decltype(orderly_torch_free)>("orderly_torch_free");
  auto* const base_alloc = loaded.find<decltype(orderly_torch_base_alloc)>("orderly_torch_base_alloc");
  setenv("ORDERLY_TORCH_CAPACITY", "64M", 1);
  CHECK(alloc(0, 0, nullptr) == nullptr);
  std::string reason;
  try {
    void* const block = alloc(1000, 0, nullptr);
    CHECK(block != nullptr);
    std::size_t size = 0;
    CHECK(base_alloc(block, &size) != nullptr);
    CHECK(size >= std::size_t{64} << 20);
    free(block, 1000, 0, nullptr);
    CHECK(try_alloc(1000, 0, nullptr) == block);
    free(block, 1000, 0, nullptr);
  } catch (const std::runtime_error& e) {
    reason = e.what();
    CHECK(reason.find("there is no CUDA device 0 here") != std::string::npos);
    const captured_stderr printed;
    CHECK(try_alloc(1000, 0, nullptr) == nullptr);
    CHECK(printed.text() == reason + "\n");
  }
  CHECK_THROWS_AS(static_cast<void>(alloc(std::size_t{1} << 40, 0, nullptr)), std::runtime_error);
  char own = 0;
  const captured_stderr printed;
  free(&own, 1, 0, nullptr);
  CHECK(printed.text().find("foreign pointer") != std::string::npos);
  loaded.find<decltype(orderly_torch_record_stream)>("orderly_torch_record_stream")(&own, nullptr);
  CHECK(printed.text().find("cannot be recorded") != std::string::npos);
  loaded.find<decltype(orderly_torch_reset)>("orderly_torch_reset")();
  loaded.find<decltype(orderly_torch_memory_fraction)>("orderly_torch_memory_fraction")(1, 0);
  loaded.find<decltype(orderly_torch_init)>("orderly_torch_init")(1);
}
