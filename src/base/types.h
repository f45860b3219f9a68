/* Types that keep apart what must not be mixed.  All are plain 64-bit integers to the compiler; the
 * names say which kind of number a parameter is. */
#ifndef TAKT_BASE_TYPES_H
#define TAKT_BASE_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint64_t gpa_t; /* guest-physical address */
typedef uint64_t gva_t; /* guest-virtual (linear) address */
typedef int64_t ns_t;   /* nanoseconds; which clock is said where it is used */

#define NS_PER_SEC 1000000000LL

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define ALIGN_UP(x, a) (((x) + (a)-1) & ~((__typeof__(x))(a)-1))
#define ALIGN_DOWN(x, a) ((x) & ~((__typeof__(x))(a)-1))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define GUEST_PAGE_SHIFT 12
#define GUEST_PAGE_SIZE 4096u
#define GUEST_PAGE_MASK 4095u

#define KiB (1ULL << 10)
#define MiB (1ULL << 20)
#define GiB (1ULL << 30)

#endif
