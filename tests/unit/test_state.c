/* The state walker: what is saved comes back, versions are reconciled, no stream can do harm; and
 * whole machines: stopped anywhere, saved, and carried on by another one to the same end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "chip/lapic.h"
#include "chip/power.h"
#include "chip/uart.h"
#include "machine/state.h"
#include "sched/sched.h"
#include "script_engine.h"

/* --- the walker --- */

struct thing {
	uint8_t a;
	uint16_t b[3];
	uint32_t c;
	uint64_t d[2];
	uint8_t raw[5];
	uint32_t added; /* version 2 */
	unsigned saves, loads;
};

static void thing_saving(void *object)
{
	((struct thing *)object)->saves++;
}

static int thing_loaded(void *object, struct error *err)
{
	struct thing *t = object;

	t->loads++;
	return t->a == 0xee ? error_set(err, EINVAL, "thing is 0xee") : 0;
}

static const struct state_field fields[] = {
    STATE_U8(struct thing, a),      STATE_U16(struct thing, b),
    STATE_U32(struct thing, c),     STATE_U64(struct thing, d),
    STATE_BYTES(struct thing, raw), STATE_FIELD(struct thing, added, uint32_t, STATE_TYPE_U32, 2),
};

static const struct state_table table_v2 = {
    .name = "thing",
    .version = 2,
    .fields = fields,
    .nfields = ARRAY_SIZE(fields),
    .saving = thing_saving,
    .loaded = thing_loaded,
};

static const struct state_table table_v1 = {
    .name = "thing",
    .version = 1,
    .fields = fields,
    .nfields = ARRAY_SIZE(fields) - 1,
    .saving = thing_saving,
    .loaded = thing_loaded,
};

static const struct thing example = {
    .a = 1,
    .b = {2, 3, 4},
    .c = 5,
    .d = {6, UINT64_MAX},
    .raw = "raw!",
    .added = 7,
};

static int load(const struct state_buffer *buf, const struct state_table *t, struct thing *thing)
{
	struct state_object o = {t, thing, 0};
	struct error err = {0};
	int ret = state_load(buf, &o, 1, NULL, &err);

	assert_int_equal(ret < 0, err.text[0] != 0);
	return ret;
}

static void objects_come_back(void **state)
{
	struct thing out[2] = {example, example}, in[2] = {0};
	struct state_object so[] = {{&table_v2, &out[0], 0}, {&table_v2, &out[1], 9}};
	struct state_object lo[] = {{&table_v2, &in[1], 9}, {&table_v2, &in[0], 0}};
	struct state_buffer buf = {0};

	(void)state;
	out[1].c = 99;
	assert_int_equal(state_save(&buf, so, 2, NULL, NULL), 0);
	assert_int_equal(state_load(&buf, lo, 2, NULL, NULL), 0); /* in any order */
	assert_int_equal(out[0].saves, 1);
	assert_int_equal(in[0].loads, 1);
	assert_memory_equal(&in[0], &example, offsetof(struct thing, saves));
	assert_int_equal(in[1].c, 99);
	state_buffer_free(&buf);
}

static void versions_are_reconciled(void **state)
{
	struct thing out = example, in = {.added = 42};
	struct state_object old = {&table_v1, &out, 0}, new = {&table_v2, &out, 0};
	struct state_buffer buf = {0};

	(void)state;
	/* An old stream lacks the new field: it keeps what a fresh object has. */
	assert_int_equal(state_save(&buf, &old, 1, NULL, NULL), 0);
	assert_int_equal(load(&buf, &table_v2, &in), 0);
	assert_int_equal(in.added, 42);
	assert_int_equal(in.c, 5);
	/* An old takt ignores what it does not know. */
	in.added = 43;
	assert_int_equal(state_save(&buf, &new, 1, NULL, NULL), 0);
	assert_int_equal(load(&buf, &table_v1, &in), 0);
	assert_int_equal(in.added, 43);
	state_buffer_free(&buf);
}

