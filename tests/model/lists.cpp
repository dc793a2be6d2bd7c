// The stack of hints and the depot under every schedule: each node has one owner at a time, who sees all that the one before
// it did, and none is lost.
#include <array>
#include <optional>
#include <vector>

#include "depot.hpp"
#include "explorer.hpp"
#include "free_list.hpp"

using namespace orderly::detail;
using namespace orderly::model;

namespace {

/// Nodes with plain data, which only their owner writes.
struct of_list : scenario {
  static constexpr std::uint32_t nodes = 4;
  std::array<atomic<link_code>, nodes> links;
  free_list list;
  std::array<plain<unsigned>, nodes> owner;
  std::array<std::vector<std::uint32_t>, most_threads> held;

  /// The first of them come to lie in the list, the highest on top.
  void fill(std::uint32_t count) {
    for (std::uint32_t i = 0; i < count; ++i) list.push(links.data(), i);
  }
  void own(std::uint32_t node, unsigned self) {
    ORDERLY_EXPECT(owner[node].get() == 0, "node %u has two owners, %u and %u", node, owner[node].get() - 1, self);
    owner[node].set(self + 1);
    held[self].push_back(node);
  }
  bool pop(unsigned self) {
    const auto node = list.try_pop(links.data());
    if (node) own(*node, self);
    return node.has_value();
  }
  /// The `i`-th that the thread holds.
  void push(unsigned self, std::size_t i = 0) {
    const std::uint32_t node = held[self][i];
    held[self].erase(held[self].begin() + static_cast<std::ptrdiff_t>(i));
    owner[node].set(0);
    list.push(links.data(), node);
  }
  void take_all(unsigned self) {
    for (link_code at = list.take_all(); at > last;) {
      const std::uint32_t node = linked_index(at);
      at = links[node].load(relaxed);
      own(node, self);
    }
  }
  void expect_all(std::uint32_t count) {
    std::array<unsigned, nodes> seen{};
    for (const auto& each : held)
      for (const std::uint32_t node : each) ++seen[node];
    while (const auto node = list.try_pop(links.data())) {
      ORDERLY_EXPECT(++seen[*node] == 1, "node %u is listed or held twice", *node);
    }
    for (std::uint32_t i = 0; i < nodes; ++i)
      ORDERLY_EXPECT(seen[i] == (i < count ? 1U : 0U), "node %u is there %u times", i, seen[i]);
  }
};

/// Each pops one.
struct pops : of_list {
  pops() { fill(3); }
  void thread(unsigned self) override { ORDERLY_EXPECT(pop(self), "the list is said to be empty"); }
  void check() override { expect_all(3); }
};

/// Each pops one and pushes it again: a node is handed from thread to thread.
struct pop_and_push : of_list {
  pop_and_push() { fill(2); }
  void thread(unsigned self) override {
    if (pop(self)) push(self);
  }
  void check() override { expect_all(2); }
};

/// One pops, the other pops two and pushes the first again: what the one has read as next is taken.
struct top_comes_back : of_list {
  top_comes_back() { fill(3); }
  void thread(unsigned self) override {
    ORDERLY_EXPECT(pop(self), "the list is said to be empty");
    if (self == 0) return;
    ORDERLY_EXPECT(pop(self), "the list is said to be empty");
    push(self, 0);
  }
  void check() override { expect_all(3); }
};

/// As many changes as a tag has values, between the look and the exchange: the explorer sees what 32 bits make unlikely.
struct tag_wraps : of_list {
  tag_wraps() { fill(3); }
  void thread(unsigned self) override {
    if (self == 0) return static_cast<void>(pop(0));
    for (int i = 0; i < 3; ++i) static_cast<void>(list.try_pop(links.data()));
    for (const std::uint32_t node : {1U, 0U, 2U}) list.push(links.data(), node);
    for (std::uint64_t changes = 6; changes < bounds::tags; changes += 2) {
      static_cast<void>(list.try_pop(links.data()));
      list.push(links.data(), 2);
    }
  }
  void check() override { expect_all(3); }
};

/// One takes everything while others push and pop.
struct all_at_once : of_list {
  all_at_once() {
    fill(2);
    own_without_list(2, 1);
    own_without_list(3, 2);
  }
  void own_without_list(std::uint32_t node, unsigned self) {
    owner[node].set(self + 1);
    held[self].push_back(node);
  }
  void thread(unsigned self) override {
    if (self == 0) return take_all(0);
    push(self, 0);
    static_cast<void>(pop(self));
  }
  void check() override { expect_all(4); }
};

/// A push, and then a look elsewhere; a mark elsewhere, and then a look at the list: one sees the other.
struct push_and_look : of_list {
  atomic<bool> closed{false};
  bool seen_by_pusher = false;
  bool seen_by_closer = false;
  void thread(unsigned self) override {
    if (self == 0) {
      list.push(links.data(), 0);
      seen_by_pusher = closed.load(seq_cst);
    } else {
      closed.store(true, seq_cst);
      seen_by_closer = list.peek();
    }
  }
  void check() override { ORDERLY_EXPECT(seen_by_pusher || seen_by_closer, "neither sees the other"); }
};

/// Two want the last node, by a pop or with all: who finds none sees what the other did before it took it. A pass knows by
/// that who is at work (press() in lib/pass.cpp).
template <bool first_takes_all, bool second_takes_all>
struct last_node : of_list {
  std::array<plain<bool>, 2> at_work;
  last_node() { fill(1); }
  void thread(unsigned self) override {
    at_work[self].set(true);
    if (self == 0 ? first_takes_all : second_takes_all)
      take_all(self);
    else
      static_cast<void>(pop(self));
    if (held[self].empty()) ORDERLY_EXPECT(at_work[1 - self].get(), "the node is gone, and nobody was at work");
  }
  void check() override { expect_all(1); }
};

/// Whoever is stopped, the others get on.
struct stopped_in_list : pop_and_push {};

constexpr traits three{.threads = 3};
const registered<pops> a1("free_list", "pops");
const registered<pops> a2("free_list", "pops-of-three", three);
const registered<pop_and_push> b1("free_list", "pop-and-push", {.long_bound = 5});
const registered<pop_and_push> b2("free_list", "pop-and-push-of-three", three);
const registered<top_comes_back> c1("free_list", "top-comes-back");
const registered<tag_wraps> c2("free_list", "tag-wraps", {.must_fail = true});
const registered<all_at_once> d1("free_list", "all-at-once");
const registered<all_at_once> d2("free_list", "all-at-once-of-three", three);
const registered<push_and_look> e1("free_list", "push-and-look");
const registered<last_node<false, false>> e2("free_list", "last-node");
const registered<last_node<false, true>> e3("free_list", "last-node-with-all");
const registered<last_node<true, true>> e4("free_list", "last-node-all-twice");
const registered<stopped_in_list> f1("free_list", "stopped", {.parked = 3});

/// Blocks that each thread owns, in magazines.
struct of_depot : scenario {
  depot tested;
  depot::shelves shelves;
  std::array<depot::spare, most_threads> spares;
  std::array<plain<unsigned>, 8> owner;
  std::array<std::vector<std::uint32_t>, most_threads> held;

