/* Several processors: start-up, atomics of every width and across pages, memory order, code that one
 * rewrites and others run, TLB shootdown, and KVM's paravirtual calls.  Run with four. */
#define CPUS 4
#include "ap.h"

#define VA 0x40000000ul
#define VEC_PING 0x50
#define VEC_SHOOT 0x51

typedef u64 (*code_fn)(void);

static u8 area[4 * 4096] __attribute__((aligned(4096)));
static volatile u32 pings[CPUS], shot[CPUS];

static u64 hypercall(u64 nr, u64 a, u64 b, u64 c, u64 d)
{
	u64 result;

	__asm__ volatile("vmcall" : "=a"(result) : "a"(nr), "b"(a), "c"(b), "d"(c), "S"(d) : "memory");
	return result;
}

/* --- atomics --- */

static struct {
	u8 b;
	u16 w;
	u32 d;
	u64 q, added, exchanged, plain;
	u32 lock;
	unsigned __int128 wide __attribute__((aligned(16)));
} shared;

static void add_wide(void)
{
	u64 low = 0, high = 0;
	bool ok;

	do {
		u64 new_low = low + 1, new_high = high + (new_low == 0) + 3;

		__asm__ volatile("lock cmpxchg16b %1"
		                 : "=@ccz"(ok), "+m"(shared.wide), "+a"(low), "+d"(high)
		                 : "b"(new_low), "c"(new_high));
	} while (!ok);
}

static void atomics(u32 id)
{
	u64 *across = (u64 *)(area + 4096 - 3);
	const unsigned n = 20000;

	(void)id;
	for (unsigned i = 0; i < n; i++) {
		u64 one = 1;

		__asm__ volatile("lock incb %0" : "+m"(shared.b));
		__asm__ volatile("lock incw %0" : "+m"(shared.w));
		__asm__ volatile("lock addl $3, %0" : "+m"(shared.d));
		__asm__ volatile("lock subq $1, %0" : "+m"(shared.q));
		__asm__ volatile("lock xaddq %0, %1" : "+r"(one), "+m"(shared.added));
		add_wide();
		for (u32 taken = 1; taken;) {
			__asm__ volatile("xchgl %0, %1" : "+r"(taken), "+m"(shared.lock) : : "memory");
			if (taken)
				relax();
		}
		shared.plain++;
		__asm__ volatile("movl $0, %0" : "=m"(shared.lock) : : "memory");
		if (i % 16 == 0)
			__asm__ volatile("lock addq $5, %0" : "+m"(*across));
	}
}

static void check_atomics(void)
{
	const u64 n = 20000 * CPUS;

	check_eq(shared.b, (u8)n);
	check_eq(shared.w, (u16)n);
	check_eq(shared.d, (u32)(3 * n));
	check_eq(shared.q, -n);
	check_eq(shared.added, n);
	check_eq(shared.plain, n);
	check_eq((u64)shared.wide, n);
	check_eq((u64)(shared.wide >> 64), 3 * n);
	check_eq(*(u64 *)(area + 4096 - 3), 5 * (n / 16));
}

/* --- order: what was stored first is seen first; a locked instruction drains the store buffer --- */

static volatile u64 data[CPUS][16], flag[CPUS][16];

static void order(u32 id)
{
	u32 other = id ^ 1;

	for (u64 i = 1; i <= 20000; i++) {
		u64 f, d;

		data[id][0] = i;
		flag[id][0] = i;
		f = flag[other][0];
		d = data[other][0];
		check(d >= f);
	}
}

static void store_buffer(u32 id)
{
	static volatile u64 x[2], saw[2], go[2];

	for (u64 i = 1; i <= 3000 && id < 2; i++) {
		x[id] = 0;
		go[id] = i * 2;
		while (go[!id] < i * 2)
			relax();
		x[id] = i;
		__asm__ volatile("lock orl $0, (%%rsp)" : : : "memory");
		saw[id] = x[!id];
		go[id] = i * 2 + 1;
		while (go[!id] < i * 2 + 1)
			relax();
		check(saw[0] == i || saw[1] == i);
		__asm__ volatile("lock orl $0, (%%rsp)" : : : "memory");
	}
}

/* --- code --- */

static volatile u32 version, ran[CPUS];

static void put_return(u8 *at, u32 value)
{
	at[0] = 0xb8; /* mov eax, imm32; ret */
	memcpy(at + 1, &value, 4);
	at[5] = 0xc3;
}

static void serialize(void)
{
	u32 a = 0, b, c = 0, d;

	__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d) : : "memory");
}

