// The buddy tree, and the block store, slots and arena over it, under every schedule: blocks tile the range, no two owners
// meet, no merge is missed, no free node is forgotten, and the account of what is committed is right.
#include <array>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "block_store.hpp"
#include "buddy.hpp"
#include "explorer.hpp"
#include "notes.hpp"
#include "part_map.hpp"
#include "slots.hpp"
#include "sources.hpp"
#include "support/tree_audit.hpp"

using namespace orderly;
using namespace orderly::detail;
using namespace orderly::model;

namespace {

void expect_none(const test::findings& found) {
  ORDERLY_EXPECT(found.count() == 0, "%zu faults, the first: %s", found.count(), found.first().c_str());
}

/// Four granules, and plain data in each, which only the owner of a block writes.
struct of_tree : scenario {
  geometry shape;
  chunk_table chunks;
  std::unique_ptr<buddy> tree = std::make_unique<buddy>();
  std::array<plain<unsigned>, 8> owner;

  explicit of_tree(std::uint64_t granules = 4) : shape(flat_geometry(16, 16 * granules)) {
    ORDERLY_EXPECT(chunks.open(shape) && tree->open(shape, chunks), "no memory");
  }
  void own(node n, unsigned sixteenths, unsigned self) {
    for (std::uint64_t i = n.granule(); i < n.granule() + granules_of(n.order, sixteenths); ++i) {
      ORDERLY_EXPECT(owner[i].get() == 0, "granule %zu has two owners, %u and %u", std::size_t{i}, owner[i].get() - 1, self);
      owner[i].set(self + 1);
    }
  }
  std::optional<node> take(unsigned order, unsigned self, unsigned sixteenths = whole) {
    auto n = tree->claim(order);
    if (!n) return n;
    n = tree->split(*n, order);
    if (sixteenths != whole) tree->carve(*n, sixteenths);
    own(*n, sixteenths, self);
    tree->word(*n).store(test::live_bits(sixteenths), relaxed);
    return n;
  }
  void give(node n, unsigned sixteenths = whole) {
    for (std::uint64_t i = n.granule(); i < n.granule() + granules_of(n.order, sixteenths); ++i) owner[i].set(0);
    std::uint64_t expected = test::live_bits(sixteenths);
    ORDERLY_EXPECT(tree->word(n).compare_exchange_strong(expected, block_word::owned().bits(), relaxed, relaxed),
                   "the word of a live block is %#llx", static_cast<unsigned long long>(expected));
    tree->give(n, sixteenths);
  }
  /// One block for each granule, in order.
  void take_singles(unsigned self) {
    for (std::uint32_t i = 0; i < shape.tree_granules; ++i)
      ORDERLY_EXPECT(take(0, self) == (node{i, 0}), "granule %u is not the next", i);
  }
  void expect_sound() {
    test::findings found;
    test::expect_listed(*tree, shape, found);
    test::tree_audit(*tree, shape, found);
    expect_none(found);
  }
  void expect_merged() {
    expect_sound();
    test::findings found;
    ORDERLY_EXPECT(test::tree_audit(*tree, shape, found).merged(), "not everything is merged");
  }
};

/// Each thread gives granules of its own back; everything merges. The last of all publishers of a pair finds the other half.
template <std::uint32_t... of_the_first>
struct gives : of_tree {
  std::array<std::vector<std::uint32_t>, 3> mine{};
  gives() {
    take_singles(0);
    mine[0] = {of_the_first...};
    for (std::uint32_t i = 0; i < 4; ++i)
      if (((i != of_the_first) && ...)) mine[1].push_back(i);
  }
  void thread(unsigned self) override {
    for (const std::uint32_t i : mine[self]) give({i, 0});
  }
  void check() override { expect_merged(); }
};

/// {1, 2} are free and lie in lists while {0, 3} come back, from two threads.
struct outer_granules : of_tree {
  outer_granules() {
    take_singles(0);
    give({1, 0});
    give({2, 0});
  }
  void thread(unsigned self) override { give({self == 0 ? 0U : 3U, 0}); }
  void check() override { expect_merged(); }
};

/// The same, while a third takes a granule and gives it back.
struct outer_granules_in_use : outer_granules {
  void thread(unsigned self) override {
    if (self != 2) return outer_granules::thread(self);
    if (const auto n = take(0, self)) give(*n);  // or both are in hand, to be merged
  }
};

/// Two take from one free node; both get a half.
struct take_halves : of_tree {
  std::array<std::optional<node>, 3> got;
  void thread(unsigned self) override { got[self] = take(1, self); }
  void check() override {
    expect_sound();
    ORDERLY_EXPECT(got[0] || got[1] || got[2], "nobody got any");
    for (const auto& n : got)
      if (n) give(*n);
    expect_merged();
  }
};

/// One takes what the other gives, and everything is there again in the end.
struct take_against_give : of_tree {
  std::vector<node> kept;
  take_against_give() {
    take_singles(0);
    give({3, 0});
  }
  void thread(unsigned self) override {
    if (self == 0) {
      give({2, 0});
      give({1, 0});
    } else if (const auto n = take(1, self)) {
      give(*n);
    } else if (const auto small = take(0, self)) {
      give(*small);
    }
  }
  void check() override {
    give({0, 0});
    expect_merged();
  }
};

/// A node is split by one thread, while its buddy comes back from another.
struct split_against_give : of_tree {
  std::optional<node> got;
  split_against_give() {
    ORDERLY_EXPECT(take(1, 0) == (node{0, 1}), "the first half comes first");
  }
  void thread(unsigned self) override {
    if (self == 0)
      give({0, 1});
    else
      got = take(0, self);
  }
  void check() override {
    expect_sound();
    if (got) give(*got);  // or the half was in hand, to be merged
    expect_merged();
  }
};

/// Blocks of three granules in four: the rest is carved off and merges again.
struct trimmed : of_tree {
  std::optional<node> got;
  trimmed() {
    ORDERLY_EXPECT(take(2, 0, 12) == (node{0, 2}), "the range is free");
  }
  void thread(unsigned self) override {
    if (self == 0) return give({0, 2}, 12);
    got = take(0, self);
  }
  void check() override {
    expect_sound();
    if (got) give(*got);  // or the granule was in hand, to be merged
    expect_merged();
  }
};

/// One takes and gives twice, the other gives: hints go out of date, and come again.
struct hints_out_of_date : of_tree {
  hints_out_of_date() : of_tree(2) { take_singles(0); }
  void thread(unsigned self) override {
    if (self == 0) {
      give({0, 0});
      return;
    }
    give({1, 0});
    for (int i = 0; i < 2; ++i)
      if (const auto n = take(0, self)) give(*n);
  }
  void check() override { expect_merged(); }
};

/// A hint out of date lies above another, and its node becomes free again: it stays where it is, and the other is not lost.
struct hint_above_another : of_tree {
  hint_above_another() {
    take_singles(0);
    for (const std::uint32_t i : {3U, 1U, 0U}) give({i, 0});  // 0 merges with 1, whose hint stays
  }
  void thread(unsigned self) override {
    if (self == 1) {
      if (const auto n = take(0, self)) give(*n);
    } else if (const auto pair = tree->claim(1)) {
      const node kept = tree->split(*pair, 0);
      own(kept, whole, self);
      tree->word(kept).store(test::live_bits(whole), relaxed);
      give(kept);
    }
  }
  void check() override {
    expect_sound();
    give({2, 0});
    expect_merged();
  }
};

/// A granule comes back beside one that stays in use, so it stays by itself and must be found, while another takes and gives.
struct beside_a_live_one : of_tree {
  beside_a_live_one() : of_tree(2) { take_singles(0); }
  void thread(unsigned self) override {
    if (self == 0) return give({0, 0});
    if (const auto n = take(0, self)) give(*n);
  }
  void check() override {
    expect_sound();
    give({1, 0});
    expect_merged();
  }
};

constexpr traits three{.threads = 3};
const registered<beside_a_live_one> g2("buddy", "beside-a-live-one");
const registered<gives<0>> a1("buddy", "gives-0-123");
const registered<gives<0, 1>> a2("buddy", "gives-01-23");
const registered<gives<0, 2>> a3("buddy", "gives-02-13");
const registered<outer_granules> b1("buddy", "outer-granules");
const registered<outer_granules_in_use> b2("buddy", "outer-granules-in-use", {.threads = 3});
const registered<take_halves> c1("buddy", "take-halves");
const registered<take_halves> c2("buddy", "take-halves-of-three", three);
const registered<take_against_give> d1("buddy", "take-against-give");
const registered<split_against_give> e1("buddy", "split-against-give");
const registered<trimmed> f1("buddy", "trimmed");
const registered<hint_above_another> g3("buddy", "hint-above-another");
const registered<hints_out_of_date> g1("buddy", "hints-out-of-date");
const registered<hints_out_of_date> h1("buddy", "stopped", {.parked = 3});

/// A store over chunks of two granules; a commit is refused where the scenario says so.
struct of_store : scenario {
  source_book book;
  std::unique_ptr<block_store> store;
  owners owned;
  struct block {
    node n;
    unsigned sixteenths;
  };
  std::array<std::optional<block>, most_threads> got;
  std::optional<block> kept;

