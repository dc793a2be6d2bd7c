// The front's protocol under every schedule: owner and pass are never inside at once, and see what the other did.
#include <array>
#include <memory>

#include "explorer.hpp"
#include "front.hpp"

using namespace orderly::detail;
using namespace orderly::model;

namespace {

struct of_front : scenario {
  std::unique_ptr<front> tested = std::make_unique<front>();
  plain<int> blocks;  ///< what the front holds
  bool barrier = asymmetric_barrier::available();

  of_front() {
    if (!barrier) tested->require_exchange();
    tested->attach();
  }
  /// True: the owner was inside.
  bool stay(int change) {
    if (const front::stay inside(*tested); inside) {
      blocks.set(blocks.get() + change);
      front::add(tested->allocations, 1);
      return true;
    }
    return false;
  }
  bool pass() {
    tested->revoke();
    const bool outside = asymmetric_barrier::heavy() && tested->outside();
    if (outside) blocks.set(0);
    tested->restore();
    return outside;
  }
};

/// An owner goes in and out while a pass empties its front.
struct emptied : of_front {
  void thread(unsigned self) override {
    if (self == 1) return static_cast<void>(pass());
    static_cast<void>(stay(1));
    static_cast<void>(stay(1));
  }
  void check() override { ORDERLY_EXPECT(stay(0), "the front stays revoked"); }
};

/// Two passes, one after the other, as the mutex has it.
struct emptied_twice : of_front {
  void thread(unsigned self) override {
    if (self == 1) {
      static_cast<void>(pass());
      return static_cast<void>(pass());
    }
    static_cast<void>(stay(1));
  }
};

/// The hot path's stay; where it takes an exchange it is refused, and nothing is entered.
struct brief : of_front {
  void thread(unsigned self) override {
    if (self == 1) return static_cast<void>(pass());
    if (const front::brief_stay inside(*tested); inside) {
      ORDERLY_EXPECT(barrier, "entered without a barrier");
      blocks.set(blocks.get() + 1);
    }
  }
};

/// A pass leaves an empty front to another lane; its owner takes it over, shows the lane and renews it. In the end either the
/// front is open and the owner's, or it is retired and the owner can tell.
struct taken_over : of_front {
  lane* const old_lane = reinterpret_cast<lane*>(std::uintptr_t{1} << 12);
  lane* const new_lane = reinterpret_cast<lane*>(std::uintptr_t{2} << 12);
  bool took = false;
  taken_over() { tested->of_lane.store(old_lane, relaxed); }
  void thread(unsigned self) override {
    if (self == 1) {
      tested->revoke();
      if (asymmetric_barrier::heavy() && tested->outside() && tested->of_lane.load(seq_cst) == old_lane) {
        tested->retire();
        if (tested->of_lane.load(relaxed) != old_lane) tested->renew();
      }
      tested->restore();
      return;
    }
    for (int look = 0; look < 2 && !took; ++look) {
      if (!tested->retired()) continue;
      tested->of_lane.store(new_lane, seq_cst);
      tested->renew();
      took = true;
    }
  }
  void check() override {
    if (took) ORDERLY_EXPECT(!tested->retired() && stay(0), "a front that was taken over is closed");
    if (!took && tested->retired()) ORDERLY_EXPECT(!stay(0), "a retired front is open");
  }
};

/// A front that was left before. A pass that still finds the old lane there leaves it once more, while its owner takes it
/// over: in the end it is the owner's, and open.
struct taken_over_late : taken_over {
  taken_over_late() { tested->retire(); }
  void thread(unsigned self) override {
    if (self == 0) {
      tested->of_lane.store(new_lane, seq_cst);
      tested->renew();
      return;
    }
    if (tested->of_lane.load(seq_cst) != old_lane) return;
    tested->revoke();
    if (asymmetric_barrier::heavy() && tested->outside()) {
      tested->retire();
      if (tested->of_lane.load(relaxed) != old_lane) tested->renew();
    }
    tested->restore();
  }
  void check() override { ORDERLY_EXPECT(!tested->retired() && stay(0), "a front that was taken over is closed"); }
};

/// Owner by attachment: each finds what the last one left.
struct attached_in_turn : of_front {
  std::array<int, 3> entered{};
  attached_in_turn() { tested->detach(); }
  void thread(unsigned self) override {
    if (!tested->try_attach()) return;
    ORDERLY_EXPECT(stay(1), "no pass is under way");
    ++entered[self];
    tested->detach();
  }
  void check() override {
    ORDERLY_EXPECT(blocks.get() == entered[0] + entered[1] + entered[2], "a change is lost");
    ORDERLY_EXPECT(blocks.get() != 0, "nobody got in");
  }
};

/// A parcel comes while the owner lets go: one of the two sees the other.
struct last_parcel : of_front {
  std::array<atomic<link_code>, 1> links;
  bool seen_by_owner = false;
  bool left_to_owner = false;
  void thread(unsigned self) override {
    if (self == 0) {
      tested->detach();
      seen_by_owner = tested->inbox.peek();
    } else {
      tested->inbox.push(links.data(), 0);
      left_to_owner = tested->attached();
    }
  }
  void check() override { ORDERLY_EXPECT(seen_by_owner || !left_to_owner, "the parcel lies there for ever"); }
};

/// What a thread does past its front is seen by a watcher: who finds it idle twice, with as many steps, has missed nothing.
struct watched : of_front {
  atomic<int> given{0};
  bool idle = false;
  int found = 0;
  void thread(unsigned self) override {
    if (self == 0) {
      tested->begin_slow();
      const int in_hand = given.exchange(0, relaxed);
      given.store(in_hand, relaxed);
      tested->end_slow();
      return;
    }
    const front::activity before = tested->watch();
    found = given.load(relaxed);
    const front::activity after = tested->watch();
    idle = before.idle() && after.idle() && before == after;
    if (idle) ORDERLY_EXPECT(found == 1, "it was in hand, and the thread looked idle");
  }
  watched() { given.store(1, relaxed); }
};

constexpr traits without{.barrier = false};
constexpr traits refused{.barrier_refusals = 2};
const registered<emptied> a1("front", "emptied", {.long_bound = 5});
const registered<emptied> a2("front", "emptied-without-barrier", without);
const registered<emptied> a3("front", "emptied-barrier-refused", refused);
const registered<emptied_twice> b1("front", "emptied-twice");
const registered<emptied_twice> b2("front", "emptied-twice-without-barrier", without);
const registered<brief> c1("front", "brief");
const registered<brief> c2("front", "brief-without-barrier", without);
const registered<taken_over> d1("front", "taken-over");
const registered<taken_over> d2("front", "taken-over-without-barrier", without);
const registered<taken_over_late> d3("front", "taken-over-late");
const registered<taken_over_late> d4("front", "taken-over-late-without-barrier", without);
const registered<attached_in_turn> e1("front", "attached-in-turn");
const registered<attached_in_turn> e2("front", "attached-in-turn-of-three", {.threads = 3});
const registered<last_parcel> f1("front", "last-parcel");
const registered<watched> g1("front", "watched");
const registered<emptied> h1("front", "stopped", {.parked = 3});

}  // namespace
