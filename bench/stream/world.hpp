/// \file
/// A kind of streams to measure on. Each has a file in this folder:
///
///   static constexpr std::string_view name;
///   static bool available();
///   std::shared_ptr<stream_driver> driver();
///   std::unique_ptr<memory_source> source(std::size_t bytes);   one flat range
///   stream_handle make_stream();                                lives as long as the world
///   void finish(stream_handle);                                 waits for a stream
///   void finish();                                              waits for all streams
///   void occupy(stream_handle);                                 puts work of about 20 us into a stream
///   void record(mark&, stream_handle);                          a place in a stream, a program's own; not counted
///   void wait(stream_handle, mark&);                            once after each record(); not counted
///   std::uint64_t calls();                                      stream operations, or calls of CUDA, so far
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "orderly/source.hpp"
#include "orderly/stream.hpp"

namespace orderly::bench {

/// An event of the program that is measured, which orders two streams of its own.
struct mark {
  void* event = nullptr;
};

/// Events recorded and waits put into streams by a pool.
struct stream_counts {
  std::uint64_t records = 0;
  std::uint64_t waits = 0;
};

template <class World>
concept stream_world = requires(World& world, std::size_t bytes, stream_handle stream, mark& of) {
  { World::name } -> std::convertible_to<std::string_view>;
  { World::available() } -> std::same_as<bool>;
  { world.driver() } -> std::same_as<std::shared_ptr<stream_driver>>;
  { world.source(bytes) } -> std::same_as<std::unique_ptr<memory_source>>;
  { world.make_stream() } -> std::same_as<stream_handle>;
  { world.finish(stream) } -> std::same_as<void>;
  { world.finish() } -> std::same_as<void>;
  { world.occupy(stream) } -> std::same_as<void>;
  { world.record(of, stream) } -> std::same_as<void>;
  { world.wait(stream, of) } -> std::same_as<void>;
  { world.calls() } -> std::same_as<std::uint64_t>;
};

}  // namespace orderly::bench
