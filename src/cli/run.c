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
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/bootdisk.h"
#include "backend/console.h"
#include "base/clock.h"
#include "base/fatal.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/symbols.h"
#include "base/trace.h"
#include "chip/acpi.h"
#include "cli/command.h"
#include "cli/commands.h"
#include "cli/disks.h"
#include "cli/gdb.h"
#include "cli/hold.h"
#include "cli/images.h"
#include "cli/machine_file.h"
#include "cli/nets.h"
#include "cli/options.h"
#include "cli/run_options.h"
#include "cli/shares.h"
#include "engine/bt/options.h"
#include "engine/kvm/host.h"
#include "machine/boot.h"
#include "machine/machine.h"
#include "sched/monitor.h"
#include "sched/sched.h"

#define COMMAND_CMDLINE DEFAULT_CMDLINE " quiet loglevel=3"

#define NO_EVENT (-1)
#define CPUS_MAX 32
#define DEBUG_EXIT_PORT 0xf4 /* as in QEMU's customs */

struct run {
	struct run_options options;
	struct machine_file
	    *file; /* what the options point into; NULL: they come from the command line */
	const struct engine *engine;
	struct cpu_model model;
	struct boot_image image; /* of a disk's own kernel: open only until it is loaded */
	bool disk_boot;          /* it is that of the first disk */
	char root[IMAGES_ROOT_MAX];
	struct disks disks;
	struct shares shares;
	struct command_image root_image; /* no type: there is none */
	char root_type[16];
	struct command *command;    /* NULL unless the machine is for one */
	_Atomic int command_status; /* -1: it has not ended */
	char tail[2048];            /* of the serial console's output; a ring */
	size_t tail_len;
	unsigned passed_on; /* signals */
	struct nets nets;
	struct vsock_option vsock;
	uint16_t debug_exit_port; /* 0: none */
	struct symbols *symbols;
	struct trace *trace; /* NULL without --trace */
	char cmdline[4096];
	struct loop loop;
	struct loop_signals signals;
	struct loop_wake event_wake;
	_Atomic int event; /* enum machine_event or NO_EVENT */
	struct console *console;
	struct machine *machine;
	struct sched *sched;
	struct hold hold;
	struct gdb_server *gdb;  /* NULL without --gdb */
	struct monitor *monitor; /* NULL unless somebody wants counters */
	ns_t started;
	_Atomic unsigned resets;
	int status;
	bool by_guest;        /* the status is the guest's own */
	struct error failure; /* takt's own, while the machine ran */
};

/* --- the machine's callbacks, on its worker
 * ------------------------------------------------------- */

/* What the kernel said last: printed only if the machine ends before its command. */
static void keep_tail(struct run *r, const uint8_t *buf, size_t len)
{
	for (size_t i = 0; i < len; i++)
		r->tail[r->tail_len++ % sizeof(r->tail)] = (char)buf[i];
}

