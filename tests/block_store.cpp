// The block store over a source that keeps books of its own: whatever is taken, given, trimmed and refused, blocks tile
// the range, what they cover is committed, and both books agree.
#include "block_store.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "support/decorated_source.hpp"
#include "support/failing_source.hpp"
#include "support/paper_source.hpp"
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

/// Several orders below the chunk, and 64 chunks in a root.
geometry small_granules(std::uint64_t limit = 3 * mib) { return virtual_geometry(kib, 16 * kib, 4 * mib, limit); }
/// No block smaller than a chunk.
geometry granules_of_a_chunk() { return virtual_geometry(64 * kib, 64 * kib, 4 * mib, 3 * mib); }

struct live_block {
  node n;
  unsigned sixteenths = whole;
};

/// Has something happen whenever the pool asks for memory: what other threads may do meanwhile.
class interrupted_source final : public decorated_source {
 public:
  interrupted_source(std::unique_ptr<memory_source> inner, std::function<void()>& interruption)
      : decorated_source(std::move(inner)), interruption_(interruption) {}

  [[nodiscard]] bool commit(void* address, std::size_t bytes) noexcept override {
    if (const auto interruption = std::exchange(interruption_, nullptr)) interruption();
    return decorated_source::commit(address, bytes);
  }

 private:
  std::function<void()>& interruption_;
};

/// A store whose source is only paper, or one flat range of it.
struct watched_store {
  explicit watched_store(const geometry& shape)
      : store(shape, std::make_unique<interrupted_source>(make_paper_source(kib, paper, log), during_commit)) {
    REQUIRE(store.open());
  }

  [[nodiscard]] std::uint64_t offset(node n) const { return store.shape().bytes(store.shape().granule(n)); }

  void mark_live(const live_block& block) {
    store.word(block.n).store(live_bits(block.sixteenths), std::memory_order_relaxed);
  }

  std::shared_ptr<source_log> log = std::make_shared<source_log>();
  std::shared_ptr<paper_map> paper = std::make_shared<paper_map>();
  std::function<void()> during_commit;  ///< happens once, before the source is asked to commit
  block_store store;
};

/// Finds fault with a store that no thread works on.
class store_audit {
 public:
  store_audit(const watched_store& watched, findings& found) : watched_(watched), found_(found) {
    watched.store.each_block([this](node n, block_word word) { blocks_.push_back({n, word}); });
    for (const auto& [n, word] : blocks_) {
      expect_in_order(n, word);
      expect_committed(n, word);
      expect_found(n, word);
    }
    expect_books_agree();
    tree_audit(watched.store.tree(), store().shape(), found);
  }

  [[nodiscard]] std::size_t count(block_state state) const {
    return static_cast<std::size_t>(std::ranges::count(blocks_, state, [](const auto& b) { return b.second.state(); }));
  }

  /// Committed bytes that no block smaller than a chunk and no live block holds: what a trim could release.
  [[nodiscard]] std::size_t idle() const {
    std::size_t bytes = 0;
    for (const auto& [n, word] : blocks_) bytes += idle(n, word);
    return bytes;
  }
  /// Of these, the most that one block holds: what a trim releases at once.
  [[nodiscard]] std::size_t largest_idle() const {
    std::size_t bytes = 0;
    for (const auto& [n, word] : blocks_) bytes = std::max(bytes, idle(n, word));
    return bytes;
  }

 private:
  [[nodiscard]] const block_store& store() const { return watched_.store; }
  [[nodiscard]] std::uint64_t length(node n, block_word word) const {
    return store().length(n, word.sixteenths() == 0 ? whole : word.sixteenths());
  }

  [[nodiscard]] std::size_t idle(node n, block_word word) const {
    const geometry& shape = store().shape();
    if (word.state() != block_state::free || n.order < shape.chunk_order) return 0;
    if (!shape.in_tree(n.order)) return store().length(n, whole);
    return store().memory().chunks().count(n) * shape.chunk_bytes();
  }

