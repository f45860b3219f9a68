#include "machine/machine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "chip/acpi.h"
#include "machine/parts.h"
#include "machine/state.h"

#define RFLAGS_IF 0x200
#define WINDOW64_ALIGN (32 * GiB)

static struct vcpu_slot *slot_of(const struct vcpu *v)
{
	return v->platform;
}

/* --- stopping --- */

void machine_request_stop(struct machine *m, enum machine_event ev)
{
	int now = -1;

	if (!atomic_compare_exchange_strong(&m->stop_event, &now, (int)ev)) {
		if ((now == MACHINE_DEBUG || now == MACHINE_IO_HELD) && now != (int)ev)
			atomic_fetch_or(&m->later_events, 1u << ev);
		return;
	}
	for (unsigned i = 0; i < m->nvcpus; i++)
		vcpu_attention(m->slots[i].vcpu, ATTENTION_KICK);
}

/* Tells the owner, once. */
static void raise_stop(struct machine *m)
{
	int ev = atomic_load(&m->stop_event);

	if (ev < 0 || atomic_exchange(&m->stopped, true))
		return;
	uart_flush(&m->uart);
	if (m->event)
		m->event(m->event_data, (enum machine_event)ev);
}

/* A guest that has panicked ends in a reset, a halt or a triple fault: the panic is the news. */
static void request_end(struct machine *m, enum machine_event ev)
{
	machine_request_stop(m, m->watch.panic[0] ? MACHINE_PANIC : ev);
}

static void power_off(void *data)
{
	machine_request_stop(data, MACHINE_POWEROFF);
}

static void power_reset(void *data)
{
	struct machine *m = data;

	uart_flush(&m->uart); /* the panic message may still be there */
	request_end(m, MACHINE_RESET);
}

/* --- signals between vcpus, with the machine locked --- */

/* It does not sleep for good, even if who signals goes to sleep before it has woken up. */
static void wake(struct vcpu_slot *slot, uint32_t attention)
{
	atomic_store(&slot->asleep_for_good, false);
	vcpu_attention(slot->vcpu, attention);
}

static void signal_nmi(void *data, unsigned index)
{
	struct machine *m = data;

	m->slots[index].vcpu->nmi_pending = 1;
	wake(&m->slots[index], ATTENTION_NMI);
}

static void signal_init(void *data, unsigned index)
{
	struct machine *m = data;

	m->slots[index].init_pending = 1;
	m->slots[index].sipi_pending = 0;
	wake(&m->slots[index], ATTENTION_KICK);
}

static void signal_sipi(void *data, unsigned index, uint8_t vector)
{
	struct machine *m = data;

	m->slots[index].sipi_pending = 1;
	m->slots[index].sipi_vector = vector;
	wake(&m->slots[index], ATTENTION_KICK);
}

/* SDM 3A 9.4: INIT resets the processor; all but the boot processor then wait for a start-up IPI.
 */
static void apply_init(struct machine *m, struct vcpu_slot *slot)
{
	int64_t tsc_offset = slot->vcpu->tsc_offset;

	vcpu_reset(slot->vcpu);
	slot->vcpu->tsc_offset = tsc_offset;
	slot->vcpu->run_state = slot->vcpu->index ? VCPU_WAIT_SIPI : VCPU_RUNNING;
	lapic_init_reset(slot->lapic);
	m->engine->state_loaded(slot->vcpu);
}

static void apply_sipi(struct machine *m, struct vcpu_slot *slot)
{
	struct vcpu *v = slot->vcpu;

	if (v->run_state != VCPU_WAIT_SIPI)
		return;
	v->seg[SEG_CS].selector = (uint16_t)(slot->sipi_vector << 8);
	v->seg[SEG_CS].base = (uint64_t)slot->sipi_vector << 12;
	v->rip = 0;
	v->run_state = VCPU_RUNNING;
	m->engine->state_loaded(v);
}

static void apply_signals(struct machine *m, struct vcpu_slot *slot)
{
	if (slot->init_pending) {
		slot->init_pending = 0;
		apply_init(m, slot);
	}
	if (slot->sipi_pending) {
		slot->sipi_pending = 0;
		apply_sipi(m, slot);
	}
	if (slot->kicked && slot->vcpu->run_state == VCPU_HALTED) {
		slot->kicked = 0;
		slot->vcpu->run_state = VCPU_RUNNING;
	}
}

