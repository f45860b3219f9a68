#include "chip/lapic.h"

#include <errno.h>
#include <string.h>

/* Register offsets in the xAPIC page; the x2APIC MSR is 0x800 + offset / 16. */
#define REG_ID 0x020
#define REG_VERSION 0x030
#define REG_TPR 0x080
#define REG_APR 0x090
#define REG_PPR 0x0a0
#define REG_EOI 0x0b0
#define REG_LDR 0x0d0
#define REG_DFR 0x0e0
#define REG_SVR 0x0f0
#define REG_ISR 0x100
#define REG_TMR 0x180
#define REG_IRR 0x200
#define REG_ESR 0x280
#define REG_ICR_LOW 0x300
#define REG_ICR_HIGH 0x310
#define REG_LVT_TIMER 0x320
#define REG_LVT_ERROR 0x370
#define REG_TIMER_INITIAL 0x380
#define REG_TIMER_CURRENT 0x390
#define REG_TIMER_DIVIDE 0x3e0
#define REG_SELF_IPI 0x3f0 /* x2APIC only */

#define VERSION 0x00050014u /* integrated APIC, six LVT entries */

#define BASE_BSP (1u << 8)
#define BASE_X2APIC (1u << 10)
#define BASE_ENABLE (1u << 11)

#define SVR_ENABLE (1u << 8)
#define LVT_MASKED (1u << 16)
#define LVT_TIMER_MODE (3u << 17)
#define LVT_TIMER_PERIODIC (1u << 17)
#define LVT_TIMER_DEADLINE (2u << 17)

#define ICR_LOGICAL (1u << 11)
#define ICR_PENDING (1u << 12) /* delivery status: always idle here */
#define ICR_LEVEL_ASSERT (1u << 14)
#define ICR_TRIGGER_LEVEL (1u << 15)

#define ESR_SEND_ILLEGAL (1u << 5)
#define ESR_RECEIVE_ILLEGAL (1u << 6)
#define ESR_REGISTER_ILLEGAL (1u << 7)

/* A guest may ask for a tick every nanosecond; it gets one every 200 us, as on KVM.  With ticks
 * that come faster than their handler ends, nothing else would ever run. */
#define PERIOD_MIN_NS 200000

#define PV_EOI_ENABLE 1u

/* Bits a guest can write in each LVT entry. */
static const uint32_t lvt_writable[LVT_COUNT] = {
    [LVT_TIMER] = 0x000700ff, [LVT_THERMAL] = 0x000107ff, [LVT_PERF] = 0x000107ff,
    [LVT_LINT0] = 0x0001a7ff, [LVT_LINT1] = 0x0001a7ff,   [LVT_ERROR] = 0x000100ff,
};

/* --- vectors --- */

static bool bit_test(const uint32_t *set, uint8_t vector)
{
	return set[vector / 32] >> (vector % 32) & 1;
}

static void bit_set(uint32_t *set, uint8_t vector)
{
	set[vector / 32] |= 1u << (vector % 32);
}

static void bit_clear(uint32_t *set, uint8_t vector)
{
	set[vector / 32] &= ~(1u << (vector % 32));
}

static int bit_highest(const uint32_t *set)
{
	for (int i = 7; i >= 0; i--)
		if (set[i])
			return i * 32 + 31 - __builtin_clz(set[i]);
	return -1;
}

static bool hardware_enabled(const struct lapic *l)
{
	return l->apic_base & BASE_ENABLE;
}

static bool software_enabled(const struct lapic *l)
{
	return l->svr & SVR_ENABLE;
}

static bool x2apic(const struct lapic *l)
{
	return l->apic_base & BASE_X2APIC;
}

static uint32_t ppr(const struct lapic *l)
{
	int isr = bit_highest(l->isr);
	uint32_t in_service = isr < 0 ? 0 : (uint32_t)isr & 0xf0;

	return (l->tpr & 0xf0) >= in_service ? l->tpr : in_service;
}