  void expect_in_order(node n, block_word word) {
    found_.expect(watched_.offset(n) >= end_, "the block at ", watched_.offset(n), " starts below ", end_);
    found_.expect(word.state() == block_state::free || word.state() == block_state::live, "the block at ",
                  watched_.offset(n), " is ", to_string(word.state()));
    end_ = watched_.offset(n) + length(n, word);
  }

  /// A live block is committed from end to end, and so is the whole chunk of any block that is smaller; a free slot is
  /// committed as far as it is long.
  void expect_committed(node n, block_word word) {
    const geometry& shape = store().shape();
    const std::uint64_t offset = watched_.offset(n);
    if (word.state() == block_state::live || !shape.in_tree(n.order)) {
      found_.expect(watched_.paper->committed(offset, length(n, word)), "the block at ", offset, ", ",
                    to_string(word.state()), ", of ", length(n, word), " bytes is not committed");
    }
    if (n.order < shape.chunk_order) {
      const std::uint64_t chunk = offset / shape.chunk_bytes() * shape.chunk_bytes();
      found_.expect(watched_.paper->committed(chunk, shape.chunk_bytes()), "a block of order ", int{n.order}, ", ",
                    to_string(word.state()), ", lies in a chunk that is not committed");
    }
  }

  void expect_found(node n, block_word word) {
    const std::uint64_t bytes = length(n, word);
    if (bytes == 0) return;
    const std::uint64_t offset = watched_.offset(n);
    for (const std::uint64_t at : {offset, offset + bytes / 2, offset + bytes - 1}) {
      const block_store::found block = store().find(at);
      found_.expect(block.exists && block.n == n && block.word == word && block.offset == offset &&
                        block.length == bytes,
                    "at ", at, " lies ", block.offset, " + ", block.length, ", not ", offset, " + ", bytes);
      const bool is_start_of_live = word.state() == block_state::live && at == offset;
      found_.expect(store().find_live(at).exists == is_start_of_live, "find_live errs at ", at);
    }
  }

  /// The chunk table, the slots, the account and the source.
  void expect_books_agree() {
    const geometry& shape = store().shape();
    std::size_t committed = 0;
    for (std::uint64_t chunk = 0; chunk < shape.tree_granules >> shape.chunk_order; ++chunk) {
      const node n{static_cast<std::uint32_t>(chunk), static_cast<std::uint8_t>(shape.chunk_order)};
      const bool noted = store().memory().chunks().count(n) == 1;
      found_.expect(noted == watched_.paper->committed(watched_.offset(n), shape.chunk_bytes()), "chunk ", chunk,
                    noted ? " is noted and not committed" : " is committed and not noted");
      committed += noted ? shape.chunk_bytes() : 0;
    }
    for (const auto& [n, word] : blocks_) {
      if (!shape.in_tree(n.order)) committed += length(n, word);
    }
    found_.expect(committed == store().memory().committed(), store().memory().committed(), " bytes are accounted for, ",
                  committed, " are committed");
    found_.expect(committed == watched_.log->committed(), "the source counts ", watched_.log->committed(), ", not ",
                  committed);
    found_.expect(watched_.log->peak_committed() <= shape.limit, "the limit was exceeded");
  }

  const watched_store& watched_;
  findings& found_;
  std::vector<std::pair<node, block_word>> blocks_;
  std::uint64_t end_ = 0;
};

/// One thread's blocks. The granules of a block carry the mark of its owner: plain accesses, so that ThreadSanitizer
/// sees an ordering that the store failed to give.
class tenant {
 public:
  tenant(watched_store& watched, std::vector<std::uint32_t>& marks, std::uint32_t self, findings& found)
      : watched_(watched), marks_(marks), self_(self), random_(make_random(self)), found_(found) {}

  void step() {
    switch (uniform(random_, 0, 9)) {
      case 0: case 1: return take_batch();
      case 2: case 3: case 4: return take_one();
      case 5: return trim();
      default: return give_one();
    }
  }

  void give_all() {
    while (!held_.empty()) give_one();
  }

  [[nodiscard]] std::size_t held() const noexcept { return held_.size(); }

