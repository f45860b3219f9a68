/* gdb's protocol: bytes from a peer that need not be gdb.
 *
 *   input: kind and length │ bytes ...; a kind is a whole packet or raw bytes */
#include <stdio.h>
#include <string.h>

#include "../unit/script_engine.h"
#include "fuzz.h"
#include "machine/gdb.h"

static struct gdb *gdb;
static bool running, stops;

static void on_send(void *data, const void *bytes, size_t n)
{
	const uint8_t *p = bytes;
	unsigned sum = 0;

	(void)data;
	for (size_t i = 0; i < n; i++) /* what is read must be there */
		sum += p[i];
	fuzz_check(n < MiB && sum != UINT32_MAX);
}

static void on_resume(void *data)
{
	(void)data;
	running = true;
	if (stops) {
		running = false;
		gdb_stopped(gdb, GDB_SIGTRAP);
	}
}

static void on_interrupt(void *data)
{
	(void)data;
	fuzz_check(running);
	running = false;
	gdb_stopped(gdb, GDB_SIGINT);
}

static void on_detach(void *data, bool kill)
{
	(void)data, (void)kill;
}

static int halt(struct vcpu *v)
{
	(void)v;
	return EXIT_HALTED;
}

static void packet(const uint8_t *p, size_t n)
{
	uint8_t sum = 0;
	char tail[4];

	for (size_t i = 0; i < n; i++)
		sum = (uint8_t)(sum + p[i]);
	snprintf(tail, sizeof(tail), "#%02x", sum);
	gdb_receive(gdb, "$", 1);
	gdb_receive(gdb, p, n);
	gdb_receive(gdb, tail, 3);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	static const struct gdb_ops ops = {on_send, on_resume, on_interrupt, on_detach};
	static const struct script script = {.step = halt};
	static struct machine *machine;
	struct fuzz_input in = {bytes, bytes + size};
	unsigned first;

	if (!machine) {
		struct machine_config config = {.vcpus = 2};

		script_engine_set(&script);
		machine = script_machine(&config);
	}
	if (machine_reset(machine, NULL))
		fuzz_fail("the machine cannot be reset");
	first = fuzz_u8(&in);
	running = false;
	stops = first & 1;
	gdb = gdb_create(machine, &ops, NULL, NULL);
	while (fuzz_left(&in)) {
		unsigned head = fuzz_u8(&in);
		size_t n;
		const uint8_t *p = fuzz_bytes(&in, head & 0x3f, &n);

		if (head & 0x80)
			gdb_receive(gdb, p, n);
		else
			packet(p, n);
		if (head & 0x40 && running) {
			running = false;
			gdb_stopped(gdb, GDB_SIGTRAP);
		}
	}
	gdb_destroy(gdb);
	return 0;
}
