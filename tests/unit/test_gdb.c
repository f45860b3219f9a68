/* gdb's remote protocol: what a well-behaved gdb gets, and that no bytes whatever do harm. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <unistd.h>

#include "machine/debug.h"
#include "machine/gdb.h"
#include "script_engine.h"
#include "x86/vcpu.h"

struct session {
	struct machine *machine;
	struct gdb *gdb;
	char sent[70000];
	size_t len;
	unsigned resumed, interrupted, detached;
	bool stop_at_once;
};

static void on_send(void *data, const void *bytes, size_t n)
{
	struct session *s = data;

	n = MIN(n, sizeof(s->sent) - 1 - s->len);
	memcpy(s->sent + s->len, bytes, n);
	s->len += n;
	s->sent[s->len] = 0;
}

static void on_resume(void *data)
{
	struct session *s = data;

	s->resumed++;
	if (s->stop_at_once)
		gdb_stopped(s->gdb, GDB_SIGTRAP);
}

static void on_interrupt(void *data)
{
	struct session *s = data;

	s->interrupted++;
	gdb_stopped(s->gdb, GDB_SIGINT);
}

static void on_detach(void *data, bool kill)
{
	(void)kill;
	((struct session *)data)->detached++;
}

static const struct gdb_ops ops = {on_send, on_resume, on_interrupt, on_detach};

static int step(struct vcpu *v)
{
	(void)v;
	return EXIT_HALTED;
}

static int setup(void **state)
{
	static const struct script script = {.step = step};
	struct machine_config config = {.vcpus = 2};
	struct session *s = calloc(1, sizeof(*s));

	script_engine_set(&script);
	s->machine = script_machine(&config);
	s->gdb = gdb_create(s->machine, &ops, s, NULL);
	assert_non_null(s->gdb);
	alarm(120);
	*state = s;
	return 0;
}

static int teardown(void **state)
{
	struct session *s = *state;

	gdb_destroy(s->gdb);
	machine_destroy(s->machine);
	free(s);
	alarm(0);
	return 0;
}

/* Sends a packet; returns what came back, without frames and acknowledgements. */
static const char *ask_bytes(struct session *s, const char *packet, size_t n)
{
	uint8_t sum = 0;
	char tail[8], *start, *end;

	s->len = 0;
	s->sent[0] = 0;
	for (size_t i = 0; i < n; i++)
		sum += (uint8_t)packet[i];
	snprintf(tail, sizeof(tail), "#%02x", sum);
	gdb_receive(s->gdb, "$", 1);
	gdb_receive(s->gdb, packet, n);
	gdb_receive(s->gdb, tail, 3);
	start = strchr(s->sent, '$');
	if (!start)
		return NULL;
	end = strrchr(start, '#');
	assert_non_null(end);
	*end = 0;
	return start + 1;
}

static const char *ask(struct session *s, const char *packet)
{
	return ask_bytes(s, packet, strlen(packet));
}

static void registers_are_read_and_written(void **state)
{
	struct session *s = *state;
	struct vcpu *v = machine_vcpu(s->machine, 0);
	const char *all;
	char packet[3000];
	size_t bytes = 0;

	v->regs[GPR_RBX] = 0x1122334455667788;
	v->rip = 0x100000;
	v->seg[SEG_FS].base = 0xabcd;
	assert_string_equal(ask(s, "p1"), "8877665544332211");
	assert_string_equal(ask(s, "p10"), "0000100000000000");
	assert_string_equal(ask(s, "P3=0100000000000000"), "OK");
	assert_int_equal(v->regs[GPR_RDX], 1);
	assert_string_equal(ask(s, "p39"), "cdab000000000000"); /* fs_base */
	assert_string_equal(ask(s, "p20"), "7f030000");         /* fctrl */
	assert_string_equal(ask(s, "P28=000102030405060708090a0b0c0d0e0f"), "OK");
	assert_string_equal(ask(s, "p28"), "000102030405060708090a0b0c0d0e0f"); /* xmm0 */
	assert_string_equal(ask(s, "P3c=0000000000000000"), "E01");             /* cr0 */
	for (unsigned i = 0; debug_register(i); i++)
		bytes += debug_register(i)->bits / 8;
	all = ask(s, "g");
	assert_int_equal(strlen(all), 2 * bytes);
	snprintf(packet, sizeof(packet), "G%s", all);
	assert_string_equal(ask(s, packet), "OK");
	assert_string_equal(ask(s, "p1"), "8877665544332211");
	/* The other vcpu's. */
	machine_vcpu(s->machine, 1)->regs[GPR_RBX] = 2;
	assert_string_equal(ask(s, "Hg2"), "OK");
	assert_string_equal(ask(s, "p1"), "0200000000000000");
	assert_string_equal(ask(s, "Hg3"), "E16");
}

