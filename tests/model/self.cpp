// The explorer's own tests: known protocols, right and wrong. What must be found is found, and what is allowed is not.
#include <array>
#include <mutex>

#include "explorer.hpp"

using namespace orderly::detail;
using namespace orderly::model;

namespace {

/// One thread writes data and says so; the other believes it.
template <auto told, auto heard>
struct message_passing : scenario {
  plain<int> data;
  atomic<int> flag{0};
  void thread(unsigned self) override {
    if (self == 0) {
      data.set(1);
      flag.store(1, told);
    } else if (flag.load(heard) == 1) {
      ORDERLY_EXPECT(data.get() == 1, "the data is not there");
    }
  }
};

/// Each writes one word and reads the other's.
template <auto how, bool barrier>
struct store_buffering : scenario {
  std::array<atomic<int>, 2> words;
  std::array<int, 2> seen{};
  void thread(unsigned self) override {
    words[self].store(1, how);
    if (barrier && self == 1) static_cast<void>(asymmetric_barrier::heavy());
    if (barrier && self == 0) asymmetric_barrier::light();
    seen[self] = words[1 - self].load(how);
  }
  void check() override { ORDERLY_EXPECT(seen[0] + seen[1] != 0, "both read the old value"); }
};

/// Two words are written in one order; reading the second and then the first does not show the contrary.
template <auto told, auto heard>
struct two_words : scenario {
  atomic<int> first{0};
  atomic<int> second{0};
  void thread(unsigned self) override {
    if (self == 0) {
      first.store(1, relaxed);
      second.store(1, told);
    } else {
      const int b = second.load(heard);
      const int a = first.load(relaxed);
      ORDERLY_EXPECT(b <= a, "the second word is seen before the first");
    }
  }
};

/// Four threads: do two readers agree on the order of two writers?
template <auto how>
struct independent_reads : scenario {
  std::array<atomic<int>, 2> words;
  std::array<int, 2> older{};
  void thread(unsigned self) override {
    if (self < 2) return words[self].store(1, how);
    const unsigned one = self - 2;
    const int a = words[one].load(how);
    const int b = words[1 - one].load(how);
    older[one] = a == 1 && b == 0;
  }
  void check() override { ORDERLY_EXPECT(older[0] + older[1] != 2, "two readers disagree"); }
};

/// A read-modify-write in between carries on what a release store shows.
struct release_sequence : scenario {
  plain<int> data;
  atomic<int> word{0};
  void thread(unsigned self) override {
    if (self == 0) {
      data.set(1);
      word.store(1, release);
    } else if (self == 1) {
      word.fetch_add(2, relaxed);
    } else if (word.load(acquire) == 3) {
      ORDERLY_EXPECT(data.get() == 1, "the data is not there");
    }
  }
};

/// One location never goes back.
struct coherence : scenario {
  atomic<int> word{0};
  void thread(unsigned self) override {
    if (self == 0) {
      word.store(1, relaxed);
      word.store(2, relaxed);
    } else {
      const int a = word.load(relaxed);
      const int b = word.load(relaxed);
      ORDERLY_EXPECT(a <= b, "a load returns an older value than the one before");
    }
  }
};

struct lost_update : scenario {
  atomic<int> word{0};
  void thread(unsigned) override { word.store(word.load(seq_cst) + 1, seq_cst); }
  void check() override { ORDERLY_EXPECT(word.load(relaxed) == 2, "an update is lost"); }
};

struct counted : scenario {
  atomic<int> word{0};
  void thread(unsigned) override { word.fetch_add(1, relaxed); }
  void check() override { ORDERLY_EXPECT(word.load(relaxed) == 3, "an update is lost"); }
};

/// Two mutexes, in one order or in both.
template <bool crossed>
struct two_mutexes : scenario {
  std::array<mutex, 2> locks;
  plain<int> data;
  void thread(unsigned self) override {
    const unsigned first = crossed ? self : 0;
    const std::lock_guard a(locks[first]);
    const std::lock_guard b(locks[1 - first]);
    data.set(data.get() + 1);
  }
  void check() override { ORDERLY_EXPECT(data.get() == 2, "an update is lost"); }
};

/// A thread waits for the other, with pauses.
struct spin : scenario {
  atomic<bool> there{false};
  plain<int> data;
  void thread(unsigned self) override {
    if (self == 0) {
      data.set(1);
      there.store(true, release);
      return;
    }
    while (!there.load(acquire)) yield();
    ORDERLY_EXPECT(data.get() == 1, "the data is not there");
  }
};

struct nobody_comes : scenario {
  atomic<bool> there{false};
  void thread(unsigned self) override {
    if (self == 0) return there.store(false, release);
    while (!there.load(acquire)) yield();
  }
};

/// The second thread waits between two reads, and the first, which has been preempted as the holder, goes on by itself.
struct preempted_holder : scenario {
  mutex held;
  atomic<int> ready{0};
  atomic<int> word{0};
  void thread(unsigned self) override {
    if (self == 0) {
      held.lock();
      ready.store(1, release);
      held.unlock();
      word.store(1, relaxed);
    } else if (ready.load(acquire) == 1) {
      const int before = word.load(relaxed);
      const std::lock_guard lock(held);
      ORDERLY_EXPECT(word.load(relaxed) == before, "the word has changed while this thread waited");
    }
  }
};

/// The second thread sees that the first has not ended, which is then before its last step.
struct looked_at : scenario {
  atomic<int> ready{0};
  atomic<int> last{0};
  bool was_running = false;
  void thread(unsigned self) override {
    if (self == 0) {
      ready.store(1, release);
      last.store(1, relaxed);
    } else if (ready.load(acquire) == 1) {
      was_running = !others_are_stopped();
    } else {
      last.store(2, relaxed);
    }
  }
  void check() override { ORDERLY_EXPECT(!was_running, "it was running"); }
};

// Executions that lead to states alike but for one thing. The search comes first to the one without a find; where it took the
// other for the same, it would miss the find.

enum class then { nothing, overwritten, continued };

/// Two threads release one value, and only the second has data to hand on. If it comes first, the third may not use them.
template <then what>
struct one_value_of_two : scenario {
  plain<int> data;
  atomic<int> word{0};
  std::array<atomic<int>, 2> wrote;
  void thread(unsigned self) override {
    if (self == 0) {
      word.store(1, release);
      wrote[0].store(1, relaxed);
    } else if (self == 1) {
      data.set(1);
      word.store(1, release);
      wrote[1].store(1, relaxed);
    } else if (wrote[0].load(relaxed) + wrote[1].load(relaxed) == 2) {
      if (what == then::continued) static_cast<void>(word.fetch_add(1, relaxed));
      if (word.load(acquire) == 0) return;
      if (what == then::overwritten) word.store(0, relaxed);
      for (int i = 0; i < 8; ++i) wrote[0].fetch_add(1, relaxed);  // one of eight is looked at
      static_cast<void>(data.get());
    }
  }
};

enum class known { by_itself, by_release, by_agreement };

/// A word goes from 1 to 3 and back. Who has read the first 1 may read the 3 next, and who learns of that may too.
template <known how>
struct back_and_forth : scenario {
  atomic<int> word{0};
  atomic<int> told{0};
  int first = 0;
  static constexpr auto read_by = how == known::by_agreement ? seq_cst : relaxed;
  void thread(unsigned self) override {
    if (self == 0) {
      for (const int value : {1, 3, 1}) word.store(value, relaxed);
      told.fetch_add(1, relaxed);
    } else if (self == 1) {
      first = word.load(read_by);
      if (how == known::by_release) told.store(7, release);
      if (how != known::by_itself) return;
      for (int i = 0; i < 8; ++i) told.fetch_add(1, relaxed);
      read_again();
    } else {
      if (how == known::by_release && told.load(acquire) != 7) return;
      read_again();
    }
  }
  void read_again() {
    const int second = word.load(read_by);
    ORDERLY_EXPECT(first != 1 || second != 3, "first 1, then 3");
  }
};

/// What one barrier has seen the next shows to all, be it another thread's. The first comes before the word is written.
struct barrier_and_word : scenario {
  atomic<int> word{0};
  std::array<atomic<int>, 3> done;
  void thread(unsigned self) override {
    if (self == 0) {
      word.store(1, relaxed);
    } else if (self == 1) {
      static_cast<void>(asymmetric_barrier::heavy());
    } else if (self == 2) {
      if (done[0].load(relaxed) + done[1].load(relaxed) != 2) return;
      for (int i = 0; i < 8; ++i) done[2].fetch_add(0, relaxed);
      static_cast<void>(asymmetric_barrier::heavy());
    } else {
      if (done[0].load(relaxed) + done[1].load(relaxed) + done[2].load(relaxed) != 3) return;
      ORDERLY_EXPECT(word.load(relaxed) == 1, "the old word after the second barrier");
      return;
    }
    done[self].store(1, relaxed);
  }
};

/// A parked holder of a mutex stops the other, who needs it or not.
template <bool needs_it>
struct parked_holder : scenario {
  mutex held;
  atomic<int> word{0};
  void thread(unsigned self) override {
    word.fetch_add(1, relaxed);
    if (self == 0 || needs_it) {
      const std::lock_guard lock(held);
      word.fetch_add(1, relaxed);
    } else if (held.try_lock()) {
      held.unlock();
    }
  }
};

struct told_by_condition : scenario {
  mutex lock;
  condition_variable changed;
  bool there = false;
  void thread(unsigned self) override {
    std::unique_lock hold(lock);
    if (self != 0) return changed.wait(hold, [&] { return there; });
    there = true;
    hold.unlock();
    changed.notify_all();
  }
};

/// Of three numbers, each comes up.
struct every_choice : scenario {
  void thread(unsigned self) override { ORDERLY_EXPECT(self != 1 || choose(3) != 2, "the third was chosen"); }
};

constexpr traits wrong{.must_fail = true};
constexpr traits three{.threads = 3};
constexpr traits four{.threads = 4};
constexpr traits wrong_four{.threads = 4, .must_fail = true};

const registered<message_passing<release, acquire>> a1("self", "message-passing");
const registered<message_passing<relaxed, acquire>> a2("self", "message-passing-without-release", wrong);
const registered<message_passing<release, relaxed>> a3("self", "message-passing-without-acquire", wrong);
const registered<two_words<release, acquire>> b1("self", "two-words");
const registered<two_words<relaxed, acquire>> b2("self", "two-words-without-release", wrong);
const registered<two_words<release, relaxed>> b3("self", "two-words-without-acquire", wrong);
const registered<store_buffering<seq_cst, false>> c1("self", "store-buffering");
const registered<store_buffering<acq_rel, false>> c2("self", "store-buffering-without-order", wrong);
const registered<store_buffering<relaxed, true>> c3("self", "asymmetric-barrier");
const registered<independent_reads<seq_cst>> d1("self", "independent-reads", four);
const registered<independent_reads<acq_rel>> d2("self", "independent-reads-without-order", wrong_four);
const registered<release_sequence> e1("self", "release-sequence", three);
const registered<coherence> f1("self", "coherence");
const registered<lost_update> g1("self", "lost-update", wrong);
const registered<counted> g2("self", "counted", three);
const registered<two_mutexes<false>> h1("self", "mutexes-in-order");
const registered<two_mutexes<true>> h2("self", "mutexes-crossed", wrong);
const registered<spin> i1("self", "spin");
const registered<nobody_comes> i2("self", "spin-for-ever", wrong);
const registered<parked_holder<false>> j1("self", "parked-holder", {.parked = 1});
const registered<parked_holder<true>> j2("self", "parked-holder-in-the-way", {.parked = 1, .must_fail = true});
const registered<preempted_holder> j3("self", "preempted-holder", {.short_bound = 1, .stale = 0, .must_fail = true});
const registered<looked_at> j4("self", "looked-at", {.short_bound = 1, .stale = 0, .must_fail = true});
constexpr traits wrong_three{.threads = 3, .stale = 0, .must_fail = true};
const registered<one_value_of_two<then::nothing>> m1("self", "released-or-not", wrong_three);
const registered<one_value_of_two<then::overwritten>> m2("self", "released-or-not-and-overwritten", wrong_three);
const registered<one_value_of_two<then::continued>> m3("self", "released-or-not-and-continued", wrong_three);
constexpr traits wrong_old{.threads = 3, .short_bound = 0, .stale = 2, .must_fail = true};
const registered<back_and_forth<known::by_itself>> n1("self", "which-of-two", {.short_bound = 0, .stale = 2, .must_fail = true});
const registered<back_and_forth<known::by_release>> n2("self", "which-of-two-released", wrong_old);
const registered<back_and_forth<known::by_agreement>> n3("self", "which-of-two-agreed", wrong_old);
const registered<barrier_and_word> o1("self", "barrier-and-word",
                                      {.threads = 4, .short_bound = 0, .stale = 1, .must_fail = true});
const registered<told_by_condition> k1("self", "condition");
const registered<every_choice> l1("self", "every-choice", wrong);

}  // namespace
