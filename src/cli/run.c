/* takt run: one machine, attached to this terminal.
 *
 *   main thread: event loop ── console, signals, the machine's events
 *   worker:      the machine ── console_tx ─▶ console ring;  event ─▶ wake of the loop
 *
 * The machine tells its end by an event on the worker's thread; the loop then pauses it and
 * decides: a reset loads the image again and goes on, everything else ends the process with a
 * status of its own.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "backend/console.h"
#include "base/clock.h"
#include "base/fatal.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/symbols.h"
#include "chip/acpi.h"
#include "cli/commands.h"
#include "cli/disks.h"
#include "cli/gdb.h"
#include "cli/images.h"
#include "cli/options.h"
#include "cli/shares.h"
#include "machine/boot.h"
#include "machine/machine.h"
#include "sched/monitor.h"
#include "sched/sched.h"

/* A panic of Linux resets the machine at once (panic=-1), which takt reports as a panic.  reboot=a:
 * on hardware-reduced ACPI, Linux would first try EFI and the BIOS.  The console's r is flow
 * control: Linux then holds input back while nobody reads, instead of losing it. */
#define DEFAULT_CMDLINE "console=ttyS0,115200n8r panic=-1 reboot=a"

#define NO_EVENT (-1)
#define CPUS_MAX 32

struct run_options {
	const char *kernel, *initrd, *append, *engine, *cpu, *console, *counters, *perf_jitdump,
	    *symbols, *gdb;
	struct option_list disks, shares;
	uint64_t memory, cpus, code_cache;
	bool no_reboot, stats, perf_map, verbose;
};

static const struct option_spec specs[] = {
    {"kernel", "FILE",
     "kernel: bzImage or ELF (default: that of the first disk, which then\nis the root; else the "
     "newest in /boot or takt's cache)",
     OPTION_TEXT, offsetof(struct run_options, kernel)},
    {"initrd", "FILE", "initramfs (default: none; without --kernel the disk's or takt's own)",
     OPTION_TEXT, offsetof(struct run_options, initrd)},
    {"append", "TEXT", "added to the kernel command line '" DEFAULT_CMDLINE "'", OPTION_TEXT,
     offsetof(struct run_options, append)},
    {"disk", "FILE[,OPTION]...",
     "a disk: vda, the next is vdb, ...; options: ro, snapshot (what is\n"
     "written is gone at the end), format=raw or qcow2, serial=TEXT",
     OPTION_LIST, offsetof(struct run_options, disks)},
    {"share", "DIR:TAG[,OPTION]...",
     "a directory that the guest mounts by TAG (mount -t virtiofs);\n"
     "options: ro, cache=auto|always|none, locks, acl, squash",
     OPTION_LIST, offsetof(struct run_options, shares)},
    {"memory", "SIZE", "guest memory, with K, M or G (default: 512M)", OPTION_SIZE,
     offsetof(struct run_options, memory)},
    {"cpus", "N", "processors, 1 to 32, also more than this host has (default: 1)", OPTION_NUMBER,
     offsetof(struct run_options, cpus)},
    {"cpu", "MODEL", "x86-64-v1 to -v4, default or max, then ,+FEATURE or ,-FEATURE", OPTION_TEXT,
     offsetof(struct run_options, cpu)},
    {"engine", "NAME", "auto, bt (translator, any host) or kvm (default: auto)", OPTION_TEXT,
     offsetof(struct run_options, engine)},
    {"code-cache", "SIZE", "bound of the translator's code cache", OPTION_SIZE,
     offsetof(struct run_options, code_cache)},
    {"console", "TARGET", "serial console: stdio, none or a file to write (default: stdio)",
     OPTION_TEXT, offsetof(struct run_options, console)},
    {"no-reboot", NULL, "a guest that reboots ends takt", OPTION_FLAG,
     offsetof(struct run_options, no_reboot)},
    {"stats", NULL, "print counters and where the time went, at the end", OPTION_FLAG,
     offsetof(struct run_options, stats)},
    {"counters", "FILE", "keep counters in a file while the guest runs (see 'takt counters')",
     OPTION_TEXT, offsetof(struct run_options, counters)},
    {"perf-map", NULL, "name translated code for perf in /tmp/perf-PID.map", OPTION_FLAG,
     offsetof(struct run_options, perf_map)},
    {"perf-jitdump", "DIR", "name translated code for perf inject in DIR/jit-PID.dump", OPTION_TEXT,
     offsetof(struct run_options, perf_jitdump)},
    {"symbols", "FILE", "the guest kernel's System.map or /proc/kallsyms, for these names",
     OPTION_TEXT, offsetof(struct run_options, symbols)},
    {"gdb", "PORT|SOCKET", "wait for gdb there before the first instruction", OPTION_TEXT,
     offsetof(struct run_options, gdb)},
    {"verbose", NULL, "say more about what takt does", OPTION_FLAG,
     offsetof(struct run_options, verbose)},
};

