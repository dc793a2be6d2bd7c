// A block that changes streams under pressure. `ordered`: through the pool as it is; clean. `unordered`: through a driver
// that forgets to make the taker wait; ThreadSanitizer must report it, else it would not see such a mistake in the pool.
#include "orderly/stream_pool.hpp"

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string_view>
#include <thread>
#include <utility>

#include "orderly/software_stream.hpp"

namespace {

using orderly::event_handle;
using orderly::stream_handle;

class forgetful_driver final : public orderly::stream_driver {
 public:
  explicit forgetful_driver(std::shared_ptr<orderly::stream_driver> inner) : inner_(std::move(inner)) {}
  std::uint64_t identity(stream_handle stream) noexcept override { return inner_->identity(stream); }
  bool is_per_thread(stream_handle stream) noexcept override { return inner_->is_per_thread(stream); }
  std::uint64_t capture(stream_handle stream) noexcept override { return inner_->capture(stream); }
  event_handle record(stream_handle stream) noexcept override { return inner_->record(stream); }
  bool wait(stream_handle, event_handle) noexcept override { return true; }
  orderly::event_status query(event_handle) noexcept override { return orderly::event_status::pending; }
  bool synchronize(event_handle event) noexcept override { return inner_->synchronize(event); }
  void release(event_handle event) noexcept override { inner_->release(event); }

 private:
  std::shared_ptr<orderly::stream_driver> inner_;
};

constexpr std::size_t bytes = std::size_t{1} << 20;

}  // namespace

int main(int count, char** arguments) {
  const std::string_view mode = count == 2 ? arguments[1] : "";
  if (mode != "ordered" && mode != "unordered") {
    std::fputs("usage: stream_pool ordered|unordered\n", stderr);
    return 2;
  }
  const orderly::software_device device;
  std::shared_ptr<orderly::stream_driver> driver = device.driver();
  if (mode == "unordered") driver = std::make_shared<forgetful_driver>(driver);
  orderly::stream_options settings;
  settings.memory.capacity = bytes;
  orderly::stream_pool pool(orderly::make_host_source(), driver, settings);
  orderly::software_stream first(device);
  orderly::software_stream second(device);

  void* const block = pool.allocate(bytes, first.handle());
  first.enqueue([block] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));  // late
    std::memset(block, 1, bytes);
  });
  pool.deallocate(block, bytes, first.handle());
  void* const again = pool.try_allocate(bytes, second.handle());
  if (again != block) {
    std::fputs("the pool did not hand the block over\n", stderr);
    return 3;
  }
  second.enqueue([again] { std::memset(again, 2, bytes); });
  pool.deallocate(again, bytes, second.handle());
  first.synchronize();
  second.synchronize();
}