/* Restores the invariant of `deliverable`; tells the vcpu when there is something new for it. */
static void update(struct lapic *l)
{
	int vector = bit_highest(l->irr);
	int before = atomic_load_explicit(&l->deliverable, memory_order_relaxed);

	if (vector >= 0 && l->pv_eoi_pending) {
		/* Whether the one before has ended only lapic_pending() can find out. */
		vcpu_attention(l->vcpu, ATTENTION_IRQ);
		return;
	}
	if (vector >= 0 && (!hardware_enabled(l) || (uint32_t)vector >> 4 <= ppr(l) >> 4))
		vector = -1;
	atomic_store_explicit(&l->deliverable, vector, memory_order_relaxed);
	if (vector >= 0 && before < 0)
		vcpu_attention(l->vcpu, ATTENTION_IRQ);
}

static void report_error(struct lapic *l, uint32_t bits);

static void accept_fixed(struct lapic *l, uint8_t vector, bool level)
{
	if (!hardware_enabled(l) || !software_enabled(l))
		return;
	if (vector < 16) {
		report_error(l, ESR_RECEIVE_ILLEGAL);
		return;
	}
	if (level)
		bit_set(l->tmr, vector);
	else
		bit_clear(l->tmr, vector);
	bit_set(l->irr, vector);
	update(l);
}

static void accept(struct lapic *l, unsigned mode, uint8_t vector, bool level)
{
	struct apic_bus *bus = l->bus;

	switch (mode) {
	case APIC_FIXED:
	case APIC_LOWEST: accept_fixed(l, vector, level); break;
	case APIC_NMI:
		if (bus->nmi)
			bus->nmi(bus->cpu_data, l->id);
		break;
	case APIC_INIT:
		if (bus->init)
			bus->init(bus->cpu_data, l->id);
		break;
	case APIC_SIPI:
		if (bus->sipi)
			bus->sipi(bus->cpu_data, l->id, vector);
		break;
	default: /* SMI, ExtINT: no chip of this platform sends them */ break;
	}
}

static void lvt_deliver(struct lapic *l, enum lapic_lvt which)
{
	uint32_t lvt = l->lvt[which];

	if (!(lvt & LVT_MASKED))
		accept(l, which == LVT_TIMER || which == LVT_ERROR ? APIC_FIXED : lvt >> 8 & 7,
		       (uint8_t)lvt, false);
}

/* SDM 3A 11.5.3.  The error interrupt's own illegal vector must not report itself for ever. */
static void report_error(struct lapic *l, uint32_t bits)
{
	if (l->esr_pending & bits)
		return;
	l->esr_pending |= bits;
	lvt_deliver(l, LVT_ERROR);
}

static void eoi(struct lapic *l)
{
	int vector = bit_highest(l->isr);

	if (vector < 0)
		return;
	bit_clear(l->isr, (uint8_t)vector);
	if (bit_test(l->tmr, (uint8_t)vector) && l->bus->eoi)
		l->bus->eoi(l->bus->eoi_data, (uint8_t)vector);
	update(l);
}

/* --- KVM PV EOI --- */

static uint32_t *pv_eoi_flag(const struct lapic *l)
{
	return l->pv_eoi & PV_EOI_ENABLE ? ram_host(l->bus->ram, l->pv_eoi & ~3ULL, 4) : NULL;
}

static void pv_eoi_flag_set(struct lapic *l, uint32_t *flag, bool on)
{
	*flag = (*flag & ~1u) | on;
	ram_written(l->bus->ram, l->pv_eoi & ~3ULL, sizeof(*flag));
}

/* Offers the guest to end the interrupt just taken without an exit.  Only when nothing waits behind
 * it and no I/O APIC pin has to hear of its end. */
static void pv_eoi_offer(struct lapic *l, uint8_t vector)
{
	uint32_t *flag = pv_eoi_flag(l);

	if (!flag || bit_test(l->tmr, vector) || bit_highest(l->irr) >= 0)
		return;
	pv_eoi_flag_set(l, flag, true);
	l->pv_eoi_pending = 1;
}

/* Settles the offer: either the guest has cleared the flag, which was its EOI, or the flag is taken
 * back, if something waits, so that the guest's EOI comes here. */