struct run {
	struct run_options options;
	const struct engine *engine;
	struct cpu_model model;
	struct boot_image image; /* of a disk's own kernel: open only until it is loaded */
	bool disk_boot;          /* it is that of the first disk */
	char root[IMAGES_ROOT_MAX];
	struct disks disks;
	struct shares shares;
	struct symbols *symbols;
	char cmdline[4096];
	struct loop loop;
	struct loop_signals signals;
	struct loop_wake event_wake;
	_Atomic int event; /* enum machine_event or NO_EVENT */
	struct console *console;
	struct machine *machine;
	struct sched *sched;
	struct gdb_server *gdb;  /* NULL without --gdb */
	struct monitor *monitor; /* NULL unless somebody wants counters */
	ns_t started;
	_Atomic unsigned resets;
	int status;
	struct error failure; /* takt's own, while the machine ran */
};

/* --- the machine's callbacks, on its worker
 * ------------------------------------------------------- */

static void machine_tx(void *data, const uint8_t *buf, size_t len)
{
	struct run *r = data;

	console_write(r->console, buf, len);
}

static void machine_room(void *data)
{
	struct run *r = data;

	console_room(r->console);
}

static void machine_ended(void *data, enum machine_event ev)
{
	struct run *r = data;

	atomic_store(&r->event, (int)ev);
	loop_wake_post(&r->event_wake);
}

/* --- the loop's callbacks
 * ------------------------------------------------------------------------- */

static size_t console_typed(void *data, const uint8_t *buf, size_t len)
{
	struct run *r = data;

	return machine_console_input(r->machine, buf, len);
}

static void finish(struct run *r, int status)
{
	gdb_server_exited(r->gdb, status);
	r->status = status;
	loop_stop(&r->loop);
}

static void console_quit(void *data)
{
	finish(data, STATUS_OK);
}

static void on_terminate(void *data, int signal)
{
	finish(data, STATUS_SIGNAL + signal);
}

static void on_resumed(void *data)
{
	struct run *r = data;

	if (r->console)
		console_resume(r->console);
}

/* Each load puts the kernel elsewhere. */
static void place_symbols(struct run *r)
{
	if (r->image.virtual_base)
		symbols_place(r->symbols, r->image.virtual_base);
	else if (!r->resets)
		log_warn("where this kernel lies in virtual memory is not known: the addresses of "
			 "--symbols are taken as they are");
}

static int open_image(struct run *r, struct error *err);

static int load(struct run *r, struct error *err)
{
	int rc = machine_reset(r->machine, err);

	/* Anew, since the guest may have a new one; and meanwhile its memory is free. */
	if (!rc && r->disk_boot && !r->image.kernel)
		rc = open_image(r, err);
	if (!rc)
		rc = boot_image_load(&r->image, machine_ram(r->machine),
				     machine_vcpu(r->machine, 0), r->cmdline, ACPI_RSDP_GPA, err);
	if (!rc && r->symbols)
		place_symbols(r);
	if (!rc)
		log_info("kernel at 0x%llx, virtual offset 0x%llx, initramfs at 0x%llx",
			 (unsigned long long)r->image.kernel_base,
			 (unsigned long long)r->image.virtual_offset,
			 (unsigned long long)r->image.initrd_base);
	if (r->disk_boot)
		boot_image_close(&r->image);
	return rc;
}

