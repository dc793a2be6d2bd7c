/// \file
/// jemalloc.
#pragma once

#include <cstddef>
#include <string_view>

#include "peer/loaded_library.hpp"
#include "peer/peer.hpp"

namespace orderly::bench {

class jemalloc_peer {
 public:
  static constexpr std::string_view name = "jemalloc";
  static constexpr bool arena = false;

  [[nodiscard]] static bool available() { return library().available(); }
  explicit jemalloc_peer(const arena_config&) noexcept {}

  [[nodiscard]] void* allocate(std::size_t bytes) noexcept { return allocate_(bytes); }
  void deallocate(void* pointer, std::size_t bytes) noexcept { deallocate_(pointer, bytes, 0); }

 private:
  static const loaded_library& library() {
    static const loaded_library loaded(name, "libjemalloc.so.2", {"malloc", "sdallocx"});
    return loaded;
  }

  void* (*allocate_)(std::size_t) = library().function<void*(std::size_t)>("malloc");
  void (*deallocate_)(void*, std::size_t, int) = library().function<void(void*, std::size_t, int)>("sdallocx");
};

}  // namespace orderly::bench
