/* A guest's driver for unit tests: one virtio device of a machine, by its PCI slot, with rings of
 * VG_SIZE at fixed places in guest memory and any number of queues. */
#ifndef TAKT_TESTS_VIRTIO_GUEST_H
#define TAKT_TESTS_VIRTIO_GUEST_H

#include "machine/machine.h"
#include "virtio/device.h"

#define VG_SIZE 16
#define VG_RINGS 0x100000 /* of queue N: + N * 0x4000 */
#define VG_DATA 0x200000
#define VG_QUEUES 24
#define VG_NEXT 1
#define VG_WRITE 2

struct vguest {
	struct machine *m;
	struct vcpu *v;
	struct ram *ram;
	unsigned slot;
	gpa_t bar;
	uint16_t offered[VG_QUEUES], seen[VG_QUEUES]; /* ring indices */
};

void vg_open(struct vguest *g, struct machine *m, unsigned slot);
uint64_t vg_reg(struct vguest *g, unsigned offset, unsigned size);
void vg_set(struct vguest *g, unsigned offset, unsigned size, uint64_t value);
uint64_t vg_features(struct vguest *g);
uint8_t vg_status(struct vguest *g);
/* Of the device's own. */
uint64_t vg_config(struct vguest *g, unsigned offset, unsigned size);
/* As a driver begins, with these features and those queues. */
void vg_drive(struct vguest *g, uint64_t features, unsigned queues);
void *vg_host(struct vguest *g, gpa_t gpa, uint64_t size);
gpa_t vg_rings(unsigned queue); /* descriptors; + 0x1000 available, + 0x2000 used */
void vg_describe(struct vguest *g, unsigned queue, unsigned i, gpa_t address, uint32_t length,
		 uint16_t flags, uint16_t next);
void vg_offer(struct vguest *g, unsigned queue, uint16_t head);
void vg_doorbell(struct vguest *g, unsigned queue);
/* One descriptor, offered and rung for. */
void vg_give(struct vguest *g, unsigned queue, uint16_t i, gpa_t address, uint32_t length,
	     uint16_t flags);
/* Takes the next from the used ring: its length, its head in *head; -1: there is none. */
int64_t vg_answer(struct vguest *g, unsigned queue, uint32_t *head);
/* Waits for one, as a worker does. */
uint32_t vg_wait(struct vguest *g, unsigned queue, uint32_t *head);

#endif
