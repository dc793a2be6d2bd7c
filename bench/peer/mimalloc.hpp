/// \file
/// mimalloc.
#pragma once

#include <cstddef>
#include <string_view>

#include "peer/loaded_library.hpp"
#include "peer/peer.hpp"

namespace orderly::bench {

class mimalloc_peer {
 public:
  static constexpr std::string_view name = "mimalloc";
  static constexpr bool arena = false;

  [[nodiscard]] static bool available() { return library().available(); }
  explicit mimalloc_peer(const arena_config&) noexcept {}

  [[nodiscard]] void* allocate(std::size_t bytes) noexcept { return allocate_(bytes); }
  void deallocate(void* pointer, std::size_t) noexcept { deallocate_(pointer); }

 private:
  static const loaded_library& library() {
    static const loaded_library loaded(name, "libmimalloc.so.2", {"mi_malloc", "mi_free"});
    return loaded;
  }

  void* (*allocate_)(std::size_t) = library().function<void*(std::size_t)>("mi_malloc");
  void (*deallocate_)(void*) = library().function<void(void*)>("mi_free");
};

}  // namespace orderly::bench
