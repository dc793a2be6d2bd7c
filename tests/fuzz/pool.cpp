// Operations on a small pool, by up to three threads that take turns, against the sequential model of it.
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>

#include "orderly/pool.hpp"
#include "support/choices.hpp"
#include "support/lockstep_threads.hpp"
#include "support/pool_model.hpp"
#include "target.hpp"

using namespace orderly;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

struct aligned_delete {
  void operator()(std::byte* bytes) const noexcept { ::operator delete[](bytes, std::align_val_t{4096}); }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // Threads stay, as a program's do, and have caches of pools that are gone.
  static std::array<lockstep_threads, 3> threads{lockstep_threads(1), lockstep_threads(2), lockstep_threads(3)};
  constexpr std::size_t flat_bytes = 200 * kib;
  static const std::unique_ptr<std::byte[], aligned_delete> buffer(new (std::align_val_t{4096}) std::byte[flat_bytes]);

  byte_choices choices({data, size});
  lockstep_threads& calling = threads[choices.uniform(0, 2)];
  constexpr std::size_t shapes = 6;
  const std::array<options, shapes> settings{
      options{.capacity = 4 * mib},
      options{.capacity = 256 * kib, .granule = 16, .chunk = 4 * kib},
      options{.capacity = 64 * mib, .limit = mib},
      options{.capacity = 2 * mib, .granule = 4 * kib, .chunk = 4 * kib, .slack = 0},
      options{.capacity = 128 * kib},
      options{.capacity = flat_bytes},
  };
  const std::size_t shape = choices.uniform(0, shapes - 1);
  pool_model tested(choices, calling, settings[shape],
                    shape == shapes - 1 ? make_fixed_buffer_source(buffer.get(), flat_bytes) : nullptr);
  while (!choices.spent()) tested.step();
  tested.finish();
  return 0;
}