/* --- paravirtual calls (Linux Documentation/virt/kvm/x86/hypercalls.rst) --- */

#define KVM_HC_KICK_CPU 5
#define KVM_HC_SEND_IPI 10
#define KVM_ENOSYS 1000

static int64_t kick_cpu(struct machine *m, uint64_t apic_id)
{
	if (apic_id >= m->nvcpus)
		return 0;
	m->slots[apic_id].kicked = 1;
	wake(&m->slots[apic_id], ATTENTION_KICK);
	return 0;
}

/* To the APIC ids `first` + n for each bit n; returns how many there were. */
static int64_t send_ipi(struct machine *m, const uint64_t bits[2], uint32_t first, uint32_t icr)
{
	unsigned mode = icr >> 8 & 7;
	int64_t count = 0;

	if (first >= m->nvcpus)
		return 0;
	for (unsigned n = 0; n < 128 && first + n < m->nvcpus; n++) {
		if (!(bits[n / 64] >> n % 64 & 1))
			continue;
		apic_bus_deliver(&m->apic_bus, first + n, false, mode, (uint8_t)icr, false);
		count++;
	}
	return count;
}

int64_t machine_hypercall(struct machine *m, uint64_t nr, const uint64_t arg[4])
{
	switch (nr) {
	case KVM_HC_KICK_CPU: return kick_cpu(m, arg[1]);
	case KVM_HC_SEND_IPI: return send_ipi(m, arg, (uint32_t)arg[2], (uint32_t)arg[3]);
	default: return -KVM_ENOSYS;
	}
}

/* --- running --- */

void machine_post(struct machine *m, struct work *work)
{
	if (atomic_exchange(&work->queued, true))
		return;
	work->next = atomic_load_explicit(&m->inbox, memory_order_relaxed);
	while (!atomic_compare_exchange_weak_explicit(&m->inbox, &work->next, work,
						      memory_order_release, memory_order_relaxed))
		;
	vcpu_attention(m->slots[0].vcpu, ATTENTION_KICK);
}

bool machine_has_work(const struct machine *m)
{
	return atomic_load_explicit(&m->inbox, memory_order_acquire);
}

/* In the order of posting. */
static void run_inbox(struct machine *m)
{
	struct work *w = atomic_exchange_explicit(&m->inbox, NULL, memory_order_acquire);
	struct work *first = NULL;

	while (w) {
		struct work *next = w->next;

		w->next = first;
		first = w;
		w = next;
	}
	while (first) {
		w = first;
		first = w->next;
		atomic_store(&w->queued, false); /* from here on it may be posted again */
		w->fn(m, w->arg);
	}
}

ns_t machine_now(const struct machine *m)
{
	return mclock_now(&m->clock);
}

static void discipline_clock(struct machine *m)
{
	int64_t jump = mclock_discipline(&m->clock);

	if (likely(!jump))
		return;
	log_warn("the host's TSC has gone back (a suspend?): the guest's goes on where it was");
	for (unsigned i = 0; i < m->nvcpus; i++)
		m->slots[i].vcpu->tsc_offset += jump;
}

void machine_advance(struct machine *m, struct vcpu *v)
{
	struct vcpu_slot *slot = slot_of(v);

	machine_lock(m);
	if (machine_has_work(m))
		run_inbox(m);
	discipline_clock(m);
	timer_queue_expire(&slot->timers, mclock_now(&m->clock));
	pvclock_publish(&slot->pvclock);
	machine_unlock(m);
	raise_stop(m);
}

ns_t machine_next_deadline(const struct machine *m, const struct vcpu *v)
{
	(void)m;
	return timer_queue_next(&slot_of(v)->timers);
}

bool machine_vcpu_runnable(struct machine *m, struct vcpu *v)
{
	struct vcpu_slot *slot = slot_of(v);

	(void)m;
	if (v->debug && v->debug->frozen)
		return false;
	if (slot->init_pending || slot->sipi_pending || v->run_state == VCPU_RUNNING)
		return true;
	if (v->run_state != VCPU_HALTED)
		return false;
	return slot->kicked || (v->nmi_pending && !v->nmi_blocked) ||
	       (v->rflags & RFLAGS_IF && v->ops->irq_pending(slot, v) >= 0);
}

