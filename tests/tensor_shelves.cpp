// Where a tensor cache keeps records: each is one thread's at a time, comes with what the last one wrote, and under the
// label that it was put there under. What lies where, in which order, and since when: as in a sequential model.
#include "tensor_shelves.hpp"

#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "free_list.hpp"
#include "support/random.hpp"
#include "support/require.hpp"
#include "support/scale.hpp"
#include "support/threads.hpp"

using namespace orderly::detail;
using namespace orderly::test;

namespace {

[[nodiscard]] bool same(const tensor_shelves::label& a, const tensor_shelves::label& b) {
  return a.fingerprint == b.fingerprint && a.lane == b.lane;
}

/// Two rows of shelves and more labels than have room there, next to a model of them. Operations on both, by one thread
/// that now has one stripe, now another.
class shelves_and_model {
 public:
  explicit shelves_and_model(std::uint64_t stream)
      : random_(make_random(stream)), model_(rows * tensor_shelves::shelves_per_row) {
    ORDERLY_REQUIRE(tested_.open(rows, stripes, links_.data()));
    for (std::uint64_t fingerprint = 1; fingerprint <= 12; ++fingerprint)
      for (const std::uint64_t lane : {1U, 2U}) labels_.push_back({fingerprint, lane, 4096 + fingerprint});
    for (std::uint32_t record = 0; record < records; ++record) in_hand_.push_back(record);
  }

  void step() {
    now_ += any(3) == 0;
    switch (any(12)) {
      case 0: put_elsewhere(); break;
      case 1: take_elsewhere(); break;
      case 2: give_up(); break;
      case 3: close(any_shelf()); break;
      case 4: case 5: case 6: case 7: take(); break;
      default: put();
    }
    ORDERLY_REQUIRE(tested_.oldest() == oldest(0, tested_.size()));
  }

  /// Everything is found by whoever empties the shelf that was used longest ago, until there is none.
  void finish() {
    while (tested_.oldest() != tensor_shelves::none) empty(tested_.oldest());
    ORDERLY_REQUIRE(in_hand_.size() == records);
  }

 private:
  static constexpr std::uint32_t rows = 2;
  static constexpr std::uint32_t stripes = 4;
  static constexpr std::uint32_t records = 40;

  struct shelf_model {
    std::optional<tensor_shelves::label> label;
    std::array<std::deque<std::uint32_t>, stripes> list;  // the oldest first
    std::uint64_t used = 0;
  };

  [[nodiscard]] std::size_t any(std::size_t count) { return uniform(random_, 0, count - 1); }
  [[nodiscard]] const tensor_shelves::label& any_label() { return labels_[any(labels_.size())]; }
  [[nodiscard]] std::uint32_t any_stripe() { return static_cast<std::uint32_t>(any(stripes)); }
  [[nodiscard]] std::uint32_t any_shelf() { return static_cast<std::uint32_t>(any(model_.size())); }
  [[nodiscard]] bool has(std::uint32_t shelf, const tensor_shelves::label& of) const {
    return model_[shelf].label.has_value() && same(*model_[shelf].label, of);
  }

  [[nodiscard]] std::uint32_t find(std::uint32_t row, const tensor_shelves::label& of) const {
    for (std::uint32_t shelf = row; shelf < row + tensor_shelves::shelves_per_row; ++shelf)
      if (has(shelf, of)) return shelf;
    return tensor_shelves::none;
  }
  [[nodiscard]] std::uint32_t oldest(std::uint32_t from, std::uint32_t to) const {
    std::uint32_t found = tensor_shelves::none;
    for (std::uint32_t shelf = from; shelf < to; ++shelf) {
      if (model_[shelf].used == 0) continue;
      if (found == tensor_shelves::none || model_[shelf].used < model_[found].used) found = shelf;
    }
    return found;
  }
  [[nodiscard]] std::uint32_t least_needed(std::uint32_t row) const {
    const std::uint32_t end = row + tensor_shelves::shelves_per_row;
    for (std::uint32_t shelf = row; shelf < end; ++shelf)
      if (!model_[shelf].label.has_value()) return shelf;
    for (std::uint32_t shelf = row; shelf < end; ++shelf)
      if (model_[shelf].used == 0) return shelf;
    return oldest(row, end);
  }