static void memory_is_read_and_written(void **state)
{
	struct session *s = *state;
	uint8_t *host = ram_host(machine_ram(s->machine), 0x5000, 16);

	memcpy(host, "hello", 5);
	assert_string_equal(ask(s, "m5000,5"), "68656c6c6f");
	assert_string_equal(ask(s, "M5001,2:4142"), "OK");
	assert_memory_equal(host, "hABlo", 5);
	assert_string_equal(ask_bytes(s,
				      "X5000,3:a}\x03"
				      "b",
				      12),
			    "OK"); /* an escaped '#' */
	assert_memory_equal(host, "a#blo", 5);
	assert_string_equal(ask(s, "mfffffffff000,4"), "E0e");
	assert_int_equal(strlen(ask(s, "m1ffffe,10")), 4); /* as much as there is */
	assert_string_equal(ask(s, "M1ffffe,4:00000000"), "E0e");
	assert_string_equal(ask(s, "M5000,5:00"), "E16");
	assert_string_equal(ask(s, "Qqemu.PhyMemMode:1"), "OK");
	assert_string_equal(ask(s, "qqemu.PhyMemMode"), "1");
	assert_string_equal(ask(s, "m5000,1"), "61");
}

static void breakpoints_come_and_go(void **state)
{
	struct session *s = *state;
	uint8_t *host = ram_host(machine_ram(s->machine), 0x6000, 16);
	const struct vcpu_debug *d = machine_vcpu(s->machine, 1)->debug;

	host[1] = 0x90;
	assert_string_equal(ask(s, "Z0,6001,1"), "OK");
	assert_int_equal(host[1], 0xcc);
	assert_int_equal(d->nint3, 1);
	assert_string_equal(ask(s, "m6001,1"), "90");
	assert_string_equal(ask(s, "z0,6001,1"), "OK");
	assert_int_equal(host[1], 0x90);
	assert_string_equal(ask(s, "Z0,ffffffff000,1"), "E0e");
	assert_string_equal(ask(s, "Z1,7000,1"), "OK");
	assert_string_equal(ask(s, "Z2,7008,8"), "OK");
	assert_string_equal(ask(s, "Z3,7010,4"), "OK");
	assert_string_equal(ask(s, "Z4,7012,2"), "OK");
	assert_string_equal(ask(s, "Z1,7020,1"), "E1c");
	assert_int_equal(d->dr7, 0x7f900055);
	assert_string_equal(ask(s, "Z2,7001,2"), "E16");
	assert_string_equal(ask(s, "z2,7008,8"), "OK");
	assert_int_equal(d->dr7, 0x7f000051);
	assert_string_equal(ask(s, "D"), "OK");
	assert_int_equal(d->dr7, 0);
	assert_int_equal(s->detached, 1);
}