static void reset(struct run *r)
{
	if (r->options.no_reboot) {
		finish(r, STATUS_OK);
		return;
	}
	r->resets++;
	if (load(r, &r->failure)) {
		finish(r, STATUS_ERROR);
		return;
	}
	sched_resume(r->machine);
}

static void event_arrived(void *data)
{
	struct run *r = data;
	int event = atomic_exchange(&r->event, NO_EVENT);

	if (event == NO_EVENT)
		return;
	sched_pause(r->machine);
	switch ((enum machine_event)event) {
	case MACHINE_POWEROFF: finish(r, STATUS_OK); break;
	case MACHINE_RESET: reset(r); break;
	case MACHINE_DEBUG: gdb_server_stopped(r->gdb); break;
	case MACHINE_PANIC:
		if (!gdb_server_holds(r->gdb, GDB_SIGABRT, STATUS_PANIC))
			finish(r, STATUS_PANIC);
		break;
	case MACHINE_TRIPLE_FAULT:
		if (!gdb_server_holds(r->gdb, GDB_SIGSEGV, STATUS_TRIPLE_FAULT))
			finish(r, STATUS_TRIPLE_FAULT);
		break;
	case MACHINE_DEAD: finish(r, STATUS_DEAD); break;
	case MACHINE_ERROR:
		r->failure = *machine_error(r->machine);
		finish(r, STATUS_ERROR);
		break;
	}
}

/* --- set-up
 * --------------------------------------------------------------------------------------- */

static int choose_engine(struct run *r, struct error *err)
{
	const char *name = r->options.engine;

	if (!strcmp(name, "kvm"))
		return error_set(
		    err, ENOTSUP,
		    "--engine kvm is not in this version: use --engine bt, which needs no KVM");
	if (strcmp(name, "auto") && strcmp(name, "bt"))
		return error_set(err, EINVAL, "--engine %s: choose auto, bt or kvm", name);
	r->engine = &engine_bt;
	return r->engine->probe(err);
}

static int make_cmdline(struct run *r, struct error *err)
{
	const char *append = r->options.append;
	int n = snprintf(r->cmdline, sizeof(r->cmdline), "%s%s%s%s%s", DEFAULT_CMDLINE,
			 r->root[0] ? " " : "", r->root, append ? " " : "", append ? append : "");

	if ((size_t)n >= sizeof(r->cmdline))
		return error_set(err, E2BIG,
				 "--append: the kernel command line is longer than %zu characters",
				 sizeof(r->cmdline) - 1);
	return 0;
}

/* The kernel that --kernel names, that of the first disk, or the newest that is found elsewhere. */
static int choose_images(struct run *r, struct error *err)
{
	static struct default_images found;
	struct error no_system;
	int rc;

	if (r->options.kernel)
		return 0;
	if (r->disks.count) {
		rc = images_open_disk(&r->image, r->disks.disk[0], r->options.disks.values[0],
				      r->options.initrd, r->root, &no_system);
		r->disk_boot = !rc;
		if (rc && rc != -ENOENT)
			*err = no_system;
		if (rc != -ENOENT)
			return rc;
	}
	r->root[0] = 0;
	rc = images_find(&found, err);
	if (rc && r->disks.count)
		*err = no_system;
	if (rc)
		return rc;
	if (r->disks.count)
		log_warn("the first disk has no kernel of its own: booting %s", found.kernel);
	r->options.kernel = found.kernel;
	if (!r->options.initrd && found.initrd[0])
		r->options.initrd = found.initrd;
	log_info("booting %s%s%s", r->options.kernel, r->options.initrd ? " with " : "",
		 r->options.initrd ? r->options.initrd : "");
	return 0;
}

static int open_image(struct run *r, struct error *err)
{
	int rc = choose_images(r, err);

	if (!rc && !r->disk_boot)
		rc = boot_image_open(&r->image, r->options.kernel, r->options.initrd, err);
	return rc ? rc : make_cmdline(r, err);
}

