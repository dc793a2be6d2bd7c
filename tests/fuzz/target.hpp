/// \file
/// What a fuzz target defines, libFuzzer's interface: it ends the process, by an exception or in another way, if the
/// code under test does anything wrong with these bytes. Returns 0.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