 private:
  [[nodiscard]] block_store& store() const { return watched_.store; }

  /// Usually the hard ceiling; else a soft one of any height.
  ceiling draw_ceiling() {
    if (uniform(random_, 0, 2) != 0) return ceiling::hard;
    store().memory().set_soft_limit(uniform(random_, 0, store().shape().limit));
    return ceiling::soft;
  }

  void take_batch() {
    const std::uint64_t most = std::uint64_t{1} << store().shape().root_order;
    const block_shape shape = shape_of(class_granules(class_of(log_uniform(random_, 1, most))));
    std::array<std::uint32_t, 8> indices;
    refusal why = refusal::none;
    const auto wanted = std::span(indices).first(uniform(random_, 1, indices.size()));
    const std::size_t count = store().take(shape, wanted, draw_ceiling(), why);
    found_.expect(count <= wanted.size(), "took ", count, " of ", wanted.size());
    found_.expect(count == 0 ? why != refusal::none : count < wanted.size() || why == refusal::none, "took ", count,
                  " of ", wanted.size(), ", refusal ", static_cast<int>(why));
    for (const std::uint32_t index : wanted.first(count)) keep({{index, shape.order}, shape.sixteenths});
  }

  /// Any size that the limit allows, now and then aligned above its own.
  void take_one() {
    const geometry& shape = store().shape();
    const std::uint64_t granules = log_uniform(random_, 1, shape.limit >> shape.granule_shift);
    const unsigned least = uniform(random_, 0, 3) == 0 ? static_cast<unsigned>(uniform(random_, 0, shape.chunk_order)) : 0;
    const block_shape block = shape_of(granules, least);
    refusal why = refusal::none;
    const auto n = store().take_one(block, granules, draw_ceiling(), why);
    found_.expect(n.has_value() == (why == refusal::none), "refusal ", static_cast<int>(why));
    if (!n) return;
    keep({*n, block.sixteenths});
    const std::uint64_t bytes = shape.bytes(granules);
    const std::uint64_t node_bytes = shape.bytes(std::uint64_t{1} << n->order);
    // A slot keeps a surplus that the source refuses to take back.
    const std::uint64_t surplus = shape.in_tree(n->order) ? std::max(shape.bytes(1), node_bytes / 16) : node_bytes / 2;
    const std::uint64_t length = store().length(*n, block.sixteenths);
    found_.expect(length >= bytes && length - bytes < surplus, bytes, " bytes were asked for, and ", length, " given");
  }

  void trim() {
    const std::size_t bytes = uniform(random_, 1, store().shape().limit / 2);
    const std::size_t released = store().trim(bytes);
    found_.expect(released < bytes + store().shape().limit, "released ", released, " for ", bytes);
  }

  void give_one() {
    if (held_.empty()) return;
    std::swap(held_[uniform(random_, 0, held_.size() - 1)], held_.back());
    const live_block block = held_.back();
    held_.pop_back();
    change_marks(block, self_, 0);
    store().give(block.n, block.sixteenths);
  }

  void keep(const live_block& block) {
    change_marks(block, 0, self_);
    watched_.mark_live(block);
    held_.push_back(block);
  }

  void change_marks(const live_block& block, std::uint32_t from, std::uint32_t to) {
    const geometry& shape = store().shape();
    const std::uint64_t first = shape.granule(block.n);
    for (std::uint64_t i = first; i < first + (store().length(block.n, block.sixteenths) >> shape.granule_shift); ++i) {
      found_.expect(marks_[i] == from, "granule ", i, " belongs to ", marks_[i], ", not to ", from);
      marks_[i] = to;
    }
  }

  watched_store& watched_;
  std::vector<std::uint32_t>& marks_;
  std::uint32_t self_;
  random_engine random_;
  findings& found_;
  std::vector<live_block> held_;
};