  /// What came off a shelf is all that the model has there, in its order; it is in hand then, but for `kept` of it.
  void come_off(std::uint32_t shelf, tensor_shelves::contents& all, std::size_t kept) {
    shelf_model& model = model_[shelf];
    ORDERLY_REQUIRE(all.used == model.used);
    std::size_t count = 0;
    for (const auto& list : model.list) count += list.size();
    while (count > kept) {
      const std::uint32_t stripe = any_stripe();
      if (model.list[stripe].empty()) continue;
      ORDERLY_REQUIRE(tensor_shelves::front(all, stripe) == model.list[stripe].front());
      in_hand_.push_back(tested_.pop(all, stripe));
      model.list[stripe].pop_front();
      --count;
    }
    for (std::uint32_t stripe = 0; stripe < stripes; ++stripe)
      ORDERLY_REQUIRE((tensor_shelves::front(all, stripe) == tensor_shelves::none) == model.list[stripe].empty());
    if (kept == 0) model.used = 0;
  }

  void close(std::uint32_t shelf) {
    tensor_shelves::contents all = tested_.close(shelf);
    come_off(shelf, all, 0);
    model_[shelf].label.reset();
  }
  void empty(std::uint32_t shelf) {
    tensor_shelves::contents all = tested_.empty(shelf);
    come_off(shelf, all, 0);
  }
  /// Some of what was used longest ago, and the rest back.
  void give_up() {
    const std::uint32_t shelf = tested_.oldest();
    if (shelf == tensor_shelves::none) return;
    std::size_t count = 0;
    for (const auto& list : model_[shelf].list) count += list.size();
    tensor_shelves::contents all = tested_.empty(shelf);
    come_off(shelf, all, count == 0 ? 0 : any(count));
    tested_.restore(shelf, all);
  }

  void put() {
    if (in_hand_.empty()) return;
    const tensor_shelves::label& of = any_label();
    const std::uint32_t row = tested_.row(of.lane, of.bytes);
    std::uint32_t shelf = tested_.find(row, of);
    ORDERLY_REQUIRE(shelf == find(row, of));
    if (shelf == tensor_shelves::none) {
      shelf = tested_.least_needed(row);
      ORDERLY_REQUIRE(shelf == least_needed(row));
      close(shelf);
      tested_.label_as(shelf, of);
      model_[shelf].label = of;
    }
    std::swap(in_hand_[any(in_hand_.size())], in_hand_.back());
    const std::uint32_t stripe = any_stripe();
    ORDERLY_REQUIRE(tested_.put(shelf, of, in_hand_.back(), stripe, now_));
    model_[shelf].list[stripe].push_back(in_hand_.back());
    model_[shelf].used = now_;
    in_hand_.pop_back();
  }
  void take() {
    const std::uint32_t shelf = any_shelf();
    if (!model_[shelf].label.has_value()) return;
    const std::uint32_t stripe = any_stripe();
    const std::optional<std::uint32_t> taken = tested_.take(shelf, *model_[shelf].label, stripe, now_);
    for (std::uint32_t i = 0; i < stripes; ++i) {
      auto& list = model_[shelf].list[(stripe + i) % stripes];
      if (list.empty()) continue;
      ORDERLY_REQUIRE(taken == list.back());
      list.pop_back();
      model_[shelf].used = now_;
      in_hand_.push_back(*taken);
      return;
    }
    ORDERLY_REQUIRE(!taken.has_value());
  }

  void put_elsewhere() {
    const std::uint32_t shelf = any_shelf();
    const tensor_shelves::label& of = any_label();
    if (!in_hand_.empty() && !has(shelf, of))
      ORDERLY_REQUIRE(!tested_.put(shelf, of, in_hand_.back(), any_stripe(), now_));
  }
  void take_elsewhere() {
    const std::uint32_t shelf = any_shelf();
    const tensor_shelves::label& of = any_label();
    if (!has(shelf, of)) ORDERLY_REQUIRE(!tested_.take(shelf, of, any_stripe(), now_).has_value());
  }