void lapic_pv_eoi_sync(struct lapic *l)
{
	uint32_t *flag = pv_eoi_flag(l);

	if (flag && *flag & 1) {
		if (bit_highest(l->irr) < 0)
			return;
		pv_eoi_flag_set(l, flag, false);
		l->pv_eoi_pending = 0;
		update(l);
		return;
	}
	l->pv_eoi_pending = 0;
	eoi(l);
}

/* Before anything that depends on ISR. */
static void pv_eoi_settle(struct lapic *l)
{
	uint32_t *flag = pv_eoi_flag(l);

	if (!l->pv_eoi_pending)
		return;
	l->pv_eoi_pending = 0;
	if (flag && *flag & 1)
		pv_eoi_flag_set(l, flag, false);
	else
		eoi(l);
}

int lapic_ack(struct lapic *l)
{
	int vector = lapic_pending(l);

	if (vector < 0)
		return -1;
	bit_clear(l->irr, (uint8_t)vector);
	bit_set(l->isr, (uint8_t)vector);
	pv_eoi_offer(l, (uint8_t)vector);
	update(l);
	return vector;
}

void lapic_cr8_write(struct lapic *l, uint64_t value)
{
	l->tpr = (uint32_t)(value & 0xf) << 4;
	update(l);
}

/* --- destinations --- */

static bool matches_logical(const struct lapic *l, uint32_t dest)
{
	if (x2apic(l))
		return dest >> 16 == l->ldr >> 16 && (dest & l->ldr & 0xffff);
	if (dest > 0xff)
		return false;
	if (l->dfr >> 28 == 0xf) /* flat */
		return dest & l->ldr >> 24;
	return dest >> 4 == l->ldr >> 28 && (dest & l->ldr >> 24 & 0xf);
}

static bool is_broadcast(uint32_t dest, bool wide)
{
	return dest == (wide ? 0xffffffffu : 0xffu);
}

static void deliver(struct apic_bus *bus, uint32_t dest, bool wide, bool logical, unsigned mode,
		    uint8_t vector, bool level)
{
	struct lapic *lowest = NULL;

	if (!logical && !is_broadcast(dest, wide)) {
		if (dest < bus->count)
			accept(&bus->lapics[dest], mode, vector, level);
		return;
	}
	for (unsigned i = 0; i < bus->count; i++) {
		struct lapic *l = &bus->lapics[i];

		if (!is_broadcast(dest, wide) && !matches_logical(l, dest))
			continue;
		if (mode != APIC_LOWEST)
			accept(l, mode, vector, level);
		else if (hardware_enabled(l) && software_enabled(l) &&
			 (!lowest || ppr(l) < ppr(lowest)))
			lowest = l;
	}
	if (lowest)
		accept(lowest, mode, vector, level);
}

void apic_bus_deliver(struct apic_bus *bus, uint32_t dest, bool logical, unsigned mode,
		      uint8_t vector, bool level)
{
	deliver(bus, dest, false, logical, mode, vector, level);
}

void apic_bus_msi(struct apic_bus *bus, uint64_t address, uint32_t data)
{
	if (address >> 20 != 0xfee)
		return;
	deliver(bus, address >> 12 & 0xff, false, address & 4, data >> 8 & 7, (uint8_t)data,
		data & ICR_TRIGGER_LEVEL);
}

static void icr_send(struct lapic *l)
{
	uint32_t low = l->icr_low;
	unsigned mode = low >> 8 & 7, shorthand = low >> 18 & 3;
	uint8_t vector = (uint8_t)low;

	if (mode == APIC_INIT && low & ICR_TRIGGER_LEVEL && !(low & ICR_LEVEL_ASSERT))
		return; /* INIT level de-assert: not on these processors */
	if ((mode == APIC_FIXED || mode == APIC_LOWEST) && vector < 16) {
		report_error(l, ESR_SEND_ILLEGAL);
		return;
	}
	switch (shorthand) {
	case 0:
		deliver(l->bus, x2apic(l) ? l->icr_high : l->icr_high >> 24, x2apic(l),
			low & ICR_LOGICAL, mode, vector, false);
		break;
	case 1: accept(l, mode, vector, false); break;
	default:
		for (unsigned i = 0; i < l->bus->count; i++)
			if (shorthand == 2 || i != l->id)
				accept(&l->bus->lapics[i], mode, vector, false);
		break;
	}
}