static void shapes_must_agree(void **state)
{
	struct thing out = example, in = {0};
	struct state_object one = {&table_v2, &out, 0};
	struct state_object two[] = {{&table_v2, &in, 0}, {&table_v2, &in, 1}};
	struct state_buffer buf = {0}, empty = {0};
	struct error err;

	(void)state;
	assert_int_equal(state_save(&buf, &one, 1, NULL, NULL), 0);
	assert_int_equal(state_load(&buf, two, 2, NULL, &err), -EINVAL);
	assert_int_equal(state_load(&buf, &two[1], 1, NULL, &err), -EINVAL);
	assert_int_equal(state_load(&empty, two, 1, NULL, &err), -EINVAL);
	out.a = 0xee; /* the object's own check */
	assert_int_equal(state_save(&buf, &one, 1, NULL, NULL), 0);
	assert_int_equal(state_load(&buf, two, 1, NULL, &err), -EINVAL);
	assert_string_equal(err.text, "thing is 0xee");
	state_buffer_free(&buf);
}

static void memory_comes_back_without_its_zero_pages(void **state)
{
	struct ram from = {0}, to = {0};
	struct state_buffer buf = {0};

	(void)state;
	assert_int_equal(ram_init(&from, 16 * MiB, NULL), 0);
	assert_int_equal(ram_init(&to, 16 * MiB, NULL), 0);
	from.host[0] = 1;
	from.host[5 * MiB + 4095] = 2;
	from.host[16 * MiB - 1] = 3;
	assert_int_equal(state_save(&buf, NULL, 0, &from, NULL), 0);
	assert_true(buf.len < 4 * 4096);
	assert_int_equal(state_load(&buf, NULL, 0, &to, NULL), 0);
	assert_memory_equal(from.host, to.host, 16 * MiB);
	ram_destroy(&to);
	assert_int_equal(ram_init(&to, 8 * MiB, NULL), 0);
	assert_int_equal(state_load(&buf, NULL, 0, &to, NULL), -EINVAL); /* beyond its end */
	assert_int_equal(state_load(&buf, NULL, 0, NULL, NULL), -EINVAL);
	ram_destroy(&from);
	ram_destroy(&to);
	state_buffer_free(&buf);
}

static void every_truncation_is_an_error(void **state)
{
	struct thing out = example, in = {0};
	struct state_object o = {&table_v2, &out, 0};
	struct state_buffer buf = {0};

	(void)state;
	assert_int_equal(state_save(&buf, &o, 1, NULL, NULL), 0);
	for (size_t len = 0; len < buf.len; len++) {
		/* An exact copy, so that a sanitizer sees a read beyond it. */
		struct state_buffer cut = {malloc(len ? len : 1), len, len};

		memcpy(cut.data, buf.data, len);
		assert_int_equal(load(&cut, &table_v2, &in), -EINVAL);
		state_buffer_free(&cut);
	}
	state_buffer_free(&buf);
}

static void no_damage_goes_further_than_an_error(void **state)
{
	struct thing out = example;
	struct state_object o = {&table_v2, &out, 0};
	struct state_buffer buf = {0};
	unsigned refused = 0;

	(void)state;
	assert_int_equal(state_save(&buf, &o, 1, NULL, NULL), 0);
	srandom(8);
	for (int i = 0; i < 200000; i++) {
		struct state_buffer bad = {malloc(buf.len), buf.len, buf.len};
		struct {
			struct thing thing;
			uint8_t guard[64];
		} in;

		memcpy(bad.data, buf.data, buf.len);
		memset(&in, 0xa5, sizeof(in));
		for (long n = random() % 3 + 1; n; n--)
			bad.data[(size_t)random() % buf.len] =
			    random() & 1 ? (uint8_t)random() : 0xff;
		refused += load(&bad, &table_v2, &in.thing) < 0;
		for (size_t g = 0; g < sizeof(in.guard); g++)
			assert_int_equal(in.guard[g], 0xa5);
		state_buffer_free(&bad);
	}
	assert_true(refused > 1000);
	state_buffer_free(&buf);
}

/* --- machines --- */

#define VECTOR 0x41
#define ENOUGH 3000
#define ARRAY 0x10000

