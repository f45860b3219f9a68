#include "virtio_guest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "chip/pci.h"
#include "virtio/pci.h"

#define FEATURE_SELECT 0x00
#define FEATURE 0x04
#define DRIVER_SELECT 0x08
#define DRIVER_FEATURE 0x0c
#define STATUS 0x14
#define QUEUE_SELECT 0x16
#define QUEUE_SIZE 0x18
#define QUEUE_ENABLE 0x1c
#define QUEUE_DESC 0x20

static void check(bool good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "virtio_guest: %s\n", what);
	abort();
}

static gpa_t config(const struct vguest *g, unsigned reg)
{
	return PCI_ECAM_GPA + ((uint64_t)g->slot << 15) + reg;
}

void vg_open(struct vguest *g, struct machine *m, unsigned slot)
{
	*g = (struct vguest){.m = m, .v = machine_vcpu(m, 0), .ram = machine_ram(m), .slot = slot};
	g->v->ops->mmio_write(g->v->platform, config(g, 4), 2, 6);
	g->bar = g->v->ops->mmio_read(g->v->platform, config(g, 0x10), 4) & ~15ULL;
	g->bar |= g->v->ops->mmio_read(g->v->platform, config(g, 0x14), 4) << 32;
	check(g->bar, "no device in the slot");
}

uint64_t vg_reg(struct vguest *g, unsigned offset, unsigned size)
{
	return g->v->ops->mmio_read(g->v->platform, g->bar + offset, size);
}

void vg_set(struct vguest *g, unsigned offset, unsigned size, uint64_t value)
{
	g->v->ops->mmio_write(g->v->platform, g->bar + offset, size, value);
}

uint64_t vg_features(struct vguest *g)
{
	uint64_t low;

	vg_set(g, FEATURE_SELECT, 4, 0);
	low = vg_reg(g, FEATURE, 4);
	vg_set(g, FEATURE_SELECT, 4, 1);
	return vg_reg(g, FEATURE, 4) << 32 | low;
}

uint8_t vg_status(struct vguest *g)
{
	return (uint8_t)vg_reg(g, STATUS, 1);
}

uint64_t vg_config(struct vguest *g, unsigned offset, unsigned size)
{
	return vg_reg(g, VIRTIO_PCI_DEVICE + offset, size);
}

void *vg_host(struct vguest *g, gpa_t gpa, uint64_t size)
{
	void *p = ram_host(g->ram, gpa, size);

	check(p, "not in memory");
	return p;
}

gpa_t vg_rings(unsigned queue)
{
	return VG_RINGS + (uint64_t)queue * 0x4000;
}

void vg_drive(struct vguest *g, uint64_t features, unsigned queues)
{
	features |= VIRTIO_F_VERSION_1;
	vg_set(g, STATUS, 1, 0);
	check(!vg_status(g), "the device is not reset");
	vg_set(g, STATUS, 1, 3);
	vg_set(g, DRIVER_SELECT, 4, 0);
	vg_set(g, DRIVER_FEATURE, 4, (uint32_t)features);
	vg_set(g, DRIVER_SELECT, 4, 1);
	vg_set(g, DRIVER_FEATURE, 4, features >> 32);
	vg_set(g, STATUS, 1, 11);
	check(vg_status(g) == 11, "the features are refused");
	for (unsigned i = 0; i < queues; i++) {
		memset(vg_host(g, vg_rings(i), 0x4000), 0, 0x4000);
		g->offered[i] = g->seen[i] = 0;
		vg_set(g, QUEUE_SELECT, 2, i);
		vg_set(g, QUEUE_SIZE, 2, VG_SIZE);
		vg_set(g, QUEUE_DESC, 8, vg_rings(i));
		vg_set(g, QUEUE_DESC + 8, 8, vg_rings(i) + 0x1000);
		vg_set(g, QUEUE_DESC + 16, 8, vg_rings(i) + 0x2000);
		vg_set(g, QUEUE_ENABLE, 2, 1);
	}
	vg_set(g, STATUS, 1, 15);
	check(vg_status(g) == 15, "the device is not ready");
}

void vg_describe(struct vguest *g, unsigned queue, unsigned i, gpa_t address, uint32_t length,
		 uint16_t flags, uint16_t next)
{
	uint8_t *d = vg_host(g, vg_rings(queue) + i * 16, 16);

	memcpy(d, &address, 8);
	memcpy(d + 8, &length, 4);
	memcpy(d + 12, &flags, 2);
	memcpy(d + 14, &next, 2);
}

void vg_offer(struct vguest *g, unsigned queue, uint16_t head)
{
	uint8_t *avail = vg_host(g, vg_rings(queue) + 0x1000, 4 + 2 * VG_SIZE);

	memcpy(avail + 4 + g->offered[queue] % VG_SIZE * 2, &head, 2);
	g->offered[queue]++;
	memcpy(avail + 2, &g->offered[queue], 2);
}

void vg_doorbell(struct vguest *g, unsigned queue)
{
	vg_set(g, VIRTIO_PCI_NOTIFY + 4 * queue, 2, queue);
}

void vg_give(struct vguest *g, unsigned queue, uint16_t i, gpa_t address, uint32_t length,
	     uint16_t flags)
{
	vg_describe(g, queue, i, address, length, flags, 0);
	vg_offer(g, queue, i);
	vg_doorbell(g, queue);
}

int64_t vg_answer(struct vguest *g, unsigned queue, uint32_t *head)
{
	const uint8_t *used = vg_host(g, vg_rings(queue) + 0x2000, 4 + 8 * VG_SIZE);
	uint16_t index;
	uint32_t length;

	memcpy(&index, used + 2, 2);
	if (index == g->seen[queue])
		return -1;
	memcpy(head, used + 4 + g->seen[queue] % VG_SIZE * 8, 4);
	memcpy(&length, used + 4 + g->seen[queue] % VG_SIZE * 8 + 4, 4);
	g->seen[queue]++;
	return length;
}

uint32_t vg_wait(struct vguest *g, unsigned queue, uint32_t *head)
{
	int64_t length;

	while ((length = vg_answer(g, queue, head)) < 0) {
		machine_advance(g->m, g->v);
		usleep(20);
	}
	return (uint32_t)length;
}
