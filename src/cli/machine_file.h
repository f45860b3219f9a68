/* A machine's description: what the command line of takt run can say, as an object of JSON, whose members
 * are the options of run_specs (cli/run_options.h) by name; docs/machine.schema.json describes it to others.
 *
 *   a switch          true or false
 *   a text            "text"
 *   a size            "512M", or a number of bytes
 *   a number          4
 *   a list            ["value", ...], each as on the command line
 *   --name[=VALUE]    true, false or "VALUE"
 *   command           ["word", ...]
 *
 * Relative names of files are relative to the description's directory. */
#ifndef TAKT_CLI_MACHINE_FILE_H
#define TAKT_CLI_MACHINE_FILE_H

#include <stdio.h>

#include "cli/run_options.h"

#define MACHINE_FILE_MAX (1024 * 1024) /* bytes */

/* What the values point into. */
struct machine_file;

/* Whether a word of the command line names a description: it ends in .json, or is a regular file that
 * begins with '{'. */
bool machine_file_named(const char *word);

/* Sets the members of *options that the file has.  They are valid until machine_file_close().  NULL: the
 * sentence begins with file and line. */
struct machine_file *machine_file_open(const char *path, struct run_options *options,
				       struct error *err);
void machine_file_close(struct machine_file *f);

/* Writes what is set as a description, names of files absolute.  -EILSEQ for what is not UTF-8, or the errno
 * of writing. */
int machine_file_write(const struct run_options *options, FILE *out, struct error *err);

#endif
