// Blocks that are moved while threads pin, free and allocate them, under every schedule: whoever has a block pinned has it
// alone, its contents go along, and a handle that was freed names nothing.
#include <map>
#include <memory>

#include "orderly/relocatable.hpp"
#include "sources.hpp"
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

  of_blocks() {
    options settings;
    settings.on_bad_free = on_bad_free::count;
    tested = virtual_pool(book, 2, 4, settings);
    blocks = std::make_unique<relocatable_blocks>(*tested, [this](std::span<const relocation> moves) {
      for (const relocation& each : moves) {
        detail::reads_plain(each.from);
        detail::writes_plain(each.to);
        contents[each.to] = contents[each.from];
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

const registered<moved_in_use> a1("relocation", "moved-in-use");
const registered<moved_and_freed> a2("relocation", "moved-and-freed");
const registered<freed_twice> b1("relocation", "freed-twice");
const registered<freed_in_use> b2("relocation", "freed-in-use");
const registered<taken_at_once> c1("relocation", "taken-at-once");
const registered<made_up> c2("relocation", "made-up");
const registered<planned_and_taken> d2("relocation", "planned-and-taken", {.long_bound = 2});
const registered<renamed> e1("relocation", "renamed", {.long_bound = 2});
const registered<planned_in_use> d1("relocation", "planned-in-use", {.long_bound = 2});

}  // namespace
