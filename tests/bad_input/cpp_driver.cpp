#include "cpp_driver.hpp"

#include <limits>
#include <new>
#include <utility>

#include "support/process.hpp"

namespace orderly::test {

namespace {

/// A fixed buffer begins at an odd multiple of this, wherever the system places it: a case asks for more.
constexpr std::size_t buffer_alignment = std::size_t{1} << 20;
constexpr std::align_val_t block_alignment{2 * buffer_alignment};

class source_of_unknown_capacity final : public memory_source {
 public:
  [[nodiscard]] std::size_t granularity() const noexcept override { return 4096; }
  [[nodiscard]] bool is_virtual() const noexcept override { return true; }
  [[nodiscard]] void* reserve(std::size_t, std::size_t) noexcept override { return nullptr; }
  void release(void*, std::size_t) noexcept override {}
  [[nodiscard]] bool commit(void*, std::size_t) noexcept override { return false; }
  [[nodiscard]] bool decommit(void*, std::size_t) noexcept override { return false; }
};

}  // namespace

void cpp_driver::aligned_delete::operator()(std::byte* bytes) const noexcept {
  ::operator delete[](bytes, block_alignment);
}

void cpp_driver::use(const std::string& kind, const pool_settings& settings) {
  kind_ = kind;
  settings_ = settings;
  if (!has_streams()) return;
  device_.emplace(software_schedule::lazy);
  for (const char* const name : {"s", "t"}) {
    const auto [made, added] = streams_.emplace(name, software_stream(*device_));
    handles_[name] = made->second.handle();
  }
}

options cpp_driver::options_of(const pool_settings& settings) const {
  return {.capacity = settings.capacity,
          .granule = settings.granule,
          .chunk = settings.chunk,
          .limit = settings.limit,
          .slack = settings.slack,
          .on_bad_free = handler_};
}

std::unique_ptr<memory_source> cpp_driver::make_source() {
  if (kind_ != "fixed_buffer") return make_host_source();
  buffers_.emplace_back(new (block_alignment) std::byte[buffer_alignment + capacity]);
  return make_fixed_buffer_source(buffers_.back().get() + buffer_alignment, capacity);
}

pool& cpp_driver::plain(const std::string& name) {
  const auto known = plain_.find(name);
  if (known != plain_.end()) return known->second;
  return plain_.emplace(name, pool(make_source(), options_of(settings_))).first->second;
}

stream_pool& cpp_driver::in_streams(const std::string& name) {
  const auto known = in_streams_.find(name);
  if (known != in_streams_.end()) return known->second;
  stream_options settings;
  settings.memory = options_of(settings_);
  return in_streams_.emplace(name, stream_pool(make_source(), device_->driver(), settings)).first->second;
}

stream_handle cpp_driver::handle(const std::string& stream) const {
  return stream == "null" ? nullptr : handles_.at(stream);
}

outcome cpp_driver::create(const pool_settings& settings, const std::string& source) {
  const options wanted = options_of(settings);
  alignas(4096) static std::byte buffer[std::size_t{1} << 20];
  const auto with = [&](std::unique_ptr<memory_source> from) {
    return outcome_of([&] { const pool made(std::move(from), wanted); });
  };
  if (source == "null") return with(nullptr);
  if (source == "unknown capacity") return with(std::make_unique<source_of_unknown_capacity>());
  if (source == "null buffer") return with(make_fixed_buffer_source(nullptr, sizeof buffer));
  if (source == "small buffer") return with(make_fixed_buffer_source(buffer, sizeof buffer - 1));
  if (source == "misaligned buffer") return with(make_fixed_buffer_source(buffer + 8, sizeof buffer - 8));
  if (source == "buffer") return with(make_fixed_buffer_source(buffer, sizeof buffer));
  if (source == "streams" || source == "streams without a driver") {
    const software_device device(software_schedule::lazy);
    stream_options in_order;
    in_order.memory = wanted;
    const std::shared_ptr<stream_driver> of_device = source == "streams" ? device.driver() : nullptr;
    return outcome_of([&] { const stream_pool made(make_host_source(), of_device, in_order); });
  }
  if (source.empty()) return with(make_host_source());
  throw unsupported(source);
}

/// The pool under test stays, as one that was moved from; any other goes.
void cpp_driver::destroy(const std::string& name) {
  if (name != "tested")
    plain_.erase(name);
  else if (has_streams())
    streams_elsewhere_.push_back(std::move(in_streams(name)));
  else
    elsewhere_.push_back(std::move(plain(name)));
}

outcome cpp_driver::allocate(const target& wanted, checked_block& got) {
  return outcome_of([&] {
    if (has_streams()) {
      stream_pool& from = in_streams(wanted.pool);
      const stream_handle in = handle(wanted.stream);
      if (wanted.by_handle)
        got = from.allocate_checked(wanted.bytes, wanted.alignment, in);
      else
        got = {from.allocate(wanted.bytes, wanted.alignment, in), 0};
    } else {
      pool& from = plain(wanted.pool);
      if (wanted.by_handle)
        got = from.allocate_checked(wanted.bytes, wanted.alignment);
      else
        got = {from.allocate(wanted.bytes, wanted.alignment), 0};
    }
  });
}

outcome cpp_driver::free(const target& freed) {
  bad_free report;
  bad_free* const told = freed.wants_report ? &report : nullptr;
  error code = error::none;
  if (has_streams()) {
    stream_pool& from = in_streams(freed.pool);
    const stream_handle in = handle(freed.stream);
    code = freed.by_handle ? from.try_deallocate(freed.block, freed.bytes, in, told)
                           : from.try_deallocate(freed.block.address, freed.bytes, in, told);
  } else {
    pool& from = plain(freed.pool);
    code = freed.by_handle ? from.try_deallocate(freed.block, freed.bytes, told)
                           : from.try_deallocate(freed.block.address, freed.bytes, told);
  }
  if (code == error::none || told == nullptr) return {code};
  CHECK(report.code == code);
  CHECK(report.pointer == freed.block.address);
  CHECK(report.bytes == freed.bytes);
  return {code, report.message()};
}

void cpp_driver::defragment(const std::string& name) {
  has_streams() ? in_streams(name).defragment() : plain(name).defragment();
}

void cpp_driver::trim(const std::string& name, std::size_t keep) {
  has_streams() ? in_streams(name).trim(keep) : plain(name).trim(keep);
}

books cpp_driver::audit(const std::string& name) {
  if (!has_streams()) return books_of(plain(name));
  books all;
  in_streams(name).for_each_block([&all](const block_info& block) { all.blocks.push_back(block); });
  all.stats = in_streams(name).stats().memory;
  return all;
}

outcome cpp_driver::record_stream(const target& of) {
  return {in_streams(of.pool).record_stream(of.block.address, handle(of.stream))};
}

outcome cpp_driver::divide(const target& of, std::size_t part_bytes, const std::vector<std::uint32_t>& live) {
  std::string why;
  const error code = in_streams(of.pool).divide(of.block.address, part_bytes, live, handle(of.stream), &why);
  if (code == error::none || of.stream == "null") return {code};
  return {code, why};
}

outcome cpp_driver::begin_capture(const target& of) { return {in_streams(of.pool).begin_capture(handle(of.stream))}; }
outcome cpp_driver::end_capture(const target& of) { return {in_streams(of.pool).end_capture(handle(of.stream))}; }
void cpp_driver::release_stream(const std::string& stream) {
  CHECK(in_streams("tested").release_stream(handle(stream)));
}
void cpp_driver::destroy_stream(const std::string& stream) { streams_.erase(stream); }
void cpp_driver::synchronize(const std::string& name) {
  if (has_streams()) CHECK(in_streams(name).synchronize());
}

namespace {

class by_handler final : public cpp_driver {
 public:
  by_handler() : cpp_driver([this](const bad_free& report) { report_ = report; }) {}
  outcome free(const target& freed) override {
    const captured_stderr gone;  // a pool that is gone has no handler
    report_.reset();
    if (has_streams()) {
      stream_pool& from = in_streams(freed.pool);
      if (freed.by_handle)
        from.deallocate(freed.block, freed.bytes, handle(freed.stream));
      else
        from.deallocate(freed.block.address, freed.bytes, handle(freed.stream));
    } else {
      pool& from = plain(freed.pool);
      if (freed.by_handle)
        from.deallocate(freed.block, freed.bytes);
      else if (freed.bytes == 0)
        from.deallocate(freed.block.address);
      else
        from.deallocate(freed.block.address, freed.bytes);
    }
    if (const std::string text = gone.text(); !text.empty()) return {error::pool_gone, text};
    if (!report_) return {};
    return {report_->code, report_->message()};
  }

