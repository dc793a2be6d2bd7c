/// \file
/// An allocator's shared library, loaded so that the program keeps its own malloc.
#pragma once

#include <initializer_list>
#include <string_view>

namespace orderly::bench {

/// Opens a library in a scope of its own (RTLD_LOCAL): no symbol of it replaces one of the program. It stays loaded,
/// as allocators do not survive being unloaded while threads run.
class loaded_library {
 public:
  /// `functions` are those that the peer calls. If the file or one of them is missing, or comes from another library
  /// (so that "malloc" would be the C library's after all), one line on stderr says that the peer is left out.
  loaded_library(std::string_view peer, const char* file, std::initializer_list<const char*> functions);

  [[nodiscard]] bool available() const noexcept { return available_; }

  template <class Signature>
  [[nodiscard]] Signature* function(const char* name) const noexcept {
    return reinterpret_cast<Signature*>(symbol(name));
  }

 private:
  [[nodiscard]] void* symbol(const char* name) const noexcept;

  void* handle_;
  bool available_ = false;
};

}  // namespace orderly::bench
