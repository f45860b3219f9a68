/* What the vcpus of one machine tell each other.
 *
 * Each vcpu has a code cache and TLBs of its own and nobody else touches them, so translated code needs no
 * locks.  Guest memory is shared, and two things must hold:
 *
 *   - Translated code writes through TLB entries without telling anybody.  So before a page is translated,
 *     every vcpu drops its entries that allow writes to it, and gets no new ones: bt_code_mark.
 *   - Who writes to a page of code all the same, in C, tells every vcpu that has code from it: bt_code_written.
 *
 * A vcpu sees to its own notes before it enters translated code.  For the first, the one that translates waits
 * until those in translated code have come out; the second waits for nobody: as on hardware, a processor
 * sees code that another one changed once it has synchronized, and each way to do that leads out of
 * translated code or looks for attention.
 *
 * Ordering: mark sets the flag, then looks for entries and reads the bytes; a fill sets WRITE_CACHED and learns
 * from the same operation whether the flag was set; a writer in C writes, then looks at the flag, with a
 * fence between (ram_written).
 */
#include "engine/bt/bt.h"

#include <sys/syscall.h>
#include <time.h>

#define SPINS 256 /* some microseconds: what a thread that runs takes */

/* Lets another thread have the processor.  Not by sched_yield(): on a busy host with Linux 6.18, threads that called it often
 * were seen not to run for seconds.  Without the C library: the guest's vector state may be live. */
static void nap(void)
{
	const struct timespec time = {.tv_nsec = 20000};
	long rc = SYS_nanosleep;

	__asm__ volatile("syscall" : "+a"(rc) : "D"(&time), "S"(NULL), "m"(time) : "rcx", "r11", "memory");
}

/* Polls; another vcpu's thread may have to run first. */
static void relax(unsigned *tries)
{
	if (++*tries % SPINS)
		__builtin_ia32_pause();
	else
		nap();
}

static void lock(struct bt_machine *machine)
{
	unsigned tries = 0;

	while (atomic_exchange_explicit(&machine->lock, 1, memory_order_acquire))
		relax(&tries);
}

static void unlock(struct bt_machine *machine)
{
	atomic_store_explicit(&machine->lock, 0, memory_order_release);
}

static void kick(struct bt_vcpu *bv)
{
	atomic_fetch_or_explicit(&bv->v.attention, ATTENTION_ENGINE, memory_order_seq_cst);
}

/* Under the lock. */
static void note(struct bt_vcpu *to, gpa_t gpa, uint64_t len, bool written)
{
	struct bt_notes *n = &to->notes;

	if (n->count == NOTES_MAX)
		n->overflow = true;
	else
		n->note[n->count++] = (struct bt_note){gpa, (uint32_t)len, written};
	atomic_store(&n->pending, 1);
	kick(to);
}

/* Nobody is in translated code any more that was when a note was made for it. */
static void wait_for_notes(struct bt_vcpu *bv)
{
	const struct bt_machine *machine = bv->machine;
	unsigned tries = 0;

	for (unsigned i = 0; i < machine->nvcpus; i++) {
		struct bt_vcpu *other = machine->vcpus[i];

		while (other != bv && atomic_load(&other->notes.pending) &&
		       atomic_load(&other->in_code))
			relax(&tries);
	}
}

void bt_code_mark(struct bt_cache *m, gpa_t page)
{
	uint64_t index = ram_page_index(m->ram, page), bit = 1ull << m->bv->v.index;
	struct bt_machine *machine = m->machine;
	uint8_t flags;

	if (machine->users[index] & bit)
		return;
	lock(machine);
	machine->users[index] |= bit;
	flags = __atomic_fetch_or(&m->ram->page_flags[index], RAM_PAGE_CODE, __ATOMIC_SEQ_CST);
	if (flags & RAM_PAGE_WRITE_CACHED) {
		__atomic_fetch_and(&m->ram->page_flags[index], (uint8_t)~RAM_PAGE_WRITE_CACHED,
				   __ATOMIC_SEQ_CST);
		for (unsigned i = 0; i < machine->nvcpus; i++)
			if (machine->vcpus[i] != m->bv)
				note(machine->vcpus[i], page, GUEST_PAGE_SIZE, false);
	}
	unlock(machine);
	if (flags & RAM_PAGE_WRITE_CACHED)
		bt_space_drop_writes(m->bv, page);
	wait_for_notes(m->bv); /* another vcpu's of the same page, too */
}

