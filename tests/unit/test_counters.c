/* Counters and the file they are kept in: what goes in comes out, and whatever else is in a file of that
 * name is an error, not a crash. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/counters.h"

static char directory[] = "/tmp/takt-counters-XXXXXX", path[64];

static const struct counter_entry *find(const struct counter_set *set, const char *name)
{
	for (uint32_t i = 0; i < set->header.count; i++)
		if (!strcmp(set->entry[i].name, name))
			return &set->entry[i];
	return NULL;
}

static uint64_t value(const struct counter_set *set, const char *name)
{
	const struct counter_entry *e = find(set, name);

	assert_non_null(e);
	return e->value;
}

static struct counter_set *read_back(bool expect_alive)
{
	struct counter_set *set;
	struct error err;
	bool alive;

	if (counters_file_read(path, &set, &alive, &err))
		fail_msg("%s", err.text);
	assert_int_equal(alive, expect_alive);
	return set;
}

static void put_file(const void *bytes, size_t n)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_int_equal(fwrite(bytes, 1, n, f), n);
	fclose(f);
}

static void refuse_read(const char *pattern)
{
	struct counter_set *set = NULL;
	struct error err = {0};
	bool alive;

	assert_true(counters_file_read(path, &set, &alive, &err) < 0);
	if (!strstr(err.text, pattern) || strchr(err.text, '\n'))
		fail_msg("no '%s' in '%s'", pattern, err.text);
}

static void refuse_create(int code, const char *pattern)
{
	struct counters_file file;
	struct error err = {0};

	assert_int_equal(counters_file_create(&file, path, &err), -code);
	assert_int_equal(file.fd, -1);
	if (!strstr(err.text, pattern))
		fail_msg("no '%s' in '%s'", pattern, err.text);
}

static void a_set_has_each_name_once(void **state)
{
	struct counter_set *set = counter_set_create();

	(void)state;
	assert_non_null(set);
	for (unsigned round = 1; round < 4; round++) {
		counter_set_put(set, "a", COUNTER_COUNT, round);
		if (round != 1)
			counter_set_put(set, "late", COUNTER_GAUGE, 7);
		counter_set_put(set, "b", COUNTER_TIME, round * 10);
	}
	assert_int_equal(set->header.count, 3);
	assert_int_equal(value(set, "a"), 3);
	assert_int_equal(value(set, "b"), 30);
	assert_int_equal(find(set, "late")->kind, COUNTER_GAUGE);
	free(set);
}

static void names_are_made_proper(void **state)
{
	struct counter_set *set = counter_set_create();

	(void)state;
	counter_set_put(set, "a b\"\n(c)", COUNTER_COUNT, 1);
	assert_int_equal(value(set, "a_b___c_"), 1);
	counter_set_put(set, "0123456789012345678901234567890123456789012345678901234567890",
			COUNTER_COUNT, 2);
	assert_int_equal(value(set, "01234567890123456789012345678901234567890123456"), 2);
	free(set);
}

static void a_full_set_says_what_it_dropped(void **state)
{
	struct counter_set *set = counter_set_create();
	char name[16];

	(void)state;
	for (unsigned i = 0; i < set->header.capacity + 5; i++) {
		snprintf(name, sizeof(name), "n%u", i);
		counter_set_put(set, name, COUNTER_COUNT, i);
	}
	assert_int_equal(set->header.count, set->header.capacity);
	assert_int_equal(set->header.dropped, 5);
	assert_int_equal(value(set, "n1000"), 1000);
	free(set);
}

static void people_get_groups_in_order_of_size(void **state)
{
	struct counter_set *set = counter_set_create();
	char *text = NULL;
	size_t len;
	FILE *out = open_memstream(&text, &len);

	(void)state;
	counter_set_put(set, "wall", COUNTER_COUNT, 5);
	counter_set_put(set, "e.exits.link", COUNTER_COUNT, 1);
	counter_set_put(set, "e.time.code", COUNTER_TIME, 1000000);
	counter_set_put(set, "e.exits.read", COUNTER_COUNT, 9);
	counter_set_put(set, "e.time.idle", COUNTER_TIME, 3000000);
	counters_print(set, out);
	fclose(out);
	assert_string_equal(text, "wall 5\n"
				  "e.exits.read 9\n"
				  "e.exits.link 1\n"
				  "e.time.idle 3.000 ms 75.00%\n"
				  "e.time.code 1.000 ms 25.00%\n");
	free(text);
	free(set);
}

static void a_file_lives_and_ends(void **state)
{
	struct counters_file file, second;
	struct counter_set *set;
	struct error err = {0};
	struct stat st;

	(void)state;
	unlink(path);
	assert_int_equal(counters_file_create(&file, path, &err), 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(st.st_size, 65536);
	assert_true(st.st_blocks * 512 >= 65536);
	set = read_back(true);
	assert_int_equal(set->header.count, 0);
	free(set);
	counter_set_put(file.set, "one", COUNTER_COUNT, 1);
	counters_file_write(&file);
	counter_set_put(file.set, "one", COUNTER_COUNT, 2);
	counter_set_put(file.set, "two", COUNTER_GAUGE, 22);
	counters_file_write(&file);
	set = read_back(true);
	assert_int_equal(value(set, "one"), 2);
	assert_int_equal(value(set, "two"), 22);
	assert_int_equal(set->header.state, COUNTERS_RUNNING);
	free(set);
	refuse_create(EBUSY, "another takt writes there");
	counters_file_end(&file, 3);
	free(file.set);
	set = read_back(false);
	assert_int_equal(set->header.state, COUNTERS_ENDED);
	assert_int_equal(set->header.status, 3);
	free(set);
	/* Now it may be replaced. */
	assert_int_equal(counters_file_create(&second, path, &err), 0);
	set = read_back(true);
	assert_int_equal(set->header.count, 0);
	free(set);
	counters_file_end(&second, 0);
	free(second.set);
}

