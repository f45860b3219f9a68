/* What a machine is made of; for src/machine/ only (others use machine.h). */
#ifndef TAKT_MACHINE_PARTS_H
#define TAKT_MACHINE_PARTS_H

#include <pthread.h>

#include "base/clock.h"
#include "base/timer.h"
#include "chip/ioapic.h"
#include "chip/lapic.h"
#include "chip/pci.h"
#include "chip/power.h"
#include "chip/pvclock.h"
#include "chip/rtc.h"
#include "chip/uart.h"
#include "machine/bus.h"
#include "machine/machine.h"
#include "virtio/pci.h"

#define CONSOLE_QUEUE 4096
#define CONSOLE_LINE 256

/* A vcpu with what belongs to it; vcpu->platform points here. */
struct vcpu_slot {
	struct machine *machine;
	struct vcpu *vcpu;
	struct lapic *lapic;
	struct pvclock pvclock;
	struct timer_queue timers; /* its local APIC's; slot 0 has the chips' too */
	/* Start-up signals, applied between two runs. --- state --- */
	uint8_t init_pending, sipi_pending, sipi_vector;
	uint8_t kicked; /* by KVM_HC_KICK_CPU: HLT ends, or the next one does not begin */
	/* Halted for good unless another vcpu signals; set by its own worker, cleared by whoever signals. */
	_Atomic bool asleep_for_good;
	struct vcpu_debug debug; /* its vcpu's, while there is a debugger */
};

/* What a saved machine must agree on with the one it is loaded into. */
struct machine_shape {
	uint64_t memory;
	uint32_t vcpus;
};

/* Input for the UART that the guest is not ready for. */
struct console_queue {
	pthread_mutex_t lock; /* any thread puts, the worker takes */
	uint8_t
	    bytes[CONSOLE_QUEUE + UART_FIFO]; /* a ring; the rest is for what the UART gives back */
	unsigned head, count;
	bool refused; /* machine_console_input() took less than it was given */
	struct work work;
	struct timer pace;
};

/* The output line under way, to recognize a panic. */
struct console_watch {
	char line[CONSOLE_LINE];
	unsigned len;
	bool unpolled; /* part of it was not the kernel's own message */
	char panic[CONSOLE_LINE];
};

/* A virtio device on the bus. */
struct device_slot {
	struct machine *machine;
	struct virtio_device *device;
	struct virtio_pci pci;
	struct work work; /* virtio_wake() */
};

struct machine {
	struct machine_shape shape;
	struct ram ram;
	const struct engine *engine;
	struct engine_machine *engine_machine;
	struct cpu_model model;
	struct mclock clock;
	struct trace *trace; /* NULL: there is none */
	/* Taken around chip accesses when there is more than one vcpu. */
	pthread_mutex_t lock;

	unsigned nvcpus;
	struct vcpu_slot *slots; /* [nvcpus] */
	struct lapic *lapics;    /* [nvcpus] */
	struct apic_bus apic_bus;
	struct ioapic ioapic;
	struct uart uart;
	struct rtc rtc;
	struct pci_host pci;
	struct power power;
	struct bus ports, mmio;
	struct virtio_env env;
	struct device_slot *devices[PCI_SLOTS]; /* the first `ndevices` */
	unsigned ndevices;
	struct virtio_device *balloon;
	struct virtio_device *console; /* the virtio one; NULL: there is none */
	struct aio *aio; /* NULL: there are no disks */
	struct work aio_work;
	struct pool *pool; /* NULL: there are no shares */

	struct work *_Atomic inbox; /* newest first */
	struct console_queue console_in;
	struct console_watch watch;
	void (*console_tx)(void *data, const uint8_t *buf, size_t len);
	void (*console_room)(void *data);
	void *console_data;

	void (*deadline_hook)(struct vcpu *v, ns_t deadline);
	/* An event that asks the machine to stop, -1 none; then raised, once. */
	_Atomic int stop_event;
	/* What happened, a bit each, while one was pending after which the machine can go on. */
	_Atomic unsigned later_events;
	_Atomic bool stopped;
	uint32_t debug_exit_value;
	void (*event)(void *data, enum machine_event ev);
	void *event_data;
	struct error error;
	bool io_held; /* requests are kept that the host could not do */
};

/* platform.c: the vcpu's view of the chips. */
extern const struct platform_ops machine_platform_ops;
/* trace.c: the same for a machine with a trace. */
extern const struct platform_ops machine_traced_ops;
void machine_trace_exit(const struct vcpu_slot *slot, enum exit_reason reason);
int machine_map_chips(struct machine *m, struct error *err);
/* -EEXIST: the port is another chip's. */
int machine_map_debug_exit(struct machine *m, uint16_t port, struct error *err);
/* machine.c: KVM's hypercalls; the lock is held. */
int64_t machine_hypercall(struct machine *m, uint64_t nr, const uint64_t arg[4]);
/* serial.c: the UART's other side. */
void machine_console_init(struct machine *m);
void machine_console_reset(struct machine *m);

/* devices.c: what is on the PCI bus. */
int machine_devices_create(struct machine *m, const struct machine_config *config,
			   struct error *err);
/* Nothing is in flight. */
void machine_devices_reset(struct machine *m);
void machine_devices_destroy(struct machine *m);
/* What is kept because the host could not do it ends as errors. */
void machine_devices_give_up(struct machine *m);
/* After a load: looks at what the guest had offered. */
void machine_devices_resume(struct machine *m);

/* Asks the machine to stop with this event when its vcpus come out of the engine; the first counts.
 */
void machine_request_stop(struct machine *m, enum machine_event ev);

static inline void machine_lock(struct machine *m)
{
	if (m->nvcpus > 1)
		pthread_mutex_lock(&m->lock);
}

static inline void machine_unlock(struct machine *m)
{
	if (m->nvcpus > 1)
		pthread_mutex_unlock(&m->lock);
}

#endif