static void machine_tx(void *data, const uint8_t *buf, size_t len)
{
	struct run *r = data;

	if (r->command)
		keep_tail(r, buf, len);
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

/* A command gets the first; a second one is for takt. */
static void on_terminate(void *data, int signal)
{
	struct run *r = data;

	if (r->command && !r->passed_on++)
		command_signal(r->command, signal);
	else
		finish(r, STATUS_SIGNAL + signal);
}

static void on_resumed(void *data)
{
	struct run *r = data;

	if (r->console)
		console_resume(r->console);
	if (r->command)
		command_resumed(r->command);
	hold_retry(&r->hold);
}

static void on_resized(void *data)
{
	struct run *r = data;

	if (r->command)
		command_resized(r->command);
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
	/* A command is never run a second time. */
	if (r->options.no_reboot || r->command) {
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

/* What the host could not do is done.  A machine that gdb holds goes on when gdb says so. */
static void go_on(void *data)
{
	struct run *r = data;

	if (gdb_server_waits(r->gdb))
		return;
	machine_continue(r->machine);
	sched_resume(r->machine);
}

static void event_arrived(void *data)
{
	struct run *r = data;
	int event = atomic_exchange(&r->event, NO_EVENT), status = atomic_load(&r->command_status);

	if (status >= 0) {
		finish(r, status);
		return;
	}
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
	case MACHINE_DEBUG_EXIT:
		r->by_guest = true;
		finish(r, (int)(machine_debug_exit_value(r->machine) << 1 | 1) & 0xff);
		break;
	case MACHINE_IO_HELD:
		if (hold_begin(&r->hold, &r->loop, &r->failure))
			finish(r, STATUS_ERROR);
		break;
	case MACHINE_IO_FAILED:
		r->failure = *machine_error(r->machine);
		finish(r, STATUS_IO);
		break;
	case MACHINE_ERROR:
		r->failure = *machine_error(r->machine);
		finish(r, STATUS_ERROR);
		break;
	}
}

/* --- a command ---------------------------------------------------------------------------------------- */

static void command_ended(void *data, int status)
{
	struct run *r = data;

	atomic_store(&r->command_status, status);
	loop_wake_post(&r->event_wake);
}

static void wake_ports(void *data)
{
	struct run *r = data;

	if (r->machine)
		machine_ports_wake(r->machine);
}

#define FORMAT_WORD ",format="

/* --root of a file: DIR and FILE are told apart by what is there, FILE may have a format behind it. */
static int open_root(struct run *r, struct error *err)
{
	const char *root = r->options.root, *format = root ? strstr(root, FORMAT_WORD) : NULL;
	struct disk_config config = {.read_only = true, .serial = COMMAND_ROOT_SERIAL};
	struct bootdisk_root found;
	char path[PATH_MAX];
	struct stat st;
	int rc;

	if (!root || (!stat(root, &st) && S_ISDIR(st.st_mode)))
		return 0;
	for (const char *next; format && (next = strstr(format + 1, FORMAT_WORD));)
		format = next;
	snprintf(path, sizeof(path), "%.*s", format ? (int)(format - root) : (int)strlen(root),
		 root);
	config.path = path;
	config.format = format ? format + strlen(FORMAT_WORD) : NULL;
	if (stat(path, &st))
		return error_set(err, errno, "--root %s: %s", path, strerror(errno));
	rc = disks_add(&r->disks, &config, err);
	if (!rc)
		rc = bootdisk_find_root(&found, r->disks.disk[r->disks.count - 1], path, err);
	if (!rc && found.unclean) {
		/* The guest's kernel replays the journal: into a file that is gone at the end. */
		disk_close(r->disks.disk[--r->disks.count]);
		config.read_only = false;
		config.snapshot = true;
		rc = disks_add(&r->disks, &config, err);
	}
	if (rc)
		return rc;
	snprintf(r->root_type, sizeof(r->root_type), "%s", found.type);
	r->root_image = (struct command_image){.partition = found.partition, .type = r->root_type};
	return 0;
}

static int make_command(struct run *r, struct error *err)
{
	const char *net = r->options.nets.count ? r->options.nets.values[0] : "user";
	struct command_config config = {.args = r->options.command,
					.kernel = r->options.kernel,
					.modules = r->options.modules,
					.root = r->options.root,
					.writable = &r->options.writable,
					.disks = r->options.disks.count,
					.cards = strcmp(net, "none"),
					.network =
					    !strncmp(net, "user", 4) && (!net[4] || net[4] == ','),
					.ended = command_ended,
					.wake = wake_ports,
					.data = r};

	if (!r->options.command)
		return r->options.root || r->options.modules || r->options.writable.count
			   ? error_set(
				 err, EINVAL,
				 "--root, --rw and --modules are for a command: give one behind --")
			   : 0;
	if (r->options.initrd)
		return error_set(err, EINVAL,
				 "--initrd: a command brings its own; leave one of them out");
	if (open_root(r, err))
		return -err->code;
	config.disks = r->disks.count;
	config.image = r->root_image.type ? &r->root_image : NULL;
	r->command = command_create(&config, &r->shares, err);
	if (!r->command)
		return -err->code;
	r->options.initrd = command_initrd(r->command);
	return 0;
}

/* --- set-up
 * --------------------------------------------------------------------------------------- */

/* The processor that the guest is to see, on KVM or, if its model is beyond this host's and nobody asked
 * for KVM by name, on the translator. */
static int choose_model(struct run *r, bool by_name, struct error *err)
{
	unsigned cpus = (unsigned)r->options.cpus;
	int rc = cpu_model_init(&r->model, r->options.cpu, cpus, err);

	if (rc || r->engine != &engine_kvm)
		return rc;
	rc = kvm_fit_model(&r->model, r->options.cpu, err);
	if (!rc || by_name)
		return rc;
	log_warn("running on the translator: %s", err->text);
	r->engine = &engine_bt;
	rc = r->engine->probe(err);
	return rc ? rc : cpu_model_init(&r->model, r->options.cpu, cpus, err);
}

static int choose_engine(struct run *r, struct error *err)
{
	const char *name = r->options.engine;
	bool by_name = !strcmp(name, "kvm");
	bool names = r->options.perf_map || r->options.perf_jitdump;
	int rc;

	if (strcmp(name, "auto") && strcmp(name, "bt") && !by_name)
		return error_set(err, EINVAL, "--engine %s: choose auto, bt or kvm", name);
	if (by_name && names)
		return error_set(
		    err, EINVAL,
		    "--perf-map and --perf-jitdump name translated code, which --engine kvm "
		    "has none of: leave them out, or use --engine bt");
	r->engine =
	    by_name || (!strcmp(name, "auto") && !names && kvm_host_kind(NULL) == KVM_HARDWARE)
		? &engine_kvm
		: &engine_bt;
	rc = r->engine->probe(err);
	return rc ? rc : choose_model(r, by_name, err);
}

static int choose_debug_exit(struct run *r, struct error *err)
{
	const char *text = r->options.debug_exit;
	unsigned long port;
	char *end;

	if (!text)
		return 0;
	port = *text ? strtoul(text, &end, 0) : DEBUG_EXIT_PORT;
	if (!port || port > UINT16_MAX || (*text && *end))
		return error_set(err, EINVAL, "--debug-exit=%.40s: not a port: give one like 0xf4",
				 text);
	r->debug_exit_port = (uint16_t)port;
	return 0;
}

static int cmdline_too_long(const struct run *r, struct error *err)
{
	return error_set(err, E2BIG,
			 "--append: the kernel command line is longer than %zu characters",
			 sizeof(r->cmdline) - 1);
}

static int make_cmdline(struct run *r, struct error *err)
{
	const char *append = r->options.append;
	int n;

	/* What is not Linux has no use for Linux's words. */
	if (boot_image_protocol(&r->image) == BOOT_MULTIBOOT) {
		n = snprintf(r->cmdline, sizeof(r->cmdline), "%s", append ? append : "");
		return (size_t)n < sizeof(r->cmdline) ? 0 : cmdline_too_long(r, err);
	}
	n = snprintf(r->cmdline, sizeof(r->cmdline), "%s%s%s%s%s",
		     r->options.command ? COMMAND_CMDLINE : DEFAULT_CMDLINE, r->root[0] ? " " : "",
		     r->root, append ? " " : "", append ? append : "");

	return (size_t)n < sizeof(r->cmdline) ? 0 : cmdline_too_long(r, err);
}

/* The kernel that --kernel names, that of the first disk, or the newest that is found elsewhere. */
static int choose_images(struct run *r, struct error *err)
{
	static struct default_images found;
	struct error no_system;
	int rc;

	if (r->options.kernel)
		return 0;
	if (r->disks.count && !r->options.command) {
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
	if (rc && r->disks.count && !r->options.command)
		*err = no_system;
	if (rc)
		return rc;
	if (r->disks.count && !r->options.command)
		log_warn("the first disk has no kernel of its own: booting %s", found.kernel);
	r->options.kernel = found.kernel;
	if (!r->options.initrd && !r->options.command && found.initrd[0])
		r->options.initrd = found.initrd;
	log_info("booting %s%s%s", r->options.kernel, r->options.initrd ? " with " : "",
		 r->options.initrd ? r->options.initrd : "");
	return 0;
}

static int add_modules(struct run *r, struct error *err)
{
	const struct option_list *modules = &r->options.boot_modules;
	char path[PATH_MAX];
	int rc = 0;

	if (modules->count && (r->disk_boot || r->command))
		return error_set(err, EINVAL,
				 "--module is for a kernel of your own: give --kernel%s",
				 r->command ? ", and no command" : "");
	for (unsigned i = 0; i < modules->count && !rc; i++) {
		const char *rest = modules->values[i];

		if (!option_part(&rest, path, sizeof(path)) || !path[0])
			return error_set(err, EINVAL,
					 "--module %.200s: no file, or its name is too long",
					 modules->values[i]);
		rc = boot_image_add_module(&r->image, path, rest ? rest : "", err);
	}
	return rc;
}

static int open_image(struct run *r, struct error *err)
{
	int rc = choose_images(r, err);

	if (!rc && !r->command)
		rc = make_command(r, err);
	if (!rc && !r->disk_boot)
		rc = boot_image_open(&r->image, r->options.kernel, r->options.initrd, err);
	if (!rc)
		rc = add_modules(r, err);
	return rc ? rc : make_cmdline(r, err);
}

static int make_machine(struct run *r, struct error *err)
{
	uint64_t code_cache = r->options.code_cache == NOT_GIVEN ? 0 : r->options.code_cache;
	const struct bt_options translator = {.code_cache_bytes = code_cache,
					      .perf_map = r->options.perf_map,
					      .perf_jitdump = r->options.perf_jitdump,
					      .symbols = r->symbols};
	struct machine_config config = {
	    .memory = r->options.memory,
	    .balloon = r->options.balloon == NOT_GIVEN ? 0 : r->options.balloon,
	    .vcpus = (unsigned)r->options.cpus,
	    .engine = r->engine,
	    .engine_config = {.translator = &translator},
	    .model = &r->model,
	    .disks = r->disks.disk,
	    .ndisks = r->disks.count,
	    .ports = r->command ? command_ports(r->command) : NULL,
	    .nports = r->command ? COMMAND_PORTS : 0,
	    .shares = r->shares.share,
	    .nshares = r->shares.count,
	    .nets = r->nets.net,
	    .nnets = r->nets.count,
	    .vsock_path = r->options.vsock ? r->vsock.path : NULL,
	    .vsock_cid = r->vsock.cid,
	    .debug_exit_port = r->debug_exit_port,
	    .trace = r->trace,
	    .loop = &r->loop,
	    .console_tx = machine_tx,
	    .console_room = machine_room,
	    .console_data = r,
	    .event = machine_ended,
	    .event_data = r,
	};

	r->machine = machine_create(&config, err);
	r->hold.machine = r->machine;
	r->hold.mended = go_on;
	r->hold.data = r;
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

static int open_trace(struct run *r, struct error *err)
{
	unsigned whats;

	if (!r->options.trace)
		return r->options.trace_file
			   ? error_set(err, EINVAL,
				       "--trace-file: say with --trace what is to be in it")
			   : 0;
	if (trace_parse(r->options.trace, &whats, err))
		return -err->code;
	r->trace = trace_open(whats, r->options.trace_file, err);
	return r->trace ? 0 : -err->code;
}

static int make_loop(struct run *r, struct error *err)
{
	int rc = loop_init(&r->loop, err);

	r->signals = (struct loop_signals){
	    .terminate = on_terminate, .resumed = on_resumed, .resized = on_resized, .data = r};
	if (!rc)
		rc = loop_signals_init(&r->loop, &r->signals, err);
	if (!rc)
		rc = loop_wake_init(&r->loop, &r->event_wake, event_arrived, r, err);
	return rc;
}

static int make_console(struct run *r, struct error *err)
{
	struct console_config config = {.target = r->options.console ? r->options.console
						  : r->command       ? "none"
								     : "stdio",
					.input = console_typed,
					.quit = console_quit,
					.data = r};

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
	machine_put_counters(r->machine, set);
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
/* Asked for by name, it is used; but nobody should wait for a boot that stands still. */
static void warn_of_emulation(const struct run *r)
{
	if (r->engine == &engine_kvm && boot_image_protocol(&r->image) == BOOT_LINUX64 && kvm_host_kind(NULL) == KVM_PARAVIRTUAL)
		log_warn("this host's KVM is paravirtual: it emulates kernels, slowly and in part, and Linux may stand still on it; --engine bt runs it");
}

static int start(struct run *r, struct error *err)
{
	int rc;

	if (!r->options.cpus || r->options.cpus > CPUS_MAX)
		return error_set(err, EINVAL, "--cpus %llu: give 1 to %d",
				 (unsigned long long)r->options.cpus, CPUS_MAX);
	if ((rc = choose_debug_exit(r, err)) || (rc = choose_engine(r, err)) ||
	    (rc = disks_open(&r->disks, &r->options.disks, err)) || (rc = open_image(r, err)) ||
	    (rc = shares_open(&r->shares, &r->options.shares, err)) ||
	    (rc = nets_open(&r->nets, &r->options.nets, (unsigned)r->options.cpus, err)) ||
	    (r->options.vsock && (rc = vsock_parse(&r->vsock, r->options.vsock, err))))
		return rc;
	warn_of_emulation(r);
	if ((rc = open_symbols(r, err)) || (rc = open_trace(r, err)) || (rc = make_loop(r, err)) ||
	    (rc = make_machine(r, err)) || (rc = make_console(r, err)) || (rc = make_sched(r, err)))
		return rc;
	if (r->command && (rc = command_start(r->command, err)))
		return rc;
	rc = make_monitor(r, err);
	return rc ? rc : make_gdb(r, err);
}

/* --- the end
 * -------------------------------------------------------------------------------------- */

static void print_tail(const struct run *r)
{
	size_t n = MIN(r->tail_len, sizeof(r->tail)), at = r->tail_len - n;

	while (n > 1 && r->tail_len > sizeof(r->tail) && r->tail[at % sizeof(r->tail)] != '\n')
		at++, n--; /* not half a line */
	for (; n; at++, n--) {
		unsigned char byte = (unsigned char)r->tail[at % sizeof(r->tail)];

		/* Whatever the guest wrote, this terminal gets text. */
		if ((byte >= ' ' && byte < 0x7f) || byte == '\n' || byte == '\t')
			fputc(byte, stderr);
	}
}

/* One line for every end but the ordinary one. */
static void explain(const struct run *r)
{
	char where[256];

	if (r->by_guest || atomic_load(&r->command_status) >= 0)
		return; /* its status, not one of takt's */
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
	case STATUS_IO: log_error("%s", r->failure.text); break;
	case STATUS_OK:
		if (r->options.command)
			log_error("the machine switched itself off before the command ended");
		break;
	default:
		if (r->status > STATUS_SIGNAL)
			log_error("ended by signal %d (%s)", r->status - STATUS_SIGNAL,
				  strsignal(r->status - STATUS_SIGNAL));
	}
	if (r->options.command && r->tail_len && r->status < STATUS_SIGNAL) {
		log_error("the last that its console showed:");
		print_tail(r);
	}
}

static void stop(struct run *r)
{
	monitor_destroy(r->monitor, r->status);
	r->monitor = NULL;
	hold_end(&r->hold);
	gdb_server_stop(r->gdb);
	r->gdb = NULL;
	if (r->sched && r->machine)
		sched_remove(r->sched, r->machine);
	command_destroy(r->command); /* its last words, and the terminal as it was */
	r->command = NULL;
	console_close(r->console);
	r->console = NULL;
}

static void release(struct run *r)
{
	if (r->sched)
		sched_destroy(r->sched);
	if (r->machine)
		machine_destroy(r->machine);
	trace_close(r->trace);
	disks_close(&r->disks);
	shares_close(&r->shares);
	nets_close(&r->nets);
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
	/* A command's own status is never taken for one of takt's. */
	if (r->options.command && atomic_load(&r->command_status) < 0 && r->status < STATUS_SIGNAL)
		r->status = COMMAND_FAILED;
	return r->status;
}

static void print_help(void)
{
	puts("usage: takt run [FILE.json] [OPTIONS]\n"
	     "       takt run [FILE.json] [OPTIONS] -- COMMAND [ARGUMENT]...\n\n"
	     "Boots a machine; its serial console is this terminal.\n"
	     "Ctrl-a x quits, Ctrl-a h helps, Ctrl-a Ctrl-a sends Ctrl-a.\n\n"
	     "With a COMMAND: runs it in a machine as if it ran here, in this directory, as this "
	     "user, with\n"
	     "this host's files, whose changes are gone at the end (but for --rw), and ends with "
	     "its status.\n\n"
	     "FILE.json describes a machine, see --print-config; the options given here go before "
	     "it.\n");
	options_help(run_specs, run_specs_count);
	puts("\nStatus: 0 the guest switched itself off, 1 takt's own error, 2 wrong usage,\n"
	     "3 guest panic, 4 triple fault, 5 halted for good, 6 a disk failed (on-error=fail), 128+N ended\n"
	     "by signal N; with a COMMAND its own status, 125 if takt failed, 126 and 127 if it could not be started.");
}

/* A command gets what this host has: all its processors and up to half of its memory, of which it costs
 * only what it uses. */
static void set_defaults(struct run_options *o)
{
	uint64_t pages = (uint64_t)sysconf(_SC_PHYS_PAGES),
		 half = pages * (uint64_t)sysconf(_SC_PAGESIZE) / 2;

	if (o->memory == NOT_GIVEN)
		o->memory =
		    o->command ? ALIGN_DOWN(MAX(MIN(half, 4 * GiB), 512 * MiB), MiB) : 512 * MiB;
	if (o->cpus == NOT_GIVEN)
		o->cpus = o->command ? (uint64_t)MIN(MAX(sysconf(_SC_NPROCESSORS_ONLN), 1L),
						     (long)CPUS_MAX)
				     : 1;
}

static int print_config(const struct run_options *options)
{
	struct error err;

	if (!machine_file_write(options, stdout, &err))
		return STATUS_OK;
	log_error("%s", err.text);
	return STATUS_ERROR;
}

/* The one word that may stand among the options. */
static int take_file(const struct option_list *words, struct error *err)
{
	if (words->count && !machine_file_named(words->values[0]))
		return error_set(
		    err, EINVAL,
		    "unexpected argument '%.100s': options begin with --, and a machine's "
		    "description ends in .json",
		    words->values[0]);
	if (words->count > 1)
		return error_set(
		    err, EINVAL,
		    "unexpected argument '%.100s': one machine's description is enough",
		    words->values[1]);
	return 0;
}

/* The description, if there is one, then the command line over it. */
static int take_options(struct run *r, int argc, char **argv, struct error *err)
{
	struct option_list words = {0};
	struct run_options given = RUN_OPTIONS_NONE;
	const char *const *command = NULL;
	int rc;

	for (int i = 1; i < argc && !command; i++)
		if (!strcmp(argv[i], "--")) {
			command = (const char *const *)argv + i + 1;
			argc = i;
		}
	r->options = given;
	/* A value may look like a file's name: only a parser knows which word is one. */
	rc = options_parse_over(run_specs, run_specs_count, argc, argv, &given, &words, err);
	if (rc || (rc = take_file(&words, err)))
		return rc;
	if (words.count) {
		r->file = machine_file_open(words.values[0], &r->options, err);
		if (!r->file)
			return -err->code;
		words.count = 0;
		rc = options_parse_over(run_specs, run_specs_count, argc, argv, &r->options, &words,
					err);
	} else {
		rc = options_parse(run_specs, run_specs_count, argc, argv, &r->options, err);
	}
	if (rc)
		return rc;
	if (command)
		r->options.command = command;
	if (!r->options.engine)
		r->options.engine = "auto";
	return command && !command[0] ? error_set(err, EINVAL, "no command behind --") : 0;
}

int command_run(int argc, char **argv)
{
	static struct run r;
	struct error err;
	int rc, status;

	r.event = NO_EVENT;
	r.command_status = -1;
	r.loop.epoll_fd = r.hold.timer.fd = r.signals.source.fd = r.event_wake.source.fd = r.image.initrd_fd = -1;
	rc = take_options(&r, argc, argv, &err);
	if (rc > 0) {
		print_help();
		status = STATUS_OK;
	} else if (rc < 0) {
		log_error("%s", err.text);
		status = STATUS_USAGE;
	} else if (r.options.trace && !strcmp(r.options.trace, "help")) {
		trace_print_words();
		status = STATUS_OK;
	} else {
		if (r.options.verbose)
			log_set_level(LOG_INFO);
		set_defaults(&r.options);
		status = r.options.print_config ? print_config(&r.options) : run(&r);
	}
	machine_file_close(r.file);
	return status;
}