static void a_file_truncated_under_the_writer_does_no_harm(void **state)
{
	struct counters_file file;
	struct counter_set *set;
	struct error err;

	(void)state;
	unlink(path);
	assert_int_equal(counters_file_create(&file, path, &err), 0);
	counter_set_put(file.set, "one", COUNTER_COUNT, 1);
	assert_int_equal(truncate(path, 0), 0);
	refuse_read("not a file of counters");
	counters_file_write(&file);
	refuse_read("truncated");
	assert_int_equal(truncate(path, 65536), 0);
	set = read_back(true);
	assert_int_equal(value(set, "one"), 1);
	free(set);
	counters_file_end(&file, 0);
	free(file.set);
}

static void what_is_there_already_is_kept(void **state)
{
	(void)state;
	unlink(path);
	put_file("precious", 8);
	refuse_create(EEXIST, "another file of that name");
	unlink(path);
	assert_int_equal(symlink("/tmp/elsewhere", path), 0);
	refuse_create(EEXIST, "not a regular file");
	unlink(path);
	assert_int_equal(mkfifo(path, 0600), 0);
	refuse_create(EEXIST, "not a regular file");
	refuse_read("not a regular file");
	unlink(path);
	assert_int_equal(mkdir(path, 0700), 0);
	refuse_create(EEXIST, "not a regular file");
	rmdir(path);
}

/* A limit of the file size stands for a full disk. */
static void no_room_is_an_error_at_the_start(void **state)
{
	struct rlimit old, little;
	struct stat st;

	(void)state;
	signal(SIGXFSZ, SIG_IGN);
	unlink(path);
	getrlimit(RLIMIT_FSIZE, &old);
	little = (struct rlimit){4096, old.rlim_max};
	setrlimit(RLIMIT_FSIZE, &little);
	refuse_create(EFBIG, "cannot make a file of 64 KiB");
	setrlimit(RLIMIT_FSIZE, &old);
	assert_int_equal(stat(path, &st), -1);
}

static void foreign_and_damaged_files_are_refused(void **state)
{
	struct counter_set *good = counter_set_create();
	size_t size = sizeof(good->header) + good->header.capacity * sizeof(good->entry[0]);
	struct counter_set *bad = malloc(sizeof(*bad) + size);
	const size_t whole = sizeof(*bad) - sizeof(bad->header) + size;

	(void)state;
	counter_set_put(good, "one", COUNTER_COUNT, 1);
	counter_set_put(good, "two", COUNTER_COUNT, 2);
#define TRY(change, n, pattern)    \
	memcpy(bad, good, whole);  \
	change;                    \
	put_file(&bad->header, n); \
	refuse_read(pattern)
	TRY(, 0, "not a file of counters");
	TRY(, 7, "not a file of counters");
	TRY(, 8, "truncated");
	TRY(, 127, "truncated");
	TRY(, 128, "truncated");
	TRY(, size - 1, "truncated");
	TRY(bad->header.magic[0] = 't', size, "not a file of counters");
	TRY(bad->header.version = 2, size, "version 2");
	TRY(bad->header.header_size = 64, size, "damaged");
	TRY(bad->header.entry_size = 0, size, "damaged");
	TRY(bad->header.capacity = 0xffffffff, size, "damaged");
	TRY(bad->header.capacity++, size, "damaged");
	TRY(bad->header.count = 0xffffffff, size, "damaged");
	TRY(bad->header.count = bad->header.capacity + 1, size, "damaged");
	TRY(bad->header.count = 3, size, "entry 2 is no counter");
	TRY(bad->header.state = 2, size, "damaged");
	TRY(bad->entry[1].kind = COUNTER_KINDS, size, "entry 1 is no counter");
	TRY(memset(bad->entry[0].name, 'a', COUNTER_NAME), size, "entry 0 is no counter");
	TRY(bad->entry[0].name[1] = '\n', size, "entry 0 is no counter");
	TRY(bad->entry[0].name[1] = '"', size, "entry 0 is no counter");
	TRY(bad->entry[0].name[0] = '\x1b', size, "entry 0 is no counter");
	TRY(bad->entry[0].name[0] = 0, size, "entry 0 is no counter");
#undef TRY
	/* A writer that died in the middle: what there is can be read. */
	memcpy(bad, good, whole);
	bad->header.sequence = 7;
	put_file(&bad->header, size);
	free(read_back(false));
	free(good);
	free(bad);
}

