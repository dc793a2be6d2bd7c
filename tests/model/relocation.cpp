// Blocks that are moved while threads pin, free and allocate them, under every schedule: whoever has a block pinned has it
// alone, its contents go along, and a handle that was freed names nothing. In stream order: work on a block comes behind the
// copies to it, copies behind all work on the old place, and whoever gets the old place behind both.
#include <array>
#include <functional>
#include <map>
#include <memory>

#include "orderly/relocatable.hpp"
#include "orderly/relocatable_streams.hpp"
#include "sources.hpp"
#include "streams.hpp"
#include "support/audit.hpp"

using namespace orderly;
using namespace orderly::model;

namespace {

constexpr int signed_by = 1000;

/// Two chunks of two granules, in each of which one block lives: the second can be emptied into the first.
struct of_blocks : scenario {
  source_book book;
  std::unique_ptr<pool> tested;
  std::unique_ptr<relocatable_blocks> blocks;
  relocatable first = relocatable::none;
  relocatable second = relocatable::none;
  std::map<const void*, int> contents;  ///< by address; uses of one are announced as of plain data
  std::function<void(const relocation&)> moved;

  of_blocks() {
    options settings;
    settings.on_bad_free = on_bad_free::count;
    tested = virtual_pool(book, 2, 4, settings);
    blocks = std::make_unique<relocatable_blocks>(*tested, [this](std::span<const relocation> moves) {
      for (const relocation& each : moves) {
        detail::reads_plain(each.from);
        detail::writes_plain(each.to);
        contents[each.to] = contents[each.from];
        if (moved) moved(each);
      }
      return true;
    });
    as_thread(1, [this] {
      first = blocks->allocate(granule);
      const relocatable filler = blocks->allocate(granule);
      second = blocks->allocate(granule);
      const relocatable other = blocks->allocate(granule);
      static_cast<void>(blocks->deallocate(filler));
      static_cast<void>(blocks->deallocate(other));
      put(first, signed_by);
      put(second, signed_by + 1);
    });
  }

