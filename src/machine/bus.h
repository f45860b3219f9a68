/* A bus: address ranges, sorted, each with a handler.  A machine has one for ports, one for MMIO.
 *
 * Invariant: ranges do not overlap, so an access belongs to one range or to none; an access that
 * reaches beyond its range is nobody's.
 */
#ifndef TAKT_MACHINE_BUS_H
#define TAKT_MACHINE_BUS_H

#include "base/error.h"
#include "base/types.h"

#define BUS_RANGES 32

/* `offset` is from the start of the range; offset + size is within it; size 1, 2, 4 or 8. */
struct bus_ops {
	uint64_t (*read)(void *data, uint64_t offset, unsigned size);
	void (*write)(void *data, uint64_t offset, unsigned size, uint64_t value);
	const char *name; /* for a trace */
};

struct bus_range {
	uint64_t start, end; /* end: last address */
	const struct bus_ops *ops;
	void *data;
};

struct bus {
	struct bus_range ranges[BUS_RANGES];
	unsigned count;
};

/* -EEXIST: overlaps another range; -ENOSPC; -EINVAL: empty or wraps. */
int bus_add(struct bus *bus, uint64_t start, uint64_t size, const struct bus_ops *ops, void *data,
	    struct error *err);
/* The range that an access belongs to, or NULL. */
const struct bus_range *bus_find(const struct bus *bus, uint64_t address, unsigned size);
/* Values are cut to `size`; unclaimed reads give all ones. */
uint64_t bus_read(const struct bus *bus, uint64_t address, unsigned size);
void bus_write(const struct bus *bus, uint64_t address, unsigned size, uint64_t value);

#endif