 private:
  std::optional<bad_free> report_;
};

class by_exception final : public cpp_driver {
 public:
  by_exception() : cpp_driver([](const bad_free&) { FAIL("deallocate_or_throw called the handler"); }) {}
  outcome free(const target& freed) override {
    if (has_streams()) return cpp_driver::free(freed);
    return outcome_of([&] {
      if (freed.by_handle)
        plain(freed.pool).deallocate_or_throw(freed.block, freed.bytes);
      else
        plain(freed.pool).deallocate_or_throw(freed.block.address, freed.bytes);
    });
  }
};

/// What reaches stderr is the message and nothing else.
class by_print final : public cpp_driver {
 public:
  by_print() : cpp_driver(on_bad_free::print) {}
  outcome free(const target& freed) override {
    if (has_streams()) return cpp_driver::free(freed);
    const std::uint64_t before = plain(freed.pool).stats().bad_frees;
    const captured_stderr capture;
    if (freed.by_handle)
      plain(freed.pool).deallocate(freed.block, freed.bytes);
    else
      plain(freed.pool).deallocate(freed.block.address, freed.bytes);
    const std::string text = capture.text();
    if (text.empty()) {
      CHECK(plain(freed.pool).stats().bad_frees == before);
      return {};
    }
    CHECK(text.find('\n') == text.size() - 1);
    for (int code = 0; code < 32; ++code) {
      const char* const sentence = to_string(static_cast<error>(code));
      if (text.find(sentence) != std::string::npos) return {static_cast<error>(code), text};
    }
    return {error::none, text};
  }
};

template <class Driver>
std::unique_ptr<driver> make() {
  return std::make_unique<Driver>();
}

std::unique_ptr<driver> make_try() {
  return std::make_unique<cpp_driver>([](const bad_free&) { FAIL("try_deallocate called the handler"); });
}

}  // namespace

std::vector<way> cpp_ways() {
  return {{"cpp", "try_deallocate", make_try},
          {"cpp", "deallocate with a handler", make<by_handler>},
          {"cpp", "deallocate_or_throw", make<by_exception>},
          {"cpp", "deallocate with print", make<by_print>}};
}

}  // namespace orderly::test