  void put(relocatable block, int value) {
    void* const at = blocks->pin(block);
    ORDERLY_EXPECT(at != nullptr, "a live block cannot be pinned");
    detail::writes_plain(at);
    contents[at] = value;
    blocks->unpin(block);
  }
  /// Null: the handle names no block.
  bool has(relocatable block, int value) {
    void* const at = blocks->pin(block);
    if (at == nullptr) return false;
    detail::reads_plain(at);
    const bool right = contents[at] == value;
    blocks->unpin(block);
    return right;
  }
  void move_all() {
    blocks->begin();
    while (!blocks->step().empty()) {
    }
    static_cast<void>(blocks->end());
  }
  void check_idle() {
    blocks.reset();
    end_threads();
    test::check_idle(*tested);
  }
};

/// One moves what another uses, twice.
struct moved_in_use : of_blocks {
  moved_in_use() { as_thread(0, [this] { blocks->begin(); }); }
  void thread(unsigned self) override {
    if (self == 0) {
      static_cast<void>(blocks->step());
      return;
    }
    put(first, 7);
    put(second, 8);
    ORDERLY_EXPECT(has(first, 7) && has(second, 8), "the contents are another's");
  }
  void check() override {
    ORDERLY_EXPECT(has(first, 7) && has(second, 8), "the contents are lost");
    check_idle();
  }
};

/// One moves what another frees, who takes a new block, whose record is the old one's.
struct moved_and_freed : of_blocks {
  relocatable third = relocatable::none;
  moved_and_freed() { as_thread(0, [this] { blocks->begin(); }); }
  void thread(unsigned self) override {
    if (self == 0) {
      static_cast<void>(blocks->step());
      return;
    }
    ORDERLY_EXPECT(blocks->deallocate(second) == error::none, "the free of a live block is refused");
    third = blocks->allocate(granule);
    put(third, 9);
    ORDERLY_EXPECT(blocks->pin(second) == nullptr, "a handle that was freed names a block");
  }
  void check() override {
    ORDERLY_EXPECT(has(third, 9) && has(first, signed_by), "the contents are lost");
    check_idle();
  }
};

/// Two free one block: one of them does.
struct freed_twice : of_blocks {
  std::array<error, 2> outcomes{};
  void thread(unsigned self) override { outcomes[self] = blocks->deallocate(second); }
  void check() override {
    ORDERLY_EXPECT((outcomes[0] == error::none) != (outcomes[1] == error::none), "%d and %d of two frees",
                   static_cast<int>(outcomes[0]), static_cast<int>(outcomes[1]));
    ORDERLY_EXPECT((outcomes[0] == error::stale_handle) != (outcomes[1] == error::stale_handle), "refused otherwise");
    check_idle();
  }
};

/// One uses and lets go of what another frees if it may, and puts a larger block in its record.
struct freed_in_use : of_blocks {
  void thread(unsigned self) override {
    if (self == 0) {
      if (blocks->deallocate(second) == error::pinned) return;
      const relocatable another = blocks->allocate(2 * granule);
      void* const at = blocks->pin(another);
      ORDERLY_EXPECT(at != nullptr, "a live block cannot be pinned");
      detail::writes_plain(at);
      contents[at] = 3;
      return;
    }
    if (void* const at = blocks->pin(second)) {
      detail::writes_plain(at);
      contents[at] = 4;
      ORDERLY_EXPECT(contents[at] == 4, "two use one block");
      blocks->unpin(second);
    }
    const std::size_t bytes = blocks->size(second);
    ORDERLY_EXPECT(bytes == granule || bytes == 0, "%zu bytes: of another block", bytes);
  }
};

/// Each takes a block, the first of a page of records.
struct taken_at_once : of_blocks {
  std::array<relocatable, 2> taken{};
  taken_at_once() {
    as_thread(1, [this] {
      static_cast<void>(blocks->allocate(granule));
      static_cast<void>(blocks->allocate(granule));
    });
  }
  void thread(unsigned self) override {
    taken[self] = blocks->try_allocate(granule);
    if (taken[self] != relocatable::none) put(taken[self], 20 + static_cast<int>(self));
  }
  void check() override { ORDERLY_EXPECT(taken[0] != taken[1] || taken[0] == relocatable::none, "one handle for two"); }
};

/// A handle is made up, while the record that it names is made.
struct made_up : of_blocks {
  made_up() {
    as_thread(1, [this] {
      static_cast<void>(blocks->allocate(granule));
      static_cast<void>(blocks->allocate(granule));
    });
  }
  void thread(unsigned self) override {
    if (self == 0) {
      put(blocks->allocate(granule), 5);
      return;
    }
    const auto guess = static_cast<relocatable>(std::uint64_t{1} << 32 | 5);  // the first of the third page
    if (blocks->pin(guess) != nullptr) blocks->unpin(guess);  // it may not use what it has no right to
    static_cast<void>(blocks->size(guess));
  }
};

/// Records and addresses change places while a run begins: none of the blocks goes by another's name.
struct renamed : of_blocks {
  relocatable large = relocatable::none;
  relocatable small = relocatable::none;
  void thread(unsigned self) override {
    if (self == 0) return move_all();
    static_cast<void>(blocks->deallocate(second));
    static_cast<void>(blocks->deallocate(first));
    large = blocks->allocate(2 * granule);
    small = blocks->allocate(granule);
  }
  void check() override {
    ORDERLY_EXPECT(blocks->pin(large) != nullptr && blocks->pin(small) != nullptr, "a live block cannot be pinned");
    put(large, 1);
    put(small, 2);
    ORDERLY_EXPECT(has(large, 1), "two blocks at one address");
    check_idle();
    ORDERLY_EXPECT(tested->stats().bad_frees == 0, "a block was freed twice");
  }
};

/// A record changes hands while a run begins: a step copies as many bytes as the new block has.
struct resized : of_blocks {
  resized() {
    as_thread(1, [this] {
      static_cast<void>(blocks->deallocate(second));
      second = blocks->allocate(100);
    });
    static_cast<void>(tested->defragment());  // there is room even where a pass cannot look into caches, and orders nothing
    moved = [this](const relocation& each) {
      ORDERLY_EXPECT(each.bytes == blocks->size(each.block), "%zu bytes of %zu are copied", each.bytes,
                     blocks->size(each.block));
    };
  }
  void thread(unsigned self) override {
    if (self == 0) return move_all();
    static_cast<void>(blocks->deallocate(second));
    second = blocks->allocate(granule);
    put(second, 1);
  }
  void check() override {
    ORDERLY_EXPECT(has(second, 1) && has(first, signed_by), "the contents are lost");
    check_idle();
    ORDERLY_EXPECT(tested->stats().bad_frees == 0, "a block was freed with another's size");
  }
};

/// A block's address becomes one of the pool's own, and its record another block's, in another chunk: a run that sees
/// the new handle beside the old address moves neither.
struct changed_hands : of_blocks {
  relocatable old = relocatable::none;  ///< of the third chunk, which could be emptied into the first
  void* own = nullptr;
  relocatable third = relocatable::none;
  changed_hands() {
    as_thread(1, [this] {
      std::map<std::size_t, relocatable> rest;  // by granule
      for (;;) {
        const relocatable each = blocks->try_allocate(granule);
        if (each == relocatable::none) break;
        rest[owners::granule_of(blocks->pin(each))] = each;
        blocks->unpin(each);
      }
      old = rest.at(4);
      for (const std::size_t at : {7U, 6U, 5U, 1U, 3U}) static_cast<void>(blocks->deallocate(rest.at(at)));
    });
  }
  void thread(unsigned self) override {
    if (self == 0) return move_all();
    static_cast<void>(blocks->deallocate(old));
    own = tested->allocate(granule);
    third = blocks->allocate(granule);
  }
  void check() override {
    ORDERLY_EXPECT(tested->owns(own), "a block of the pool's own is freed");
    put(third, 8);
    ORDERLY_EXPECT(has(third, 8) && has(first, signed_by), "the contents are lost");
    tested->deallocate(own, granule);
    check_idle();
    ORDERLY_EXPECT(tested->stats().bad_frees == 0, "a block was freed twice");
  }
};

/// A run begins while blocks come and go.
struct planned_in_use : of_blocks {
  void thread(unsigned self) override {
    if (self == 0) return move_all();
    put(second, 6);
    ORDERLY_EXPECT(blocks->deallocate(first) == error::none, "the free of a live block is refused");
  }
  void check() override {
    ORDERLY_EXPECT(has(second, 6), "the contents are lost");
    check_idle();
  }
};

/// A run begins while a page of records is made.
struct planned_and_taken : of_blocks {
  relocatable third = relocatable::none;
  planned_and_taken() {
    as_thread(1, [this] {
      static_cast<void>(blocks->allocate(granule));
      static_cast<void>(blocks->allocate(granule));
    });
  }
  void thread(unsigned self) override {
    if (self == 0) return blocks->begin();
    third = blocks->allocate(granule);
  }
  void check() override {
    put(third, 4);
    ORDERLY_EXPECT(has(third, 4) && has(first, signed_by), "the contents are lost");
    check_idle();
  }
};

/// Two chunks of four granules; in each, two blocks of stream 1 live: those in the second can be moved to the first. What was
/// freed is done with.
struct of_stream_blocks : of_streams {
  std::unique_ptr<relocatable_stream_blocks> blocks;
  std::array<relocatable, 4> block{};
  std::map<const void*, int> contents;  ///< by address
  relocation_limits limits;

