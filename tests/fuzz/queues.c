/* Virtqueues of every device, through the PCI transport: a driver that begins well and then puts
 * whatever it likes into its rings and buffers. */
#include <string.h>

#include "../unit/virtio_guest.h"
#include "chip/pci.h"
#include "fuzz.h"
#include "virtio/pci.h"
#include "x86/vcpu.h"

#define QUEUES 6
#define DATA_SIZE (64 * KiB)

enum step {
	DESCRIBE, /* a descriptor that makes sense, on the whole */
	RAW,      /* one that is any 16 bytes */
	DATA,
	OFFER,
	DOORBELL,
	REGISTER,
	CONFIG,
	SETTLE,
	ADVANCE,
	RING, /* any bytes anywhere in the rings */
	CONNECT, /* from the host, to the vsock */
	REQUEST, /* header, data and room for a reply, offered and rung for */
	STEPS
};

static void describe(struct vguest *g, struct fuzz_input *in, unsigned q)
{
	unsigned i = fuzz_u8(in), flags = fuzz_u8(in);

	vg_describe(g, q, i % VG_SIZE, VG_DATA + fuzz_u16(in), fuzz_u16(in), flags & 7, flags >> 4);
}

static void raw(struct vguest *g, struct fuzz_input *in, unsigned q)
{
	unsigned i = fuzz_u8(in) % VG_SIZE;
	gpa_t address = fuzz_u64(in);
	uint32_t length = fuzz_u32(in);

	vg_describe(g, q, i, address, length, fuzz_u16(in), fuzz_u16(in));
}

static void data(struct vguest *g, struct fuzz_input *in)
{
	uint16_t at = fuzz_u16(in);
	size_t n;
	const uint8_t *p = fuzz_bytes(in, fuzz_u8(in), &n);

	memcpy(vg_host(g, VG_DATA + at, 256), p, n);
}

static void ring(struct vguest *g, struct fuzz_input *in, unsigned q)
{
	uint16_t at = fuzz_u16(in) % 0x3000;
	size_t n;
	const uint8_t *p = fuzz_bytes(in, fuzz_u8(in) % 64, &n);

	memcpy(vg_host(g, vg_rings(q) + at, 64), p, n);
}

static void request(struct vguest *g, struct fuzz_input *in, unsigned q)
{
	unsigned i = g->offered[q] % 4 * 3; /* three descriptors */
	uint32_t reply = fuzz_u16(in);
	size_t n;
	const uint8_t *p = fuzz_bytes(in, fuzz_u16(in) % 1025, &n);
	gpa_t at = VG_DATA + i * 0x800;

	memcpy(vg_host(g, at, 1024), p, n);
	n = MAX(n, 1u);
	vg_describe(g, q, i, at, (uint32_t)n, VG_NEXT, (uint16_t)(i + 1));
	vg_describe(g, q, i + 1, at + 0x400, MAX(reply, 1u), VG_NEXT | VG_WRITE, (uint16_t)(i + 2));
	vg_describe(g, q, i + 2, at + 0x800, 1, VG_WRITE, 0);
	vg_offer(g, q, (uint16_t)i);
	vg_doorbell(g, q);
}

/* Vector 1 for all queues, 0 for the configuration; some of them masked. */
static void interrupts_on(struct vguest *g, unsigned queues, unsigned how)
{
	static const unsigned control = 2;
	gpa_t config = PCI_ECAM_GPA + ((gpa_t)g->slot << 15), at = 0;
	const struct platform_ops *ops = g->v->ops;

	for (at = ops->mmio_read(g->v->platform, config + 0x34, 1);
	     at && ops->mmio_read(g->v->platform, config + at, 1) != 0x11;)
		at = ops->mmio_read(g->v->platform, config + at + 1, 1);
	fuzz_check(at);
	for (unsigned i = 0; i < 2; i++) {
		vg_set(g, VIRTIO_PCI_MSIX + i * 16, 8, 0xfee00000);
		vg_set(g, VIRTIO_PCI_MSIX + i * 16 + 8, 4, 0x50 + i);
		vg_set(g, VIRTIO_PCI_MSIX + i * 16 + 12, 4, how >> i & 1);
	}
	ops->mmio_write(g->v->platform, config + at + control, 2, 0x8000 | (how & 4 ? 0x4000 : 0));
	vg_set(g, 0x10, 2, 0);
	for (unsigned i = 0; i < queues; i++) {
		vg_set(g, 0x16, 2, i);
		vg_set(g, 0x1a, 2, 1);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct fuzz_input in = {bytes, bytes + size};
	struct vguest g;
	unsigned queues;

	fuzz_machine_reset();
	vg_open(&g, fuzz_machine(), FUZZ_RNG + fuzz_u8(&in) % FUZZ_VSOCK);
	queues = MIN((unsigned)vg_reg(&g, 0x12, 2), QUEUES);
	vg_drive(&g, vg_features(&g) & (fuzz_u64(&in) | ~0xffffffffULL), queues);
	interrupts_on(&g, queues, fuzz_u8(&in));
	while (fuzz_left(&in)) {
		unsigned op = fuzz_u8(&in), q = op / STEPS % queues;

		switch ((enum step)(op % STEPS)) {
		case DESCRIBE: describe(&g, &in, q); break;
		case RAW: raw(&g, &in, q); break;
		case DATA: data(&g, &in); break;
		case OFFER: vg_offer(&g, q, fuzz_u8(&in)); break;
		case DOORBELL: vg_doorbell(&g, q); break;
		case REGISTER: {
			unsigned at = fuzz_u8(&in) % 0x40;

			vg_set(&g, at, 1u << op % 4, fuzz_u64(&in));
			break;
		}
		case CONFIG: {
			unsigned at = fuzz_u8(&in);

			vg_config(&g, at, 1u << op % 4);
			vg_set(&g, VIRTIO_PCI_DEVICE + at, 1u << op % 4, fuzz_u64(&in));
			break;
		}
		case SETTLE: fuzz_machine_settle(); break;
		case ADVANCE: machine_advance(g.m, g.v); break;
		case RING: ring(&g, &in, q); break;
		case REQUEST: request(&g, &in, q); break;
		case CONNECT: fuzz_host_connects(); break;
		case STEPS: break;
		}
	}
	fuzz_machine_settle();
	return 0;
}
