#include <memory_resource>
#include <optional>

#include "cpp_driver.hpp"
#include "orderly/pmr.hpp"
#include "support/process.hpp"

namespace orderly::test {

namespace {

/// Through a std::pmr::memory_resource. What that lacks, handles and frees without a size, goes to the pool.
class pmr_driver final : public cpp_driver {
 public:
  pmr_driver() : cpp_driver([this](const bad_free& report) { report_ = report; }) {}

  outcome allocate(const target& wanted, checked_block& got) override {
    if (wanted.by_handle) return cpp_driver::allocate(wanted, got);
    return outcome_of([&] {
      memory_resource resource(plain(wanted.pool));
      std::pmr::memory_resource& upstream = resource;
      got = {upstream.allocate(wanted.bytes, wanted.alignment), 0};
    });
  }

  outcome free(const target& freed) override {
    if (freed.by_handle) return cpp_driver::free(freed);
    const captured_stderr gone;  // a pool that is gone has no handler
    report_.reset();
    memory_resource resource(plain(freed.pool));
    std::pmr::memory_resource& upstream = resource;
    if (freed.block.address != nullptr && (freed.bytes != 0 || allocated_nothing(freed)))
      upstream.deallocate(freed.block.address, freed.bytes, freed.alignment);
    else
      plain(freed.pool).deallocate(freed.block.address, freed.bytes);
    if (const std::string text = gone.text(); !text.empty()) return {error::pool_gone, text};
    if (!report_) return {};
    return {report_->code, report_->message()};
  }

 private:
  /// To std::pmr, no bytes are a size like any other.
  [[nodiscard]] bool allocated_nothing(const target& freed) {
    bool found = false;
    plain(freed.pool).for_each_block(
        [&](const block_info& block) { found |= block.address == freed.block.address && block.requested == 1; });
    return found;
  }

  std::optional<bad_free> report_;
};

}  // namespace

std::vector<way> pmr_ways() {
  return {{"pmr", "std::pmr", [] { return std::unique_ptr<driver>(std::make_unique<pmr_driver>()); }}};
}

}  // namespace orderly::test
