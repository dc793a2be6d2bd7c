/// \file
/// Runs small programs over the library's own code under every schedule, up to a bound, and shows the one that fails.
///
/// A scenario is built anew for each execution; its threads are fibers of one thread. Every operation of an object of
/// door.hpp is a step, and before each the explorer chooses who goes on. All that chance decides elsewhere is a choice:
/// who runs, what a load reads, what choose() returns. So an execution is the list of its choices, and can be repeated.
///
/// Search
///   exhaustive   depth first, up to a number of preemptions and a number of loads that return an old value. A thread that
///                blocks, yields or ends is no preemption. Each bound is a statement: no execution within it fails.
///   random       priorities that change at random steps (PCT: Burckhardt et al., ASPLOS 2010), old values at random; by
///                seed.
///   parked       exhaustive, and one thread stops for ever before any of its steps: a choice like others. The others must
///                end.
/// Reductions, all sound within the bound: what is left out has the same finds as something that is searched before and
/// costs no more. `model --compare` searches with them and without, and compares what the executions come to.
///   What only one thread uses, or nobody writes, is no step. The set is learnt; when it grows, the search starts again.
///   Who was preempted before an operation goes on only after an operation of another that conflicts with it, or that waits
///   for what it releases: otherwise the preemption after the operation leads to the same, costs no more, and comes first in
///   the search.
///   A state is searched once, unless less was spent on the way to it, or fewer threads sleep there. It is told by a hash of
///   what it follows from: each thread's history, that is, the values that it has read, what it has chosen, and, of each store
///   that it has acquired, the history of who released it (the happens-before relation); each object's stores, in order, with
///   their values, what they show, and whose history they hand on; what each thread has seen; who runs, waits or sleeps. Who
///   has written what a relaxed load reads is no part of it: such a load learns the value alone. When no more old values may
///   be read, the newest store of each object is enough, and what threads have seen is no part of it. A thread's own state and
///   plain data follow from that, since a race on plain data is a find: so what threads share must be an object of door.hpp,
///   or be announced as plain, or commute. A step changes a history, so that no execution meets a state twice. That two of n
///   states have one hash of 64 bits has a probability of n^2 / 2^65: 3 in 10^6 for 10^7, and 2 in 10^3 for 3 x 10^8,
///   as the longest search of the long run has. States that find no room are searched again.
///   Of old stores with one value a load returns only the oldest that hands over no more than the others: who knows less may
///   read, and race with, all that who knows more may.
///   A thread is not parked after a step that shows the others nothing: it might as well have been parked before.
///
/// Memory   Each object keeps its stores, in the order of execution. A thread has a view: per object the oldest store that
///          it may still read. Loads choose among the stores from there on; release and acquire hand views on, through
///          read-modify-writes too; these read the newest store. seq_cst loads read nothing older than what a seq_cst
///          operation has read or written before, in the order of execution. The heavy side of the asymmetric barrier shares
///          the caller's view with every thread and theirs with the caller; it orders no plain data.
///          This is C++20 without: loads that read a later store (load buffering), stores that are ordered other than they are
///          executed (2+2W), a compare-exchange that fails for no reason, consume, fences. A compare-exchange that fails
///          may read an old value; one that succeeds reads the newest.
/// Races    Of plain data (plain<T>, and what the library announces by reads_plain and writes_plain), by vector clocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "atomic.hpp"

namespace orderly::model {

inline constexpr unsigned most_threads = 4;

/// The construction is the setup. All memory that it and its threads take is dropped after each execution.
class scenario {
 public:
  scenario() = default;
  scenario(const scenario&) = delete;
  scenario& operator=(const scenario&) = delete;
  virtual ~scenario() = default;
  virtual void thread(unsigned self) = 0;
  /// When all threads have ended. Not after an execution in which one was parked.
  virtual void check() {}
};

struct traits {
  unsigned threads = 2;
  /// Of the long run; small scenarios can bear more, the largest less.
  unsigned long_bound = 4;
  unsigned short_bound = 2;
  unsigned stale = ~0U;         ///< loads that return an old value; ~0: as many as preemptions
  // Where it bears more preemptions with fewer old values, the long run searches once more:
  unsigned far_bound = 0;
  unsigned far_stale = 0;
  bool barrier = true;          ///< the system has an asymmetric barrier
  unsigned barrier_refusals = 0;  ///< so often the system may refuse it
  bool exits = false;           ///< the end of a thread, when it gives its fronts back, is part of its steps
  unsigned parked = 0;          ///< threads that stop for ever, one of them at a time, as bits
  bool must_fail = false;       ///< the explorer's own test: it has to find something
};

/// Names a scenario; a variable of namespace scope, one line each.
class registration {
 public:
  using maker = std::unique_ptr<scenario> (*)();
  registration(const char* group, const char* name, const traits& of, maker make);
};
template <class Scenario>
struct registered : registration {
  registered(const char* group, const char* name, const traits& of = {})
      : registration(group, name, of, [] { return std::unique_ptr<scenario>(std::make_unique<Scenario>()); }) {}
};

/// Ends the execution as a find, in setup, thread or check.
[[noreturn, gnu::format(printf, 1, 2)]] void fail(const char* format, ...) noexcept;
#define ORDERLY_EXPECT(condition, ...) ((condition) ? static_cast<void>(0) : ::orderly::model::fail(__VA_ARGS__))

/// Any number below `count`, each of them in some execution.
[[nodiscard]] unsigned choose(unsigned count) noexcept;

/// In the setup or the check: runs it as that thread of the scenario, without steps.
void as_thread(unsigned self, const std::function<void()>& body);
/// In the check: the threads exit now, if their exits are no steps, rather than after the check.
void end_threads();
/// In the setup: a thread of its own, from start to exit, without steps.
void run_thread(const std::function<void()>& body);

/// A step that orders nothing: the number of such steps before. For recorded histories, in which the order of a call's begin
/// and another's end counts, and not that of two begins or two ends.
[[nodiscard]] std::uint64_t tick(bool ends) noexcept;

/// What the number of the thread is that runs; most_threads in setup and check.
[[nodiscard]] unsigned self() noexcept;

/// Plain data that a protocol hands over; two uses that nothing orders are a find.
template <class T>
class plain {
 public:
  plain() = default;
  explicit plain(T initial) : value_(initial) {}
  [[nodiscard]] T get() const noexcept {
    touch(this, false);
    return value_;
  }
  void set(T value) noexcept {
    touch(this, true);
    value_ = value;
  }

 private:
  T value_{};
};

}  // namespace orderly::model
