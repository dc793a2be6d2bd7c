// What an observer is told of blocks: one range for each that is live, and for good what cannot be taken back.
#include "observed_blocks.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "orderly/software_stream.hpp"
#include "orderly/stream_pool.hpp"
#include "support/decorated_source.hpp"
#include "support/stream_bench.hpp"

using namespace orderly;
using namespace orderly::detail;
using namespace orderly::test;

namespace {

using ranges = std::map<const void*, std::size_t>;

class listening_observer final : public block_observer {
 public:
  void allowed(void* address, std::size_t bytes) noexcept override { CHECK(now.emplace(address, bytes).second); }
  void forbidden(void* address) noexcept override { CHECK(now.erase(address) == 1); }

  ranges now;
};

/// Host memory whose blocks somebody is told of.
class observed_source final : public decorated_source {
 public:
  explicit observed_source(listening_observer& by) : by_(by) {}
  [[nodiscard]] std::size_t preferred_chunk() const noexcept override { return granularity(); }
  [[nodiscard]] block_observer* observer() noexcept override { return &by_; }

 private:
  listening_observer& by_;
};

}  // namespace

TEST_CASE("what is handed out is allowed, what is taken back forbidden; a block that nobody knows is neither") {
  listening_observer by;
  observed_blocks told(by);
  std::byte memory[64];
  told.hand_out(memory, 16, false);
  told.hand_out(memory + 16, 10, false);
  CHECK(by.now == ranges{{memory, 16}, {memory + 16, 10}});
  told.take_back(memory + 32, true);
  told.take_back(memory, true);
  CHECK(by.now == ranges{{memory + 16, 10}});
}

TEST_CASE("what is kept stays, and takes in what is handed out in it or over its ends") {
  std::byte memory[64];
  struct example {
    std::vector<std::pair<std::size_t, std::size_t>> kept;
    std::pair<std::size_t, std::size_t> again;
    ranges expected;
  };
  for (const example& each : {
           example{{{16, 16}}, {16, 16}, {{memory + 16, 16}}},
           example{{{16, 16}}, {16, 4}, {{memory + 16, 16}}},
           example{{{16, 16}}, {20, 4}, {{memory + 16, 16}}},
           example{{{16, 16}}, {16, 32}, {{memory + 16, 32}}},
           example{{{16, 16}}, {8, 12}, {{memory + 8, 24}}},
           example{{{16, 16}}, {24, 16}, {{memory + 16, 24}}},
           example{{{8, 4}, {16, 4}, {24, 8}, {40, 8}}, {16, 16}, {{memory + 8, 4}, {memory + 16, 16}, {memory + 40, 8}}},
           example{{{8, 4}, {16, 4}}, {0, 64}, {{memory, 64}}},
           example{{{8, 8}}, {0, 8}, {{memory, 8}, {memory + 8, 8}}},
           example{{{8, 8}}, {16, 8}, {{memory + 8, 8}, {memory + 16, 8}}},
       }) {
    for (const bool by_graph : {false, true}) {
      listening_observer by;
      observed_blocks told(by);
      for (const auto& [at, bytes] : each.kept) {
        told.hand_out(memory + at, bytes, by_graph);
        told.take_back(memory + at, by_graph);  // of a graph, or of a device that cannot be waited for
      }
      told.hand_out(memory + each.again.first, each.again.second, false);
      CHECK(by.now == each.expected);
      told.take_back(memory + each.again.first, true);
      const bool apart = each.expected.size() > each.kept.size();  // a block of its own, not of what is kept
      CHECK(by.now.size() == each.expected.size() - (apart ? 1 : 0));
    }
  }
}

TEST_CASE("a pool in stream order tells of its blocks, and waits for work that uses what is freed") {
  listening_observer by;
  const software_device device(software_schedule::lazy);
  const software_stream stream(device);
  stream_options settings;
  settings.memory.capacity = mib;
  settings.memory.on_bad_free = on_bad_free::count;
  stream_pool pool(std::make_unique<observed_source>(by), device.driver(), settings);
  void* const first = pool.allocate(1000, stream.handle());
  void* const second = pool.allocate(0, stream.handle());
  void* const third = pool.allocate(100, 4 * kib, stream.handle());
  CHECK(by.now == ranges{{first, 1000}, {second, 1}, {third, 100}});
  CHECK(pool.try_deallocate(first, 5, stream.handle()) == error::size_mismatch);
  CHECK(by.now.size() == 3);
  pool.deallocate(first, 1000, stream.handle());
  pool.deallocate(third, 100, stream.handle());
  CHECK(by.now == ranges{{second, 1}});
  CHECK(pool.allocate_settled(300, 256, stream.handle()) != nullptr);
  CHECK(by.now.size() == 2);
}
