/* The walker of state tables (base/state.h), and the stream it writes.
 *
 *   stream:  magic, section*, end
 *   section: 'S' name version instance nfields field*     an object
 *   field:   name type count bytes                        little endian, count * element size bytes
 *   section: 'P' page-index bytes                         a RAM page that is not all zero
 *   end:     'E'
 *
 * Names are a length byte and characters.  A reader finds fields by name: one it does not know it
 * ignores (a newer takt wrote it), one that is missing keeps the value of the fresh object if it
 * was introduced after the stream's version of the table, and is an error otherwise.  Nothing in a
 * stream is trusted: every length is checked against what is left.
 */
#ifndef TAKT_MACHINE_STATE_H
#define TAKT_MACHINE_STATE_H

#include "base/error.h"
#include "base/state.h"
#include "mem/ram.h"

/* Grows as needed; zeroed, it is empty.  Free with state_buffer_free(). */
struct state_buffer {
	uint8_t *data;
	size_t len, capacity;
};
void state_buffer_free(struct state_buffer *buf);

/* An object to walk: its table and which of several of its kind it is. */
struct state_object {
	const struct state_table *table;
	void *object;
	uint32_t instance;
};

/* Replaces `buf` by the objects and, if not NULL, the RAM.  -ENOMEM. */
int state_save(struct state_buffer *buf, const struct state_object *objects, size_t count,
	       struct ram *ram, struct error *err);
/* The reverse.  All objects must be in the stream and the stream's in `objects`; `loaded` of each
 * is called in the order of `objects` after all fields are there.  RAM must be zero.  -EINVAL. */
int state_load(const struct state_buffer *buf, const struct state_object *objects, size_t count,
	       struct ram *ram, struct error *err);

#endif
