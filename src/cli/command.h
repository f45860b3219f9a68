/* takt run -- COMMAND: what a machine needs to run one command as if it ran here.
 *
 *   this process's environment, user, directory ─▶ initramfs: guest/command-init.c, modules, configuration
 *   stdin, stdout, stderr ◀── streams ──▶ ports of a virtio-console ◀──▶ the command
 */
#ifndef TAKT_CLI_COMMAND_H
#define TAKT_CLI_COMMAND_H

#include "base/error.h"
#include "cli/options.h"
#include "cli/shares.h"
#include "virtio/console.h"

#define COMMAND_FAILED 125 /* takt's status when the command was never started */
#define COMMAND_PORTS 4

struct command;

/* A disk with the command's root file system, of serial number COMMAND_ROOT_SERIAL. */
struct command_image {
	unsigned partition; /* 0: the whole disk */
	const char *type;   /* of the file system */
};

#define COMMAND_ROOT_SERIAL "takt.root"

struct command_config {
	const char *const *args; /* ends in NULL */
	const char *kernel, *modules;
	const char *root;                   /* directory; NULL: "/" */
	const struct command_image *image;  /* a disk that is the root instead; NULL: none */
	const struct option_list *writable; /* directories */
	bool disks;                         /* there are some: the guest gets a driver for them */
	bool network;                       /* the first card is takt's user network */
	bool cards;                         /* there are some */
	/* The command has ended.  On the machine's worker. */
	void (*ended)(void *data, int status);
	/* A port has something for the machine, or room: virtio_wake().  Any thread, also before the machine
	 * is there. */
	void (*wake)(void *data);
	void *data;
};

/* Makes the initramfs, adds the shares.  NULL and `err`. */
struct command *command_create(const struct command_config *config, struct shares *shares,
			       struct error *err);
/* A path by which this process can open the initramfs. */
const char *command_initrd(const struct command *c);
const struct console_port *command_ports(const struct command *c); /* COMMAND_PORTS of them */
/* Opens the streams, and makes the terminal raw, if there is one. */
int command_start(struct command *c, struct error *err);
/* Passes a signal on to the command.  On the loop's thread. */
void command_signal(struct command *c, int signal);
/* The terminal's size may have changed; takt goes on after it was stopped. */
void command_resized(struct command *c);
void command_resumed(struct command *c);
/* Writes out what the command wrote and puts the terminal back.  NULL is allowed. */
void command_destroy(struct command *c);

#endif