/* One writes code, the others run it once they know and have serialized.  The page holds data, too. */
static void rewritten(u32 id)
{
	u8 *code = area + 8192;
	volatile u64 *beside = (volatile u64 *)(area + 8192 + 1024) + id;

	for (u32 i = 1; i <= 400; i++) {
		if (id == 0) {
			put_return(code + i % 7 * 16, i);
			version = i;
		}
		while (version < i)
			relax();
		serialize();
		check_eq(((code_fn)(u64)(code + i % 7 * 16))(), i);
		*beside += i;
		ran[id] = i;
		for (unsigned k = 0; id == 0 && k < CPUS; k++)
			while (ran[k] < i)
				relax();
	}
	check_eq(*beside, 400 * 401 / 2);
}

/* A page that all write and none runs becomes code, by the hand of each in turn. */
static void becomes_code(u32 id)
{
	u8 *page = area + 3 * 4096;

	for (u32 i = 0; i < 200; i++) {
		u8 *mine = page + id * 64;

		put_return(mine, i * CPUS + id);
		check_eq(((code_fn)(u64)mine)(), i * CPUS + id);
		memset(mine, 0xcc, 8);
	}
}

/* --- interrupts --- */

static bool on_ping(struct frame *f)
{
	(void)f;
	pings[apic_id()]++;
	eoi();
	return true;
}

static bool on_shoot(struct frame *f)
{
	(void)f;
	invlpg(VA);
	shot[apic_id()]++;
	eoi();
	return true;
}

static void ping_next(u32 id)
{
	wrmsr(X2(APIC_ICR), (u64)((id + 1) % CPUS) << 32 | 0x4000 | VEC_PING);
}

/* One interrupt goes round. */
static void ring(u32 id)
{
	sti();
	for (u32 i = 1; i <= 300; i++) {
		if (id == 0)
			ping_next(id);
		while (pings[id] < i)
			relax();
		if (id != 0)
			ping_next(id);
	}
	cli();
}

static volatile u64 current;

static void shootdown(u32 id)
{
	volatile u64 *p = (volatile u64 *)VA;

	sti();
	for (u32 i = 1; i <= 200; i++) {
		if (id == 0) {
			map_page(VA, (u64)area + (i & 1) * 4096, PTE_P | PTE_W);
			invlpg(VA);
			wrmsr(X2(APIC_ICR), ICR_ALL_BUT_SELF | 0x4000 | VEC_SHOOT);
			for (unsigned k = 1; k < CPUS; k++)
				while (shot[k] < i)
					relax();
			*(volatile u64 *)(area + (i & 1) * 4096 + 8) = i;
			current = i;
		}
		while (current < i)
			relax();
		check_eq(p[1], i);
		ran[id] = 1000 + i;
		for (unsigned k = 0; id == 0 && k < CPUS; k++)
			while (ran[k] < 1000 + i)
				relax();
	}
	cli();
}

/* --- KVM's calls --- */

static volatile u32 awake;

/* Some hosts' KVM keeps hypercalls to itself; then guests are not told of these. */
static bool has_calls(void)
{
	u32 a = 0x40000001, b, c = 0, d;

	__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	return (a & 0x880) == 0x880; /* PV_UNHALT, PV_SEND_IPI */
}

static void paravirtual(u32 id)
{
	u32 before;

	if (id == 0) {
		for (unsigned i = 1; i <= 50; i++) {
			while (awake < i * 2 - 1)
				relax();
			while (awake < i * 2) /* it may not be asleep yet */
				hypercall(5, 0, 1, 0, 0);
		}
		before = pings[2];
		check_eq(hypercall(10, 1ul << 1 | 1ul << 2, 0, 1, VEC_PING), 2); /* ids 2 and 3 */
		while (pings[2] == before)
			relax();
		check_eq(hypercall(77, 0, 0, 0, 0), (u64)-1000);
	} else if (id == 1) {
		for (unsigned i = 1; i <= 50; i++) {
			awake = i * 2 - 1;
			__asm__ volatile("cli; hlt" : : : "memory"); /* only a kick ends this */
			awake = i * 2;
		}
	} else {
		sti();
		while (pings[id] < 301)
			relax();
		cli();
	}
}

static void work(u32 id)
{
	void (*const parts[])(u32) = {atomics, order, store_buffer, rewritten, becomes_code, ring, shootdown,
	                              paravirtual};

	for (u32 i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		if (parts[i] == paravirtual && !has_calls())
			continue;
		meet(id, i * 2 + 1);
		parts[i](id);
		meet(id, i * 2 + 2);
		if (id == 0 && i == 0)
			check_atomics();
	}
}

void ap_work(u32 id)
{
	work(id);
}

int main(void)
{
	map_page(VA, (u64)area, PTE_P | PTE_W);
	on_trap(VEC_PING, on_ping);
	on_trap(VEC_SHOOT, on_shoot);
	x2apic_on();
	start_processors();
	work(0);
	return 0;
}
