/* Errors are values: a function that can fail returns 0 or a negative errno (or NULL) and fills a
 * struct error with one sentence that tells the user what to do. */
#ifndef TAKT_BASE_ERROR_H
#define TAKT_BASE_ERROR_H

struct error {
	int code;       /* positive errno, 0 = none */
	char text[320]; /* one sentence, no newline */
};

/* Fills `err` (may be NULL) and returns -code. */
int error_set(struct error *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