struct seen {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	int event;
	char out[256];
	size_t out_len;
};

static void on_event(void *data, enum machine_event ev)
{
	struct seen *s = data;

	pthread_mutex_lock(&s->lock);
	s->event = (int)ev;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

static void on_tx(void *data, const uint8_t *buf, size_t len)
{
	struct seen *s = data;

	for (size_t i = 0; i < len && s->out_len < sizeof(s->out) - 1; i++)
		s->out[s->out_len++] = (char)buf[i];
}

static void apic_write(struct vcpu *v, uint32_t reg, uint32_t value)
{
	v->ops->mmio_write(v->platform, LAPIC_GPA + reg, 4, value);
}

/* Mixes numbers in RAM, at every timer tick and, less often, between; halts now and then; prints a
 * sum of everything and the number of ticks at the end.  RBX: ticks; RCX: steps; RAX: set up. */
static int step_mix(struct vcpu *v)
{
	uint64_t *array = ram_host(v->ram, ARRAY, 0x8000);
	uint64_t n = v->regs[GPR_RCX];
	char line[64];

	if (!v->regs[GPR_RAX]++) {
		v->regs[GPR_RDX] = 0; /* not what reset leaves there */
		apic_write(v, 0xf0, 0x1ff);
		apic_write(v, 0x3e0, 0xb);
		apic_write(v, 0x320, VECTOR); /* one-shot */
		v->rflags |= SCRIPT_IF;
		v->regs[GPR_RDX] = 0; /* at reset the processor's signature: no work before a tick */
		apic_write(v, 0x380, 10000);
		return SCRIPT_GO_ON;
	}
	if (v->regs[GPR_RDX] == v->regs[GPR_RBX]) /* this tick's work is done */
		return v->regs[GPR_RBX] % 2 ? EXIT_HALTED : SCRIPT_GO_ON;
	v->regs[GPR_RDX] = v->regs[GPR_RBX];
	array[n % 4096] += n * 0x9e3779b97f4a7c15u ^ array[(n * 7 + 1) % 4096];
	v->regs[GPR_RCX]++;
	if (v->regs[GPR_RBX] == ENOUGH) {
		uint64_t sum = 0;

		for (int i = 0; i < 4096; i++)
			sum = sum * 31 + array[i];
		snprintf(line, sizeof(line), "%lu ticks, %016lx\n", (unsigned long)v->regs[GPR_RBX],
			 (unsigned long)sum);
		for (char *p = line; *p; p++)
			script_out(v, UART_PORT, (uint8_t)*p);
		script_out(v, POWER_SLEEP_CONTROL, 5 << 2 | 1 << 5);
	} else {
		apic_write(v, 0x380, 10000); /* 10 us */
	}
	return SCRIPT_GO_ON;
}

static void irq_mix(struct vcpu *v, int vector)
{
	assert_int_equal(vector, VECTOR);
	v->regs[GPR_RBX]++;
	apic_write(v, 0xb0, 0);
}

static const struct script mix = {.step = step_mix, .irq = irq_mix};

static struct machine *make(struct seen *s)
{
	struct machine_config config = {
	    .console_tx = on_tx, .console_data = s, .event = on_event, .event_data = s};

	memset(s, 0, sizeof(*s));
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->changed, NULL);
	s->event = -1;
	script_engine_set(&mix);
	return script_machine(&config);
}

static void wait_event(struct seen *s)
{
	pthread_mutex_lock(&s->lock);
	while (s->event < 0)
		pthread_cond_wait(&s->changed, &s->lock);
	pthread_mutex_unlock(&s->lock);
	assert_int_equal(s->event, MACHINE_POWEROFF);
}

static struct sched *make_sched(void)
{
	struct sched_config config = {.engine = &script_engine, .workers = 2};

	alarm(120);
	return sched_create(&config, NULL);
}