static int make_machine(struct run *r, struct error *err)
{
	struct machine_config config = {
	    .memory = r->options.memory,
	    .vcpus = (unsigned)r->options.cpus,
	    .engine = r->engine,
	    .engine_config = {.code_cache_bytes = r->options.code_cache,
			      .perf_map = r->options.perf_map,
			      .perf_jitdump = r->options.perf_jitdump,
			      .symbols = r->symbols},
	    .model = &r->model,
	    .disks = r->disks.disk,
	    .ndisks = r->disks.count,
	    .shares = r->shares.share,
	    .nshares = r->shares.count,
	    .loop = &r->loop,
	    .console_tx = machine_tx,
	    .console_room = machine_room,
	    .console_data = r,
	    .event = machine_ended,
	    .event_data = r,
	};

	r->machine = machine_create(&config, err);
	return r->machine ? load(r, err) : -err->code;
}

static int open_symbols(struct run *r, struct error *err)
{
	if (!r->options.symbols)
		return 0;
	if (!r->options.perf_map && !r->options.perf_jitdump)
		return error_set(
		    err, EINVAL,
		    "--symbols names code for perf: give --perf-map or --perf-jitdump, too");
	r->symbols = symbols_open(r->options.symbols, err);
	return r->symbols ? 0 : -err->code;
}

static int make_loop(struct run *r, struct error *err)
{
	int rc = loop_init(&r->loop, err);

	r->signals =
	    (struct loop_signals){.terminate = on_terminate, .resumed = on_resumed, .data = r};
	if (!rc)
		rc = loop_signals_init(&r->loop, &r->signals, err);
	if (!rc)
		rc = loop_wake_init(&r->loop, &r->event_wake, event_arrived, r, err);
	return rc;
}

static int make_console(struct run *r, struct error *err)
{
	struct console_config config = {
	    .target = r->options.console, .input = console_typed, .quit = console_quit, .data = r};

	r->console = console_open(&r->loop, &config, err);
	return r->console ? 0 : -err->code;
}

static int make_sched(struct run *r, struct error *err)
{
	struct sched_config config = {.engine = r->engine};

	r->sched = sched_create(&config, err);
	return r->sched ? sched_add(r->sched, r->machine, err) : -err->code;
}