void bt_code_unmark(struct bt_cache *m, gpa_t page)
{
	uint64_t index = ram_page_index(m->ram, page);
	struct bt_machine *machine = m->machine;

	lock(machine);
	machine->users[index] &= ~(1ull << m->bv->v.index);
	if (!machine->users[index])
		__atomic_fetch_and(&m->ram->page_flags[index], (uint8_t)~RAM_PAGE_CODE,
				   __ATOMIC_SEQ_CST);
	unlock(machine);
}

bool bt_write_cached(struct bt_machine *machine, uint64_t index)
{
	uint8_t *at = &machine->ram->page_flags[index],
		flags = __atomic_load_n(at, __ATOMIC_RELAXED);

	while (!(flags & (RAM_PAGE_CODE | RAM_PAGE_WRITE_CACHED)))
		if (__atomic_compare_exchange_n(at, &flags, flags | RAM_PAGE_WRITE_CACHED, true,
						__ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
			return true;
	return !(flags & RAM_PAGE_CODE);
}

void bt_code_written(void *data, gpa_t gpa, uint64_t len)
{
	struct bt_machine *machine = data;
	struct bt_vcpu *self = bt_this();
	uint64_t users;

	if (machine->nvcpus == 1)
		self = machine->vcpus[0]; /* and this is the one thread that runs the machine */
	else if (self && self->machine != machine)
		self = NULL;
	lock(machine);
	users = machine->users[ram_page_index(machine->ram, gpa)];
	for (unsigned i = 0; i < machine->nvcpus; i++)
		if (machine->vcpus[i] != self && users >> machine->vcpus[i]->v.index & 1)
			note(machine->vcpus[i], gpa, len, true);
	unlock(machine);
	if (self && users >> self->v.index & 1)
		bt_cache_written(self->m, gpa, len);
}

/* Each under the lock, one by one: what they ask for takes it, too. */
void bt_notes_take(struct bt_vcpu *bv)
{
	struct bt_notes *n = &bv->notes;

	for (;;) {
		bool overflow, none;
		struct bt_note one = {0};

		lock(bv->machine);
		overflow = n->overflow;
		none = !overflow && !n->count;
		if (overflow)
			n->count = 0;
		else if (n->count)
			one = n->note[--n->count];
		n->overflow = false;
		if (none)
			atomic_store(&n->pending, 0);
		unlock(bv->machine);
		if (none)
			return;
		if (overflow) {
			bt_cache_flush(bv->m);
			bt_space_flush_all(bv);
		} else if (one.written) {
			bt_cache_written(bv->m, one.gpa, one.len);
		} else {
			bt_space_drop_writes(bv, one.gpa);
		}
	}
}

bool bt_code_enter(struct bt_vcpu *bv)
{
	struct bt_vcpu *exclusive;

	atomic_store(&bv->in_code, 1);
	exclusive = atomic_load(&bv->machine->exclusive);
	if (likely(!atomic_load(&bv->notes.pending) && (!exclusive || exclusive == bv)))
		return true;
	bt_code_leave(bv);
	return false;
}

void bt_exclusive_begin(struct bt_vcpu *bv)
{
	struct bt_machine *machine = bv->machine;
	struct bt_vcpu *none = NULL;
	unsigned tries = 0;

	if (machine->nvcpus == 1)
		return;
	while (!atomic_compare_exchange_strong(&machine->exclusive, &none, bv)) {
		none = NULL;
		relax(&tries);
	}
	for (unsigned i = 0; i < machine->nvcpus; i++) {
		struct bt_vcpu *other = machine->vcpus[i];

		if (other == bv)
			continue;
		kick(other);
		while (atomic_load(&other->in_code))
			relax(&tries);
	}
}

void bt_exclusive_end(struct bt_vcpu *bv)
{
	if (bv->machine->nvcpus > 1)
		atomic_store(&bv->machine->exclusive, NULL);
}

void bt_exclusive_wait(struct bt_vcpu *bv)
{
	unsigned tries = 0;

	while (atomic_load(&bv->machine->exclusive))
		relax(&tries);
}