/* Random bytes of a good file changed: an error or a set, never a crash (and no error of the sanitizers). */
static void damage_anywhere_is_survived(void **state)
{
	struct counter_set *set = counter_set_create(), *got;
	size_t size = sizeof(set->header) + set->header.capacity * sizeof(set->entry[0]);
	struct error err;
	bool alive;

	(void)state;
	srand(1);
	for (unsigned i = 0; i < 500; i++) {
		uint8_t *bytes;

		free(set);
		set = counter_set_create();
		for (unsigned k = 0; k < 4; k++)
			counter_set_put(set, (const char *[]){"a", "b.c", "d.e.f", "g"}[k],
					COUNTER_COUNT, k);
		bytes = (uint8_t *)&set->header;
		for (unsigned k = 0; k < 3; k++)
			bytes[8 + rand() % (128 + 4 * 64 - 8)] = (uint8_t)rand();
		if (set->header.sequence & 1)
			set->header.sequence = 0; /* waiting for the writer takes time */
		put_file(bytes, size - (i % 5 ? 0 : (size_t)rand() % size));
		if (counters_file_read(path, &got, &alive, &err))
			continue;
		free(got);
	}
	free(set);
}

/* --- a reader beside the writer --- */

static _Atomic bool stop;

static void *write_on(void *arg)
{
	struct counters_file *file = arg;

	for (uint64_t n = 1; !stop; n++) {
		for (unsigned i = 0; i < 300; i++) {
			char name[16];

			snprintf(name, sizeof(name), "n%u", i);
			counter_set_put(file->set, name, COUNTER_COUNT, n);
		}
		counters_file_write(file);
		usleep(300);
	}
	return NULL;
}

static void a_reader_sees_one_moment(void **state)
{
	struct counters_file file;
	struct error err;
	pthread_t writer;
	uint64_t last = 0;

	(void)state;
	unlink(path);
	assert_int_equal(counters_file_create(&file, path, &err), 0);
	assert_int_equal(pthread_create(&writer, NULL, write_on, &file), 0);
	while (last < 50) {
		struct counter_set *set = read_back(true);

		if (set->header.count) {
			assert_int_equal(set->header.count, 300);
			for (unsigned k = 1; k < 300; k++)
				assert_int_equal(set->entry[k].value, set->entry[0].value);
			assert_true(set->entry[0].value >= last);
			last = set->entry[0].value;
		}
		free(set);
	}
	stop = true;
	pthread_join(writer, NULL);
	counters_file_end(&file, 0);
	free(file.set);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_set_has_each_name_once),
	    cmocka_unit_test(names_are_made_proper),
	    cmocka_unit_test(a_full_set_says_what_it_dropped),
	    cmocka_unit_test(people_get_groups_in_order_of_size),
	    cmocka_unit_test(a_file_lives_and_ends),
	    cmocka_unit_test(a_file_truncated_under_the_writer_does_no_harm),
	    cmocka_unit_test(what_is_there_already_is_kept),
	    cmocka_unit_test(no_room_is_an_error_at_the_start),
	    cmocka_unit_test(foreign_and_damaged_files_are_refused),
	    cmocka_unit_test(damage_anywhere_is_survived),
	    cmocka_unit_test(a_reader_sees_one_moment),
	};
	int failed;

	if (!mkdtemp(directory))
		return 1;
	snprintf(path, sizeof(path), "%s/counters", directory);
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	unlink(path);
	rmdir(directory);
	return failed;
}