/// Everything was given: all merges, all can be released.
void check_empty(watched_store& watched, findings& found) {
  watched.log->refuse_none();
  const std::size_t committed = watched.store.memory().committed();
  CHECK(watched.store.trim(SIZE_MAX) == committed);
  CHECK(watched.log->committed() == 0);
  const store_audit audit(watched, found);
  CHECK(audit.count(block_state::live) == 0);
  CHECK(tree_audit(watched.store.tree(), watched.store.shape(), found).merged());
  ORDERLY_CHECK_FINDINGS(found);
  ORDERLY_CHECK_CONTRACT(*watched.log);
}

/// Has the source refuse a few of the calls to come, or none.
void refuse_some(source_log& log, random_engine& random) {
  log.refuse_none();
  for (const auto kind : {source_log::call::commit, source_log::call::decommit}) {
    const std::size_t first = uniform(random, 1, 10);
    if (uniform(random, 0, 1) == 0) log.refuse(kind, first, first + uniform(random, 0, 3));
  }
}

/// Rounds of random steps, audited after each; now and then everything is given back.
void work(const geometry& shape, std::size_t threads, std::size_t rounds, std::size_t steps) {
  findings found;
  watched_store watched(shape);
  std::vector<std::uint32_t> marks(shape.total_granules);
  std::vector<tenant> all;
  for (std::uint32_t index = 0; index < threads; ++index) all.emplace_back(watched, marks, index + 1, found);
  random_engine random = make_random(threads);
  for (std::size_t round = 0; round < rounds && found.count() == 0; ++round) {
    refuse_some(*watched.log, random);
    const bool leave = round % 4 == 3;
    run_threads(threads, [&](std::size_t index) {
      for (std::size_t step = 0; step < steps; ++step) all[index].step();
      if (leave) all[index].give_all();
    });
    const store_audit audit(watched, found);
    std::size_t held = 0;
    for (const tenant& one : all) held += one.held();
    found.expect(audit.count(block_state::live) == held, audit.count(block_state::live), " live blocks, not ", held);
  }
  for (tenant& one : all) one.give_all();
  check_empty(watched, found);
}

/// Takes blocks of a shape until refused.
std::vector<live_block> take_all(watched_store& watched, std::uint64_t granules, refusal& why) {
  std::vector<live_block> taken;
  const block_shape shape = shape_of(granules);
  while (const auto n = watched.store.take_one(shape, granules, ceiling::hard, why)) {
    taken.push_back({*n, shape.sixteenths});
    watched.mark_live(taken.back());
  }
  return taken;
}

}  // namespace