static void threads_go_and_stop(void **state)
{
	struct session *s = *state;
	struct vcpu_debug *d[2] = {machine_vcpu(s->machine, 0)->debug,
				   machine_vcpu(s->machine, 1)->debug};

	assert_string_equal(ask(s, "?"), "T05thread:1;");
	assert_string_equal(ask(s, "qfThreadInfo"), "m1,2");
	assert_string_equal(ask(s, "qsThreadInfo"), "l");
	assert_string_equal(ask(s, "T3"), "E03");
	assert_non_null(strstr(ask(s, "qSupported:swbreak+;hwbreak+"), "PacketSize"));
	assert_null(ask(s, "vCont;s:2"));
	assert_int_equal(s->resumed, 1);
	assert_true(d[0]->frozen && !d[1]->frozen && d[1]->step && !d[0]->step);
	assert_null(ask(s, "g")); /* it runs */
	d[1]->hit = DEBUG_STEP;
	s->len = 0;
	gdb_stopped(s->gdb, GDB_SIGTRAP);
	assert_string_equal(s->sent, "$T05thread:2;#d8");
	assert_null(ask(s, "vCont;s:1;c"));
	assert_true(d[0]->step && !d[0]->frozen && !d[1]->frozen && !d[1]->step);
	s->len = 0;
	gdb_receive(s->gdb, "\3", 1);
	assert_int_equal(s->interrupted, 1);
	assert_non_null(strstr(s->sent, "$T02thread:2;"));
	assert_null(ask(s, "c"));
	d[0]->hit = DEBUG_INT3;
	s->len = 0;
	gdb_stopped(s->gdb, GDB_SIGTRAP);
	assert_non_null(strstr(s->sent, "T05thread:1;swbreak:;"));
	assert_string_equal(ask(s, "vCont;x"), "E16");
	assert_string_equal(ask(s, "vCont"), "E16");
	assert_null(ask(s, "vCont;c"));
	s->len = 0;
	gdb_exited(s->gdb, 3);
	assert_non_null(strstr(s->sent, "$W03#"));
	assert_string_equal(ask(s, "vMustReplyEmpty"), "");
}

static void no_bytes_do_harm(void **state)
{
	static const char *const words[] = {"g",
					    "G",
					    "p",
					    "P",
					    "m",
					    "M",
					    "X",
					    "Z0,",
					    "Z2,",
					    "z0,",
					    "Hg",
					    "Hc",
					    "T",
					    "c",
					    "s",
					    "vCont;",
					    "vCont",
					    "qSupported",
					    "qXfer:features:read:target.xml:",
					    "qThreadExtraInfo,",
					    "?",
					    ",",
					    ":",
					    "=",
					    ";",
					    "-1",
					    "ffffffffffffffff",
					    "5000",
					    "1",
					    "3fff",
					    "00",
					    "}",
					    "#",
					    "$",
					    "*",
					    "s:",
					    "c:",
					    "Qqemu.PhyMemMode:",
					    "\xff",
					    "8000000000000000"};
	struct session *s = *state;
	static char packet[40000];

	s->stop_at_once = true;
	srandom(6);
	for (int i = 0; i < 60000; i++) {
		size_t n = 0;

		for (long k = random() % 8; k >= 0; k--) {
			const char *word = words[(size_t)random() % ARRAY_SIZE(words)];

			memcpy(packet + n, word, strlen(word));
			n += strlen(word);
			if (random() % 16 == 0)
				packet[n++] = (char)random();
		}
		if (i % 1000 == 0) { /* longer than there is room for */
			memset(packet + n, '0', 30000);
			n += 30000;
		}
		if (i % 3) {
			s->len = 0;
			gdb_receive(s->gdb, packet, n);
		} else {
			ask_bytes(s, packet, n);
		}
	}
	/* A session goes on after all that. */
	gdb_receive(s->gdb, "#00", 3);
	assert_non_null(ask(s, "qC"));
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
	    TEST(registers_are_read_and_written),
	    TEST(memory_is_read_and_written),
	    TEST(breakpoints_come_and_go),
	    TEST(threads_go_and_stop),
	    TEST(no_bytes_do_harm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
