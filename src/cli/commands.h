/* The subcommands of takt, one file each.  Each gets argv from its own name on and returns the
 * process's exit status. */
#ifndef TAKT_CLI_COMMANDS_H
#define TAKT_CLI_COMMANDS_H

/* Exit statuses; documented in takt(1). */
enum exit_status {
	STATUS_OK = 0,           /* the guest switched itself off, or the user quit */
	STATUS_ERROR = 1,        /* takt could not start or go on */
	STATUS_USAGE = 2,        /* the command line was wrong */
	STATUS_PANIC = 3,        /* the guest's kernel panicked */
	STATUS_TRIPLE_FAULT = 4, /* the guest's processor shut down */
	STATUS_DEAD = 5,         /* every processor halted with interrupts off */
	STATUS_IO = 6,           /* the host failed a disk whose errors are to end takt */
	STATUS_SIGNAL = 128,     /* + the signal that ended takt */
};

int command_run(int argc, char **argv);
int command_image(int argc, char **argv);
int command_counters(int argc, char **argv);
int command_doctor(int argc, char **argv);

#endif