  explicit of_stream_blocks(const relocation_limits& within = {}, bool safe = false) : limits(within) {
    stream_options settings = silent();
    settings.safe_mode = safe;
    settings.memory.chunk = 4 * granule;
    settings.memory.capacity = 4 * settings.memory.chunk;
    settings.memory.limit = 2 * settings.memory.chunk;
    const std::size_t capacity = settings.memory.capacity;
    const std::size_t chunk = settings.memory.chunk;
    tested = std::make_unique<stream_pool>(std::make_unique<guarded>(book, chunk, capacity, by), streams, settings);
    blocks = std::make_unique<relocatable_stream_blocks>(
        *tested, [this](std::span<const relocation> moves, stream_handle in) { return copy(moves, in); });
    as_thread(1, [&] {
      std::array<relocatable, 8> all{};
      for (relocatable& each : all) each = blocks->allocate(granule, at(1));
      std::sort(all.begin(), all.end(), [&](relocatable a, relocatable b) { return place_of(a) < place_of(b); });
      block = {all[0], all[1], all[4], all[5]};
      for (const std::size_t i : {2U, 3U, 6U, 7U}) static_cast<void>(blocks->deallocate(all[i], at(1)));
      for (unsigned i = 0; i < 4; ++i) put(block[i], 1, signed_by + static_cast<int>(i));
    });
    streams->finish_all();
    static_cast<void>(tested->synchronize());
    as_thread(0, [&] { blocks->begin(limits); });
  }