/* --- the timer --- */

static ns_t timer_divisor(const struct lapic *l)
{
	unsigned code = (l->timer_divide & 3) | (l->timer_divide >> 1 & 4);

	return 1 << ((code + 1) & 7);
}

static uint32_t timer_mode(const struct lapic *l)
{
	return l->lvt[LVT_TIMER] & LVT_TIMER_MODE;
}

static ns_t timer_period(const struct lapic *l)
{
	return (ns_t)l->timer_initial * timer_divisor(l);
}

static void timer_set(struct lapic *l, uint64_t deadline)
{
	l->timer_deadline = deadline;
	timer_arm(l->timers, &l->timer, deadline ? (ns_t)deadline : TIMER_NEVER);
}

static void timer_start_count(struct lapic *l)
{
	ns_t period = timer_period(l);

	if (!period || timer_mode(l) == LVT_TIMER_DEADLINE)
		timer_set(l, 0);
	else
		timer_set(l, (uint64_t)(mclock_now(l->bus->clock) + period));
}

static void timer_start_deadline(struct lapic *l)
{
	struct mclock *c = l->bus->clock;
	/* The guest may have moved this vcpu's TSC from the machine's. */
	int64_t ahead = l->vcpu->tsc_offset - c->tsc_offset;
	uint64_t tsc = l->tsc_deadline - (uint64_t)ahead;
	ns_t ns;

	if (ahead > 0 && tsc > l->tsc_deadline)
		tsc = 0;
	else if (ahead < 0 && tsc < l->tsc_deadline)
		tsc = UINT64_MAX;
	ns = mclock_ns_at_tsc(c, tsc);
	timer_set(l, !l->tsc_deadline || ns == TIMER_NEVER ? 0 : (uint64_t)MAX(ns, 1));
}

static void timer_fire(void *data, ns_t now)
{
	struct lapic *l = data;

	switch (timer_mode(l)) {
	case LVT_TIMER_DEADLINE:
		l->tsc_deadline = 0;
		timer_set(l, 0);
		break;
	case LVT_TIMER_PERIODIC: {
		ns_t period = MAX(timer_period(l), PERIOD_MIN_NS);
		ns_t late = now - (ns_t)l->timer_deadline;

		timer_set(l, l->timer_deadline + (uint64_t)(late / period * period + period));
		break;
	}
	default: timer_set(l, 0); break;
	}
	lvt_deliver(l, LVT_TIMER);
}

static uint32_t timer_current(const struct lapic *l)
{
	ns_t left;

	if (!l->timer_deadline || timer_mode(l) == LVT_TIMER_DEADLINE)
		return 0;
	left = (ns_t)l->timer_deadline - mclock_now(l->bus->clock);
	return left <= 0 ? 0 : (uint32_t)MIN(left / timer_divisor(l), (ns_t)l->timer_initial);
}

/* Going to or from TSC-deadline mode disarms the timer (SDM 3A 11.5.4.1). */
static void timer_mode_changed(struct lapic *l, uint32_t old_mode)
{
	if (old_mode == timer_mode(l) ||
	    (old_mode != LVT_TIMER_DEADLINE && timer_mode(l) != LVT_TIMER_DEADLINE))
		return;
	l->timer_initial = 0;
	l->tsc_deadline = 0;
	timer_set(l, 0);
}

/* --- registers --- */

static void lvt_write(struct lapic *l, enum lapic_lvt which, uint32_t value)
{
	uint32_t old_mode = timer_mode(l);

	if (!software_enabled(l))
		value |= LVT_MASKED;
	value &= lvt_writable[which];
	if (which == LVT_TIMER && (value & LVT_TIMER_MODE) == LVT_TIMER_MODE)
		value &= ~LVT_TIMER_MODE; /* reserved mode: one-shot */
	l->lvt[which] = value;
	if (which == LVT_TIMER)
		timer_mode_changed(l, old_mode);
}