/* Only another vcpu could wake this one, by an NMI or INIT. */
static bool sleeps_for_good(struct machine *m, struct vcpu *v)
{
	if (machine_vcpu_runnable(m, v))
		return false;
	return v->run_state == VCPU_WAIT_SIPI || !(v->rflags & RFLAGS_IF);
}

static void check_dead(struct machine *m, struct vcpu *v)
{
	atomic_store(&slot_of(v)->asleep_for_good, sleeps_for_good(m, v));
	for (unsigned i = 0; i < m->nvcpus; i++)
		if (!atomic_load(&m->slots[i].asleep_for_good))
			return;
	request_end(m, MACHINE_DEAD);
}

enum exit_reason machine_run(struct machine *m, struct vcpu *v)
{
	struct vcpu_slot *slot = slot_of(v);
	struct error err = {0};
	enum exit_reason reason;

	machine_lock(m);
	apply_signals(m, slot);
	if (m->nvcpus > 1 && pvclock_running(&slot->pvclock))
		m->engine->flush_tlb(v);
	machine_unlock(m);
	atomic_store(&slot->asleep_for_good, false);
	reason = m->engine->run(v, &err);
	if (unlikely(m->trace))
		machine_trace_exit(slot, reason);
	machine_lock(m);
	if (m->nvcpus > 1)
		pvclock_preempted(&slot->pvclock);
	uart_flush(&m->uart);
	switch (reason) {
	case EXIT_SHUTDOWN: request_end(m, MACHINE_TRIPLE_FAULT); break;
	case EXIT_DEBUG: machine_request_stop(m, MACHINE_DEBUG); break;
	case EXIT_ERROR:
		m->error = err;
		machine_request_stop(m, MACHINE_ERROR);
		break;
	case EXIT_HALTED: check_dead(m, v); break;
	default: break;
	}
	machine_unlock(m);
	raise_stop(m);
	return reason;
}

void machine_continue(struct machine *m)
{
	unsigned later = atomic_exchange(&m->later_events, 0);
	int next = later ? __builtin_ctz(later) : m->io_held ? MACHINE_IO_HELD : -1;

	if (later)
		atomic_store(&m->later_events, later & (later - 1));
	atomic_store(&m->stop_event, next);
	atomic_store(&m->stopped, false);
}

bool machine_stopped(const struct machine *m)
{
	return atomic_load(&m->stopped);
}

void machine_add_stolen(struct machine *m, struct vcpu *v, ns_t ns)
{
	(void)m;
	slot_of(v)->pvclock.stolen += (uint64_t)ns;
}

void machine_set_deadline_hook(struct machine *m, void (*hook)(struct vcpu *v, ns_t deadline))
{
	m->deadline_hook = hook;
}

static void deadline_earlier(void *data, ns_t deadline)
{
	struct vcpu_slot *slot = data;

	if (slot->machine->deadline_hook)
		slot->machine->deadline_hook(slot->vcpu, deadline);
	else
		vcpu_attention(slot->vcpu, ATTENTION_KICK);
}

/* --- building --- */

static void wire_chips(struct machine *m)
{
	struct timer_queue *timers = &m->slots[0].timers;

	m->apic_bus = (struct apic_bus){
	    .lapics = m->lapics,
	    .count = m->nvcpus,
	    .clock = &m->clock,
	    .ram = &m->ram,
	    .eoi = ioapic_eoi,
	    .eoi_data = &m->ioapic,
	    .nmi = signal_nmi,
	    .init = signal_init,
	    .sipi = signal_sipi,
	    .cpu_data = m,
	};
	m->ioapic.bus = &m->apic_bus;
	m->uart.irq = (struct irq_line){ioapic_set, &m->ioapic, UART_IRQ};
	m->rtc.irq = (struct irq_line){ioapic_set, &m->ioapic, RTC_IRQ};
	m->rtc.clock = &m->clock;
	m->rtc.timers = timers;
	m->power = (struct power){power_off, power_reset, m};
	pci_host_init(&m->pci, ALIGN_UP(RAM_HIGH_BASE + m->ram.size - m->ram.low_size,
					(uint64_t)WINDOW64_ALIGN));
}

