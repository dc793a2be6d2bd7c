#include "orderly/stream.hpp"

namespace orderly {

stream_driver::~stream_driver() = default;

bool stream_driver::when_graph_is_gone(stream_handle /*stream*/, void (*/*gone*/)(void*), void* /*context*/) noexcept {
  return false;
}

bool stream_driver::synchronize_all() noexcept { return false; }

bool stream_driver::copy(stream_handle /*stream*/, void* /*to*/, const void* /*from*/, std::size_t /*bytes*/) noexcept {
  return false;
}

}  // namespace orderly