static void svr_write(struct lapic *l, uint32_t value)
{
	l->svr = value & 0x1ff;
	if (software_enabled(l))
		return;
	for (int i = 0; i < LVT_COUNT; i++)
		l->lvt[i] |= LVT_MASKED;
}

/* False: no such register. */
static bool reg_read(const struct lapic *l, uint32_t reg, uint32_t *value)
{
	switch (reg) {
	case REG_ID: *value = x2apic(l) ? l->id : l->id << 24; return true;
	case REG_VERSION: *value = VERSION; return true;
	case REG_TPR: *value = l->tpr; return true;
	case REG_APR: *value = 0; return !x2apic(l);
	case REG_PPR: *value = ppr(l); return true;
	case REG_LDR: *value = l->ldr; return true;
	case REG_DFR: *value = l->dfr; return !x2apic(l);
	case REG_SVR: *value = l->svr; return true;
	case REG_ISR ... REG_ISR + 0x70: *value = l->isr[(reg - REG_ISR) / 16]; return true;
	case REG_TMR ... REG_TMR + 0x70: *value = l->tmr[(reg - REG_TMR) / 16]; return true;
	case REG_IRR ... REG_IRR + 0x70: *value = l->irr[(reg - REG_IRR) / 16]; return true;
	case REG_ESR: *value = l->esr; return true;
	case REG_ICR_LOW: *value = l->icr_low; return true;
	case REG_ICR_HIGH: *value = l->icr_high; return !x2apic(l);
	case REG_LVT_TIMER ... REG_LVT_ERROR:
		*value = l->lvt[(reg - REG_LVT_TIMER) / 16];
		return true;
	case REG_TIMER_INITIAL: *value = l->timer_initial; return true;
	case REG_TIMER_CURRENT: *value = timer_current(l); return true;
	case REG_TIMER_DIVIDE: *value = l->timer_divide; return true;
	default: return false;
	}
}

/* False: no such register, or read-only. */
static bool reg_write(struct lapic *l, uint32_t reg, uint32_t value)
{
	switch (reg) {
	case REG_TPR:
		l->tpr = value & 0xff;
		update(l);
		return true;
	case REG_EOI: eoi(l); return true;
	case REG_SVR: svr_write(l, value); return true;
	case REG_ESR:
		l->esr = l->esr_pending;
		l->esr_pending = 0;
		return true;
	case REG_LVT_TIMER ... REG_LVT_ERROR:
		lvt_write(l, (reg - REG_LVT_TIMER) / 16, value);
		return true;
	case REG_TIMER_INITIAL:
		if (timer_mode(l) != LVT_TIMER_DEADLINE) {
			l->timer_initial = value;
			timer_start_count(l);
		}
		return true;
	case REG_TIMER_DIVIDE: {
		bool counting = l->timer_deadline && timer_mode(l) != LVT_TIMER_DEADLINE;

		l->timer_divide = value & 0xb;
		if (counting)
			timer_start_count(l);
		return true;
	}
	default: return false;
	}
}

uint64_t lapic_mmio_read(struct lapic *l, uint32_t offset, unsigned size)
{
	uint32_t value = 0;

	if (!hardware_enabled(l) || x2apic(l))
		return UINT64_MAX;
	pv_eoi_settle(l);
	if ((offset & 15) + size > 4)
		return 0;
	if (!reg_read(l, offset & 0xff0, &value))
		report_error(l, ESR_REGISTER_ILLEGAL);
	return value >> (offset & 3) * 8;
}

void lapic_mmio_write(struct lapic *l, uint32_t offset, unsigned size, uint64_t value64)
{
	uint32_t value = (uint32_t)value64;

	if (!hardware_enabled(l) || x2apic(l) || size != 4 || offset & 15)
		return;
	pv_eoi_settle(l);
	switch (offset & 0xff0) {
	case REG_ID: /* the id is the vcpu's index and stays so */ break;
	case REG_LDR: l->ldr = value & 0xff000000; break;
	case REG_DFR: l->dfr = value | 0x0fffffff; break;
	case REG_ICR_HIGH: l->icr_high = value & 0xff000000; break;
	case REG_ICR_LOW:
		l->icr_low = value & 0x000ccfff;
		icr_send(l);
		break;
	default:
		if (!reg_write(l, offset & 0xff0, value))
			report_error(l, ESR_REGISTER_ILLEGAL);
		break;
	}
}