static int create_vcpu(struct machine *m, unsigned index, struct error *err)
{
	struct vcpu_slot *slot = &m->slots[index];
	struct lapic *lapic = &m->lapics[index];
	struct vcpu *v = m->engine->vcpu_create(m->engine_machine, index, err);

	if (!v)
		return -ENOMEM;
	v->ops = m->trace ? &machine_traced_ops : &machine_platform_ops;
	v->platform = slot;
	v->model = &m->model;
	v->ram = &m->ram;
	lapic->bus = &m->apic_bus;
	lapic->vcpu = v;
	lapic->timers = &slot->timers;
	slot->machine = m;
	slot->vcpu = v;
	slot->lapic = lapic;
	slot->pvclock.clock = &m->clock;
	slot->pvclock.ram = &m->ram;
	slot->pvclock.vcpu = v;
	slot->timers.earlier = deadline_earlier;
	slot->timers.earlier_data = slot;
	return 0;
}

static int build(struct machine *m, const struct machine_config *config, struct error *err)
{
	struct engine_config engine_config = config->engine_config;
	int ret = (m->engine->ram_file ? ram_init_file : ram_init)(&m->ram, config->memory, err);

	if (ret)
		return ret;
	m->slots = calloc(m->nvcpus, sizeof(*m->slots));
	m->lapics = calloc(m->nvcpus, sizeof(*m->lapics));
	if (!m->slots || !m->lapics)
		return error_set(err, ENOMEM, "not enough memory for a machine");
	engine_config.vcpus = m->nvcpus;
	m->engine_machine = m->engine->machine_create(&m->ram, &engine_config, err);
	if (!m->engine_machine)
		return -ENOMEM;
	for (unsigned i = 0; i < m->nvcpus; i++) {
		ret = create_vcpu(m, i, err);
		if (ret)
			return ret;
	}
	wire_chips(m);
	ret = machine_map_chips(m, err);
	if (!ret && config->debug_exit_port)
		ret = machine_map_debug_exit(m, config->debug_exit_port, err);
	return ret ? ret : machine_devices_create(m, config, err);
}

struct machine *machine_create(const struct machine_config *config, struct error *err)
{
	struct machine *m;

	if (!config->vcpus || config->vcpus > MACHINE_VCPUS_MAX) {
		error_set(err, EINVAL, "a machine has 1 to %d vcpus, not %u", MACHINE_VCPUS_MAX,
			  config->vcpus);
		return NULL;
	}
	m = calloc(1, sizeof(*m));
	if (!m) {
		error_set(err, ENOMEM, "not enough memory for a machine");
		return NULL;
	}
	pthread_mutex_init(&m->lock, NULL);
	m->shape = (struct machine_shape){config->memory, config->vcpus};
	m->nvcpus = config->vcpus;
	m->engine = config->engine;
	m->model = *config->model;
	m->trace = config->trace;
	m->console_tx = config->console_tx;
	m->console_room = config->console_room;
	m->console_data = config->console_data;
	m->event = config->event;
	m->event_data = config->event_data;
	atomic_store(&m->stop_event, -1);
	machine_console_init(m);
	if (build(m, config, err)) {
		machine_destroy(m);
		return NULL;
	}
	return m;
}

void machine_destroy(struct machine *m)
{
	if (!m)
		return;
	machine_devices_destroy(m);
	for (unsigned i = 0; m->slots && i < m->nvcpus; i++)
		if (m->slots[i].vcpu)
			m->engine->vcpu_destroy(m->slots[i].vcpu);
	if (m->engine_machine)
		m->engine->machine_destroy(m->engine_machine);
	free(m->slots);
	free(m->lapics);
	ram_destroy(&m->ram);
	pthread_mutex_destroy(&m->console_in.lock);
	pthread_mutex_destroy(&m->lock);
	free(m);
}

/* Everything at power-on, RAM zero. */
static int reset_parts(struct machine *m, struct error *err)
{
	int ret;

	machine_drain(m); /* what a disk reads goes to the old memory */
	machine_devices_give_up(m);
	ret = ram_clear(&m->ram, err);
	if (ret)
		return ret;
	ram_dirty_all(&m->ram);
	mclock_init(&m->clock, clock_tsc_khz());
	for (unsigned i = 0; i < m->nvcpus; i++) {
		struct vcpu_slot *slot = &m->slots[i];
		struct vcpu *v = slot->vcpu;

		vcpu_reset(v);
		v->tsc_offset = m->clock.tsc_offset;
		v->run_state = i ? VCPU_WAIT_SIPI : VCPU_RUNNING;
		v->nmi_pending = 0;
		slot->init_pending = slot->sipi_pending = slot->kicked = 0;
		atomic_store(&slot->asleep_for_good, i != 0);
		pvclock_reset(&slot->pvclock);
		lapic_reset(slot->lapic);
	}
	ioapic_reset(&m->ioapic);
	uart_reset(&m->uart);
	rtc_reset(&m->rtc);
	pci_host_reset(&m->pci);
	machine_devices_reset(m);
	machine_console_reset(m);
	atomic_store(&m->stop_event, -1);
	atomic_store(&m->later_events, 0);
	atomic_store(&m->stopped, false);
	return 0;
}

