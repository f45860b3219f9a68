/* JSON on standard output: the one thing that is more than a printf. */
#ifndef TAKT_CLI_JSON_H
#define TAKT_CLI_JSON_H

/* A string, in its quotes. */
void json_print_text(const char *text);

#endif