/* On the monitor's thread, and on the main thread at the end. */
static void put_counters(void *data, struct counter_set *set)
{
	struct run *r = data;
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	counter_set_put(set, "wall_ms", COUNTER_COUNT,
			(uint64_t)(clock_host_ns() - r->started) / 1000000);
	counter_set_put(set, "worker_ms", COUNTER_COUNT,
			(uint64_t)sched_used(r->machine) / 1000000);
	counter_set_put(set, "process_cpu_ms", COUNTER_COUNT,
			(uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000 +
			    (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1000);
	counter_set_put(set, "max_resident_kib", COUNTER_GAUGE, (uint64_t)usage.ru_maxrss);
	counter_set_put(set, "resets", COUNTER_COUNT, r->resets);
}

static int make_monitor(struct run *r, struct error *err)
{
	struct monitor_config config = {.machine = r->machine,
					.engine = r->engine,
					.path = r->options.counters,
					.counters = put_counters,
					.data = r};

	if (!r->options.stats && !r->options.counters)
		return 0;
	r->monitor = monitor_start(&config, err);
	return r->monitor ? 0 : -err->code;
}

static void gdb_ends(void *data, int status)
{
	finish(data, status);
}

static int make_gdb(struct run *r, struct error *err)
{
	struct gdb_server_config config = {.where = r->options.gdb,
					   .loop = &r->loop,
					   .machine = r->machine,
					   .end = gdb_ends,
					   .data = r};

	if (!r->options.gdb)
		return 0;
	r->gdb = gdb_server_start(&config, err);
	return r->gdb ? 0 : -err->code;
}

/* Everything that can go wrong before the guest's first instruction. */
static int start(struct run *r, struct error *err)
{
	int rc;

	if (!r->options.cpus || r->options.cpus > CPUS_MAX)
		return error_set(err, EINVAL, "--cpus %llu: give 1 to %d",
				 (unsigned long long)r->options.cpus, CPUS_MAX);
	if ((rc = choose_engine(r, err)) ||
	    (rc = cpu_model_init(&r->model, r->options.cpu, (unsigned)r->options.cpus, err)) ||
	    (rc = disks_open(&r->disks, &r->options.disks, err)) || (rc = open_image(r, err)) ||
	    (rc = shares_open(&r->shares, &r->options.shares, err)))
		return rc;
	if ((rc = open_symbols(r, err)) || (rc = make_loop(r, err)) ||
	    (rc = make_machine(r, err)) || (rc = make_console(r, err)) || (rc = make_sched(r, err)))
		return rc;
	rc = make_monitor(r, err);
	return rc ? rc : make_gdb(r, err);
}

/* --- the end
 * -------------------------------------------------------------------------------------- */

/* One line for every end but the ordinary one. */
static void explain(const struct run *r)
{
	char where[256];

	vcpu_describe(machine_vcpu(r->machine, 0), where, sizeof(where));
	switch (r->status) {
	case STATUS_PANIC:
		log_error("the guest's kernel panicked: %s", machine_panic_text(r->machine));
		break;
	case STATUS_TRIPLE_FAULT:
		log_error("the guest's processor shut down (triple fault): %s", where);
		break;
	case STATUS_DEAD:
		log_error("the guest halted with interrupts off, nothing can wake it: %s", where);
		break;
	case STATUS_ERROR: log_error("%s; %s", r->failure.text, where); break;
	default:
		if (r->status > STATUS_SIGNAL)
			log_error("ended by signal %d (%s)", r->status - STATUS_SIGNAL,
				  strsignal(r->status - STATUS_SIGNAL));
	}
}

static void stop(struct run *r)
{
	monitor_destroy(r->monitor, r->status);
	r->monitor = NULL;
	gdb_server_stop(r->gdb);
	r->gdb = NULL;
	if (r->sched && r->machine)
		sched_remove(r->sched, r->machine);
	console_close(r->console);
	r->console = NULL;
}

static void release(struct run *r)
{
	if (r->sched)
		sched_destroy(r->sched);
	if (r->machine)
		machine_destroy(r->machine);
	disks_close(&r->disks);
	shares_close(&r->shares);
	boot_image_close(&r->image);
	symbols_close(r->symbols);
	loop_wake_destroy(&r->event_wake);
	loop_signals_destroy(&r->signals);
	loop_destroy(&r->loop);
}

static int run(struct run *r)
{
	struct error err = {0};

	r->started = clock_host_ns();
	fatal_install();
	if (start(r, &err)) {
		stop(r);
		log_error("%s", err.text);
		r->status = STATUS_ERROR;
	} else {
		if (!r->gdb)
			sched_resume(r->machine);
		if (loop_run(&r->loop, &r->failure))
			r->status = STATUS_ERROR;
		sched_pause(r->machine);
		if (r->monitor)
			monitor_stop(r->monitor);
		if (r->options.stats)
			counters_print(monitor_counters(r->monitor), stderr);
		stop(r);
		explain(r);
	}
	release(r);
	return r->status;
}

static void print_help(void)
{
	puts("usage: takt run [OPTIONS]\n\n"
	     "Boots a machine; its serial console is this terminal.\n"
	     "Ctrl-a x quits, Ctrl-a h helps, Ctrl-a Ctrl-a sends Ctrl-a.\n");
	options_help(specs, ARRAY_SIZE(specs));
	puts("\nStatus: 0 the guest switched itself off, 1 takt's own error, 2 wrong usage,\n"
	     "3 guest panic, 4 triple fault, 5 halted for good, 128+N ended by signal N.");
}

int command_run(int argc, char **argv)
{
	static struct run r;
	struct error err;
	int rc;

	r.options = (struct run_options){
	    .memory = 512 * MiB, .cpus = 1, .engine = "auto", .console = "stdio"};
	r.event = NO_EVENT;
	r.loop.epoll_fd = r.signals.source.fd = r.event_wake.source.fd = r.image.initrd_fd = -1;
	rc = options_parse(specs, ARRAY_SIZE(specs), argc, argv, &r.options, &err);
	if (rc > 0) {
		print_help();
		return STATUS_OK;
	}
	if (rc < 0) {
		log_error("%s", err.text);
		return STATUS_USAGE;
	}
	if (r.options.verbose)
		log_set_level(LOG_INFO);
	return run(&r);
}
