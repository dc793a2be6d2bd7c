// Shelves of kept tensors, and the cache over them, under every schedule: what was put under a label comes out under it,
// nothing is lost while labels change, of several frees one succeeds, and what is kept keeps nobody from the pool's memory.
#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "orderly/tensor_cache.hpp"
#include "sources.hpp"
#include "streams.hpp"
#include "support/audit.hpp"
#include "tensor_shelves.hpp"

using namespace orderly;
using namespace orderly::detail;
using namespace orderly::model;

namespace {

/// One row, two stripes, and records with plain data, which only their owner writes: the label that they are put under.
struct of_shelves : scenario {
  static constexpr std::uint32_t records = 4;
  static constexpr tensor_shelves::label first{11, 1, 64};
  static constexpr tensor_shelves::label second{22, 1, 64};
  static constexpr tensor_shelves::label same_layout{11, 2, 64};  ///< of another stream

  std::array<atomic<link_code>, records> links;
  tensor_shelves shelves;
  std::array<plain<std::uint64_t>, records> kind;  ///< what it is of, while it lies on a shelf; 0: in hand
  std::array<unsigned, records> hands{};           ///< 1 while it is in hand

  of_shelves() {
    ORDERLY_EXPECT(shelves.open(1, 2, link_table(links.data())), "no memory");
    hands.fill(1);
    shelves.label_as(0, first);
  }
  [[nodiscard]] static std::uint64_t kind_of(const tensor_shelves::label& of) { return of.fingerprint * 10 + of.lane; }

  bool put(std::uint32_t record, const tensor_shelves::label& of, std::uint32_t stripe) {
    kind[record].set(kind_of(of));
    hands[record] = 0;
    if (shelves.put(0, of, record, stripe, 1)) return true;
    hands[record] = 1;
    kind[record].set(0);
    return false;
  }
  void own(std::uint32_t record) {
    ORDERLY_EXPECT(hands[record] == 0, "record %u is taken, and in hand already", record);
    hands[record] = 1;
    kind[record].set(0);
  }
  std::optional<std::uint32_t> take(const tensor_shelves::label& of, std::uint32_t stripe) {
    const auto record = shelves.take(0, of, stripe, 1);
    if (!record) return record;
    ORDERLY_EXPECT(kind[*record].get() == kind_of(of), "a record of %u comes out as one of %u",
                   static_cast<unsigned>(kind[*record].get()), static_cast<unsigned>(kind_of(of)));
    own(*record);
    return record;
  }
  void own_all(tensor_shelves::contents& all, const tensor_shelves::label& of) {
    for (std::uint32_t stripe = 0; stripe < shelves.stripes(); ++stripe) {
      while (tensor_shelves::front(all, stripe) != tensor_shelves::none) {
        const std::uint32_t record = shelves.pop(all, stripe);
        ORDERLY_EXPECT(kind[record].get() == kind_of(of), "a record lay under a label that is not its own");
        own(record);
      }
    }
  }
  /// Everything is in hand, or on the shelf.
  void check() override {
    const tensor_shelves::label label = shelves.look(0);
    if (label.fingerprint != 0) {
      if (shelves.oldest() == tensor_shelves::none) {
        tensor_shelves::contents rest = shelves.empty(0);
        for (std::uint32_t stripe = 0; stripe < shelves.stripes(); ++stripe)
          ORDERLY_EXPECT(tensor_shelves::front(rest, stripe) == tensor_shelves::none, "a record lies where nobody looks");
      }
      tensor_shelves::contents rest = shelves.empty(0);
      own_all(rest, label);
    }
    for (std::uint32_t i = 0; i < records; ++i) ORDERLY_EXPECT(hands[i] == 1, "record %u is lost", i);
  }
};

/// Each puts one and takes one, by its own stripe first.
struct put_and_take : of_shelves {
  put_and_take() { ORDERLY_EXPECT(put(2, first, 0) && put(3, first, 1), "refused"); }
  void thread(unsigned self) override {
    ORDERLY_EXPECT(put(self, first, self), "the label is said to have changed");
    ORDERLY_EXPECT(take(first, 1 - self).has_value(), "the shelf is said to be empty");
  }
};

/// Both at one stripe: a record is handed from thread to thread.
struct one_stripe : of_shelves {
  one_stripe() { ORDERLY_EXPECT(put(2, first, 0) && put(3, first, 0), "refused"); }
  void thread(unsigned self) override {
    if (const auto record = take(first, 0)) {
      ORDERLY_EXPECT(put(*record, first, 0), "the label is said to have changed");
      static_cast<void>(self);
    }
  }
};

/// One gives the shelf another label, and uses it; the other puts and takes under the old one.
template <int what>
struct relabelled : of_shelves {
  [[nodiscard]] static const tensor_shelves::label& next() { return what == 0 ? second : same_layout; }
  relabelled() { ORDERLY_EXPECT(put(2, first, 0), "refused"); }
  void thread(unsigned self) override {
    if (self == 0) {
      tensor_shelves::contents all = shelves.close(0);
      own_all(all, first);
      shelves.label_as(0, next());
      ORDERLY_EXPECT(put(0, next(), 0), "the label is said to have changed");
      return;
    }
    static_cast<void>(put(1, first, 0));
    static_cast<void>(take(first, 0));
  }
};

/// A shelf with nothing on it gets another label, while somebody is about to put the first thing on it.
struct relabelled_empty : of_shelves {
  void thread(unsigned self) override {
    if (self == 0) {
      tensor_shelves::contents all = shelves.close(0);
      own_all(all, first);
      shelves.label_as(0, second);
      ORDERLY_EXPECT(put(0, second, 1), "the label is said to have changed");
      return;
    }
    static_cast<void>(put(1, first, 0));
  }
};

/// The same, and the other knows the new label: what it gets under that was put there under it.
struct relabelled_for_both : of_shelves {
  relabelled_for_both() { ORDERLY_EXPECT(put(2, first, 0), "refused"); }
  void thread(unsigned self) override {
    if (self == 0) {
      tensor_shelves::contents all = shelves.close(0);
      own_all(all, first);
      shelves.label_as(0, same_layout);
      return;
    }
    static_cast<void>(take(same_layout, 0));
    static_cast<void>(put(1, same_layout, 0));
  }
};

/// One empties the shelf that was used longest ago, until there is none, and puts back what it does not want; the other
/// puts and takes meanwhile. In the end what lies there is found (check()).
struct emptied_in_use : of_shelves {
  emptied_in_use() { ORDERLY_EXPECT(put(2, first, 0) && put(3, first, 0), "refused"); }
  void thread(unsigned self) override {
    if (self == 0) {
      if (shelves.oldest() == tensor_shelves::none) return;
      tensor_shelves::contents all = shelves.empty(0);
      if (tensor_shelves::front(all, 0) != tensor_shelves::none) own(shelves.pop(all, 0));
      shelves.restore(0, all);
      return;
    }
    static_cast<void>(take(first, 0));
    ORDERLY_EXPECT(put(1, first, 0), "the label is said to have changed");
  }
};

/// A cache over a pool of two granules.
struct of_cache : scenario {
  source_book book;
  std::unique_ptr<pool> tested;
  std::unique_ptr<tensor_cache> cache;
  tensor_layout layout{{static_cast<std::int64_t>(granule)}, tensor_types::uint8};
  tensor kept;

