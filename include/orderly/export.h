/* Visibility of public symbols. A shared build exports exactly what carries ORDERLY_API; ORDERLY_LOCAL takes
 * a member out again. */
#ifndef ORDERLY_EXPORT_H
#define ORDERLY_EXPORT_H

#if defined(_WIN32)
#error "orderly supports POSIX systems"
#else
#define ORDERLY_API __attribute__((visibility("default")))
#define ORDERLY_LOCAL __attribute__((visibility("hidden")))
#endif

#endif