static void a_machine_moved_many_times_ends_the_same(void **state)
{
	struct sched *sched = make_sched();
	struct seen undisturbed, seen;
	struct machine *m = make(&undisturbed);
	unsigned moves = 0;

	(void)state;
	assert_int_equal(sched_add(sched, m, NULL), 0);
	sched_resume(m);
	wait_event(&undisturbed);
	sched_remove(sched, m);
	machine_destroy(m);

	srandom(9);
	m = make(&seen);
	assert_int_equal(sched_add(sched, m, NULL), 0);
	while (seen.event < 0) {
		struct state_buffer buf = {0};
		struct error err = {0};
		ns_t before;

		sched_resume(m);
		usleep((useconds_t)random() % 3000);
		sched_pause(m);
		if (seen.event >= 0)
			break;
		before = machine_now(m);
		assert_int_equal(machine_save(m, &buf, &err), 0);
		sched_remove(sched, m);
		machine_destroy(m);
		{
			struct seen kept = seen;

			m = make(&seen);
			seen.out_len = kept.out_len;
			memcpy(seen.out, kept.out, sizeof(seen.out));
		}
		if (machine_load(m, &buf, &err))
			fail_msg("%s", err.text);
		assert_true(machine_now(m) >= before);
		assert_int_equal(sched_add(sched, m, NULL), 0);
		state_buffer_free(&buf);
		moves++;
	}
	wait_event(&seen);
	sched_remove(sched, m);
	machine_destroy(m);
	sched_destroy(sched);
	alarm(0);
	assert_true(moves >= 3);
	assert_string_equal(seen.out, undisturbed.out);
	assert_non_null(strstr(seen.out, "3000 ticks"));
}

static void guest_tsc_and_time_go_on(void **state)
{
	struct seen seen;
	struct machine *m = make(&seen), *n = make(&seen);
	struct state_buffer buf = {0};
	struct vcpu *v = machine_vcpu(m, 0), *w = machine_vcpu(n, 0);
	uint64_t before, after;

	(void)state;
	v->tsc_offset += 1LL << 40; /* the guest wrote its TSC */
	before = clock_host_tsc() + (uint64_t)v->tsc_offset;
	assert_int_equal(machine_save(m, &buf, NULL), 0);
	usleep(1000);
	assert_int_equal(machine_load(n, &buf, NULL), 0);
	after = clock_host_tsc() + (uint64_t)w->tsc_offset;
	assert_true(after >= before);
	assert_true(after - before < 1ULL << 39); /* and the jump was carried over */
	state_buffer_free(&buf);
	machine_destroy(m);
	machine_destroy(n);
}

static void a_machine_of_another_shape_is_refused(void **state)
{
	struct seen seen;
	struct machine *m = make(&seen), *other;
	struct machine_config config = {.memory = 4 * MiB};
	struct state_buffer buf = {0};
	struct error err = {0};

	(void)state;
	other = script_machine(&config);
	assert_int_equal(machine_save(m, &buf, NULL), 0);
	assert_int_equal(machine_load(other, &buf, &err), -EINVAL);
	assert_int_equal(machine_reset(other, &err), 0); /* and is still good for that */
	assert_int_equal(machine_save(other, &buf, NULL), 0);
	assert_int_equal(machine_load(m, &buf, &err), -EINVAL);
	state_buffer_free(&buf);
	machine_destroy(m);
	machine_destroy(other);
}

/* A machine from a damaged stream may be refused or be another machine, but it stays inside itself.
 */
static void damaged_machines_do_no_harm(void **state)
{
	struct sched *sched = make_sched();
	struct seen seen, seen2;
	struct machine *m = make(&seen), *n = make(&seen2);
	struct state_buffer buf = {0};
	size_t head;

	(void)state;
	assert_int_equal(sched_add(sched, m, NULL), 0);
	sched_resume(m);
	usleep(2000);
	sched_pause(m);
	sched_remove(sched, m);
	assert_int_equal(machine_save(m, &buf, NULL), 0);
	head = MIN(buf.len, (size_t)8000); /* objects first, then pages */
	srandom(10);
	for (int i = 0; i < 2000; i++) {
		struct state_buffer bad = {malloc(buf.len), buf.len, buf.len};
		struct vcpu *v = machine_vcpu(n, 0);
		struct error err;

		memcpy(bad.data, buf.data, buf.len);
		for (long k = random() % 8 + 1; k; k--)
			bad.data[(size_t)random() % head] = (uint8_t)random();
		if (!machine_load(n, &bad, &err)) {
			machine_advance(n, v);
			if (machine_vcpu_runnable(n, v))
				v->ops->irq_ack(v->platform, v);
			machine_next_deadline(n, v);
			for (unsigned port = 0; port < 0x1000; port += 1)
				v->ops->io_read(v->platform, (uint16_t)port, 1u << random() % 3);
		}
		state_buffer_free(&bad);
	}
	state_buffer_free(&buf);
	machine_destroy(m);
	machine_destroy(n);
	sched_destroy(sched);
	alarm(0);
}

