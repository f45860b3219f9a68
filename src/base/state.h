/* One description of a machine's state (DESIGN rule 2).
 *
 * Each chip, device and vcpu declares the fields that make up its state once, as a table.  The
 * walker in machine/state.c saves and loads objects by these tables; suspend, snapshot, clone,
 * migration and replay use it and nothing else.
 *
 *   object --(table: name, offset, type, count, since)--> stream of named, sized fields
 *
 * What is derived from other fields (caches, pointers, host descriptors) is not in the table and is
 * rebuilt by `loaded`.
 */
#ifndef TAKT_BASE_STATE_H
#define TAKT_BASE_STATE_H

#include "base/error.h"
#include "base/types.h"

enum state_type {
	STATE_TYPE_U8,
	STATE_TYPE_U16,
	STATE_TYPE_U32,
	STATE_TYPE_U64,
	STATE_TYPE_BYTES, /* `count` raw bytes */
};

struct state_field {
	const char *name;
	uint32_t offset; /* in the object */
	uint32_t count;  /* elements (an array), or bytes for STATE_TYPE_BYTES */
	uint8_t type;    /* enum state_type */
	uint8_t size;    /* bytes of one element */
	uint16_t since;  /* table version that introduced the field; absent in older streams */
};

struct state_table {
	const char *name;
	uint16_t version;
	const struct state_field *fields;
	size_t nfields;
	/* Called on the object before it is saved and after it was loaded; either may be NULL.
	 * `loaded` checks what a hostile stream could break and returns 0 or -errno. */
	void (*saving)(void *object);
	int (*loaded)(void *object, struct error *err);
};

/* A scalar member or an array of integers; `elem` is the integer type of one element. */
#define STATE_FIELD(s, m, elem, st, ver)                                                           \
	{                                                                                          \
		.name = #m, .offset = offsetof(s, m), .count = sizeof(((s *)0)->m) / sizeof(elem), \
		.type = (st), .size = sizeof(elem), .since = (ver)                                 \
	}
#define STATE_U8(s, m) STATE_FIELD(s, m, uint8_t, STATE_TYPE_U8, 1)
#define STATE_U16(s, m) STATE_FIELD(s, m, uint16_t, STATE_TYPE_U16, 1)
#define STATE_U32(s, m) STATE_FIELD(s, m, uint32_t, STATE_TYPE_U32, 1)
#define STATE_U64(s, m) STATE_FIELD(s, m, uint64_t, STATE_TYPE_U64, 1)
#define STATE_BYTES(s, m) STATE_FIELD(s, m, uint8_t, STATE_TYPE_BYTES, 1)

#endif