  of_cache() {
    options settings;
    settings.on_bad_free = on_bad_free::count;
    tested = buffer_pool(book, 2, settings);
    cache = std::make_unique<tensor_cache>(*tested, tensor_options{.limit = 2 * granule});
    as_thread(0, [this] {
      kept = cache->empty(layout);
      cache->free(cache->empty(layout));  // there is a shelf, and something on it
    });
  }
  void check_idle() {
    cache.reset();
    end_threads();
    test::check_idle(*tested);
    ORDERLY_EXPECT(tested->stats().bad_frees == 0, "a tensor's memory was freed twice");
  }
};

/// Two free one tensor, and one of them takes another, which has the record if it is fast: one free is good.
struct tensor_freed_twice : of_cache {
  std::array<error, 2> outcomes{};
  void thread(unsigned self) override {
    outcomes[self] = cache->try_free(kept);
    if (self == 1) static_cast<void>(cache->try_empty(layout));
  }
  void check() override {
    ORDERLY_EXPECT((outcomes[0] == error::none) != (outcomes[1] == error::none), "%d and %d of two frees",
                   static_cast<int>(outcomes[0]), static_cast<int>(outcomes[1]));
    check_idle();
  }
};

/// Each takes a tensor, and there is one that is kept: the other one's memory is the pool's.
struct tensors_taken : of_cache {
  std::array<tensor, 2> taken;
  void thread(unsigned self) override { taken[self] = cache->try_empty(layout); }
  void check() override {
    ORDERLY_EXPECT(static_cast<bool>(taken[0]) != static_cast<bool>(taken[1]), "one of two fits");
    check_idle();
  }
};

/// One takes what is kept, and frees it again; the other wants all memory from the pool, and is refused only if the tensor
/// was live at some time. When all is free it is had.
struct pressed : of_cache {
  void* block = nullptr;
  pressed() {
    as_thread(0, [this] { cache->free(kept); });
  }
  void thread(unsigned self) override {
    if (self == 0) {
      const tensor t = cache->try_empty(layout);
      if (t) cache->free(t);
      return;
    }
    block = tested->try_allocate(2 * granule);
  }
  void check() override {
    as_thread(1, [this] {
      if (block == nullptr) block = tested->try_allocate(2 * granule);
      ORDERLY_EXPECT(block != nullptr, "refused, though all is free");
      tested->deallocate(block, 2 * granule);
    });
    check_idle();
  }
};

/// Two want memory that only a kept tensor has: both get it.
struct pressed_by_two : of_cache {
  pressed_by_two() {
    as_thread(0, [this] { cache->free(kept); });
  }
  void thread(unsigned) override {
    void* const block = tested->try_allocate(granule);
    ORDERLY_EXPECT(block != nullptr, "refused, though nothing is live but the other's block");
  }
  void check() override {
    ORDERLY_EXPECT(cache->stats().kept == 0, "kept, though the pool is full");
  }
};

/// The cache ends while the owner of a tensor that was given out lets go of it: whoever comes last ends what is shared.
struct given_out_at_the_end : of_cache {
  exported_tensor given;
  given_out_at_the_end() {
    as_thread(0, [this] { given = cache->give_out(kept); });
  }
  void thread(unsigned self) override {
    if (self == 0)
      cache.reset();
    else
      release_export(given.storage);
  }
  void check() override { check_idle(); }
};

/// A cache over a pool with streams.
struct of_stream_cache : of_streams {
  std::unique_ptr<tensor_cache> cache;
  tensor_layout layout{{static_cast<std::int64_t>(granule)}, tensor_types::uint8};

