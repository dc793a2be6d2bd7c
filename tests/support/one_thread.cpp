// Loaded before a test of one thread, refuses it another; tests/meson.build says which those are, and why.
#include <pthread.h>

#include <cstdio>
#include <cstdlib>

extern "C" int pthread_create(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*) noexcept {
  std::fputs("a second thread begins: take this test from those of one thread in its meson.build\n", stderr);
  std::abort();
}
