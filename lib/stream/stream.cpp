#include "orderly/stream.hpp"

namespace orderly {

stream_driver::~stream_driver() = default;

}  // namespace orderly
