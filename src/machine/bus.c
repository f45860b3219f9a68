#include "machine/bus.h"

#include <errno.h>

int bus_add(struct bus *bus, uint64_t start, uint64_t size, const struct bus_ops *ops, void *data,
	    struct error *err)
{
	uint64_t end = start + size - 1;
	unsigned i;

	if (!size || end < start)
		return error_set(err, EINVAL, "bus range of %#llx bytes at %#llx is malformed",
				 (unsigned long long)size, (unsigned long long)start);
	if (bus->count == BUS_RANGES)
		return error_set(err, ENOSPC, "a bus has at most %d ranges", BUS_RANGES);
	for (i = 0; i < bus->count; i++)
		if (start <= bus->ranges[i].end && bus->ranges[i].start <= end)
			return error_set(err, EEXIST, "bus range at %#llx overlaps that at %#llx",
					 (unsigned long long)start,
					 (unsigned long long)bus->ranges[i].start);
	for (i = bus->count++; i && bus->ranges[i - 1].start > start; i--)
		bus->ranges[i] = bus->ranges[i - 1];
	bus->ranges[i] = (struct bus_range){start, end, ops, data};
	return 0;
}

const struct bus_range *bus_find(const struct bus *bus, uint64_t address, unsigned size)
{
	unsigned low = 0, high = bus->count;

	while (low < high) { /* the first range that starts above the address */
		unsigned mid = (low + high) / 2;

		if (bus->ranges[mid].start <= address)
			low = mid + 1;
		else
			high = mid;
	}
	if (!low || address > bus->ranges[low - 1].end ||
	    size - 1 > bus->ranges[low - 1].end - address)
		return NULL;
	return &bus->ranges[low - 1];
}

static uint64_t size_mask(unsigned size)
{
	return size >= 8 ? UINT64_MAX : (1ULL << size * 8) - 1;
}

uint64_t bus_read(const struct bus *bus, uint64_t address, unsigned size)
{
	const struct bus_range *r = bus_find(bus, address, size);
	uint64_t value = r ? r->ops->read(r->data, address - r->start, size) : UINT64_MAX;

	return value & size_mask(size);
}

void bus_write(const struct bus *bus, uint64_t address, unsigned size, uint64_t value)
{
	const struct bus_range *r = bus_find(bus, address, size);

	if (r)
		r->ops->write(r->data, address - r->start, size, value & size_mask(size));
}
