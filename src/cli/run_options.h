/* The options of takt run: one table for the command line, the machine description (cli/machine_file.h) and
 * its schema. */
#ifndef TAKT_CLI_RUN_OPTIONS_H
#define TAKT_CLI_RUN_OPTIONS_H

#include "cli/options.h"

/* A panic of Linux resets the machine at once (panic=-1), which takt reports as a panic.  reboot=a:
 * on hardware-reduced ACPI, Linux would first try EFI and the BIOS.  The console's r is flow
 * control: Linux then holds input back while nobody reads, instead of losing it. */
#define DEFAULT_CMDLINE "console=ttyS0,115200n8r panic=-1 reboot=a"

#define NOT_GIVEN UINT64_MAX /* of sizes and numbers */

struct run_options {
	const char *kernel, *initrd, *append, *engine, *cpu, *console, *counters, *perf_jitdump,
	    *symbols, *vsock, *debug_exit, *gdb, *trace, *trace_file;
	const char *root, *modules;
	struct option_list boot_modules, disks, shares, nets, writable;
	const char *const *command; /* what is behind --, or NULL */
	uint64_t memory, balloon, cpus, code_cache;
	bool no_reboot, stats, perf_map, verbose, print_config;
};

extern const struct option_spec run_specs[];
extern const size_t run_specs_count;

/* Nothing given. */
#define RUN_OPTIONS_NONE       \
	((struct run_options){ \
	    .engine = "auto", .memory = NOT_GIVEN, .balloon = NOT_GIVEN, .cpus = NOT_GIVEN, .code_cache = NOT_GIVEN})

#endif