  /// A root of eight chunks is split already, down to chunks.
  explicit of_store(std::uint64_t limit_chunks = 2, std::uint64_t capacity_chunks = 8) {
    const geometry shape = virtual_geometry(granule, 2 * granule, capacity_chunks * 2 * granule, limit_chunks * 2 * granule);
    store = std::make_unique<block_store>(shape, std::make_unique<paper>(book, 2 * granule, capacity_chunks * 2 * granule));
    ORDERLY_EXPECT(store->open(), "no memory");
    kept = take(2);
    ORDERLY_EXPECT(kept.has_value(), "refused");
  }
  /// Null: refused.
  std::optional<block> take(std::uint64_t granules, refusal& why) {
    const block_shape shape = shape_of(granules);
    const auto n = store->take_one(shape, granules, ceiling::hard, why);
    if (!n) return std::nullopt;
    const block b{*n, shape.sixteenths};
    expect_committed(b);
    touch_all(b);
    store->word(b.n).store(test::live_bits(shape.sixteenths), relaxed);
    return b;
  }
  std::optional<block> take(std::uint64_t granules) {
    refusal why = refusal::none;
    return take(granules, why);
  }
  void give(const block& b) {
    touch_all(b);
    std::uint64_t expected = test::live_bits(b.sixteenths);
    ORDERLY_EXPECT(store->word(b.n).compare_exchange_strong(expected, block_word::owned().bits(), relaxed, relaxed),
                   "the word of a live block is %#llx", static_cast<unsigned long long>(expected));
    store->give(b.n, b.sixteenths);
  }
  [[nodiscard]] std::pair<std::uint64_t, std::uint64_t> granules_of_block(const block& b) const {
    const std::uint64_t first = store->shape().granule(b.n);
    return {first, first + (store->length(b.n, b.sixteenths) >> store->shape().granule_shift)};
  }
  void touch_all(const block& b) {
    const auto [first, end] = granules_of_block(b);
    for (std::uint64_t i = first; i < end; ++i) touch(reinterpret_cast<void*>(paper::base + i * granule), true);
  }
  void expect_committed(const block& b) {
    const auto [first, end] = granules_of_block(b);
    for (std::uint64_t i = first; i < end; ++i)
      ORDERLY_EXPECT(book.units[i / 2], "granule %zu of a block is not committed", std::size_t{i});
  }
  void expect_books_agree() const {
    ORDERLY_EXPECT(store->memory().committed() == book.committed, "%zu bytes are accounted for, %zu committed",
                   store->memory().committed(), book.committed);
    ORDERLY_EXPECT(book.committed <= store->shape().limit, "%zu bytes are committed above the limit", book.committed);
    test::findings found;
    test::tree_audit(store->tree(), store->shape(), found);
    expect_none(found);
  }
  void expect_all_given() {
    for (auto& each : got)
      if (each) give(*each);
    give(*kept);
    expect_books_agree();
    test::findings found;
    ORDERLY_EXPECT(test::tree_audit(store->tree(), store->shape(), found).merged(), "not everything is merged");
  }
};

/// Both commit; there is room for both.
struct grow : of_store {
  grow() : of_store(3) {}
  void thread(unsigned self) override {
    got[self] = take(1 + self);
    ORDERLY_EXPECT(got[self].has_value(), "refused, below the limit");
    expect_committed(*got[self]);
  }
  void check() override { expect_all_given(); }
};

/// Both commit, where one chunk more is the limit: the charge of one may turn the other away, but not more than that.
struct grow_to_the_limit : of_store {
  grow_to_the_limit() : of_store(2) {}
  void thread(unsigned self) override { got[self] = take(2); }
  void check() override {
    ORDERLY_EXPECT(got[0].has_value() != got[1].has_value(), "the chunk is lent to %s",
                   got[0].has_value() ? "both" : "nobody");
    expect_all_given();
  }
};

/// The source refuses one commit or two: what was half done is undone, and serves later.
struct rollback : of_store {
  std::array<refusal, 2> why{};
  rollback() : of_store(8) { book.refusals = 2; }
  void thread(unsigned self) override {
    got[self] = take(4, why[self]);
    ORDERLY_EXPECT(got[self].has_value() || why[self] == refusal::source, "refused for another reason");
  }
  void check() override {
    expect_books_agree();
    expect_all_given();
    book.refusals = 0;
    ORDERLY_EXPECT(take(4).has_value(), "what was rolled back serves no more");
  }
};

/// Half of it is committed already, and the rest is refused.
struct rollback_of_the_rest : rollback {
  rollback_of_the_rest() {
    const unsigned refusals = std::exchange(book.refusals, 0);
    const auto b = take(2);
    ORDERLY_EXPECT(b.has_value(), "refused");
    give(*b);
    book.refusals = refusals;
  }
};

/// Of four chunks the second is committed, so two ranges are missing; the second of them may be refused after the first.
struct rollback_of_two_ranges : rollback {
  std::array<std::optional<block>, 3> others;
  rollback_of_two_ranges() {
    const unsigned refusals = std::exchange(book.refusals, 0);
    std::array<std::optional<block>, 4> chunks;
    for (auto& each : others) each = take(2);
    for (auto& each : chunks) each = take(2);
    for (const unsigned i : {0U, 2U, 3U}) give(*chunks[i]);
    static_cast<void>(store->trim(~std::size_t{0}));
    give(*chunks[1]);
    book.refusals = refusals;
  }
  void thread(unsigned self) override {
    if (self == 0) {
      got[0] = take(8, why[0]);
      ORDERLY_EXPECT(got[0].has_value() || why[0] == refusal::source, "refused for another reason");
    } else {
      give(*std::exchange(others[0], std::nullopt));
    }
  }
  void check() override {
    expect_books_agree();
    for (auto& each : others)
      if (each) give(*each);
    expect_all_given();
    book.refusals = 0;
    while (take(2)) {  // each is committed
    }
    expect_books_agree();
  }
};

/// A pass decommits what lies free, while another takes.
struct trim_against_take : of_store {
  std::size_t released = 0;
  trim_against_take() : of_store(3) {
    const auto b = take(4);
    ORDERLY_EXPECT(b.has_value(), "refused");
    give(*b);
  }
  void thread(unsigned self) override {
    if (self == 0) {
      released = store->trim(~std::size_t{0});
      return;
    }
    refusal why = refusal::none;
    got[1] = take(1, why);
    ORDERLY_EXPECT(got[1].has_value() || why != refusal::no_node, "there are addresses");
    if (!got[1]) return;
    expect_committed(*got[1]);
    give(*std::exchange(got[1], std::nullopt));
  }
  void check() override {
    expect_all_given();
    static_cast<void>(store->trim(~std::size_t{0}));
    ORDERLY_EXPECT(book.committed == 0, "%zu bytes stay committed", book.committed);
  }
};

/// The same, with a source that takes nothing back.
struct trim_refused : trim_against_take {
  trim_refused() { book.decommits = false; }
  void check() override {
    expect_all_given();
    ORDERLY_EXPECT(released == 0 && book.committed == 6 * granule, "a refused decommit is accounted for");
  }
};

/// Small blocks come from chunks of their own; the last one of a chunk gives it back whole.
struct small_and_large : of_store {
  small_and_large() : of_store(3) {
    got[0] = take(1);
    ORDERLY_EXPECT(got[0].has_value(), "refused");
  }
  void thread(unsigned self) override {
    if (self == 0) return give(*std::exchange(got[0], std::nullopt));
    got[1] = take(2);
    ORDERLY_EXPECT(got[1].has_value(), "refused, with a chunk free");
  }
  void check() override { expect_all_given(); }
};

/// Two want the last root that nobody has touched: who finds none sees what the other did before it took it.
struct last_root : scenario {
  geometry shape = virtual_geometry(granule, 2 * granule, 16 * granule, 0);
  chunk_table chunks;
  std::unique_ptr<buddy> tree = std::make_unique<buddy>();
  std::array<plain<bool>, 2> at_work;
  std::array<std::optional<node>, 2> got;
  last_root() {
    ORDERLY_EXPECT(chunks.open(shape) && tree->open(shape, chunks), "no memory");
    for (std::uint64_t left = shape.tree_granules >> shape.root_order; left > 1; --left)
      ORDERLY_EXPECT(tree->claim(shape.root_order).has_value(), "there are %zu roots more", std::size_t{left});
  }
  void thread(unsigned self) override {
    at_work[self].set(true);
    got[self] = tree->claim(shape.root_order);
    if (!got[self]) ORDERLY_EXPECT(at_work[1 - self].get(), "the root is gone, and nobody was at work");
  }
  void check() override {
    ORDERLY_EXPECT(got[0].has_value() != got[1].has_value(), "the root goes to %s", got[0] ? "both" : "nobody");
  }
};

/// The same with a slot.
struct last_slot : scenario {
  source_book book;
  geometry shape = virtual_geometry(granule, 2 * granule, 64 * granule, 0);
  std::unique_ptr<arena> memory;
  std::unique_ptr<slots> tested = std::make_unique<slots>();
  unsigned order = shape.root_order + 1;
  std::uint64_t chunks = (std::uint64_t{1} << (order - shape.chunk_order) >> 1) + 1;
  std::array<plain<bool>, 2> at_work;
  std::array<std::optional<node>, 2> got;
  last_slot()
      : memory(std::make_unique<arena>(std::make_unique<paper>(book, 2 * granule, 64 * granule), shape)) {
    ORDERLY_EXPECT(memory->open() && tested->open(*memory), "no memory");
    for (std::uint32_t left = shape.slots[order]; left > 1; --left) {
      const auto n = take();
      ORDERLY_EXPECT(n.has_value(), "there are %u slots more", left);
      ORDERLY_EXPECT(memory->decommit(*n, 0, chunks), "the source takes back what is its own");
    }
  }
  std::optional<node> take() {
    refusal why = refusal::none;
    return tested->take(order, chunks, ceiling::hard, why);
  }
  void thread(unsigned self) override {
    at_work[self].set(true);
    got[self] = take();
    if (!got[self]) ORDERLY_EXPECT(at_work[1 - self].get(), "the slot is gone, and nobody was at work");
  }
  void check() override {
    ORDERLY_EXPECT(got[0].has_value() != got[1].has_value(), "the slot goes to %s", got[0] ? "both" : "nobody");
  }
};

/// Two want the last chunk below the limit, each for a node of its own: who is refused sees what the other did before it was
/// charged, for it may yet give back.
struct last_chunk : scenario {
  source_book book;
  geometry shape = virtual_geometry(granule, 2 * granule, 16 * granule, 2 * granule);
  arena memory{std::make_unique<paper>(book, 2 * granule, 16 * granule), shape};
  std::array<plain<bool>, 2> at_work;
  std::array<bool, 2> got{};
  last_chunk() { ORDERLY_EXPECT(memory.open(), "no memory"); }
  void thread(unsigned self) override {
    at_work[self].set(true);
    const refusal why = memory.commit({self, 1}, 2, ceiling::hard);
    got[self] = why == refusal::none;
    if (got[self]) return;
    ORDERLY_EXPECT(why == refusal::hard_limit, "refused for another reason than the limit");
    ORDERLY_EXPECT(at_work[1 - self].get(), "the limit is reached, and nobody was at work");
  }
  void check() override { ORDERLY_EXPECT(got[0] != got[1], "the chunk is lent to %s", got[0] ? "both" : "nobody"); }
};

/// One commits while another gives back: the peak has all that the source had at a time.
struct peak : scenario {
  source_book book;
  geometry shape = virtual_geometry(granule, 2 * granule, 16 * granule, 4 * granule);
  arena memory{std::make_unique<paper>(book, 2 * granule, 16 * granule), shape};
  peak() {
    ORDERLY_EXPECT(memory.open(), "no memory");
    ORDERLY_EXPECT(memory.commit({0, 1}, 2, ceiling::hard) == refusal::none, "refused");
  }
  void thread(unsigned self) override {
    if (self == 0)
      static_cast<void>(memory.decommit({0, 1}));
    else
      ORDERLY_EXPECT(memory.commit({1, 1}, 2, ceiling::hard) == refusal::none, "refused, below the limit");
  }
  void check() override {
    ORDERLY_EXPECT(book.peak <= memory.peak_committed(), "%zu bytes lay committed, and the peak is said to be %zu", book.peak,
                   memory.peak_committed());
    ORDERLY_EXPECT(book.committed == memory.committed(), "the account is wrong");
  }
};

constexpr traits long_ones{.stale = 1};
const registered<grow> i1("store", "grow", long_ones);
const registered<grow_to_the_limit> i2("store", "grow-to-the-limit", long_ones);
const registered<rollback> i3("store", "rollback", long_ones);
const registered<rollback_of_the_rest> i4("store", "rollback-of-the-rest", long_ones);
const registered<rollback_of_two_ranges> i9("store", "rollback-of-two-ranges", long_ones);
const registered<trim_against_take> i5("store", "trim-against-take", long_ones);
const registered<trim_refused> i6("store", "trim-refused", long_ones);
const registered<small_and_large> i7("store", "small-and-large");
const registered<peak> i11("store", "peak");

/// The words of a division, in the order of lib/divide.cpp: a block of four granules becomes two live parts, the second and
/// the last, and free memory. Meanwhile another finds the last part, as soon as it is there, and frees it.
struct divided : of_store {
  static constexpr std::uint32_t live = 0b1010;
  std::optional<block> whole_block;
  divided() : of_store(4) {
    whole_block = take(4);
    ORDERLY_EXPECT(whole_block.has_value(), "refused");
    std::uint64_t expected = test::live_bits(whole);
    ORDERLY_EXPECT(store->word(whole_block->n).compare_exchange_strong(expected, block_word::owned().bits(), relaxed, relaxed),
                   "the word of a live block is %#llx", static_cast<unsigned long long>(expected));
  }
  [[nodiscard]] node part(std::uint32_t i, unsigned order = 0) const {
    return {((whole_block->n.index << whole_block->n.order) + i) >> order, static_cast<std::uint8_t>(order)};
  }
  void thread(unsigned self) override {
    if (self == 0) {
      const part_map parts({&live, 1}, 4);
      touch(part_address(3), true);  // what the part's user gets with it
      store->divide(whole_block->n, 0, parts);  // 1
      parts.each_live([&](std::uint32_t i) { store->word(part(i)).store(test::live_bits(whole), release); });  // 2
      store->word(whole_block->n).store(block_word::split().bits(), release);                                  // 3
      parts.each_free([&](std::uint32_t i, unsigned order) { store->give(part(i, order), whole); });           // 4
      return;
    }
    const auto at = store->find_live(store->shape().bytes(part(3).granule()));
    if (!at.exists) return;
    ORDERLY_EXPECT(at.n == part(3), "the part is said to be of order %u", unsigned{at.n.order});
    touch(part_address(3), true);
    std::uint64_t expected = at.word.bits();
    ORDERLY_EXPECT(store->word(at.n).compare_exchange_strong(expected, block_word::owned().bits(), relaxed, relaxed),
                   "the part's word changes");
    store->give(at.n, whole);
    freed = true;
  }
  void check() override {
    give({part(1), whole});
    if (!freed) give({part(3), whole});
    expect_all_given();
  }
  [[nodiscard]] void* part_address(std::uint32_t i) const { return store->memory().address(part(i).granule()); }
  bool freed = false;
};
const registered<divided> i8("divide", "part-freed-early");

/// Blocks above a root: 9 and 10 chunks in slots of 16.
struct of_slots : of_store {
  of_slots() : of_store(24, 24) {}
  static constexpr std::uint64_t one = 2 * 9;
  static constexpr std::uint64_t other = 2 * 10;
};

/// A graph ends on one thread while another looks which are gone: what the last replay wrote is seen with the block.
struct graph_gone : scenario {
  notes noted;
  std::shared_ptr<graph_memory> graph = std::make_shared<graph_memory>();
  plain<int> written;
  lane* const freed_in = reinterpret_cast<lane*>(std::uintptr_t{1} << 12);
  std::size_t taken = 0;
  graph_gone() {
    noted.graphs.push_back(graph);
    for (const std::uint64_t granule_of_note : {1U, 2U}) {
      note& each = noted.by_granule[granule_of_note];
      each.graph = graph.get();
      each.freed_in = granule_of_note == 1 ? freed_in : nullptr;
    }
    noted.recount();
  }
  void thread(unsigned self) override {
    if (self == 0) {
      written.set(1);
      return graph->gone.store(true, release);
    }
    const std::size_t freed = noted.take_gone().size();
    if (freed != 0) written.set(2);
    taken += freed;
  }
  void check() override {
    taken += noted.take_gone().size();
    ORDERLY_EXPECT(taken == 1, "%zu blocks are taken, of one that was freed", taken);
    ORDERLY_EXPECT(noted.count.load(relaxed) == 0, "a live block of the graph stays noted");
  }
};
const registered<graph_gone> k1("notes", "graph-gone");

/// A slot goes from hand to hand, and grows or shrinks in between.
struct slot_exchange : of_slots {
  slot_exchange() {
    got[0] = take(one);
    ORDERLY_EXPECT(got[0].has_value(), "refused");
  }
  void thread(unsigned self) override {
    if (self == 0) give(*std::exchange(got[0], std::nullopt));
    auto& mine = got[self + 1];
    mine = take(self == 0 ? one : other);
    if (!mine) return;
    expect_committed(*mine);
  }
  void check() override {
    ORDERLY_EXPECT(got[1].has_value() || got[2].has_value(), "a slot and the memory for it were there");
    expect_all_given();
  }
};

/// The source refuses a commit: the slot is not lost, and serves later.
struct slot_refused : slot_exchange {
  slot_refused() { book.refusals = 1; }
  void check() override {
    expect_books_agree();
    expect_all_given();
    book.refusals = 0;
    unsigned count = 0;
    while (const auto b = take(one)) {
      ++count;
      expect_committed(*b);
      ORDERLY_EXPECT(store->memory().decommit(b->n, 0, one / 2), "the source takes back what is its own");
    }
    ORDERLY_EXPECT(count == store->shape().slots[store->shape().root_order + 1], "%u slots are left", count);
  }
};

/// A pass takes the memory of free slots while another takes one.
struct slot_trim : of_slots {
  slot_trim() {
    const auto b = take(one);
    ORDERLY_EXPECT(b.has_value(), "refused");
    give(*b);
  }
  void thread(unsigned self) override {
    if (self == 0) return static_cast<void>(store->trim(~std::size_t{0}));
    got[1] = take(other);
    ORDERLY_EXPECT(got[1].has_value(), "refused, with memory for two");
    expect_committed(*got[1]);
    give(*std::exchange(got[1], std::nullopt));
  }
  void check() override {
    expect_all_given();
    static_cast<void>(store->trim(~std::size_t{0}));
    ORDERLY_EXPECT(book.committed == 0, "%zu bytes stay committed", book.committed);
  }
};

const registered<slot_exchange> j1("slots", "exchange");
const registered<slot_trim> j2("slots", "trim");
const registered<last_chunk> i10("store", "last-chunk");
const registered<last_root> j4("buddy", "last-root");
const registered<last_slot> j5("slots", "last-slot");
const registered<slot_refused> j6("slots", "refused");
const registered<slot_exchange> j3("slots", "stopped", {.parked = 3});

}  // namespace
