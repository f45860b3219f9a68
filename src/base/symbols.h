/* The functions of a guest's kernel by address, from its System.map or a copy of its /proc/kallsyms.
 *
 * The file says where the kernel was linked, or where it lay when somebody looked; symbols_place() says
 * where it lies now.  The two are told apart by _text, the kernel's first byte.
 */
#ifndef TAKT_BASE_SYMBOLS_H
#define TAKT_BASE_SYMBOLS_H

#include "base/error.h"
#include "base/types.h"

struct symbols;

/* Reads the code symbols of a file; those of modules are left out, since they lie elsewhere each time.
 * NULL and `err`: -ENOENT..., -EINVAL: not such a file. */
struct symbols *symbols_open(const char *path, struct error *err);
void symbols_close(struct symbols *s);

/* The kernel's first byte is at `text` now.  Not while symbols_find() runs. */
void symbols_place(struct symbols *s, uint64_t text);

/* The function that `address` lies in, NULL if none is known. */
const char *symbols_find(const struct symbols *s, uint64_t address, uint64_t *offset);

#endif