  of_depot() { ORDERLY_EXPECT(tested.open(bounds::magazines), "no memory"); }
  void hold(unsigned self, std::initializer_list<std::uint32_t> blocks) {
    for (const std::uint32_t block : blocks) {
      owner[block].set(self + 1);
      held[self].push_back(block);
    }
  }
  void got(unsigned self, const std::uint32_t* blocks, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t block = blocks[i];
      ORDERLY_EXPECT(block < owner.size(), "block %u does not exist", block);
      ORDERLY_EXPECT(owner[block].get() == 0, "block %u has two owners", block);
      owner[block].set(self + 1);
      held[self].push_back(block);
    }
  }
  bool push(unsigned self, std::uint32_t highest = 8) {
    const std::vector<std::uint32_t> blocks = held[self];
    for (const std::uint32_t block : blocks) owner[block].set(0);
    if (tested.push(shelves, 1, blocks, highest, &spares[self])) {
      held[self].clear();
      return true;
    }
    for (const std::uint32_t block : blocks) owner[block].set(self + 1);
    return false;
  }
  std::size_t pop(unsigned self) {
    std::array<std::uint32_t, max_magazine_blocks> blocks;
    const std::size_t count = tested.pop(shelves, 1, blocks, &spares[self]);
    got(self, blocks.data(), count);
    return count;
  }
  void send(free_list& inbox, unsigned self) {
    const std::vector<std::uint32_t> blocks = held[self];
    for (const std::uint32_t block : blocks) owner[block].set(0);
    held[self].clear();
    ORDERLY_EXPECT(tested.send(inbox, 1, blocks, nullptr), "there is an empty magazine");
  }
  std::size_t receive(free_list& inbox, unsigned self) {
    const depot::parcel p = tested.receive(inbox);
    if (p.count != 0) ORDERLY_EXPECT(p.of_class == 1, "a parcel of class 1 is one of class %zu", p.of_class);
    got(self, p.blocks.data(), p.count);
    return p.count;
  }
  void expect_all(std::size_t count) {
    std::size_t sum = 0;
    for (const auto& each : held) sum += each.size();
    ORDERLY_EXPECT(sum == count, "%zu blocks of %zu are left", sum, count);
  }
};

