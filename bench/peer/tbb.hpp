/// \file
/// The scalable allocator of oneTBB.
#pragma once

#include <cstddef>
#include <string_view>

#include "peer/loaded_library.hpp"
#include "peer/peer.hpp"

namespace orderly::bench {

class tbb_peer {
 public:
  static constexpr std::string_view name = "tbb";
  static constexpr bool arena = false;

  [[nodiscard]] static bool available() { return library().available(); }
  explicit tbb_peer(const arena_config&) noexcept {}

  [[nodiscard]] void* allocate(std::size_t bytes) noexcept { return allocate_(bytes); }
  void deallocate(void* pointer, std::size_t) noexcept { deallocate_(pointer); }

 private:
  static const loaded_library& library() {
    static const loaded_library loaded(name, "libtbbmalloc.so.2", {"scalable_malloc", "scalable_free"});
    return loaded;
  }

  void* (*allocate_)(std::size_t) = library().function<void*(std::size_t)>("scalable_malloc");
  void (*deallocate_)(void*) = library().function<void(void*)>("scalable_free");
};

}  // namespace orderly::bench