  of_stream_cache() {
    in_buffer(4);
    cache = std::make_unique<tensor_cache>(*tested, tensor_options{.limit = 4 * granule});
  }
  /// Work of the stream uses it from now on.
  tensor taken(unsigned name) {
    const tensor made = cache->try_empty(layout, at(name));
    if (made) take(made.data, 1, name);
    return made;
  }
  void given(const tensor& of, unsigned name) {
    owned.give(of.data, 1, name);
    ORDERLY_EXPECT(cache->try_free(of, at(name)) == error::none, "the free of a live tensor is refused");
  }
  void check() override {
    cache.reset();
    check_idle();
  }
};

/// A second stream uses a tensor; the next in the first one's gets its memory only behind that. Another comes meanwhile.
struct used_in_two_streams : of_stream_cache {
  void thread(unsigned self) override {
    if (self == 1) {
      static_cast<void>(taken(3));
      return;
    }
    const tensor first = taken(1);
    streams->order(at(1), at(2));
    use(first.data, 1, 2);
    ORDERLY_EXPECT(cache->record_stream(first, at(2)) == error::none, "a live tensor is refused");
    given(first, 1);
    static_cast<void>(taken(1));
  }
  void check() override { cache.reset(); }
};

/// What is kept for a stream goes with it, and before it captures, whatever goes on in another one.
struct kept_for_a_stream : of_stream_cache {
  kept_for_a_stream() {
    for (const unsigned name : {1U, 2U}) as_thread(0, [&] { given(taken(name), name); });
    ORDERLY_EXPECT(cache->stats().kept == 2 * granule, "nothing is kept");
  }
  void thread(unsigned self) override {
    if (self == 0) {
      ORDERLY_EXPECT(tested->release_stream(at(1)), "an event is refused");
      ORDERLY_EXPECT(tested->begin_capture(at(2)) == error::none, "it captures already");
      return;
    }
    const tensor other = taken(3);
    if (other) given(other, 3);
  }
  void check() override {
    ORDERLY_EXPECT(cache->stats().kept <= granule, "%zu bytes are kept: the other stream's are %zu", cache->stats().kept,
                   granule);
    ORDERLY_EXPECT(tested->end_capture(at(2)) == error::none, "it did not capture");
    of_stream_cache::check();
  }
};

const registered<put_and_take> a1("shelves", "put-and-take");
const registered<one_stripe> a2("shelves", "one-stripe");
const registered<relabelled<0>> b1("shelves", "relabelled");
const registered<relabelled<1>> b2("shelves", "relabelled-stream");
const registered<relabelled_empty> b4("shelves", "relabelled-empty");
const registered<relabelled_for_both> b3("shelves", "relabelled-for-both");
const registered<emptied_in_use> c1("shelves", "emptied-in-use");
const registered<tensor_freed_twice> d1("tensors", "freed-twice");
const registered<tensors_taken> d2("tensors", "taken");
const registered<given_out_at_the_end> d3("tensors", "given-out-at-the-end");
const registered<used_in_two_streams> f1("tensors", "used-in-two-streams", {.long_bound = 2, .far_bound = 4});
const registered<kept_for_a_stream> f2("tensors", "kept-for-a-stream");
const registered<pressed> e1("tensors", "pressed", {.long_bound = 2, .far_bound = 4});
const registered<pressed_by_two> e2("tensors", "pressed-by-two", {.long_bound = 2, .far_bound = 4});

}  // namespace
