// Blocks that are divided: the words word by word; then what a pool in stream order makes of it: who may use what when,
// what the books say, which requests are refused.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "block_store.hpp"
#include "orderly/software_stream.hpp"
#include "orderly/stream_pool.hpp"
#include "support/paper_source.hpp"
#include "support/oracles.hpp"
#include "support/random.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"
#include "support/tree_audit.hpp"

using namespace orderly;
using namespace orderly::detail;
using namespace orderly::test;

namespace {

constexpr std::size_t kib = 1024;
constexpr std::size_t mib = 1024 * kib;

using words = std::vector<std::uint32_t>;

words no_parts(std::size_t parts) { return words(part_map::words_of(parts)); }

void set(words& live, std::size_t part) { live[part / 32] |= std::uint32_t{1} << part % 32; }
bool is_set(const words& live, std::size_t part) { return (live[part / 32] >> part % 32 & 1) != 0; }

/// Runs of random lengths.
words random_parts(random_engine& random, std::size_t parts) {
  words live = no_parts(parts);
  const std::size_t longest = log_uniform(random, 1, parts);
  for (std::size_t at = 0; at < parts;) {
    const bool alive = uniform(random, 0, 1) == 0;
    for (std::size_t left = log_uniform(random, 1, longest); left != 0 && at < parts; --left, ++at)
      if (alive) set(live, at);
  }
  return live;
}

/// Streams, and a pool of theirs; flat, or of host memory with chunks.
struct bench {
  explicit bench(std::size_t capacity, bool flat = true, stream_options settings = {},
                 software_schedule schedule = software_schedule::lazy)
      : device(schedule), buffer(flat ? new (std::align_val_t{4096}) std::byte[capacity] : nullptr) {
    settings.memory.capacity = capacity;
    settings.memory.on_bad_free = on_bad_free::count;
    pool.emplace(flat ? make_fixed_buffer_source(buffer.get(), capacity) : make_host_source(), device.driver(),
                 settings);
    for (int i = 0; i < 4; ++i) stream.emplace_back(device);
  }
  [[nodiscard]] stream_handle operator[](std::size_t i) const { return stream[i].handle(); }

  /// Everything is everybody's, and one block again.
  void check_idle() {
    CHECK(pool->synchronize());
    pool->defragment();
    CHECK(pool->synchronize());
    const stream_statistics stats = pool->stats();
    CHECK(stats.memory.requested == 0);
    CHECK(stats.memory.allocated == 0);
    CHECK(stats.memory.cached == 0);
    CHECK(stats.memory.allocations == stats.memory.frees);
    CHECK(stats.held == 0);
    void* const whole = pool->try_allocate(pool->largest_divisible(), stream[0].handle());
    CHECK(whole != nullptr);
    pool->deallocate(whole, pool->largest_divisible(), stream[0].handle());
  }