/* --- MSRs --- */

static int base_write(struct lapic *l, uint64_t value)
{
	uint32_t old_mode = l->apic_base & (BASE_ENABLE | BASE_X2APIC);
	uint32_t mode = value & (BASE_ENABLE | BASE_X2APIC);

	/* The page cannot be moved. */
	if ((value & ~0xfffULL) != LAPIC_GPA || value & 0x2ff)
		return -EINVAL;
	if (mode == BASE_X2APIC ||
	    (old_mode == (BASE_ENABLE | BASE_X2APIC) && mode == BASE_ENABLE) ||
	    (!old_mode && mode == (BASE_ENABLE | BASE_X2APIC)))
		return -EINVAL;
	l->apic_base = LAPIC_GPA | mode | (l->apic_base & BASE_BSP);
	if (mode != old_mode) {
		if (!mode)
			lapic_init_reset(l);
		l->ldr = x2apic(l) ? (l->id >> 4) << 16 | 1u << (l->id & 15) : 0;
		update(l);
	}
	return 0;
}

static int x2apic_read(struct lapic *l, uint32_t reg, uint64_t *value)
{
	uint32_t low;

	if (!x2apic(l))
		return -EINVAL;
	pv_eoi_settle(l);
	if (reg == REG_ICR_LOW) {
		*value = (uint64_t)l->icr_high << 32 | l->icr_low;
		return 0;
	}
	if (!reg_read(l, reg, &low))
		return -EINVAL;
	*value = low;
	return 0;
}

static int x2apic_write(struct lapic *l, uint32_t reg, uint64_t value)
{
	if (!x2apic(l) || (reg != REG_ICR_LOW && value >> 32))
		return -EINVAL;
	pv_eoi_settle(l);
	switch (reg) {
	case REG_ICR_LOW:
		if (value & 0xfff32000)
			return -EINVAL;
		l->icr_low = (uint32_t)value & ~ICR_PENDING;
		l->icr_high = (uint32_t)(value >> 32);
		icr_send(l);
		return 0;
	case REG_SELF_IPI:
		if (value & ~0xffULL)
			return -EINVAL;
		if (value < 16)
			report_error(l, ESR_SEND_ILLEGAL);
		else
			accept_fixed(l, (uint8_t)value, false);
		return 0;
	case REG_EOI:
	case REG_ESR:
		if (value)
			return -EINVAL;
		break;
	case REG_TPR:
		if (value > 0xff)
			return -EINVAL;
		break;
	}
	return reg_write(l, reg, (uint32_t)value) ? 0 : -EINVAL;
}

static int pv_eoi_write(struct lapic *l, uint64_t value)
{
	if (value & 2 || (value & PV_EOI_ENABLE && !ram_host(l->bus->ram, value & ~3ULL, 4)))
		return -EINVAL;
	pv_eoi_settle(l);
	l->pv_eoi = value;
	update(l);
	return 0;
}

int lapic_msr_read(struct lapic *l, uint32_t msr, uint64_t *value)
{
	switch (msr) {
	case MSR_APIC_BASE: *value = l->apic_base; return 0;
	case MSR_TSC_DEADLINE:
		*value = timer_mode(l) == LVT_TIMER_DEADLINE ? l->tsc_deadline : 0;
		return 0;
	case MSR_KVM_PV_EOI: *value = l->pv_eoi; return 0;
	case MSR_X2APIC_FIRST ... MSR_X2APIC_LAST:
		return x2apic_read(l, (msr - MSR_X2APIC_FIRST) * 16, value);
	default: return -ENOENT;
	}
}