static void tell_engine(struct machine *m)
{
	for (unsigned i = 0; i < m->nvcpus; i++)
		m->engine->state_loaded(m->slots[i].vcpu);
}

int machine_reset(struct machine *m, struct error *err)
{
	struct acpi_config acpi = {.vcpus = m->nvcpus, .window64 = m->pci.window64};
	int ret = reset_parts(m, err);

	if (!ret)
		ret = acpi_build(&m->ram, &acpi, err);
	tell_engine(m);
	return ret;
}

/* --- state --- */

static const struct state_field slot_fields[] = {
    STATE_U8(struct vcpu_slot, init_pending),
    STATE_U8(struct vcpu_slot, sipi_pending),
    STATE_U8(struct vcpu_slot, sipi_vector),
    STATE_FIELD(struct vcpu_slot, kicked, uint8_t, STATE_TYPE_U8, 2),
};

static const struct state_table slot_table = {
    .name = "vcpu-signals",
    .version = 2,
    .fields = slot_fields,
    .nfields = ARRAY_SIZE(slot_fields),
};

static const struct state_field shape_fields[] = {
    STATE_U64(struct machine_shape, memory),
    STATE_U32(struct machine_shape, vcpus),
};

static const struct state_table shape_table = {
    .name = "machine",
    .version = 1,
    .fields = shape_fields,
    .nfields = ARRAY_SIZE(shape_fields),
};

#define OBJECTS_FIXED 6 /* machine, clock, ioapic, uart, rtc, pci host */
#define OBJECTS_PER_VCPU 4
#define OBJECTS_PER_DEVICE (4 + VIRTIO_QUEUES_MAX) /* msix, transport, device, own, queues */

/* A device's objects but for its config space; queues count on from slot * VIRTIO_QUEUES_MAX. */
static struct state_object *list_device(struct state_object *o, struct device_slot *slot)
{
	struct virtio_device *d = slot->device;
	uint32_t where = slot->pci.pci.slot;

	*o++ = (struct state_object){&msix_state_table, &slot->pci.msix, where};
	*o++ = (struct state_object){&virtio_pci_state_table, &slot->pci, where};
	*o++ = (struct state_object){&virtio_device_state_table, d, where};
	for (unsigned i = 0; i < d->nqueues; i++)
		*o++ = (struct state_object){&virtq_state_table, &d->queues[i],
					     where * VIRTIO_QUEUES_MAX + i};
	if (d->ops->state)
		*o++ = (struct state_object){d->ops->state, d, where};
	return o;
}

/* The whole machine, `shape` standing for its own.  The clock comes first: others arm timers when
 * they are loaded.  Free the list. */
static struct state_object *list_objects(struct machine *m, struct machine_shape *shape,
					 size_t *count)
{
	struct state_object *list = calloc(OBJECTS_FIXED + OBJECTS_PER_VCPU * m->nvcpus +
					       PCI_SLOTS + OBJECTS_PER_DEVICE * m->ndevices,
					   sizeof(*list));
	struct state_object *o = list;

	if (!list)
		return NULL;
	*o++ = (struct state_object){&shape_table, shape, 0};
	*o++ = (struct state_object){&mclock_state_table, &m->clock, 0};
	for (unsigned i = 0; i < m->nvcpus; i++) {
		struct vcpu_slot *slot = &m->slots[i];

		*o++ = (struct state_object){&vcpu_state_table, slot->vcpu, i};
		*o++ = (struct state_object){&slot_table, slot, i};
		*o++ = (struct state_object){&lapic_state_table, slot->lapic, i};
		*o++ = (struct state_object){&pvclock_state_table, &slot->pvclock, i};
	}
	*o++ = (struct state_object){&ioapic_state_table, &m->ioapic, 0};
	*o++ = (struct state_object){&uart_state_table, &m->uart, 0};
	*o++ = (struct state_object){&rtc_state_table, &m->rtc, 0};
	*o++ = (struct state_object){&pci_host_state_table, &m->pci, 0};
	for (unsigned i = 0; i < PCI_SLOTS; i++)
		if (m->pci.slots[i])
			*o++ = (struct state_object){&pci_device_state_table, m->pci.slots[i], i};
	for (unsigned i = 0; i < m->ndevices; i++)
		o = list_device(o, m->devices[i]);
	*count = (size_t)(o - list);
	return list;
}