  struct aligned_delete {
    void operator()(std::byte* bytes) const noexcept { ::operator delete[](bytes, std::align_val_t{4096}); }
  };
  software_device device;
  std::unique_ptr<std::byte[], aligned_delete> buffer;
  std::optional<stream_pool> pool;
  std::vector<software_stream> stream;
};

/// The blocks tile what the pool uses, and what is live and cached among them is what the books say.
void check_sound(const stream_pool& pool) {
  std::size_t requested = 0, live = 0, cached = 0, out_of_place = 0;
  std::uintptr_t end = 0;
  pool.for_each_block([&](const block_info& block) {
    const auto address = reinterpret_cast<std::uintptr_t>(block.address);
    out_of_place += end != 0 && address != end;
    out_of_place += block.state == block_state::owned || block.state == block_state::split;
    end = address + block.bytes;
    requested += block.requested;
    if (block.state == block_state::live) live += block.bytes;
    if (block.state == block_state::cached) cached += block.bytes;
  });
  CHECK(out_of_place == 0);
  const statistics stats = pool.stats().memory;
  CHECK(stats.requested == requested);
  CHECK(stats.allocated == live);
  CHECK(stats.cached == cached);
}

stream_options with_granule(std::size_t granule) {
  stream_options settings;
  settings.memory.granule = granule;
  return settings;
}

std::byte* at(void* block, std::size_t offset) { return static_cast<std::byte*>(block) + offset; }

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("word by word: parts and pieces tile the node, no two buddies are free, and all of it merges again") {
  for (const bool flat : {true, false}) {
    CAPTURE(flat);
    const geometry shape = flat ? flat_geometry(16, 4096 * 16) : virtual_geometry(16, 256, 64 * kib, 0);
    const auto paper = std::make_shared<paper_map>();
    block_store store(shape, make_paper_source(16, paper, std::make_shared<source_log>()));
    REQUIRE(store.open());
    random_engine random = make_random(flat);
    for (std::size_t round = 0; round < scaled(300); ++round) {
      const auto order = static_cast<unsigned>(uniform(random, 1, std::min(shape.root_order, 11U)));
      const auto part_order = static_cast<unsigned>(uniform(random, 0, order - 1));
      const std::uint32_t parts = std::uint32_t{1} << (order - part_order);
      words bits = random_parts(random, parts);
      if (part_map(bits, parts).count_live() == 0) set(bits, uniform(random, 0, parts - 1));
      refusal why = refusal::none;
      const block_shape whole_block{static_cast<std::uint8_t>(order), whole};
      const auto n = store.take_one(whole_block, std::uint64_t{1} << order, ceiling::hard, why);
      REQUIRE(n);
      const part_map live(bits, parts);
      store.divide(*n, part_order, live);
      const auto part = [&](std::uint32_t index, unsigned up) {
        return node{((n->index << (order - part_order)) + index) >> up, static_cast<std::uint8_t>(part_order + up)};
      };
      // Nobody merges with a piece before it is given.
      live.each_free([&](std::uint32_t i, unsigned up) {
        REQUIRE(store.tree().look(part(i, up)).state() == block_state::owned);
      });
      const std::uint64_t alive_bits = live_bits(whole);
      live.each_live([&](std::uint32_t i) { store.word(part(i, 0)).store(alive_bits, std::memory_order_relaxed); });
      store.word(*n).store(block_word::split().bits(), std::memory_order_relaxed);
      live.each_free([&](std::uint32_t i, unsigned up) { store.give(part(i, up), whole); });
      findings found;
      const tree_audit audit(store.tree(), shape, found);
      std::size_t alive = 0;
      for (const tree_block& block : audit.blocks(block_state::live)) {
        const std::uint64_t index = (block.granule - n->granule()) >> part_order;
        found.expect(block.n.order == part_order && index < parts && is_set(bits, index), "granule ", block.granule);
        ++alive;
      }
      CHECK(alive == live.count_live());
      if (round % 8 == 0) expect_listed(const_cast<buddy&>(store.tree()), shape, found);
      std::vector<std::uint32_t> order_of_frees;
      live.each_live([&](std::uint32_t i) { order_of_frees.push_back(i); });
      std::shuffle(order_of_frees.begin(), order_of_frees.end(), random);
      for (const std::uint32_t i : order_of_frees) store.give(part(i, 0), whole);
      CHECK(tree_audit(store.tree(), shape, found).merged());
      ORDERLY_CHECK_FINDINGS(found);
      if (found.count() != 0) return;
    }
  }
}

TEST_CASE("each live part is a block that anybody frees; the rest is free, and no other block is") {
  for (const bool flat : {true, false}) {
    for (const bool settled : {true, false}) {
      CAPTURE(flat);
      CAPTURE(settled);
      bench b(4 * mib, flat, with_granule(64));
      random_engine random = make_random(settled);
      for (std::size_t round = 0; round < scaled(60); ++round) {
        const std::size_t levels = uniform(random, 0, 11);
        const std::size_t part_bytes = std::size_t{64} << uniform(random, 0, 14 - levels);
        const std::size_t parts = std::size_t{1} << levels;
        const std::size_t bytes = parts * part_bytes;
        const words live = random_parts(random, parts);
        const std::uint32_t count = part_map(live, static_cast<std::uint32_t>(parts)).count_live();
        const std::size_t spare = uniform(random, 0, part_bytes - 1) % bytes;  // of the last part, not requested
        const bool rounds_alike = (bytes - spare - 1) / 64 == (bytes - 1) / 64;
        const std::size_t requested = rounds_alike ? bytes - spare : bytes;
        void* const block = b.pool->allocate(requested, b[0]);
        REQUIRE(b.pool->block_size(block) == bytes);
        const statistics before = b.pool->stats().memory;
        std::string why;
        const error code = settled ? b.pool->divide_settled(block, part_bytes, live, &why)
                                   : b.pool->divide(block, part_bytes, live, b[round % 2], &why);
        REQUIRE_MESSAGE(code == error::none, why);
        const statistics after = b.pool->stats().memory;
        if (parts != 1) {
          CHECK(after.requested == before.requested - requested + count * part_bytes);
          CHECK(after.allocated == before.allocated - bytes + count * part_bytes);
          CHECK(after.allocations - after.frees == before.allocations - before.frees - 1 + count);
        }
        if (flat) check_sound(*b.pool);
        std::size_t wrong = 0;
        for (std::size_t i = 0; i < parts; ++i) {
          const std::size_t size = b.pool->block_size(at(block, i * part_bytes));
          wrong += size != (is_set(live, i) ? part_bytes : 0);
          wrong += b.pool->owns(at(block, (i + 1) * part_bytes - 1)) != is_set(live, i);
          wrong += b.pool->try_deallocate(at(block, i * part_bytes), 2 * part_bytes, b[0]) == error::none;
          if (is_set(live, i) || parts == 1) continue;
          wrong += b.pool->try_deallocate(at(block, i * part_bytes), part_bytes, b[0]) == error::none;
        }
        CHECK(wrong == 0);
        std::vector<std::size_t> left;
        for (std::size_t i = 0; i < parts; ++i)
          if (is_set(live, i)) left.push_back(i);
        std::shuffle(left.begin(), left.end(), random);
        for (const std::size_t i : left) {
          const stream_handle in = b[uniform(random, 0, 3)];
          wrong += b.pool->try_deallocate(at(block, i * part_bytes), part_bytes, in) != error::none;
        }
        for (const std::size_t i : left)
          wrong += b.pool->try_deallocate(at(block, i * part_bytes), part_bytes, b[0]) == error::none;
        CHECK(wrong == 0);
        if (round % 10 == 0) b.check_idle();
      }
      b.check_idle();
    }
  }
}

TEST_CASE("what cannot be divided is refused, says why, and changes nothing") {
  bench b(4 * mib, true);
  words live = no_parts(16);
  set(live, 3);
  auto* const block = static_cast<std::byte*>(b.pool->allocate(4096, b[0]));
  void* const trimmed = b.pool->allocate(5 * 256, b[0]);
  std::string why;
  const auto refused = [&](error code, const char* text, auto&&... arguments) {
    const statistics before = b.pool->stats().memory;
    why.clear();
    CHECK(b.pool->divide(arguments..., b[0], &why) == code);
    CHECK_MESSAGE(why.find(text) != std::string::npos, why);
    CHECK(b.pool->divide_settled(arguments...) == code);
    const statistics after = b.pool->stats().memory;
    CHECK(before.requested == after.requested);
    CHECK(before.allocated == after.allocated);
    CHECK(before.allocations == after.allocations);
    CHECK(before.frees == after.frees);
    CHECK(b.pool->block_size(block) == 4096);
  };
  refused(error::invalid_argument, "not a power of two from the granule, 256", block, 0U, live);
  refused(error::invalid_argument, "48 bytes: not a power", block, 48U, live);
  refused(error::invalid_argument, "not a power of two from the granule, 256", block, 128U, live);
  refused(error::invalid_argument, "block's length, 4096", block, 8192U, live);
  refused(error::invalid_argument, "1280 bytes is not a power of two", trimmed, 256U, live);
  refused(error::invalid_argument, "16 parts, and 64 bits", block, 256U, words(2));
  refused(error::invalid_argument, "16 parts, and 0 bits", block, 256U, words());
  refused(error::invalid_argument, "no bit set past the last", block, 256U, words{1U << 16});
  refused(error::interior_pointer, "inside a live block", block + 256, 256U, live);
  refused(error::misaligned_pointer, "misaligned", block + 8, 256U, live);
  refused(error::foreign_pointer, "foreign", static_cast<void*>(&b), 256U, live);
  refused(error::foreign_pointer, "foreign", static_cast<void*>(nullptr), 256U, live);
  CHECK(b.pool->divide(block, 256, live, nullptr) == error::invalid_argument);  // names no stream
  CHECK(b.pool->try_deallocate(block, 4096, b[0]) == error::none);
  CHECK(b.pool->divide(block, 256, live, b[0], &why) == error::double_free);
  CHECK(b.pool->divide_settled(block, 256, live) == error::double_free);
  b.pool->deallocate(trimmed, 5 * 256, b[0]);
  b.check_idle();

  bench large(64 * mib, false);  // its blocks above a root are slots
  CHECK(large.pool->largest_divisible() < 32 * mib);
  void* const slot = large.pool->allocate(32 * mib, large[0]);
  CHECK(large.pool->divide(slot, mib, no_parts(32), large[0], &why) == error::invalid_argument);
  CHECK_MESSAGE(why.find("larger than this pool divides") != std::string::npos, why);
  CHECK(large.pool->owns(slot));
  large.pool->deallocate(slot, 32 * mib, large[0]);
  large.check_idle();

  stream_pool moved(std::move(*b.pool));
  CHECK(b.pool->divide(block, 256, live, b[0]) == error::pool_gone);
  CHECK(b.pool->divide_settled(block, 256, live) == error::pool_gone);
  CHECK(b.pool->largest_divisible() == 0);
}

TEST_CASE("without a live part it is a free of the block: the same stream has it at once") {
  bench b(64 * mib);
  for (const std::size_t bytes : {4 * kib, 16 * mib}) {
    void* const block = b.pool->allocate(bytes, b[0]);
    const std::uint64_t records = b.pool->stats().events_recorded;
    CHECK(b.pool->divide(block, 256, no_parts(bytes / 256), b[0]) == error::none);
    CHECK(b.pool->stats().events_recorded == records);
    CHECK(b.pool->allocate(bytes, b[0]) == block);
    CHECK(b.pool->divide_settled(block, 256, no_parts(bytes / 256)) == error::none);
    CHECK_FALSE(b.pool->owns(block));
    CHECK(b.pool->divide_settled(block, 256, no_parts(bytes / 256)) == error::double_free);
  }
  b.check_idle();
}

TEST_CASE("what a division frees is another stream's behind one event; what is settled, behind none") {
  for (const bool settled : {false, true}) {
    CAPTURE(settled);
    bench b(4 * mib);
    void* const block = b.pool->allocate(4 * mib, b[0]);
    words live = no_parts(1024);
    for (std::size_t i = 0; i < 1024; i += 256) set(live, i);
    std::atomic<int> step = 0;
    b.stream[0].enqueue([&] { step = 1; });  // runs when somebody waits for it
    const error code =
        settled ? b.pool->divide_settled(block, 4096, live) : b.pool->divide(block, 4096, live, b[0]);
    CHECK(code == error::none);
    std::vector<void*> taken;
    for (int i = 0; i < 4; ++i) taken.push_back(b.pool->try_allocate(512 * kib, b[1]));
    for (void* const each : taken) CHECK(each != nullptr);
    CHECK(b.pool->stats().waits == (settled ? 0 : 1));
    CHECK(b.pool->stats().events_recorded == (settled ? 0 : 1));
    int seen = -1;
    b.stream[1].enqueue([&] { seen = step; });
    CHECK(b.stream[1].synchronize());
    CHECK(seen == (settled ? 0 : 1));
    for (void* const each : taken) b.pool->deallocate(each, 512 * kib, b[1]);
    for (std::size_t i = 0; i < 1024; i += 256) b.pool->deallocate(at(block, i * 4096), 4096, b[2]);
    b.check_idle();
  }
}

TEST_CASE("while the stream captures a division is refused, and works later") {
  bench b(4 * mib);
  void* const block = b.pool->allocate(mib, b[0]);
  words live = no_parts(256);
  set(live, 0);
  REQUIRE(b.stream[0].begin_capture());
  std::string why;
  CHECK(b.pool->divide(block, 4096, live, b[0], &why) == error::out_of_memory);
  CHECK_MESSAGE(why.find("captures") != std::string::npos, why);
  CHECK(b.pool->block_size(block) == mib);
  static_cast<void>(b.stream[0].end_capture());
  CHECK(b.pool->divide(block, 4096, live, b[0]) == error::none);
  CHECK(b.pool->block_size(block) == 4096);
  b.pool->deallocate(block, 4096, b[0]);
  b.check_idle();
}

TEST_CASE("streams that a block is recorded for are those of each part and of the rest") {
  for (const bool settled : {false, true}) {
    CAPTURE(settled);
    bench b(4 * mib);
    void* const block = b.pool->allocate(4 * mib, b[0]);
    CHECK(b.pool->record_stream(block, b[1]) == error::none);
    CHECK(b.pool->record_stream(block, b[2]) == error::none);
    std::atomic<int> steps = 0;
    for (const std::size_t i : {1U, 2U}) b.stream[i].enqueue([&] { ++steps; });
    words live = no_parts(4);
    set(live, 1);
    CHECK((settled ? b.pool->divide_settled(block, mib, live) : b.pool->divide(block, mib, live, b[0])) == error::none);
    void* const rest = b.pool->try_allocate(2 * mib, b[3]);
    REQUIRE(rest != nullptr);
    CHECK(b.pool->stats().waits >= 2);
    int seen = -1;
    b.stream[3].enqueue([&] { seen = steps; });
    CHECK(b.stream[3].synchronize());
    CHECK(seen == 2);
    for (const std::size_t i : {1U, 2U}) b.stream[i].enqueue([&] { ++steps; });
    b.pool->deallocate(at(block, mib), mib, b[0]);
    std::vector<void*> taken{b.pool->try_allocate(mib, b[3]), b.pool->try_allocate(mib, b[3])};
    b.stream[3].enqueue([&] { seen = steps; });
    CHECK(b.stream[3].synchronize());
    CHECK(seen == 4);
    for (void* const each : taken) {
      REQUIRE(each != nullptr);
      b.pool->deallocate(each, mib, b[3]);
    }
    b.pool->deallocate(rest, 2 * mib, b[3]);
    b.check_idle();
  }
}

TEST_CASE("a recorded block is not divided into more parts than are noted") {
  bench b(64 * mib, true, with_granule(64));
  void* const block = b.pool->allocate(16 * mib, b[0]);
  CHECK(b.pool->record_stream(block, b[1]) == error::none);
  words live = no_parts(16 * mib / 64);
  for (std::uint32_t& word : live) word = 0x5555'5555;
  std::string why;
  CHECK(b.pool->divide(block, 64, live, b[0], &why) == error::out_of_memory);
  CHECK_MESSAGE(why.find("65536") != std::string::npos, why);
  CHECK(b.pool->block_size(block) == 16 * mib);
  CHECK(b.pool->divide(block, 64, no_parts(16 * mib / 64), b[0]) == error::none);
  b.check_idle();
}

TEST_CASE("two million parts freed by the host one by one") {
  bench b(64 * mib, true, with_granule(16));  // more than a stream could hold one by one
  void* const block = b.pool->allocate(32 * mib, b[0]);
  const std::size_t parts = std::size_t{1} << (sanitized ? 16 : 21);
  const std::size_t part_bytes = 32 * mib / parts;
  CHECK(b.pool->divide_settled(block, part_bytes, words(parts / 32, ~std::uint32_t{0})) == error::none);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < parts; ++i)
    wrong += b.pool->try_deallocate(at(block, i * part_bytes), part_bytes, b[0]) != error::none;
  CHECK(wrong == 0);
  b.check_idle();
}