/* A hostile guest: any access to any port, address or MSR. */
static void any_guest_access_is_safe(void **state)
{
	static const gpa_t near[] = {0xfee00000, 0xfec00000, 0xe0000000, 0xc0000000,
				     32 * GiB,   4 * GiB,    UINT64_MAX, 3 * GiB};
	static const uint32_t msrs[] = {0x800, 0x4b564d00, 0x10, 0x1b, 0x6e0};
	static const uint16_t ports[] = {0x3f0, 0x60, 0x5f8, 0xcf0, 0x70};
	struct seen seen;
	struct machine *m = make(&seen);
	struct vcpu *v = machine_vcpu(m, 0);
	const struct platform_ops *ops = v->ops;
	void *p = v->platform;

	(void)state;
	srandom(11);
	for (int i = 0; i < 1000000; i++) {
		unsigned size = 1u << random() % 4, small = MIN(size, 4u);
		uint64_t value = ((uint64_t)random() << 33 ^ (uint64_t)random()) >> random() % 64,
			 got;
		gpa_t gpa = near[random() % 8] + (uint64_t)random() % 0x4000 - 0x1000;
		uint16_t port = ports[random() % 5] + (uint16_t)random() % 32;
		uint32_t msr = msrs[random() % 5] + (uint32_t)random() % 0x40;

		switch (random() % 9) {
		case 0:
			ops->io_write(p, random() % 8 ? port : (uint16_t)random(), small,
				      (uint32_t)value);
			break;
		case 1:
			got = ops->io_read(p, random() % 8 ? port : (uint16_t)random(), small);
			assert_true(small == 8 || got >> small * 8 == 0);
			break;
		case 2:
			ops->mmio_write(p, gpa, size, value);
			break;
		case 3:
			got = ops->mmio_read(p, random() % 8 ? gpa : value, size);
			assert_true(size == 8 || got >> size * 8 == 0);
			break;
		case 4:
			ops->msr_write(p, v, msr, value);
			break;
		case 5:
			ops->msr_read(p, v, msr, &got);
			break;
		case 6:
			ops->cr8_write(p, v, value);
			ops->irq_ack(p, v);
			break;
		case 7:
			if (random() % 16 == 0)
				machine_advance(m, v);
			machine_next_deadline(m, v);
			break;
		case 8: /* half of the guests set up what they hope for */
			ops->mmio_write(p, 0xfee000f0, 4, 0x1ff);
			break;
		}
		if (machine_stopped(m)) {
			assert_int_equal(machine_reset(m, NULL), 0);
			seen.event = -1;
		}
	}
	machine_destroy(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(objects_come_back),
	    cmocka_unit_test(versions_are_reconciled),
	    cmocka_unit_test(shapes_must_agree),
	    cmocka_unit_test(memory_comes_back_without_its_zero_pages),
	    cmocka_unit_test(every_truncation_is_an_error),
	    cmocka_unit_test(no_damage_goes_further_than_an_error),
	    cmocka_unit_test(a_machine_moved_many_times_ends_the_same),
	    cmocka_unit_test(guest_tsc_and_time_go_on),
	    cmocka_unit_test(a_machine_of_another_shape_is_refused),
	    cmocka_unit_test(damaged_machines_do_no_harm),
	    cmocka_unit_test(any_guest_access_is_safe),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
