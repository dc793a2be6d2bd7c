/// \file
/// How the library's thread-local variables are found: at offsets that are fixed when it is loaded. Keeps
/// __tls_get_addr off the hot path. A library that a running program loads finds hardly any room for variables with fixed
/// offsets, and is compiled without.
#pragma once

#ifdef ORDERLY_LOADED_LATE
#define ORDERLY_FIXED_OFFSET
#else
#define ORDERLY_FIXED_OFFSET [[gnu::tls_model("initial-exec")]]
#endif
