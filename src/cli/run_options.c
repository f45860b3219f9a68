#include "cli/run_options.h"

const struct option_spec run_specs[] = {
    {"kernel", "FILE",
     "kernel: bzImage, ELF or Multiboot (default: that of the first disk, which then\nis the root; "
     "else the "
     "newest in /boot or takt's cache)",
     OPTION_TEXT, .offset = offsetof(struct run_options, kernel), .path = PATH_WHOLE},
    {"initrd", "FILE", "initramfs (default: none; without --kernel the disk's or takt's own)",
     OPTION_TEXT, .offset = offsetof(struct run_options, initrd), .path = PATH_WHOLE},
    {"module", "FILE[,TEXT]", "a file for a Multiboot or PVH kernel, with a text; repeatable",
     OPTION_LIST, .offset = offsetof(struct run_options, boot_modules), .path = PATH_PART},
    {"append", "TEXT", "added to the kernel command line '" DEFAULT_CMDLINE "'", OPTION_TEXT,
     .offset = offsetof(struct run_options, append)},
    {"disk", "FILE[,OPTION]...",
     "a disk: vda, the next is vdb, ...; options: ro, snapshot (what is\n"
     "written is gone at the end), format=raw or qcow2 (default: by the\n"
     "name), serial=TEXT, on-error=report, pause, fail or nospace (default:\n"
     "nospace)",
     OPTION_LIST, .offset = offsetof(struct run_options, disks), .path = PATH_PART},
    {"share", "DIR:TAG[,OPTION]...",
     "a directory that the guest mounts by TAG (mount -t virtiofs);\n"
     "options: ro, cache=auto|always|none, locks, acl, squash",
     OPTION_LIST, .offset = offsetof(struct run_options, shares), .path = PATH_PART},
    {"root", "DIR|IMAGE",
     "the command's root, which it cannot change: a directory, or a disk\n"
     "image[,format=raw or qcow2] (default: /)",
     OPTION_TEXT, .offset = offsetof(struct run_options, root), .path = PATH_WHOLE},
    {"rw", "DIR", "a directory that the command can change, at the same place; repeatable",
     OPTION_LIST, .offset = offsetof(struct run_options, writable), .path = PATH_WHOLE},
    {"modules", "DIR", "where the kernel's modules are: DIR/lib/modules/VERSION", OPTION_TEXT,
     .offset = offsetof(struct run_options, modules), .path = PATH_WHOLE},
    {"net", "KIND[,OPTION]...",
     "a network card; kinds: user (hostfwd=tcp:[ADDR]:PORT-[GUEST]:PORT,\n"
     "restrict=on, loopback=off), tap=NAME, none; mac=ADDRESS (default:\n"
     "user,loopback=off)",
     OPTION_LIST, .offset = offsetof(struct run_options, nets)},
    {"vsock", "PATH[,cid=N]", "a Unix socket by which programs reach the guest's vsock ports",
     OPTION_TEXT, .offset = offsetof(struct run_options, vsock), .path = PATH_PART},
    {"memory", "SIZE", "guest memory, with K, M or G (default: 512M; for a COMMAND up to 4G)",
     OPTION_SIZE, .offset = offsetof(struct run_options, memory)},
    {"balloon", "SIZE", "of that, what the guest is asked to give back (default: nothing)", OPTION_SIZE,
     .offset = offsetof(struct run_options, balloon)},
    {"cpus", "N",
     "processors, 1 to 32, also more than this host has\n(default: 1; for a COMMAND as many as the "
     "host has)",
     OPTION_NUMBER, .offset = offsetof(struct run_options, cpus)},
    {"cpu", "MODEL", "x86-64-v1 to -v4, default or max, then ,+FEATURE or ,-FEATURE", OPTION_TEXT,
     .offset = offsetof(struct run_options, cpu)},
    {"engine", "NAME",
     "kvm, bt (translator, any host) or auto: kvm where it is hardware (default: auto)",
     OPTION_TEXT, .offset = offsetof(struct run_options, engine)},
    {"code-cache", "SIZE", "bound of the translator's code cache", OPTION_SIZE,
     .offset = offsetof(struct run_options, code_cache)},
    {"console", "TARGET", "serial console: stdio, none or a file to write (default: stdio)",
     OPTION_TEXT, .offset = offsetof(struct run_options, console), .path = PATH_CONSOLE},
    {"no-reboot", NULL, "a guest that reboots ends takt", OPTION_FLAG,
     .offset = offsetof(struct run_options, no_reboot)},
    {"debug-exit", "[=PORT]",
     "the guest's write of N to that port (default: 0xf4) ends takt with\n"
     "status 2 * N + 1",
     OPTION_CHOICE, .offset = offsetof(struct run_options, debug_exit)},
    {"trace", "WHAT[,WHAT]...",
     "a line for each event: exits, io, mmio, msr, irq, hypercalls or all\n(--trace help says "
     "more)",
     OPTION_TEXT, .offset = offsetof(struct run_options, trace)},
    {"trace-file", "FILE", "where the trace goes, instead of standard error", OPTION_TEXT,
     .offset = offsetof(struct run_options, trace_file), .path = PATH_WHOLE},
    {"stats", NULL, "print counters and where the time went, at the end", OPTION_FLAG,
     .offset = offsetof(struct run_options, stats)},
    {"counters", "FILE", "keep counters in a file while the guest runs (see 'takt counters')",
     OPTION_TEXT, .offset = offsetof(struct run_options, counters), .path = PATH_WHOLE},
    {"perf-map", NULL, "name translated code for perf in /tmp/perf-PID.map", OPTION_FLAG,
     .offset = offsetof(struct run_options, perf_map)},
    {"perf-jitdump", "DIR", "name translated code for perf inject in DIR/jit-PID.dump", OPTION_TEXT,
     .offset = offsetof(struct run_options, perf_jitdump), .path = PATH_WHOLE},
    {"symbols", "FILE", "the guest kernel's System.map or /proc/kallsyms, for these names",
     OPTION_TEXT, .offset = offsetof(struct run_options, symbols), .path = PATH_WHOLE},
    {"gdb", "PORT|SOCKET", "wait for gdb there before the first instruction", OPTION_TEXT,
     .offset = offsetof(struct run_options, gdb), .path = PATH_SOCKET},
    {"verbose", NULL, "say more about what takt does", OPTION_FLAG,
     .offset = offsetof(struct run_options, verbose)},
    {"print-config", NULL, "write what these options and FILE.json make, as such a file, and end",
     OPTION_FLAG, .offset = offsetof(struct run_options, print_config), .not_in_file = true},
    {"command", "WORD...", "what runs in the machine, as behind --", OPTION_COMMAND,
     .offset = offsetof(struct run_options, command)},
};

const size_t run_specs_count = ARRAY_SIZE(run_specs);