int lapic_msr_write(struct lapic *l, uint32_t msr, uint64_t value)
{
	switch (msr) {
	case MSR_APIC_BASE: return base_write(l, value);
	case MSR_TSC_DEADLINE:
		if (timer_mode(l) != LVT_TIMER_DEADLINE)
			return 0;
		l->tsc_deadline = value;
		timer_start_deadline(l);
		return 0;
	case MSR_KVM_PV_EOI: return pv_eoi_write(l, value);
	case MSR_X2APIC_FIRST ... MSR_X2APIC_LAST:
		return x2apic_write(l, (msr - MSR_X2APIC_FIRST) * 16, value);
	default: return -ENOENT;
	}
}

/* --- life cycle --- */

void lapic_init_reset(struct lapic *l)
{
	l->tpr = 0;
	l->ldr = x2apic(l) ? (l->id >> 4) << 16 | 1u << (l->id & 15) : 0;
	l->dfr = 0xffffffff;
	l->svr = 0xff;
	l->esr = l->esr_pending = 0;
	l->icr_low = l->icr_high = 0;
	for (int i = 0; i < LVT_COUNT; i++)
		l->lvt[i] = LVT_MASKED;
	memset(l->isr, 0, sizeof(l->isr));
	memset(l->tmr, 0, sizeof(l->tmr));
	memset(l->irr, 0, sizeof(l->irr));
	l->timer_initial = l->timer_divide = 0;
	l->tsc_deadline = 0;
	l->pv_eoi = 0;
	l->pv_eoi_pending = 0;
	l->timer.fn = timer_fire;
	l->timer.data = l;
	timer_set(l, 0);
	atomic_store_explicit(&l->deliverable, -1, memory_order_relaxed);
}

void lapic_reset(struct lapic *l)
{
	l->id = l->vcpu->index;
	l->apic_base = LAPIC_GPA | BASE_ENABLE | (l->id == 0 ? BASE_BSP : 0);
	lapic_init_reset(l);
}

static int lapic_loaded(void *object, struct error *err)
{
	struct lapic *l = object;

	if (l->id != l->vcpu->index)
		return error_set(err, EINVAL, "saved local APIC %u has id %u", l->vcpu->index,
				 l->id);
	if (l->timer_deadline > INT64_MAX)
		return error_set(err, EINVAL, "saved local APIC timer is out of range");
	for (int i = 0; i < LVT_COUNT; i++)
		l->lvt[i] &= lvt_writable[i];
	l->timer_divide &= 0xb;
	l->tpr &= 0xff;
	l->irr[0] &= 0xffff0000;
	l->isr[0] &= 0xffff0000;
	l->timer.fn = timer_fire;
	l->timer.data = l;
	timer_set(l, l->timer_deadline);
	atomic_store_explicit(&l->deliverable, -1, memory_order_relaxed);
	update(l);
	return 0;
}

static const struct state_field lapic_fields[] = {
    STATE_U64(struct lapic, apic_base),
    STATE_U32(struct lapic, id),
    STATE_U32(struct lapic, tpr),
    STATE_U32(struct lapic, ldr),
    STATE_U32(struct lapic, dfr),
    STATE_U32(struct lapic, svr),
    STATE_U32(struct lapic, esr),
    STATE_U32(struct lapic, esr_pending),
    STATE_U32(struct lapic, icr_low),
    STATE_U32(struct lapic, icr_high),
    STATE_U32(struct lapic, lvt),
    STATE_U32(struct lapic, isr),
    STATE_U32(struct lapic, tmr),
    STATE_U32(struct lapic, irr),
    STATE_U32(struct lapic, timer_initial),
    STATE_U32(struct lapic, timer_divide),
    STATE_U64(struct lapic, timer_deadline),
    STATE_U64(struct lapic, tsc_deadline),
    STATE_U64(struct lapic, pv_eoi),
    STATE_U8(struct lapic, pv_eoi_pending),
};

const struct state_table lapic_state_table = {
    .name = "lapic",
    .version = 1,
    .fields = lapic_fields,
    .nfields = ARRAY_SIZE(lapic_fields),
    .loaded = lapic_loaded,
};
