#include "orderly/source.hpp"

namespace orderly {

memory_source::~memory_source() = default;

void memory_source::why_refused(char* text, std::size_t bytes) const noexcept {
  if (bytes != 0) text[0] = '\0';
}

}  // namespace orderly
