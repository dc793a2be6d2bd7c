/// \file
/// The C++ driver, which std::pmr's shares but for allocating and freeing.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "driver.hpp"
#include "orderly/pool.hpp"
#include "orderly/software_stream.hpp"
#include "orderly/stream_pool.hpp"

namespace orderly::test {

/// What an exception says, as the codes of the C interface do.
template <class Call>
[[nodiscard]] outcome outcome_of(const Call& call) {
  try {
    call();
    return {};
  } catch (const bad_free_error& refused) {
    return {refused.report().code, refused.what()};
  } catch (const out_of_memory& refused) {
    return {error::out_of_memory, refused.what()};
  } catch (const std::invalid_argument& refused) {
    return {error::invalid_argument, refused.what()};
  }
}

class cpp_driver : public driver {
 public:
  using handler = std::function<void(const bad_free&)>;
  explicit cpp_driver(handler on_bad_free) : handler_(std::move(on_bad_free)) {}

  void use(const std::string& kind, const pool_settings& settings) override;
  outcome create(const pool_settings& settings, const std::string& source) override;
  void destroy(const std::string& name) override;
  outcome allocate(const target& wanted, checked_block& got) override;
  outcome free(const target& freed) override;
  void defragment(const std::string& name) override;
  void trim(const std::string& name, std::size_t keep) override;
  books audit(const std::string& name) override;
  outcome record_stream(const target& of) override;
  outcome divide(const target& of, std::size_t part_bytes, const std::vector<std::uint32_t>& live) override;
  outcome begin_capture(const target& of) override;
  outcome end_capture(const target& of) override;
  void release_stream(const std::string& stream) override;
  void destroy_stream(const std::string& stream) override;
  void synchronize(const std::string& name) override;

 protected:
  [[nodiscard]] pool& plain(const std::string& name);
  [[nodiscard]] stream_pool& in_streams(const std::string& name);
  [[nodiscard]] bool has_streams() const noexcept { return kind_ == "streams"; }
  [[nodiscard]] stream_handle handle(const std::string& stream) const;

 private:
  struct aligned_delete {
    void operator()(std::byte* bytes) const noexcept;
  };

  [[nodiscard]] std::unique_ptr<memory_source> make_source();
  [[nodiscard]] options options_of(const pool_settings& settings) const;

  handler handler_;
  std::string kind_ = "host";
  pool_settings settings_{};
  std::vector<std::unique_ptr<std::byte[], aligned_delete>> buffers_;
  std::optional<software_device> device_;
  std::map<std::string, software_stream> streams_;
  std::map<std::string, stream_handle> handles_;
  std::map<std::string, pool> plain_;
  std::map<std::string, stream_pool> in_streams_;
  std::vector<pool> elsewhere_;  // what was moved from a pool that is "destroyed"
  std::vector<stream_pool> streams_elsewhere_;
};

}  // namespace orderly::test