/// Full magazines change hands; the magazine that one emptied, the other fills.
struct exchange : of_depot {
  exchange() {
    hold(0, {0, 1});
    hold(1, {2, 3});
    ORDERLY_EXPECT(push(0), "the depot is empty");
    hold(0, {4, 5});
  }
  void thread(unsigned self) override {
    if (self == 0) {
      ORDERLY_EXPECT(push(0), "there is room");
      static_cast<void>(pop(0));
    } else {
      const std::size_t count = pop(1);
      ORDERLY_EXPECT(count != 0, "a magazine was there all the time");
      ORDERLY_EXPECT(push(1), "there is room");
    }
  }
  void check() override {
    while (pop(2) != 0) {
    }
    expect_all(6);
    for (depot::spare& each : spares) tested.keep(each);
    const std::uint32_t block = 0;
    for (int i = 0; i < 3; ++i)
      ORDERLY_EXPECT(tested.push(shelves, 1, {&block, 1}, 8, &spares[3]), "there are magazines");
    std::array<std::uint32_t, max_magazine_blocks> out;
    while (tested.pop(shelves, 1, out, &spares[3]) != 0) {
    }
    tested.keep(spares[3]);
    free_list heap;
    for (std::uint32_t i = 0; i < bounds::magazines; ++i)
      ORDERLY_EXPECT(tested.send(heap, 1, {&block, 1}, nullptr), "%u magazines are left of %u", i, bounds::magazines);
    ORDERLY_EXPECT(shelves.height(1) == 0, "an empty depot counts %u magazines", shelves.height(1));
  }
};

/// A class has room for one more: at least one of two is let in, and no more than one.
struct last_place : of_depot {
  std::array<bool, 2> pushed{};
  last_place() {
    hold(0, {0});
    hold(1, {1});
  }
  void thread(unsigned self) override { pushed[self] = push(self, 1); }
  void check() override {
    ORDERLY_EXPECT(pushed[0] != pushed[1] || !pushed[0], "two magazines where one has room");
    ORDERLY_EXPECT(shelves.height(1) == unsigned{pushed[0]} + unsigned{pushed[1]}, "the count is off");
    while (pop(2) != 0) {
    }
    expect_all(2);
  }
};

/// Two send parcels to a third, who looks twice.
struct parcels : of_depot {
  free_list inbox;
  parcels() {
    hold(0, {0, 1});
    hold(1, {2});
  }
  void thread(unsigned self) override {
    if (self != 2) return send(inbox, self);
    static_cast<void>(receive(inbox, 2));
    static_cast<void>(receive(inbox, 2));
  }
  void check() override {
    while (receive(inbox, 3) != 0) {
    }
    expect_all(3);
  }
};

/// One takes an inbox as a whole and forwards the first parcel, while another sends.
struct chains : of_depot {
  free_list inbox;
  free_list other;
  chains() {
    hold(0, {0});
    send(inbox, 0);
    hold(0, {1});
    send(inbox, 0);
    hold(0, {2});
  }
  void thread(unsigned self) override {
    if (self == 0) {
      send(inbox, 0);
      static_cast<void>(receive(other, 0));
      return;
    }
    depot::chain all = tested.receive_all(inbox);
    ORDERLY_EXPECT(!depot::empty(all), "two parcels were there");
    tested.forward(all, other);
    const depot::parcel p = tested.receive(all);
    ORDERLY_EXPECT(p.count == 1, "two parcels were there");
    got(1, p.blocks.data(), 1);
    static_cast<void>(tested.give_back(all, inbox));
  }
  void check() override {
    while (receive(inbox, 2) + receive(other, 2) != 0) {
    }
    expect_all(3);
  }
};

const registered<exchange> g1("depot", "exchange");
const registered<last_place> g2("depot", "last-place");
const registered<parcels> g3("depot", "parcels", three);
const registered<chains> g4("depot", "chains");
const registered<exchange> g5("depot", "stopped", {.parked = 3});

}  // namespace
