#include "orderly/source.hpp"

namespace orderly {

memory_source::~memory_source() = default;

}  // namespace orderly