TEST_CASE("blocks that a thread's cache handed out, while that thread goes on, or is gone") {
  bench b(16 * mib);
  std::vector<void*> blocks;
  run_threads(1, [&](std::size_t) {
    for (int i = 0; i < 50; ++i) blocks.push_back(b.pool->allocate(8 * kib, b[0]));
  });
  words live = no_parts(32);
  set(live, 31);
  for (void* const block : blocks) {
    CHECK(b.pool->divide(block, 256, live, b[0]) == error::none);
    CHECK(b.pool->divide(block, 256, live, b[0]) != error::none);
    CHECK(b.pool->try_deallocate(at(block, 31 * 256), 256, b[1]) == error::none);
  }
  b.check_idle();
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("threads divide and free what others divided, in all streams at once; lookers see no nonsense") {
  for (const bool flat : {true, false}) {
    CAPTURE(flat);
    constexpr std::size_t threads = 4;
    bench b(8 * mib, flat, with_granule(64), software_schedule::workers);
    findings found;
    struct piece {
      void* address;
      std::size_t bytes;
    };
    const auto owner = [](const piece& of) { return reinterpret_cast<std::uintptr_t>(of.address) + of.bytes; };
    const auto sign = [&](const piece& of) {
      stamp(of.address, of.bytes).put(owner(of));
      return of;
    };
    struct exchange_place {
      std::mutex mutex;
      std::vector<piece> pieces;
    };
    std::vector<exchange_place> places(threads);
    run_threads(threads + 1, [&](std::size_t self) {
      random_engine random = make_random(self);
      if (self == threads) {  // looks
        for (std::size_t step = 0; step < scaled(300); ++step) {
          std::uintptr_t last = 0;
          b.pool->for_each_block([&](const block_info& block) {
            const auto address = reinterpret_cast<std::uintptr_t>(block.address);
            found.expect(address >= last, "blocks out of order");
            found.expect(block.state != block_state::split && block.bytes != 0, "a block that is none");
            last = address;
          });
        }
        return;
      }
      for (std::size_t step = 0; step < scaled(1500); ++step) {
        const stream_handle in = b[uniform(random, 0, 3)];
        const std::size_t levels = uniform(random, 1, 8);
        const std::size_t part_bytes = std::size_t{64} << uniform(random, 0, 6);
        const std::size_t parts = std::size_t{1} << levels;
        if (void* const block = b.pool->try_allocate(parts * part_bytes, in)) {
          const words live = random_parts(random, parts);
          const error code = uniform(random, 0, 1) == 0 ? b.pool->divide(block, part_bytes, live, in)
                                                        : b.pool->divide_settled(block, part_bytes, live);
          found.expect(code == error::none, "refused: ", to_string(code));
          const std::lock_guard lock(places[self].mutex);
          for (std::size_t i = 0; i < parts; ++i)
            if (is_set(live, i)) places[self].pieces.push_back(sign({at(block, i * part_bytes), part_bytes}));
        }
        exchange_place& other = places[uniform(random, 0, threads - 1)];
        std::vector<piece> mine;
        {
          const std::lock_guard lock(other.mutex);
          while (other.pieces.size() > 200) {
            std::swap(other.pieces[uniform(random, 0, other.pieces.size() - 1)], other.pieces.back());
            mine.push_back(other.pieces.back());
            other.pieces.pop_back();
          }
        }
        for (const piece& each : mine) {
          found.expect(b.pool->block_size(each.address) == each.bytes, "a live part has another length");
          found.expect(b.pool->owns(at(each.address, each.bytes - 1)), "a live part is not there");
          found.expect(stamp(each.address, each.bytes).remove(owner(each)), "another owner wrote to a live part");
          found.expect(b.pool->try_deallocate(each.address, each.bytes, in) == error::none, "a good free was refused");
        }
        if (step % 256 == 0) found.expect(b.pool->synchronize(), "a driver could not tell");
      }
    });
    for (exchange_place& each : places)
      for (const piece& left : each.pieces) b.pool->deallocate(left.address, left.bytes, b[0]);
    ORDERLY_CHECK_FINDINGS(found);
    check_sound(*b.pool);
    b.check_idle();
  }
}

TEST_CASE("who finds a block divided finds its parts: a free that comes early finds nothing once at most") {
  constexpr std::size_t parts = 16384;
  bench b(4 * mib);
  const words live(part_map::words_of(parts), ~std::uint32_t{0});
  std::size_t early = 0;
  findings found;
  for (std::size_t round = 0; round < scaled(50); ++round) {
    void* const block = b.pool->allocate(4 * mib, b[0]);
    std::atomic<bool> ready = false;
    std::thread frees([&] {
      ready = true;
      void* const part = at(block, 4 * mib - 256);  // whose word is written last
      // A search goes from small nodes to large ones: it may pass the part before it is there, and the block after.
      for (bool nothing = false;;) {
        const error code = b.pool->try_deallocate(part, 256, b[1]);
        if (code == error::none) return;
        early += code == error::double_free;  // the division owns the block
        found.expect(!nothing || code != error::foreign_pointer, "nothing is there, twice");
        nothing = code == error::foreign_pointer;
        if (found.count() > 100) return;
      }
    });
    while (!ready.load()) std::this_thread::yield();
    found.expect(b.pool->divide_settled(block, 256, live) == error::none, "refused");
    frees.join();
    if (found.count() != 0) break;
    for (std::size_t i = 0; i + 1 < parts; ++i) b.pool->deallocate(at(block, i * 256), 256, b[0]);
    CHECK(b.pool->synchronize());
  }
  ORDERLY_CHECK_FINDINGS(found);
  MESSAGE("frees in the middle of a division: ", early);
  if (found.count() == 0) b.check_idle();
}

TEST_CASE("of threads that divide or free one block at once, one does, its home among them") {
  bench b(16 * mib, true, {}, software_schedule::workers);
  findings found;
  for (const std::size_t bytes : {64 * kib, 2 * mib}) {
    words live = no_parts(bytes / 4096);
    set(live, 1);
    for (std::size_t round = 0; round < scaled(4000); ++round) {
      void* const block = b.pool->allocate(bytes, b[0]);
      std::atomic<int> ready = 0, divided = 0, freed = 0;
      const auto start = [&] {
        ++ready;
        while (ready.load() != 3) std::this_thread::yield();
      };
      std::vector<std::thread> others;
      for (int i = 0; i < 2; ++i) {
        others.emplace_back([&] {
          start();
          divided += b.pool->divide_settled(block, 4096, live) == error::none;
        });
      }
      start();
      freed += b.pool->try_deallocate(block, bytes, b[0]) == error::none;  // this thread's cache is its home
      for (std::thread& each : others) each.join();
      found.expect(divided + freed == 1, divided.load(), " divided it, ", freed.load(), " freed it");
      if (divided != 0) b.pool->deallocate(at(block, 4096), 4096, b[0]);
    }
  }
  ORDERLY_CHECK_FINDINGS(found);
  b.check_idle();
}

TEST_CASE("who finds a part sees what was written before the division") {
  constexpr std::size_t parts = 64;
  bench b(mib);
  const words live(part_map::words_of(parts), ~std::uint32_t{0});
  findings found;
  for (std::size_t round = 0; round < scaled(200); ++round) {
    void* const block = b.pool->allocate(parts * 256, b[0]);
    auto* const part = static_cast<std::uint64_t*>(static_cast<void*>(at(block, 17 * 256)));
    run_threads(2, [&](std::size_t self) {
      if (self == 0) {
        *part = round;  // plain, here and below
        found.expect(b.pool->divide_settled(block, 256, live) == error::none, "refused");
        return;
      }
      while (b.pool->block_size(part) == 0) std::this_thread::yield();
      found.expect((*part)++ == round, "a part is there, and its bytes are not");
    });
    for (std::size_t i = 0; i < parts; ++i) b.pool->deallocate(at(block, i * 256), 256, b[0]);
  }
  ORDERLY_CHECK_FINDINGS(found);
  b.check_idle();
}

TEST_CASE("parts are given back while the division is under way: nobody merges with a piece before it is given") {
  constexpr std::uint8_t order = 8;
  constexpr std::uint32_t parts = std::uint32_t{1} << order;
  const geometry shape = flat_geometry(16, parts * 16);
  block_store store(shape, make_paper_source(16, std::make_shared<paper_map>(), std::make_shared<source_log>()));
  REQUIRE(store.open());
  const auto part = [](std::uint32_t i) { return node{i, 0}; };
  findings found;
  for (std::size_t round = 0; round < scaled(1000) && found.count() == 0; ++round) {
    random_engine random = make_random(round);
    words bits = random_parts(random, parts);
    if (part_map(bits, parts).count_live() == 0) set(bits, uniform(random, 0, parts - 1));
    const part_map live(bits, parts);
    refusal why = refusal::none;
    const auto n = store.take_one({order, whole}, parts, ceiling::hard, why);
    found.expect(n.has_value(), "the parts and pieces of the last round have not merged");
    if (!n) break;
    std::atomic<bool> all_given = round % 2 == 0;  // in every second round no piece is given before every part
    run_threads(2, [&](std::size_t self) {
      if (self == 0) {  // as lib/divide.cpp
        store.divide(*n, 0, live);
        live.each_live([&](std::uint32_t i) {
          store.word(part(i)).store(live_bits(whole), std::memory_order_release);
        });
        store.word(*n).store(block_word::split().bits(), std::memory_order_release);
        while (!all_given.load()) std::this_thread::yield();
        live.each_free([&](std::uint32_t i, unsigned up) {
          store.give({i >> up, static_cast<std::uint8_t>(up)}, whole);
        });
        return;
      }
      live.each_live([&](std::uint32_t i) {
        while (store.tree().look(part(i)).state() != block_state::live) std::this_thread::yield();
        store.word(part(i)).store(block_word::owned().bits(), std::memory_order_relaxed);
        store.give(part(i), whole);
      });
      all_given = true;
    });
    found.expect(tree_audit(store.tree(), shape, found).merged(), "round ", round, ": not one block again");
  }
  ORDERLY_CHECK_FINDINGS(found);
}

}  // TEST_SUITE