  random_engine random_;
  std::array<atomic<link_code>, records> links_{};
  tensor_shelves tested_;
  std::vector<shelf_model> model_;
  std::vector<tensor_shelves::label> labels_;
  std::vector<std::uint32_t> in_hand_;
  std::uint64_t now_ = 1;
};

}  // namespace

TEST_SUITE("stress") {

TEST_CASE("threads put and take at one head, while one takes all off and puts it back") {
  constexpr std::uint32_t records = 3;
  constexpr tensor_shelves::label of{.fingerprint = 7, .lane = 3, .bytes = 4096};
  std::array<atomic<link_code>, records> links{};
  struct content {
    std::uint64_t first = 0;
    std::uint64_t second = 0;
  };
  std::array<content, records> contents;  // plain: the shelves order its uses
  tensor_shelves shelves;
  REQUIRE(shelves.open(1, 1, links.data()));
  const std::uint32_t shelf = shelves.row(of.lane, of.bytes);
  shelves.label_as(shelf, of);
  for (std::uint32_t record = 0; record < records; ++record) REQUIRE(shelves.put(shelf, of, record, 0, 1));

  findings found;
  const auto use = [&](std::uint32_t record, std::uint64_t value) {
    content& at = contents[record];
    found.expect(at.first == at.second, "record ", record, " is in two hands");
    at.first = value;
    at.second = value;
  };
  run_threads(3, [&](std::size_t self) {
    for (std::uint64_t i = 0; i < scaled(1'000'000); ++i) {
      const std::uint64_t value = i * 3 + self;
      if (self == 0) {  // as whoever has the mutex
        tensor_shelves::contents all = shelves.empty(shelf);
        if (const std::uint32_t record = tensor_shelves::front(all, 0); record != tensor_shelves::none) use(record, value);
        shelves.restore(shelf, all);
        continue;
      }
      const std::optional<std::uint32_t> record = shelves.take(shelf, of, 0, 1);
      if (!record.has_value()) continue;
      use(*record, value);
      found.expect(shelves.put(shelf, of, *record, 0, 1), "the label has gone");
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  std::uint32_t left = 0;
  while (shelves.take(shelf, of, 0, 1).has_value()) ++left;
  CHECK(left == records);
}

TEST_CASE("what is put back comes with what was written while it was off the shelf: nothing else orders the two threads") {
  constexpr tensor_shelves::label of{.fingerprint = 7, .lane = 3, .bytes = 4096};
  std::array<atomic<link_code>, 1> links{};
  std::uint64_t content = 0;  // plain
  tensor_shelves shelves;
  REQUIRE(shelves.open(1, 1, links.data()));
  const std::uint32_t shelf = shelves.row(of.lane, of.bytes);
  shelves.label_as(shelf, of);
  REQUIRE(shelves.put(shelf, of, 0, 0, 1));

  findings found;
  std::atomic<std::uint64_t> turn = 0;
  const std::uint64_t turns = scaled(8'000);
  run_threads(2, [&](std::size_t self) {
    for (std::uint64_t i = self; i < turns; i += 2) {
      while (turn.load(std::memory_order_relaxed) != i) std::this_thread::yield();
      if (self == 0) {
        tensor_shelves::contents all = shelves.empty(shelf);
        found.expect(tensor_shelves::front(all, 0) == 0, "the record has gone");
        found.expect(std::exchange(content, i + 1) == i, "not what was written last");
        shelves.restore(shelf, all);
      } else {
        found.expect(shelves.take(shelf, of, 0, 1) == 0U, "the record has gone");
        found.expect(std::exchange(content, i + 1) == i, "not what was written last");
        found.expect(shelves.put(shelf, of, 0, 0, 1), "the label has gone");
      }
      turn.store(i + 1, std::memory_order_relaxed);
    }
  });
  ORDERLY_CHECK_FINDINGS(found);
  CHECK(content == turns);
}

TEST_CASE("a shelf's label changes while threads put and take: what comes off was put there under that label") {
  constexpr std::uint32_t threads = 4;
  constexpr std::uint32_t records = 4;
  // Of two layouts, one of them in two streams.
  constexpr std::array<tensor_shelves::label, 3> labels{{{11, 1, 4096}, {11, 2, 4096}, {22, 1, 4096}}};
  constexpr std::size_t no_label = labels.size();
  std::array<atomic<link_code>, records> links{};
  std::array<std::size_t, records> label_of;  // plain: the shelves order its uses
  label_of.fill(no_label);
  free_list off;  // what lies on no shelf
  for (std::uint32_t record = 0; record < records; ++record) off.push(links.data(), record);
  tensor_shelves shelves;
  REQUIRE(shelves.open(1, threads, links.data()));
  constexpr std::uint32_t shelf = 0;
  shelves.label_as(shelf, labels[0]);

  findings found;
  const auto come_off = [&](std::uint32_t record, std::size_t label) {
    found.expect(label_of[record] == label, "record ", record, " of label ", label_of[record], " comes off as one of ",
                 label);
    label_of[record] = no_label;
  };
  const auto come_off_all = [&](tensor_shelves::contents& all, std::size_t label) {
    for (std::uint32_t stripe = 0; stripe < shelves.stripes(); ++stripe) {
      while (tensor_shelves::front(all, stripe) != tensor_shelves::none) {
        const std::uint32_t record = shelves.pop(all, stripe);
        come_off(record, label);
        off.push(links.data(), record);
      }
    }
  };
  const std::size_t changes = scaled(sanitized ? 50'000 : 250'000);
  std::size_t labelled = 0;  // the first thread's, which changes it now and then, as whoever has the mutex
  std::atomic<bool> done = false;
  run_threads(threads, [&](std::size_t self) {
    random_engine random = make_random(self);
    const auto stripe = static_cast<std::uint32_t>(self);
    std::uint32_t mine = tensor_shelves::none;
    for (std::size_t change = 0; !done.load(std::memory_order_relaxed);) {
      const std::size_t chosen = uniform(random, 0, 1023);
      if (self == 0 && chosen < 16) {
        tensor_shelves::contents all = shelves.close(shelf);
        come_off_all(all, labelled);
        labelled = (labelled + 1 + change % 2) % labels.size();
        shelves.label_as(shelf, labels[labelled]);
        if (++change == changes) done.store(true, std::memory_order_relaxed);
      }
      // Mostly the label that is there. Only this thread puts on its stripe, which is empty then as a rule. So where it
      // is stopped before it has put, and the label changes, the head's tag alone tells.
      std::size_t label = chosen % 16;
      if (label >= labels.size()) {
        const tensor_shelves::label seen = shelves.look(shelf);
        for (label = 0; label < labels.size() && !same(labels[label], seen);) ++label;
        if (label == no_label) continue;
      }
      if (mine != tensor_shelves::none) {
        label_of[mine] = label;
        if (shelves.put(shelf, labels[label], mine, stripe, 1)) mine = tensor_shelves::none;
      } else if (const std::optional<std::uint32_t> taken = shelves.take(shelf, labels[label], stripe, 1)) {
        come_off(*taken, label);
        mine = *taken;
      } else {
        mine = off.try_pop(links.data()).value_or(tensor_shelves::none);
      }
    }
    if (mine != tensor_shelves::none) off.push(links.data(), mine);
  });
  while (shelves.oldest() != tensor_shelves::none) {
    tensor_shelves::contents all = shelves.empty(shelves.oldest());
    come_off_all(all, labelled);
  }
  ORDERLY_CHECK_FINDINGS(found);
  std::uint32_t left = 0;
  while (off.try_pop(links.data()).has_value()) ++left;
  CHECK(left == records);
}

TEST_CASE("labels, lists and times of use are a sequential model's, whatever was done before") {
  for (std::uint64_t stream = 0; stream < 8; ++stream) {
    shelves_and_model both(stream);
    for (std::size_t step = 0; step < scaled(20000); ++step) {
      INFO("ORDERLY_TEST_SEED=", test_seed(), ", stream ", stream, ", step ", step);
      both.step();
    }
    both.finish();
  }
}

}
