#include <cstdint>
#include <map>

#include "driver.hpp"
#include "orderly/orderly.h"

namespace orderly::test {

namespace {

class c_driver final : public driver {
 public:
  ~c_driver() override {
    for (const auto& [name, made] : pools_) orderly_pool_destroy(made);
  }

  void use(const std::string& kind, const pool_settings& settings) override {
    if (kind != "host") throw unsupported(kind);
    settings_ = {settings.capacity, settings.granule, settings.chunk, settings.limit};
  }

  outcome create(const pool_settings& settings, const std::string& source) override {
    const orderly_options wanted{settings.capacity, settings.granule, settings.chunk, settings.limit};
    if (source == "null handle") return outcome_of(orderly_pool_create_host(&wanted, nullptr));
    if (!source.empty() || settings.slack != pool_settings{}.slack) throw unsupported(source);
    auto* made = reinterpret_cast<orderly_pool*>(256);
    const int code = orderly_pool_create_host(&wanted, &made);
    CHECK((made == nullptr) == (code != ORDERLY_OK));
    orderly_pool_destroy(made);
    return outcome_of(code);
  }

  void destroy(const std::string& name) override { orderly_pool_destroy(find(name)); }

  outcome allocate(const target& wanted, checked_block& got) override {
    orderly_pool* const from = find(wanted.pool);
    if (wanted.by_handle) {
      const orderly_checked_block block = orderly_allocate_checked(from, wanted.bytes, wanted.alignment);
      got = {block.address, block.generation};
    } else if (wanted.alignment == 1) {
      got = {orderly_allocate(from, wanted.bytes), 0};
    } else {
      got = {orderly_allocate_aligned(from, wanted.bytes, wanted.alignment), 0};
    }
    if (got) return {};
    // The code of an allocation is in its message.
    const std::string text = orderly_last_error();
    for (const int code : {ORDERLY_ERROR_POOL_GONE, ORDERLY_ERROR_INVALID_ARGUMENT, ORDERLY_ERROR_OUT_OF_MEMORY}) {
      if (text.find(orderly_strerror(code)) != std::string::npos) return {static_cast<error>(code), text};
    }
    return {error::none, text};
  }

  outcome free(const target& freed) override {
    orderly_pool* const from = find(freed.pool);
    if (!freed.by_handle) return outcome_of(orderly_deallocate(from, freed.block.address, freed.bytes));
    return outcome_of(orderly_deallocate_checked(from, {freed.block.address, freed.block.generation}, freed.bytes));
  }

  void defragment(const std::string& name) override { CHECK(orderly_defragment(find(name)) == ORDERLY_OK); }
  void trim(const std::string& name, std::size_t keep) override { CHECK(orderly_trim(find(name), keep) == ORDERLY_OK); }

  books audit(const std::string& name) override {
    orderly_stats s{};
    const int code = orderly_pool_stats(find(name), &s);
    CHECK((code == ORDERLY_OK || code == ORDERLY_ERROR_POOL_GONE));
    return {{}, {s.requested, s.allocated, s.cached, s.committed, s.peak_requested, s.peak_committed, s.capacity, 0,
                 s.allocations, s.frees, s.failed, s.bad_frees, s.passes}};
  }

  outcome stats_to_null() override { return outcome_of(orderly_pool_stats(find("tested"), nullptr)); }

 private:
  [[nodiscard]] static outcome outcome_of(int code) {
    if (code == ORDERLY_OK) return {};
    return {static_cast<error>(code), orderly_last_error()};
  }

  [[nodiscard]] orderly_pool* find(const std::string& name) {
    alignas(64) static char stranger[4096];
    if (name == "null") return nullptr;
    if (name == "a stranger") return reinterpret_cast<orderly_pool*>(stranger);
    if (name == "out of range") return reinterpret_cast<orderly_pool*>(UINTPTR_MAX);
    const auto known = pools_.find(name);
    if (known != pools_.end()) return known->second;
    orderly_pool* made = nullptr;
    REQUIRE(orderly_pool_create_host(&settings_, &made) == ORDERLY_OK);
    return pools_[name] = made;
  }

  orderly_options settings_{};
  std::map<std::string, orderly_pool*> pools_;
};

}  // namespace

std::vector<way> c_ways() {
  return {{"c", "C", [] { return std::unique_ptr<driver>(std::make_unique<c_driver>()); }}};
}

}  // namespace orderly::test
