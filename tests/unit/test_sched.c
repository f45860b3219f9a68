/* Workers and machines together, with scripted guests on real threads: no wake-up is lost, idle
 * guests do not run, busy ones take turns, events stop machines, pause means pause.
 *
 * No test measures time; one that waits for something that never comes is ended by alarm(). */
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
#include <unistd.h>

#include "base/clock.h"
#include "chip/acpi.h"
#include "chip/lapic.h"
#include "chip/power.h"
#include "chip/pvclock.h"
#include "chip/uart.h"
#include "script_engine.h"
#include "sched/monitor.h"
#include "sched/sched.h"

#define NO_EVENT (-1)
#define TIMER_VECTOR 0x41
#define UART_VECTOR 0x42

/* --- what a test sees of a machine --- */

struct seen {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	int event;
	unsigned rooms;
	uint8_t out[65536];
	size_t out_len;
	struct machine *machine;
};

static void on_event(void *data, enum machine_event ev)
{
	struct seen *s = data;

	pthread_mutex_lock(&s->lock);
	assert_int_equal(s->event, NO_EVENT);
	s->event = (int)ev;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

static void on_tx(void *data, const uint8_t *buf, size_t len)
{
	struct seen *s = data;

	pthread_mutex_lock(&s->lock);
	len = MIN(len, sizeof(s->out) - s->out_len);
	memcpy(s->out + s->out_len, buf, len);
	s->out_len += len;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

static void on_room(void *data)
{
	struct seen *s = data;

	pthread_mutex_lock(&s->lock);
	s->rooms++;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

static struct seen *start(struct sched *sched, const struct script *script)
{
	struct seen *s = calloc(1, sizeof(*s));
	struct machine_config config = {
	    .console_tx = on_tx,
	    .console_room = on_room,
	    .console_data = s,
	    .event = on_event,
	    .event_data = s,
	};

	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->changed, NULL);
	s->event = NO_EVENT;
	script_engine_set(script);
	s->machine = script_machine(&config);
	assert_int_equal(sched_add(sched, s->machine, NULL), 0);
	return s;
}

static void stop(struct sched *sched, struct seen *s)
{
	sched_remove(sched, s->machine);
	machine_destroy(s->machine);
	free(s);
}

static int wait_event(struct seen *s)
{
	int ev;

	pthread_mutex_lock(&s->lock);
	while (s->event == NO_EVENT)
		pthread_cond_wait(&s->changed, &s->lock);
	ev = s->event;
	s->event = NO_EVENT;
	pthread_mutex_unlock(&s->lock);
	return ev;
}

static void wait_output(struct seen *s, size_t len)
{
	pthread_mutex_lock(&s->lock);
	while (s->out_len < len)
		pthread_cond_wait(&s->changed, &s->lock);
	pthread_mutex_unlock(&s->lock);
}

static struct vcpu *vcpu(struct seen *s)
{
	return machine_vcpu(s->machine, 0);
}

static int setup(void **state)
{
	struct sched_config config = {.engine = &script_engine, .workers = 2};

	alarm(120);
	*state = sched_create(&config, NULL);
	assert_non_null(*state);
	return 0;
}

static int teardown(void **state)
{
	sched_destroy(*state);
	alarm(0);
	return 0;
}

/* --- pieces of guests --- */

static void apic_write(struct vcpu *v, uint32_t reg, uint32_t value)
{
	v->ops->mmio_write(v->platform, LAPIC_GPA + reg, 4, value);
}

static void apic_on(struct vcpu *v)
{
	apic_write(v, 0xf0, 0x1ff);
	v->rflags |= SCRIPT_IF;
}

static void arm_tsc_deadline(struct vcpu *v, uint64_t ticks)
{
	v->ops->msr_write(v->platform, v, MSR_TSC_DEADLINE,
			  clock_host_tsc() + (uint64_t)v->tsc_offset + ticks);
}

static void end_of_interrupt(struct vcpu *v)
{
	apic_write(v, 0xb0, 0);
}

static void ioapic_route(struct vcpu *v, unsigned pin, uint8_t vector)
{
	v->ops->mmio_write(v->platform, 0xfec00000, 4, 0x10 + 2 * pin);
	v->ops->mmio_write(v->platform, 0xfec00010, 4, vector);
}

static int step_spin(struct vcpu *v)
{
	__atomic_fetch_add(&v->regs[GPR_RAX], 1, __ATOMIC_RELAXED);
	return SCRIPT_GO_ON;
}

/* --- the tests --- */

static int step_power_off(struct vcpu *v)
{
	script_out(v, POWER_SLEEP_CONTROL, 5 << 2 | 1 << 5);
	return SCRIPT_GO_ON;
}

static void power_off_is_an_event_and_stops(void **state)
{
	static const struct script script = {.step = step_power_off};
	struct seen *s = start(*state, &script);

	sched_resume(s->machine);
	assert_int_equal(wait_event(s), MACHINE_POWEROFF);
	sched_pause(s->machine);
	assert_true(machine_stopped(s->machine));
	stop(*state, s);
}

static int step_reset_thrice(struct vcpu *v)
{
	uint8_t *count = ram_host(v->ram, 0x8000, 1);

	if (*count == 0)
		script_out(v, POWER_RESET, POWER_RESET_VALUE);
	else if (*count == 1)
		script_out(v, POWER_CF9, 6);
	else
		script_out(v, POWER_KEYBOARD, 0xfe);
	return SCRIPT_GO_ON;
}

static void every_way_to_reset_resets_to_a_clean_machine(void **state)
{
	static const struct script script = {.step = step_reset_thrice};
	struct seen *s = start(*state, &script);
	struct ram *ram = machine_ram(s->machine);

	for (uint8_t round = 0; round < 3; round++) {
		*(uint8_t *)ram_host(ram, 0x8000, 1) = round;
		vcpu(s)->regs[GPR_RBX] = 77;
		sched_resume(s->machine);
		assert_int_equal(wait_event(s), MACHINE_RESET);
		sched_pause(s->machine);
		assert_int_equal(machine_reset(s->machine, NULL), 0);
		assert_false(machine_stopped(s->machine));
		assert_int_equal(*(uint8_t *)ram_host(ram, 0x8000, 1), 0);
		assert_int_equal(vcpu(s)->regs[GPR_RBX], 0);
		assert_memory_equal(ram_host(ram, ACPI_RSDP_GPA, 8), "RSD PTR ", 8);
	}
	stop(*state, s);
}

static int step_halt(struct vcpu *v)
{
	(void)v;
	return EXIT_HALTED;
}

static int step_shutdown(struct vcpu *v)
{
	(void)v;
	return EXIT_SHUTDOWN;
}

static int step_error(struct vcpu *v)
{
	(void)v;
	return EXIT_ERROR;
}

static void ends_have_their_events(void **state)
{
	static const struct script dead = {.step = step_halt}, triple = {.step = step_shutdown},
				   error = {.step = step_error};
	struct seen *s = start(*state, &dead);

	sched_resume(s->machine);
	assert_int_equal(wait_event(s), MACHINE_DEAD);
	stop(*state, s);
	s = start(*state, &triple);
	sched_resume(s->machine);
	assert_int_equal(wait_event(s), MACHINE_TRIPLE_FAULT);
	stop(*state, s);
	s = start(*state, &error);
	sched_resume(s->machine);
	assert_int_equal(wait_event(s), MACHINE_ERROR);
	assert_string_equal(machine_error(s->machine)->text, "the script failed");
	stop(*state, s);
}

static int step_idle(struct vcpu *v)
{
	v->rflags |= SCRIPT_IF;
	return EXIT_HALTED;
}

struct note {
	struct work work;
	_Atomic unsigned calls;
};

static void on_work(struct machine *m, void *arg)
{
	(void)m;
	((struct note *)arg)->calls++;
}

static void idle_guest_does_not_run(void **state)
{
	static const struct script script = {.step = step_idle};
	struct seen *s = start(*state, &script);
	struct note note = {.work = {.fn = on_work, .arg = &note}};
	unsigned long runs;

	sched_resume(s->machine);
	/* The work may be done before the first run or after it; twice, and the guest is asleep. */
	for (unsigned i = 1; i <= 2; i++) {
		machine_post(s->machine, &note.work);
		while (note.calls < i)
			usleep(100);
	}
	usleep(20000);
	runs = script_engine_runs();
	usleep(200000);
	assert_true(script_engine_runs() == runs);
	stop(*state, s);
}

static void posted_work_wakes_the_worker_each_time(void **state)
{
	static const struct script script = {.step = step_idle};
	struct seen *s = start(*state, &script);
	struct note note = {.work = {.fn = on_work, .arg = &note}};

	sched_resume(s->machine);
	for (unsigned i = 1; i <= 20000; i++) {
		machine_post(s->machine, &note.work);
		while (note.calls < i)
			;
	}
	assert_int_equal(note.calls, 20000);
	stop(*state, s);
}

/* Halts until the timer; counts ticks in RBX and is off after 2000. */
static int step_ticks(struct vcpu *v)
{
	if (!v->regs[GPR_RAX]++) {
		apic_on(v);
		apic_write(v, 0x320, 2 << 17 | TIMER_VECTOR);
	}
	if (v->regs[GPR_RBX] == 2000)
		return step_power_off(v);
	if (v->regs[GPR_RCX] == v->regs[GPR_RBX]) {
		v->regs[GPR_RCX]++;
		arm_tsc_deadline(v,
				 v->regs[GPR_RCX] % 64 * 2000); /* 0 to 50 us or so; 0: at once */
	}
	return EXIT_HALTED;
}

static void irq_ticks(struct vcpu *v, int vector)
{
	assert_int_equal(vector, TIMER_VECTOR);
	v->regs[GPR_RBX]++;
	end_of_interrupt(v);
}

static void no_timer_interrupt_is_lost_while_halted(void **state)
{
	static const struct script script = {.step = step_ticks, .irq = irq_ticks};
	struct seen *s = start(*state, &script);

	sched_resume(s->machine);
	assert_int_equal(wait_event(s), MACHINE_POWEROFF);
	assert_int_equal(vcpu(s)->regs[GPR_RBX], 2000);
	stop(*state, s);
}

/* The same without ever halting: the worker must be interrupted for a deadline armed while it runs.
 */
static int step_ticks_busy(struct vcpu *v)
{
	int reason = step_ticks(v);

	return reason == EXIT_HALTED ? SCRIPT_GO_ON : reason;
}

static void timer_armed_while_running_interrupts(void **state)
{
	static const struct script script = {.step = step_ticks_busy, .irq = irq_ticks};
	struct seen *s = start(*state, &script);

	sched_resume(s->machine);
	assert_int_equal(wait_event(s), MACHINE_POWEROFF);
	stop(*state, s);
}

/* Echoes what the UART receives, by interrupt, halting in between. */
static int step_echo(struct vcpu *v)
{
	if (!v->regs[GPR_RAX]++) {
		apic_on(v);
		ioapic_route(v, UART_IRQ, UART_VECTOR);
		script_out(v, UART_PORT + 2, 0x81);
		script_out(v, UART_PORT + 4, 0x0b);
		script_out(v, UART_PORT + 1, 1);
		script_out(v, UART_PORT, '>'); /* ready: what came before the FIFO was cleared */
	}
	return EXIT_HALTED;
}

static void irq_echo(struct vcpu *v, int vector)
{
	assert_int_equal(vector, UART_VECTOR);
	end_of_interrupt(v);
	while (script_in(v, UART_PORT + 5) & 1)
		script_out(v, UART_PORT, script_in(v, UART_PORT));
}

static void console_echo_byte_by_byte(void **state)
{
	static const struct script script = {.step = step_echo, .irq = irq_echo};
	struct seen *s = start(*state, &script);

	sched_resume(s->machine);
	wait_output(s, 1);
	for (size_t i = 1; i < 20000; i++) {
		uint8_t byte = (uint8_t)(i * 7);

		assert_int_equal(machine_console_input(s->machine, &byte, 1), 1);
		wait_output(s, i + 1);
		assert_int_equal(s->out[i], byte);
	}
	stop(*state, s);
}

static void console_input_is_held_back_and_none_is_lost(void **state)
{
	static const struct script script = {.step = step_echo, .irq = irq_echo};
	struct seen *s = start(*state, &script);
	uint8_t bytes[50000];
	size_t sent = 0;
	unsigned rooms = 0;

	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)(i ^ i >> 8);
	sched_resume(s->machine);
	wait_output(s, 1);
	sched_pause(s->machine);
	/* More than the queue holds. */
	sent = machine_console_input(s->machine, bytes, sizeof(bytes));
	assert_true(sent < sizeof(bytes));
	sched_resume(s->machine);
	while (sent < sizeof(bytes)) {
		pthread_mutex_lock(&s->lock);
		while (s->rooms == rooms)
			pthread_cond_wait(&s->changed, &s->lock);
		rooms = s->rooms;
		pthread_mutex_unlock(&s->lock);
		sent += machine_console_input(s->machine, bytes + sent, sizeof(bytes) - sent);
	}
	wait_output(s, 1 + sizeof(bytes));
	assert_memory_equal(s->out + 1, bytes, sizeof(bytes));
	stop(*state, s);
}

/* While it may be running. */
static uint64_t count_of(struct seen *s)
{
	return __atomic_load_n(&vcpu(s)->regs[GPR_RAX], __ATOMIC_RELAXED);
}

static void busy_machines_share_the_workers(void **state)
{
	static const struct script script = {.step = step_spin};
	struct seen *s[6];

	for (int i = 0; i < 6; i++) {
		s[i] = start(*state, &script);
		sched_resume(s[i]->machine);
	}
	for (int round = 0; round < 3; round++) { /* all make progress, again and again */
		uint64_t before[6];

		for (int i = 0; i < 6; i++)
			before[i] = count_of(s[i]);
		for (int i = 0; i < 6; i++)
			while (count_of(s[i]) == before[i])
				usleep(1000);
	}
	for (int i = 0; i < 6; i++) {
		sched_pause(s[i]->machine);
		assert_true(sched_used(s[i]->machine) > 0);
		stop(*state, s[i]);
	}
}

static void paused_means_paused(void **state)
{
	static const struct script scripts[] = {
	    {.step = step_spin},
	    {.step = step_idle},
	    {.step = step_ticks, .irq = irq_ticks},
	};

	for (size_t i = 0; i < ARRAY_SIZE(scripts); i++) {
		struct seen *s = start(*state, &scripts[i]);

		for (int round = 0; round < 200; round++) {
			uint64_t rax;

			sched_resume(s->machine);
			if (round % 2)
				usleep((useconds_t)round * 5);
			sched_pause(s->machine);
			rax = vcpu(s)->regs[GPR_RAX];
			sched_pause(s->machine); /* again: no effect */
			if (round % 50 == 0)
				usleep(10000);
			assert_true(*(volatile uint64_t *)&vcpu(s)->regs[GPR_RAX] == rax);
		}
		stop(*state, s);
	}
}

static void print(struct vcpu *v, const char *text)
{
	while (*text)
		script_out(v, UART_PORT, (uint8_t)*text++);
}

static int step_panic(struct vcpu *v)
{
	if (!v->regs[GPR_RAX]++) {
		print(v, "[    1.0] Kernel panic - not syncing: no init\r\n[    1.1] CPU: 0\r\n");
		print(v, "[    1.2] ---[ end Kernel panic - not syncing: no init ]---\r\n");
	}
	return SCRIPT_GO_ON; /* Linux spins for ever */
}

static uint64_t counter(const struct counter_set *set, const char *name)
{
	for (uint32_t i = 0; i < set->header.count; i++)
		if (!strcmp(set->entry[i].name, name))
			return set->entry[i].value;
	return 0;
}

static void put_own_counter(void *data, struct counter_set *set)
{
	counter_set_put(set, "own", COUNTER_COUNT, ++*(uint64_t *)data);
}

/* A monitor looks at a machine that runs, tells others through the file, and leaves its last counters. */
static void a_monitored_machine_has_counters(void **state)
{
	static const struct script script = {.step = step_spin};
	static const char path[] = "/tmp/takt-test-sched-counters";
	struct seen *s = start(*state, &script);
	uint64_t own = 0, told = 0, began = (uint64_t)clock_host_ns(), lasted;
	struct monitor_config config = {.machine = s->machine,
					.engine = &script_engine,
					.path = path,
					.counters = put_own_counter,
					.data = &own};
	struct error err = {0};
	struct monitor *m;
	struct counter_set *set;
	bool alive;

	unlink(path);
	m = monitor_start(&config, &err);
	if (!m)
		fail_msg("%s", err.text);
	sched_resume(s->machine);
	while (told < 20) {
		assert_int_equal(counters_file_read(path, &set, &alive, &err), 0);
		assert_true(alive);
		told = counter(set, "script.samples");
		free(set);
		usleep(10000);
	}
	sched_pause(s->machine);
	monitor_stop(m);
	lasted = (uint64_t)clock_host_ns() - began;
	assert_true(counter(monitor_counters(m), "script.samples") >= told);
	assert_true(counter(monitor_counters(m), "script.time") > 0);
	assert_true(counter(monitor_counters(m), "script.time") <= lasted);
	assert_int_equal(counter(monitor_counters(m), "own"), own);
	monitor_destroy(m, 5);
	assert_int_equal(counters_file_read(path, &set, &alive, &err), 0);
	assert_false(alive);
	assert_int_equal(set->header.status, 5);
	assert_int_equal(counter(set, "own"), own);
	free(set);
	unlink(path);
	stop(*state, s);
}

static void panic_is_seen_in_the_kernels_own_words(void **state)
{
	static const struct script script = {.step = step_panic};
	struct seen *s = start(*state, &script);

	sched_resume(s->machine);
	assert_int_equal(wait_event(s), MACHINE_PANIC);
	assert_string_equal(machine_panic_text(s->machine), "no init");
	stop(*state, s);
}

static int step_panic_reset(struct vcpu *v)
{
	if (!v->regs[GPR_RAX]++) {
		print(v, "Kernel panic - not syncing: out of memory\n");
		script_out(v, POWER_RESET, POWER_RESET_VALUE);
	}
	return SCRIPT_GO_ON;
}

static void reset_after_a_panic_is_a_panic(void **state)
{
	static const struct script script = {.step = step_panic_reset};
	struct seen *s = start(*state, &script);

	sched_resume(s->machine);
	assert_int_equal(wait_event(s), MACHINE_PANIC);
	assert_string_equal(machine_panic_text(s->machine), "out of memory");
	stop(*state, s);
}

static int step_old_log(struct vcpu *v)
{
	if (!v->regs[GPR_RAX]++) {
		script_out(v, UART_PORT + 1, 2); /* as a terminal is written to: by interrupt */
		print(v, "Kernel panic - not syncing: last week\n");
		print(v, "---[ end Kernel panic - not syncing: last week ]---\n");
		return SCRIPT_GO_ON;
	}
	return step_power_off(v);
}

static void a_panic_in_an_old_log_is_none(void **state)
{
	static const struct script script = {.step = step_old_log};
	struct seen *s = start(*state, &script);

	sched_resume(s->machine);
	assert_int_equal(wait_event(s), MACHINE_POWEROFF);
	assert_string_equal(machine_panic_text(s->machine), "");
	stop(*state, s);
}

/* kvmclock as a guest reads it; RBX counts readings, RCX those that went back. */
static int step_clock(struct vcpu *v)
{
	const volatile struct {
		uint32_t version, pad;
		uint64_t tsc, time;
		uint32_t mul;
		int8_t shift;
		uint8_t flags, pad2[2];
	} *info = ram_host(v->ram, 0x9000, 32);
	uint64_t ticks, now;

	if (!v->regs[GPR_RAX]++)
		v->ops->msr_write(v->platform, v, MSR_KVM_SYSTEM_TIME, 0x9001);
	ticks = clock_host_tsc() + (uint64_t)v->tsc_offset - info->tsc;
	ticks = info->shift < 0 ? ticks >> -info->shift : ticks << info->shift;
	now = info->time + (uint64_t)((unsigned __int128)ticks * info->mul >> 32);
	v->regs[GPR_RBX]++;
	if (now < v->regs[GPR_RDX] || info->version & 1)
		v->regs[GPR_RCX]++;
	v->regs[GPR_RDX] = now;
	return SCRIPT_GO_ON;
}

static void kvmclock_never_goes_back(void **state)
{
	static const struct script script = {.step = step_clock};
	struct seen *s = start(*state, &script);

	sched_resume(s->machine);
	usleep(1500000); /* several looks of the discipline */
	sched_pause(s->machine);
	assert_true(vcpu(s)->regs[GPR_RBX] > 1000);
	assert_int_equal(vcpu(s)->regs[GPR_RCX], 0);
	stop(*state, s);
}

/* --- vcpus that wait for each other, without workers: in an order that threads seldom take --- */

#define HC_KICK_CPU 5

/* Interrupts stay off.  The second vcpu wakes the first, then waits itself. */
static int kick_and_halt(struct vcpu *v)
{
	if (v->regs[GPR_RCX]++ == 0 && v->index == 1)
		return EXIT_YIELD;
	if (v->index == 1)
		v->ops->hypercall(v->platform, v, HC_KICK_CPU, (const uint64_t[4]){0, 0});
	return EXIT_HALTED;
}

static void a_vcpu_that_was_woken_does_not_count_as_dead(void **state)
{
	static const struct script script = {.step = kick_and_halt};
	struct seen s = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, .event = NO_EVENT};
	struct machine_config config = {.event = on_event, .event_data = &s, .vcpus = 2};
	struct vcpu *v[2];
	struct machine *m;

	(void)state;
	script_engine_set(&script);
	m = script_machine(&config);
	for (unsigned i = 0; i < 2; i++)
		v[i] = machine_vcpu(m, i);
	v[1]->run_state = VCPU_RUNNING; /* as if started */
	assert_int_equal(machine_run(m, v[1]), EXIT_YIELD);
	assert_int_equal(machine_run(m, v[0]), EXIT_HALTED);
	assert_int_equal(s.event, NO_EVENT);
	v[1]->attention = 0;
	assert_int_equal(machine_run(m, v[1]), EXIT_HALTED);
	assert_int_equal(s.event, NO_EVENT);
	v[0]->attention = 0;
	assert_int_equal(machine_run(m, v[0]), EXIT_HALTED);
	assert_int_equal(v[0]->regs[GPR_RCX], 2);
	assert_int_equal(s.event, MACHINE_DEAD);
	machine_destroy(m);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
	    TEST(power_off_is_an_event_and_stops),
	    TEST(every_way_to_reset_resets_to_a_clean_machine),
	    TEST(ends_have_their_events),
	    TEST(idle_guest_does_not_run),
	    TEST(posted_work_wakes_the_worker_each_time),
	    TEST(no_timer_interrupt_is_lost_while_halted),
	    TEST(timer_armed_while_running_interrupts),
	    TEST(console_echo_byte_by_byte),
	    TEST(console_input_is_held_back_and_none_is_lost),
	    TEST(busy_machines_share_the_workers),
	    TEST(paused_means_paused),
	    TEST(a_monitored_machine_has_counters),
	    TEST(panic_is_seen_in_the_kernels_own_words),
	    TEST(reset_after_a_panic_is_a_panic),
	    TEST(a_panic_in_an_old_log_is_none),
	    TEST(kvmclock_never_goes_back),
	    TEST(a_vcpu_that_was_woken_does_not_count_as_dead),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