TEST_SUITE("unit") {

TEST_CASE("random steps on one thread: the books agree after each") {
  work(small_granules(), 1, scaled(60), 8);
  work(granules_of_a_chunk(), 1, scaled(120), 8);
}

TEST_CASE("the whole limit can be used, in blocks of any whole number of chunks") {
  for (const std::uint64_t chunks : {1U, 2U, 3U, 16U, 64U, 65U, 96U, 192U}) {
    CAPTURE(chunks);
    watched_store watched(small_granules());
    refusal why = refusal::none;
    const std::vector<live_block> taken = take_all(watched, chunks * 16, why);
    CHECK(taken.size() == 192 / chunks);
    CHECK(why == refusal::hard_limit);
    for (const live_block& block : taken) watched.store.give(block.n, block.sixteenths);
    findings found;
    check_empty(watched, found);
  }
}

TEST_CASE("small blocks fill each chunk before the next is committed") {
  watched_store watched(small_granules());
  refusal why = refusal::none;
  for (std::size_t count = 0; count < 64; ++count) {
    const live_block block{watched.store.take_one(shape_of(1), 1, ceiling::hard, why).value(), whole};
    watched.mark_live(block);
    CHECK(watched.store.memory().committed() == (count / 16 + 1) * 16 * kib);
  }
}

TEST_CASE("nobody gets a part of a chunk before it is committed") {
  watched_store watched(small_granules());
  std::vector<live_block> taken;
  const auto take_small = [&] {
    refusal why = refusal::none;
    const auto n = watched.store.take_one(shape_of(3), 3, ceiling::hard, why);
    if (!n) return;
    taken.push_back({*n, shape_of(3).sixteenths});
    watched.mark_live(taken.back());
  };
  findings found;
  for (const bool refused : {false, true}) {
    CAPTURE(refused);
    watched.during_commit = [&] {
      take_small();  // meanwhile, and with success
      if (refused) watched.log->refuse(source_log::call::commit, 1);
    };
    take_small();
    CHECK(taken.size() == (refused ? 1 : 2));
    (void)store_audit(watched, found);
    for (; !taken.empty(); taken.pop_back()) watched.store.give(taken.back().n, taken.back().sixteenths);
    (void)store_audit(watched, found);
    CHECK(watched.store.trim(SIZE_MAX) != 0);
  }
  check_empty(watched, found);
}

TEST_CASE("a trim releases what is idle, and no more than it must") {
  random_engine random = make_random(7);
  findings found;
  for (int round = 0; round < 20; ++round) {
    watched_store watched(small_granules());
    refusal why = refusal::none;
    std::vector<live_block> blocks = take_all(watched, uniform(random, 1, 700), why);
    std::shuffle(blocks.begin(), blocks.end(), random);
    for (std::size_t i = 0; i < blocks.size() / 2; ++i) watched.store.give(blocks[i].n, blocks[i].sixteenths);
    const store_audit before(watched, found);
    const std::size_t idle = before.idle();
    const std::size_t largest = before.largest_idle();
    const std::size_t committed = watched.store.memory().committed();
    const std::size_t part = watched.store.trim(idle / 2);
    CHECK(part >= idle / 2);
    CHECK(part <= idle / 2 + largest);
    CHECK(committed - watched.store.memory().committed() == part);
    CHECK(store_audit(watched, found).idle() == idle - part);
    CHECK(watched.store.trim(SIZE_MAX) == idle - part);
    CHECK(store_audit(watched, found).idle() == 0);
    for (std::size_t i = blocks.size() / 2; i < blocks.size(); ++i) {
      watched.store.give(blocks[i].n, blocks[i].sixteenths);
    }
    check_empty(watched, found);
  }
}

TEST_CASE("a trim takes slots first, which cost a source least, and nodes of the tree only when they do not suffice") {
  watched_store watched(small_granules());
  const auto take = [&](std::uint64_t granules) {
    refusal why = refusal::none;
    const block_shape shape = shape_of(granules);
    return live_block{watched.store.take_one(shape, granules, ceiling::hard, why).value(), shape.sixteenths};
  };
  const live_block slot = take(1100);  // 69 chunks, above a root of 64
  const live_block root = take(1024);
  const live_block part = take(576);  // 36 chunks of the next root
  for (const live_block& each : {root, slot, part}) watched.store.give(each.n, each.sixteenths);
  CHECK(watched.store.trim(16 * kib) == 69 * 16 * kib);
  CHECK(watched.store.trim(16 * kib) == 36 * 16 * kib);
  CHECK(watched.store.trim(16 * kib) == 64 * 16 * kib);
  CHECK(watched.store.trim(SIZE_MAX) == 0);
}

TEST_CASE("of a node in the tree a trim takes what is missing, to the chunk, but at least a MiB") {
  for (const std::size_t missing : {std::size_t{1}, mib, mib + 1, 3 * mib, 4 * mib - 1}) {
    CAPTURE(missing);
    watched_store watched(virtual_geometry(16 * kib, 256 * kib, 16 * mib, 16 * mib));
    refusal why = refusal::none;
    const std::vector<live_block> roots = take_all(watched, 256, why);
    REQUIRE(roots.size() == 4);
    for (const live_block& root : roots) watched.store.give(root.n, root.sixteenths);
    const std::size_t up_to_chunk = (missing + 256 * kib - 1) / (256 * kib) * (256 * kib);
    CHECK(watched.store.trim(missing) == std::max(up_to_chunk, mib));
    CHECK(watched.store.trim(SIZE_MAX) == 16 * mib - std::max(up_to_chunk, mib));
    findings found;
    check_empty(watched, found);
  }
}

TEST_CASE("a trim keeps within its bound, to the chunk, and what it leaves of a node serves as before") {
  for (const std::size_t chunks : {1U, 5U, 64U, 70U}) {
    CAPTURE(chunks);
    watched_store watched(small_granules());
    refusal why = refusal::none;
    std::vector<live_block> blocks = take_all(watched, 16, why);  // all 192, in three roots
    for (const live_block& block : blocks) watched.store.give(block.n, block.sixteenths);
    CHECK(watched.store.trim(1, 16 * kib - 1) == 0);
    CHECK(watched.store.trim(1, chunks * 16 * kib + 1) == std::min<std::size_t>(chunks, 64) * 16 * kib);
    CHECK(watched.store.trim(SIZE_MAX, chunks * 16 * kib + 1) == chunks * 16 * kib);
    findings found;
    (void)store_audit(watched, found);
    blocks = take_all(watched, 16, why);
    CHECK(blocks.size() == 192);
    for (const live_block& block : blocks) watched.store.give(block.n, block.sixteenths);
    check_empty(watched, found);
  }
}

TEST_CASE("what the source does not take back keeps nothing else; one that refuses all is asked a few times") {
  watched_store watched(small_granules());
  refusal why = refusal::none;
  std::vector<live_block> blocks = take_all(watched, 16, why);
  REQUIRE(blocks.size() == 192);
  std::vector<live_block> live;
  for (std::size_t i = 0; i < blocks.size(); ++i) {  // every other one, so that each is a node by itself
    if (i % 2 != 0) watched.store.give(blocks[i].n, blocks[i].sixteenths);
    if (i % 2 == 0) live.push_back(blocks[i]);
  }
  watched.log->refuse(source_log::call::decommit, 1, 3);
  CHECK(watched.store.trim(SIZE_MAX) == 93 * 16 * kib);
  watched.log->refuse_none();
  CHECK(watched.store.trim(SIZE_MAX) == 3 * 16 * kib);
  for (const live_block& block : take_all(watched, 16, why)) watched.store.give(block.n, block.sixteenths);
  watched.log->refuse_all(source_log::call::decommit);
  const std::size_t before = watched.log->seen(source_log::call::decommit);
  CHECK(watched.store.trim(SIZE_MAX) == 0);
  CHECK(watched.log->seen(source_log::call::decommit) - before == trimming::most_refused);
  for (const live_block& block : live) watched.store.give(block.n, block.sixteenths);
  findings found;
  check_empty(watched, found);
}

TEST_CASE("what the next take finds lacks as much as it then commits, and is left alone by a trim meanwhile") {
  random_engine random = make_random(11);
  findings found;
  for (std::size_t round = 0; round < scaled(300); ++round) {
    watched_store watched(small_granules());
    refusal why = refusal::none;
    std::vector<live_block> blocks;
    const auto take = [&](std::uint64_t granules) {
      const auto n = watched.store.take_one(shape_of(granules), granules, ceiling::hard, why);
      if (!n) return false;
      blocks.push_back({*n, shape_of(granules).sixteenths});
      watched.mark_live(blocks.back());
      return true;
    };
    for (int count = 0; count < 5; ++count) REQUIRE(take(log_uniform(random, 1, 250)));
    for (int count = 0; count < 20; ++count) static_cast<void>(take(log_uniform(random, 1, 1500)));
    for (; blocks.size() > 5; blocks.pop_back()) watched.store.give(blocks.back().n, blocks.back().sixteenths);
    const std::uint64_t granules = log_uniform(random, 1, 1500);
    CAPTURE(granules);
    const auto next = watched.store.next(shape_of(granules), granules);
    REQUIRE(next.has_value());
    const bool in_tree = watched.store.shape().in_tree(next->n.order);
    const std::size_t length = watched.store.length(next->n, whole);
    const std::size_t wanted = (granules + 15) / 16 * 16 * kib;
    const std::size_t surplus = in_tree || length < wanted ? 0 : length - wanted;  // of a slot, which the take cuts
    const std::size_t had = watched.store.memory().committed();
    watched.store.trim(SIZE_MAX);
    watched.store.give(next->n, whole);
    const store_audit audit(watched, found);
    CHECK(audit.idle() <= length);
    const std::size_t committed = watched.store.memory().committed();
    CHECK(committed <= had);
    REQUIRE(take(granules));
    CHECK(watched.store.memory().committed() + surplus == committed + next->missing);
    for (const live_block& block : blocks) watched.store.give(block.n, block.sixteenths);
    check_empty(watched, found);
  }
  ORDERLY_CHECK_FINDINGS(found);
}

TEST_CASE("nothing is found in the gaps between the orders of slots, whatever lies behind them") {
  watched_store watched(virtual_geometry(kib, 16 * kib, 255 * 16 * kib, 0));
  const geometry& shape = watched.store.shape();
  REQUIRE(shape.slot_granule[11] > shape.tree_granules);
  refusal why = refusal::none;
  for (const std::uint64_t granules : {1100U, 2100U}) {
    const auto n = watched.store.take_one(shape_of(granules), granules, ceiling::hard, why);
    if (n) watched.mark_live({*n, whole});
  }
  CHECK_FALSE(watched.store.find(shape.bytes(shape.tree_granules)).exists);
  CHECK(watched.store.find_live(shape.bytes(shape.slot_granule[11])).exists);
  CHECK(watched.store.find_live(shape.bytes(shape.slot_granule[12])).exists);
  const std::uint64_t end = shape.granule({shape.slots[11], 11});
  REQUIRE(end < shape.slot_granule[12]);
  CHECK_FALSE(watched.store.find(shape.bytes(end)).exists);
}

TEST_CASE("nothing is found where nothing was ever taken") {
  watched_store watched(small_granules());
  const geometry& shape = watched.store.shape();
  for (std::uint64_t granule = 0; granule < shape.total_granules; granule += 1000) {
    CHECK_FALSE(watched.store.find(shape.bytes(granule)).exists);
  }
  refusal why = refusal::none;
  const node n = watched.store.take_one(shape_of(1), 1, ceiling::hard, why).value();
  watched.mark_live({n, whole});
  CHECK(watched.store.find_live(watched.offset(n)).exists);
  CHECK_FALSE(watched.store.find(watched.offset(n) + shape.bytes(std::uint64_t{1} << shape.root_order)).exists);
}

TEST_CASE("over a flat range nothing is committed and nothing is released") {
  std::vector<unsigned char> buffer(1000 * 16 + 16);
  const auto address = (reinterpret_cast<std::uintptr_t>(buffer.data()) + 15) / 16 * 16;
  block_store store(flat_geometry(16, 1000 * 16),
                    make_fixed_buffer_source(reinterpret_cast<void*>(address), 1000 * 16));
  REQUIRE(store.open());
  CHECK(store.memory().committed() == 1000 * 16);
  std::array<std::uint32_t, 8> indices;
  refusal why = refusal::none;
  CHECK(store.take(shape_of(100), indices, ceiling::soft, why) == 7);  // 1000 granules hold 7 whole nodes of 128
  for (const std::uint32_t index : std::span(indices).first(7)) {
    const node n{index, 7};
    store.word(n).store(live_bits(shape_of(100).sixteenths), std::memory_order_relaxed);
    CHECK(store.find(n.granule() * 16 + 100).length == 104 * 16);
  }
  CHECK(store.take(shape_of(200), indices, ceiling::hard, why) == 0);
  CHECK(why == refusal::no_node);
  CHECK(store.trim(SIZE_MAX) == 0);
  CHECK(store.memory().committed() == 1000 * 16);
}

}  // TEST_SUITE

TEST_SUITE("stress") {

TEST_CASE("threads take, give and trim, while the source refuses now and then") {
  for (const std::size_t threads : {2U, 4U, 8U}) {
    CAPTURE(threads);
    work(small_granules(), threads, scaled(160) / threads, 40);
    work(granules_of_a_chunk(), threads, scaled(600) / threads, 40);
  }
}

}  // TEST_SUITE
