/* What all networks have in common: life, and the Internet checksum (RFC 1071). */
#include "backend/net.h"

#include <string.h>

int net_attach(struct net *n, struct loop *loop, void (*wake)(void *data), void *data,
	       struct error *err)
{
	int ret;

	n->wake = wake;
	n->data = data;
	ret = n->driver->attach(n, loop, err);
	n->attached = !ret;
	return ret;
}

void net_detach(struct net *n)
{
	if (n->attached)
		n->driver->detach(n);
	n->attached = false;
}

void net_close(struct net *n)
{
	n->driver->close(n);
}

/* The sum of the 16-bit words, in memory's byte order, which it does not depend on. */
static uint64_t sum_words(const uint8_t *p, size_t size)
{
	uint64_t a = 0, b = 0;
	uint16_t last = 0;

	for (; size >= 16; p += 16, size -= 16) {
		uint32_t w[4];

		memcpy(w, p, sizeof(w));
		a += (uint64_t)w[0] + w[1];
		b += (uint64_t)w[2] + w[3];
	}
	for (; size >= 2; p += 2, size -= 2) {
		memcpy(&last, p, 2);
		a += last;
	}
	if (size)
		a += *p;
	return a + b;
}

void net_finish_checksum(uint8_t *frame, size_t size, size_t start, size_t offset)
{
	uint64_t sum = sum_words(frame + start, size - start);
	uint16_t folded;

	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	folded = (uint16_t)~sum;
	if (!folded) /* UDP means by 0 that there is none; to TCP both are the same */
		folded = 0xffff;
	memcpy(frame + start + offset, &folded, 2);
}