int machine_save(struct machine *m, struct state_buffer *buf, struct error *err)
{
	struct machine_shape shape = m->shape;
	size_t count;
	struct state_object *list = list_objects(m, &shape, &count);
	int ret = 0;

	if (!list)
		return error_set(err, ENOMEM, "not enough memory to save the machine");
	machine_drain(m);
	if (m->io_held)
		ret = error_set(err, EBUSY, "the machine waits for its host's disk");
	for (unsigned i = 0; i < m->nvcpus && !ret; i++)
		ret = vcpu_settle(m->slots[i].vcpu, err);
	if (!ret)
		ret = state_save(buf, list, count, &m->ram, err);
	free(list);
	return ret;
}

/* The loaded vcpus' TSCs go on as far from the machine's as they were.  Attention is not state: let
 * them look at everything. */
static void adopt_vcpus(struct machine *m)
{
	uint64_t moved = (uint64_t)m->clock.tsc_offset - m->clock.saved_offset;

	for (unsigned i = 0; i < m->nvcpus; i++) {
		struct vcpu *v = m->slots[i].vcpu;

		v->tsc_offset = (int64_t)((uint64_t)v->tsc_offset + moved);
		atomic_fetch_or(&v->attention, ATTENTION_IRQ | ATTENTION_NMI);
		atomic_store(&m->slots[i].asleep_for_good, sleeps_for_good(m, v));
	}
}

int machine_load(struct machine *m, const struct state_buffer *buf, struct error *err)
{
	struct machine_shape shape;
	size_t count;
	struct state_object *list;
	int ret = reset_parts(m, err);

	if (ret)
		return ret;
	list = list_objects(m, &shape, &count);
	if (!list)
		return error_set(err, ENOMEM, "not enough memory to load the machine");
	ret = state_load(buf, list, count, &m->ram, err);
	free(list);
	if (!ret && (shape.memory != m->shape.memory || shape.vcpus != m->shape.vcpus))
		ret =
		    error_set(err, EINVAL,
			      "the saved machine has %llu MiB and %u vcpus: give it the same shape",
			      (unsigned long long)(shape.memory / MiB), shape.vcpus);
	if (!ret)
		adopt_vcpus(m);
	tell_engine(m);
	if (!ret)
		machine_devices_resume(m);
	return ret;
}

/* --- dirty pages --- */

int machine_dirty_start(struct machine *m, struct error *err)
{
	int ret = ram_dirty_start(&m->ram, err);

	if (!ret)
		ret = m->engine->dirty_watch(m->engine_machine, true, err);
	if (ret)
		ram_dirty_stop(&m->ram);
	return ret;
}

int machine_dirty_take(struct machine *m, uint64_t *bitmap, struct error *err)
{
	int ret;

	machine_drain(m); /* what is in flight is written when it ends */
	ret = m->engine->dirty_collect(m->engine_machine, err);
	if (ret)
		return ret;
	memcpy(bitmap, m->ram.dirty, ram_dirty_bytes(&m->ram));
	memset(m->ram.dirty, 0, ram_dirty_bytes(&m->ram));
	return 0;
}

void machine_dirty_stop(struct machine *m)
{
	m->engine->dirty_watch(m->engine_machine, false, NULL);
	ram_dirty_stop(&m->ram);
}

/* --- looking --- */

struct ram *machine_ram(struct machine *m)
{
	return &m->ram;
}

unsigned machine_vcpu_count(const struct machine *m)
{
	return m->nvcpus;
}

struct vcpu *machine_vcpu(struct machine *m, unsigned index)
{
	return m->slots[index].vcpu;
}

struct engine_machine *machine_engine(struct machine *m)
{
	return m->engine_machine;
}

const char *machine_panic_text(const struct machine *m)
{
	return m->watch.panic;
}

uint32_t machine_debug_exit_value(const struct machine *m)
{
	return m->debug_exit_value;
}

const struct error *machine_error(const struct machine *m)
{
	return &m->error;
}
