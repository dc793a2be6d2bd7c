// Pools of a few granules under every schedule: no block has two owners, none is lost, and none is refused that is there.
#include "sources.hpp"
#include "support/audit.hpp"

using namespace orderly;
using namespace orderly::model;

namespace {

/// What every scenario here has.
struct of_pool : scenario {
  source_book book;
  std::unique_ptr<pool> tested;
  owners owned;

  void* allocate(std::size_t granules, unsigned self) {
    void* const block = tested->try_allocate(granules * granule);
    if (block != nullptr) owned.take(*tested, block, self + 1);
    return block;
  }
  void free(void* block, unsigned owner) {
    owned.give(*tested, block, owner + 1);
    ORDERLY_EXPECT(tested->try_deallocate(block) == error::none, "the free of a live block is refused");
  }
  /// Every thread has ended, and nothing is live.
  void check_idle() {
    test::check_sound(*tested);
    end_threads();
    test::check_idle(*tested);
  }
};

/// Two threads take a block and give it back, twice; there is room for both.
struct take_and_give : of_pool {
  take_and_give() { tested = buffer_pool(book, 4); }
  void thread(unsigned self) override {
    for (int i = 0; i < 2; ++i) {
      void* const block = allocate(1, self);
      ORDERLY_EXPECT(block != nullptr, "refused, with two blocks free at least");
      free(block, self);
    }
  }
  void check() override { check_idle(); }
};
const registered<take_and_give> a1("pool", "take-and-give");

}  // namespace