  void* place_of(relocatable of) {
    void* const place = blocks->pin(of, at(1));
    blocks->unpin(of, at(1));
    return place;
  }
  /// The stream's work on the granule from now on comes behind all that used it.
  void enter(const void* place, stream_handle in, const char* what) {
    const std::size_t i = owners::granule_of(place);
    const progress ordered = streams->before(in);
    ORDERLY_EXPECT(ordered.covers(by.used[i]), "granule %zu is %s behind %llx, and was used by %llx", i, what,
                   static_cast<unsigned long long>(ordered.bits()), static_cast<unsigned long long>(by.used[i].bits()));
  }
  bool copy(std::span<const relocation> moves, stream_handle in) {
    for (const relocation& each : moves) {
      detail::reads_plain(each.from);
      detail::writes_plain(each.to);
      enter(each.from, in, "copied from");
      enter(each.to, in, "copied to");
      const progress by_copy = streams->enqueue(in);
      for (const void* const place : {each.from, each.to}) {
        progress& used = by.used[owners::granule_of(place)];
        used = used.join(by_copy);
      }
      contents[each.to] = contents[each.from];
    }
    return true;
  }
  /// False: the stream cannot be made to wait.
  bool try_put(relocatable of, unsigned name, int value) {
    error why = error::none;
    void* const place = blocks->pin(of, at(name), &why);
    ORDERLY_EXPECT((place != nullptr) == (why == error::none), "an address with an error, or neither");
    ORDERLY_EXPECT(why == error::none || why == error::stream_failed, "a live block cannot be pinned: %d",
                   static_cast<int>(why));
    if (place == nullptr) return false;
    detail::writes_plain(place);
    enter(place, at(name), "used");
    use(place, 1, name);
    contents[place] = value;
    blocks->unpin(of, at(name));
    return true;
  }
  void put(relocatable of, unsigned name, int value) {
    ORDERLY_EXPECT(try_put(of, name, value), "a stream is not made to wait");
  }
  bool has(relocatable of, unsigned name, int value) {
    void* const place = blocks->pin(of, at(name));
    if (place == nullptr) return false;
    detail::reads_plain(place);
    enter(place, at(name), "used");
    use(place, 1, name);
    const bool right = contents[place] == value;
    blocks->unpin(of, at(name));
    return right;
  }
  /// All are there for a stream that has waited for nothing but the program's own order; and everything comes back.
  void check_all(const std::array<int, 4>& values, unsigned last_user = 1) {
    streams->order(at(last_user), at(4));
    for (unsigned i = 0; i < 4; ++i) ORDERLY_EXPECT(has(block[i], 4, values[i]), "the contents of block %u are lost", i);
    for (const relocatable each : block)
      ORDERLY_EXPECT(blocks->deallocate(each, at(4)) == error::none, "the free of a live block is refused");
    end();
  }
  void end() {
    streams->finish_all();
    blocks.reset();
    check_idle();
  }
};

constexpr std::array<int, 4> as_signed = {signed_by, signed_by + 1, signed_by + 2, signed_by + 3};

/// A stream copies what another one uses.
struct copied_in_use : of_stream_blocks {
  void thread(unsigned self) override {
    if (self == 0) return static_cast<void>(blocks->step(at(0)));
    put(block[2], 1, 7);
    ORDERLY_EXPECT(has(block[2], 1, 7), "the contents are another's");
  }
  void check() override { check_all({as_signed[0], as_signed[1], 7, as_signed[3]}); }
};

/// Two threads use in one stream what another stream has copied: one that need not wait relies on the other's wait.
struct one_waits_for_both : of_stream_blocks {
  one_waits_for_both() { as_thread(2, [&] { static_cast<void>(blocks->step(at(0))); }); }
  void thread(unsigned self) override { put(block[2 + self], 1, 10 + static_cast<int>(self)); }
  void check() override { check_all({as_signed[0], as_signed[1], 10, 11}); }
};

/// One frees what is just copied, and what comes next has its record.
struct copied_and_freed : of_stream_blocks {
  void thread(unsigned self) override {
    if (self == 0) return static_cast<void>(blocks->step(at(0)));
    ORDERLY_EXPECT(blocks->deallocate(block[2], at(1)) == error::none, "the free of a live block is refused");
    block[2] = blocks->allocate(granule, at(1));
    put(block[2], 1, 9);
  }
  void check() override { check_all({as_signed[0], as_signed[1], 9, as_signed[3]}); }
};

/// Two free one block while it is copied, perhaps: one of them does.
struct copied_and_freed_twice : of_stream_blocks {
  std::array<error, 2> outcomes{};
  copied_and_freed_twice() { as_thread(2, [&] { static_cast<void>(blocks->step(at(0))); }); }
  void thread(unsigned self) override { outcomes[self] = blocks->deallocate(block[2], at(1)); }
  void check() override {
    ORDERLY_EXPECT((outcomes[0] == error::none) != (outcomes[1] == error::none), "%d and %d of two frees",
                   static_cast<int>(outcomes[0]), static_cast<int>(outcomes[1]));
    ORDERLY_EXPECT((outcomes[0] == error::stale_handle) != (outcomes[1] == error::stale_handle), "refused otherwise");
    end();
  }
};

/// Two streams copy a block each; whoever comes later waits for the last of them.
struct copied_in_two : of_stream_blocks {
  copied_in_two() : of_stream_blocks({.moves = 1}) {}
  void thread(unsigned self) override { static_cast<void>(blocks->step(at(2 * self))); }
  void check() override { check_all(as_signed); }
};

/// A stream copies, and another thread uses in it what an earlier step has copied in another stream.
struct copying_and_using : of_stream_blocks {
  relocatable moved = relocatable::none;
  copying_and_using() : of_stream_blocks({.moves = 1}) {
    as_thread(1, [&] { static_cast<void>(has(block[0], 0, signed_by)); });
    streams->order(at(0), at(1));
    as_thread(2, [&] { moved = blocks->step(at(2)).front().block; });
  }
  void thread(unsigned self) override {
    if (self == 0) return static_cast<void>(blocks->step(at(0)));
    put(moved, 0, 12);
  }
  void check() override {
    std::array<int, 4> values = as_signed;
    values[static_cast<std::size_t>(std::find(block.begin(), block.end(), moved) - block.begin())] = 12;
    streams->order(at(0), at(4));
    check_all(values);
  }
};

/// A stream ends in which the blocks were used.
struct copied_and_released : of_stream_blocks {
  bool moved = false;
  void thread(unsigned self) override {
    if (self == 0) {
      moved = !blocks->step(at(0)).empty();
      return;
    }
    put(block[2], 1, 6);
    ORDERLY_EXPECT(tested->release_stream(at(1)), "an event is refused");
  }
  void check() override { check_all({as_signed[0], as_signed[1], 6, as_signed[3]}); }
};

/// The same, and its last event may be refused: then nobody can wait for what it did.
struct released_without_event : of_stream_blocks {
  released_without_event() { streams->record_refusals = 1; }
  void thread(unsigned self) override {
    if (self == 0) return static_cast<void>(blocks->step(at(0)));
    put(block[2], 1, 6);
    static_cast<void>(tested->release_stream(at(1)));
  }
  void check() override {
    streams->order(at(1), at(4));
    if (!try_put(block[2], 4, 6)) {
      ORDERLY_EXPECT(tested->synchronize(), "the pool cannot tell when work is done");
      put(block[2], 4, 6);
    }
    check_all({as_signed[0], as_signed[1], 6, as_signed[3]});
  }
};

/// A block is pinned for one stream, and unpinned in another, which the program has ordered behind it and which uses it.
struct used_elsewhere : of_stream_blocks {
  unsigned unpinned_in = 2;
  void thread(unsigned self) override {
    if (self == 0) return static_cast<void>(blocks->step(at(0)));
    void* const place = blocks->pin(block[2], at(1));
    streams->order(at(1), at(2));
    detail::writes_plain(place);
    enter(place, at(2), "used");
    use(place, 1, 2);
    contents[place] = 7;
    blocks->unpin(block[2], at(unpinned_in));
  }
  void check() override {
    streams->order(at(2), at(4));
    check_all({as_signed[0], as_signed[1], 7, as_signed[3]});
  }
};

/// The same with what is no stream, so that nobody knows who uses the block.
struct used_somewhere : used_elsewhere {
  used_somewhere() {
    unpinned_in = 3;
    streams->names[3].store(device::none, relaxed);
  }
};

/// Each use leaves an event, since its stream may be gone when a step wants one.
struct copied_by_mark : of_stream_blocks {
  copied_by_mark() : of_stream_blocks({}, true) {}
  void thread(unsigned self) override {
    if (self == 0) return static_cast<void>(blocks->step(at(0)));
    put(block[2], 1, 7);
  }
  void check() override { check_all({as_signed[0], as_signed[1], 7, as_signed[3]}); }
};

/// The only room for a block is where the work of another stream is not over, with which it was freed.
struct copied_to_what_is_used : of_stream_blocks {
  copied_to_what_is_used() {
    as_thread(1, [&] {
      std::array<relocatable, 4> rest{};
      for (relocatable& each : rest) each = blocks->allocate(granule, at(1));
      std::sort(rest.begin(), rest.end(), [&](relocatable x, relocatable y) { return place_of(x) < place_of(y); });
      streams->order(at(1), at(2));
      put(block[1], 2, 3);
      for (const relocatable each : {rest[2], rest[3], block[3], block[1]})
        ORDERLY_EXPECT(blocks->deallocate(each, at(each == block[1] ? 2 : 1)) == error::none,
                       "the free of a live block is refused");
      block = {block[0], rest[0], block[2], rest[1]};
      put(block[1], 1, 4);
      put(block[3], 1, 5);
    });
    // Refused; but what is free behind events serves everybody from now on, behind a barrier.
    as_thread(2, [&] { ORDERLY_EXPECT(tested->try_allocate(4 * granule, at(3)) == nullptr, "a chunk was free"); });
    as_thread(0, [&] { blocks->begin(limits); });
  }
  void thread(unsigned self) override {
    if (self == 0) return static_cast<void>(blocks->step(at(0)));
    put(block[2], 1, 6);
  }
  void check() override { check_all({as_signed[0], 4, 6, 5}); }
};

/// A free is refused, since its stream cannot be made to wait for the copies: the block is live all the same.
struct freed_without_wait : of_stream_blocks {
  error outcome = error::none;
  freed_without_wait() { streams->wait_refusals = 1; }
  void thread(unsigned self) override {
    if (self == 0) return static_cast<void>(blocks->step(at(0)));
    outcome = blocks->deallocate(block[2], at(1));
  }
  void check() override {
    if (outcome == error::none)
      as_thread(1, [&] {
        block[2] = blocks->allocate(granule, at(1));
        put(block[2], 1, as_signed[2]);
      });
    check_all(as_signed);
  }
};

/// All is found to be idle by one who asked before another stream ended without an event, whose users are still at work.
struct idle_before_the_end : of_stream_blocks {
  bool used = false;
  idle_before_the_end() {
    streams->order(at(1), at(2));
    as_thread(2, [&] { put(block[3], 2, 5); });
    streams->records_nothing = true;
    static_cast<void>(tested->release_stream(at(2)));  // so there is something to wait for
    streams->records_nothing = false;
    streams->record_refusals = 1;
  }
  void thread(unsigned self) override {
    if (self == 0) return static_cast<void>(tested->synchronize());
    used = try_put(block[2], 1, 6);
    static_cast<void>(tested->release_stream(at(1)));
  }
  void check() override {
    as_thread(0, [&] { static_cast<void>(blocks->step(at(0))); });
    for (const unsigned each : {1U, 2U}) streams->order(at(each), at(4));
    ORDERLY_EXPECT(tested->synchronize(), "the pool cannot tell when work is done");
    check_all({as_signed[0], as_signed[1], used ? 6 : as_signed[2], 5});
  }
};

/// The copying stream ends, and its events may have been refused; another waits for the copies.
struct copier_released : of_stream_blocks {
  copier_released() { streams->record_refusals = 2; }
  void thread(unsigned self) override {
    if (self == 0) {
      static_cast<void>(blocks->step(at(0)));
      return static_cast<void>(tested->release_stream(at(0)));
    }
    static_cast<void>(try_put(block[2], 1, as_signed[2]));
  }
  void check() override {
    if (!try_put(block[2], 1, as_signed[2])) {
      ORDERLY_EXPECT(tested->synchronize(), "the pool cannot tell when work is done");
      put(block[2], 1, as_signed[2]);
    }
    check_all(as_signed);
  }
};

/// A new block is moved, whose memory is still used by what comes before it in its stream.
struct copied_unused : of_stream_blocks {
  copied_unused() {
    as_thread(1, [&] {
      put(block[2], 1, 3);
      ORDERLY_EXPECT(blocks->deallocate(block[2], at(1)) == error::none, "the free of a live block is refused");
      block[2] = blocks->allocate(granule, at(1));
    });
    as_thread(0, [&] { blocks->begin(limits); });
  }
  void thread(unsigned self) override {
    if (self == 0) return static_cast<void>(blocks->step(at(0)));
    put(block[3], 1, 4);
  }
  void check() override {
    put(block[2], 1, 5);
    check_all({as_signed[0], as_signed[1], 5, 4});
  }
};

/// An event or a wait is refused: nothing is moved where the order is not known, and nothing is lost.
struct copied_without_event : of_stream_blocks {
  copied_without_event() {
    streams->record_refusals = 1;
    streams->wait_refusals = 1;
  }
  void thread(unsigned self) override {
    if (self == 0) return static_cast<void>(blocks->step(at(0)));
    static_cast<void>(try_put(block[2], 1, as_signed[2]));
    static_cast<void>(try_put(block[3], 1, as_signed[3]));
  }
  void check() override { check_all(as_signed); }
};

/// What a step leaves behind is taken in another stream at once.
struct old_place_taken : of_stream_blocks {
  void* taken = nullptr;
  void thread(unsigned self) override {
    if (self == 0) return static_cast<void>(blocks->step(at(0)));
    put(block[2], 1, 5);
    taken = allocate(4, 3);  // a chunk, which comes free if both were moved
  }
  void check() override {
    if (taken != nullptr) free(taken, 4, 3);
    check_all({as_signed[0], as_signed[1], 5, as_signed[3]});
  }
};

/// A stream that was never seen before is noted by two threads at once, when blocks that it uses were copied. The one whose
/// lane it has had waited for the copies.
struct noted_by_two : of_stream_blocks {
  noted_by_two() {
    as_thread(2, [&] { static_cast<void>(blocks->step(at(0))); });
    as_thread(2, [&] {
      ORDERLY_EXPECT(blocks->pin(block[2], at(3)) != nullptr, "a live block cannot be pinned");
      blocks->unpin(block[2], at(3));
      ORDERLY_EXPECT(tested->release_stream(at(3)), "an event is refused");
    });
    streams->names[3].store(2, relaxed);
    streams->order(at(1), at(3));
  }
  void thread(unsigned self) override { put(block[2 + self], 3, 10 + static_cast<int>(self)); }
  void check() override { check_all({as_signed[0], as_signed[1], 10, 11}, 3); }
};

const registered<moved_in_use> a1("relocation", "moved-in-use");
const registered<moved_and_freed> a2("relocation", "moved-and-freed");
const registered<freed_twice> b1("relocation", "freed-twice");
const registered<freed_in_use> b2("relocation", "freed-in-use");
const registered<taken_at_once> c1("relocation", "taken-at-once");
const registered<made_up> c2("relocation", "made-up");
const registered<planned_and_taken> d2("relocation", "planned-and-taken");
// With the barrier a pass shows the step all that came before the plan. What was there before is seen by both loads of
// the address, and those of the size in between: one, or two in the mutants' copy of the sources.
const registered<changed_hands> e3("relocation", "changed-hands-without-barrier",
                                   {.long_bound = 2, .stale = 4, .far_bound = 4, .barrier = false});
const registered<renamed> e1("relocation", "renamed", {.long_bound = 2, .far_bound = 4});
const registered<resized> e2("relocation", "resized", {.barrier_refusals = 2});
const registered<planned_in_use> d1("relocation", "planned-in-use");
const registered<copied_in_use> f1("relocation", "copied-in-use");
const registered<one_waits_for_both> f2("relocation", "one-waits-for-both");
const registered<noted_by_two> f3("relocation", "noted-by-two");
const registered<copied_and_freed> g1("relocation", "copied-and-freed");
const registered<copied_and_freed_twice> g2("relocation", "copied-and-freed-twice");
const registered<copied_unused> g3("relocation", "copied-unused");
const registered<copied_in_two> h1("relocation", "copied-in-two");
const registered<copying_and_using> h3("relocation", "copying-and-using");
const registered<old_place_taken> h2("relocation", "old-place-taken", {.long_bound = 2, .far_bound = 4});
const registered<copied_and_released> i1("relocation", "copied-and-released");
const registered<released_without_event> i4("relocation", "released-without-event");
const registered<used_elsewhere> j1("relocation", "used-elsewhere");
const registered<used_somewhere> j2("relocation", "used-somewhere");
const registered<copied_by_mark> j3("relocation", "copied-by-mark");
const registered<copied_to_what_is_used> j4("relocation", "copied-to-what-is-used");
const registered<freed_without_wait> j5("relocation", "freed-without-wait");
const registered<idle_before_the_end> j6("relocation", "idle-before-the-end");
const registered<copier_released> i2("relocation", "copier-released");
const registered<copied_without_event> i3("relocation", "copied-without-event");

}  // namespace
