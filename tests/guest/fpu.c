/* x87, SSE and AVX state: the XSAVE family against itself, with areas across pages; state kept over
 * interrupts and page faults; gathers, scatters and MASKMOVDQU that fault in the middle. */
#include "apic.h"
#include "cpu.h"

#define VA 0x40000000ul
#define IF (1ul << 9)

static u8 pages[4][4096] __attribute__((aligned(4096)));
static u8 area[4096] __attribute__((aligned(64)));
static u8 ymm[16][32] __attribute__((aligned(32))), got[16][32] __attribute__((aligned(32)));
static u64 xcr0;
static bool wide; /* AVX-512 */

static void fill(void *p, unsigned n, u32 seed)
{
	u8 *b = p;

	while (n--) {
		seed = seed * 1103515245 + 12345;
		*b++ = (u8)(seed >> 16);
	}
}

static bool same(const void *a, const void *b, u64 n)
{
	const u8 *p = a, *q = b;

	while (n--)
		if (*p++ != *q++)
			return false;
	return true;
}

#define YMM16(op)                                                                                   \
	op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11) op(12) op(13)     \
	        op(14) op(15)
#define LOAD_YMM(n) "vmovups " #n "*32(%0), %%ymm" #n "\n"
#define STORE_YMM(n) "vmovups %%ymm" #n ", " #n "*32(%0)\n"

static void load_ymm(u32 seed)
{
	fill(ymm, sizeof(ymm), seed);
	__asm__ volatile(YMM16(LOAD_YMM) : : "r"(ymm) : "memory");
}

static void check_ymm(int line)
{
	__asm__ volatile(YMM16(STORE_YMM) : : "r"(got) : "memory");
	for (unsigned i = 0; i < 16; i++) {
		checks++;
		if (!same(ymm[i], got[i], 32))
			check_failed("fpu ymm", line, "register", i, *(u64 *)ymm[i]);
	}
}
#define CHECK_YMM() check_ymm(__LINE__)

static void clear_all(void)
{
	__asm__ volatile("vzeroall; fninit");
}

#define SAVE(insn, at, mask) __asm__ volatile(insn " (%0)" : : "r"(at), "a"((u32)(mask)), "d"((u32)((u64)(mask) >> 32)) : "memory")

static void saves(u64 at)
{
	u8 *p = (u8 *)at;
	u32 mxcsr = 0x1f80 | 0x2000;
	u64 x87[4] = {0};

	/* XSAVE, XRSTOR of everything. */
	memset(p, 0, 2700);
	load_ymm(1);
	__asm__ volatile("fninit; fldpi; fld1; ldmxcsr %0" : : "m"(mxcsr));
	SAVE("xsave64", at, ~0ul);
	check_eq(*(u64 *)(p + 512) & 7, 7);
	check_eq(*(u64 *)(p + 520), 0);
	check(same(p + 160, ymm[0], 16));
	check(same(p + 160 + 15 * 16, ymm[15], 16));
	check(same(p + 576 + 3 * 16, ymm[3] + 16, 16));
	check_eq(*(u32 *)(p + 24), mxcsr);
	check_eq(*(u16 *)p, 0x37f);
	check_eq(*(u16 *)(p + 2) & 0x3800, 6 << 11);
	check_eq(p[4], 0xc0); /* abridged tag: R7, R6 */
	clear_all();
	SAVE("xrstor64", at, ~0ul);
	CHECK_YMM();
	__asm__ volatile("fstpt %0; fstpt %1" : "=m"(x87[0]), "=m"(x87[2]) : : "memory");
	check_eq(x87[0], 0x8000000000000000);
	check_eq(x87[2], 0xc90fdaa22168c235);
	/* A component left out keeps its value; the header bit of others stays. */
	load_ymm(2);
	SAVE("xrstor64", at, 1);
	CHECK_YMM();
	SAVE("xrstor64", at, 2); /* XMM parts from the area, upper halves stay */
	for (unsigned i = 0; i < 16; i++)
		memcpy(ymm[i], p + 160 + 16 * i, 16);
	CHECK_YMM();
	/* A component in its initial state: XSTATE_BV says so, and XRSTOR sets it up. */
	__asm__ volatile("vzeroupper");
	SAVE("xsave64", at, 7);
	check_eq(*(u64 *)(p + 512) & 4, 0);
	load_ymm(3);
	*(u64 *)(p + 512) = 3;
	SAVE("xrstor64", at, 4);
	for (unsigned i = 0; i < 16; i++)
		memset(ymm[i] + 16, 0, 16);
	CHECK_YMM();
	/* MXCSR is loaded with SSE or AVX though SSE's bit is clear, with its value from the area. */
	mxcsr = 0x1f80;
	__asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
	*(u64 *)(p + 512) = 0;
	SAVE("xrstor64", at, 2);
	__asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
	check_eq(mxcsr, 0x3f80);
	mxcsr = 0x1f80;
	__asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
	/* XSAVEC: compacted, and only what was asked for; XSAVEOPT. */
	memset(p, 0, 2700);
	load_ymm(4);
	SAVE("xsavec64", at, 6);
	check_eq(*(u64 *)(p + 512), 6);
	check_eq(*(u64 *)(p + 520), 6 | 1ul << 63);
	check(same(p + 576, ymm[0] + 16, 16));
	clear_all();
	SAVE("xrstor64", at, 6);
	CHECK_YMM();
	memset(p, 0, 2700);
	SAVE("xsaveopt64", at, 7);
	clear_all();
	SAVE("xrstor64", at, 7);
	CHECK_YMM();
	/* What XSAVE was not asked for it does not touch. */
	memset(p, 0xee, 512);
	memset(p + 512, 0, 64);
	memset(p + 576, 0xdd, 256);
	SAVE("xsave64", at, 2);
	check_eq(p[2], 0xee);
	check_eq(p[576], 0xdd);
	check_eq(p[600], 0xdd);
	check_eq(*(u64 *)(p + 512), 2);
	/* FXSAVE, FXRSTOR. */
	load_ymm(5);
	__asm__ volatile("fninit; fldln2; fxsave64 (%0)" : : "r"(at) : "memory");
	check(same(p + 160, ymm[0], 16));
	check_eq(*(u64 *)(p + 32), 0xb17217f7d1cf79ac);
	__asm__ volatile("fninit; pxor %%xmm0, %%xmm0; fxrstor64 (%0)" : : "r"(at) : "memory");
	__asm__ volatile("fstpt %0" : "=m"(x87) : : "memory");
	check_eq(x87[0], 0xb17217f7d1cf79ac);
	CHECK_YMM();
	/* FNSAVE, FRSTOR, FNSTENV, FLDENV; FNSAVE leaves the unit as FNINIT would. */
	__asm__ volatile("fninit; fldl2e; fnsave (%0)" : : "r"(at) : "memory");
	check_eq(*(u16 *)p, 0x37f);
	check_eq(*(u16 *)(p + 4) & 0x3800, 7 << 11);
	check_eq(*(u16 *)(p + 8), 0x3fff);
	check_eq(*(u64 *)(p + 28), 0xb8aa3b295c17f0bc);
	{
		u16 sw;

		__asm__ volatile("fnstsw %0" : "=m"(sw));
		check_eq(sw, 0);
		__asm__ volatile("frstor (%0); fnstenv 128(%0); fstpt %1" : : "r"(at), "m"(x87) : "memory");
		check_eq(x87[0], 0xb8aa3b295c17f0bc);
		check_eq(*(u16 *)(p + 128 + 8), 0x3fff);
		*(u16 *)(p + 128) = 0x27f;
		__asm__ volatile("fldenv 128(%1); fnstcw %0; fninit" : "=m"(sw) : "r"(at) : "memory");
		check_eq(sw, 0x27f);
	}
	if (wide) {
		u64 k;

		__asm__ volatile("kmovq %0, %%k3; vpbroadcastq %0, %%zmm17; vpbroadcastq %0, %%zmm5"
		                 :
		                 : "r"(0x123456789abcdef0ul));
		memset(p, 0, 2700);
		SAVE("xsave64", at, ~0ul);
		check_eq(*(u64 *)(p + 512) & 0xe0, 0xe0);
		clear_all();
		__asm__ volatile("kxorq %%k3, %%k3, %%k3; vpxorq %%zmm17, %%zmm17, %%zmm17" : :);
		SAVE("xrstor64", at, ~0ul);
		__asm__ volatile("kmovq %%k3, %0" : "=r"(k));
		check_eq(k, 0x123456789abcdef0ul);
		__asm__ volatile("vextracti64x2 $3, %%zmm17, %%xmm0; vmovq %%xmm0, %0" : "=r"(k));
		check_eq(k, 0x123456789abcdef0ul);
		__asm__ volatile("vextracti64x2 $2, %%zmm5, %%xmm0; vmovq %%xmm0, %0" : "=r"(k));
		check_eq(k, 0x123456789abcdef0ul);
	}
}

static void bad_areas(void)
{
	u64 regs[16] = {[RSP] = (u64)&pages[3][2048], [RAX] = 7, [RBX] = (u64)area}, at = CODE("xrstor64 (%%rbx)");

	memset(area, 0, 1024);
	*(u32 *)(area + 24) = 0x1f80;
#define XRSTOR(want)                                                                                \
	do {                                                                                        \
		go(at, regs, 2, false);                                                             \
		check_eq(trap.f.vector, want);                                                      \
		if ((want) == VEC_GP)                                                               \
			check_eq(trap.f.rip, at);                                                   \
	} while (0)
	XRSTOR(END);
	*(u64 *)(area + 512) = 1ul << 40; /* no such component */
	XRSTOR(VEC_GP);
	*(u64 *)(area + 512) = 0;
	*(u64 *)(area + 528) = 1; /* reserved */
	XRSTOR(VEC_GP);
	*(u64 *)(area + 528) = 0;
	*(u64 *)(area + 520) = 2; /* not compacted, but not zero */
	XRSTOR(VEC_GP);
	*(u64 *)(area + 520) = 1ul << 63 | 1;
	*(u64 *)(area + 512) = 3; /* a component that the format has no room for */
	XRSTOR(VEC_GP);
	*(u64 *)(area + 520) = 0;
	*(u64 *)(area + 512) = 7;
	*(u32 *)(area + 24) = 0x10000; /* MXCSR */
	XRSTOR(VEC_GP);
	at = CODE("fxrstor64 (%%rbx)");
	XRSTOR(VEC_GP);
	*(u32 *)(area + 24) = 0x1f80;
	*(u16 *)area = 0x37f;
	XRSTOR(END);
	check_eq(rdmsr(0xc0000080) & 0x400, 0x400);
}

static volatile unsigned ticks;

static bool tick(struct frame *f)
{
	(void)f;
	ticks++;
	/* A handler that spoils everything, and puts it back as an operating system would. */
	SAVE("xsave64", (u64)pages[0], ~0ul);
	__asm__ volatile("vzeroall; fninit; fldpi; fldpi; fldpi");
	SAVE("xrstor64", (u64)pages[0], ~0ul);
	eoi();
	return true;
}

static void interrupted(void)
{
	u64 sum[2] = {0, 0};

	on_trap(0x45, tick);
	memset(pages[0], 0, 4096);
	wrmsr(X2(APIC_TIMER_DIVIDE), 0xb);
	wrmsr(X2(APIC_LVT_TIMER), TIMER_PERIODIC | 0x45);
	wrmsr(X2(APIC_TIMER_INITIAL), 30000);
	load_ymm(9);
	__asm__ volatile("fninit; fld1; fldz; sti");
	while (ticks < 100)
		__asm__ volatile("fadd %st(1), %st; vpaddq %ymm1, %ymm0, %ymm2; vpsubq %ymm1, %ymm2, %ymm0;"
		                 "vpxor %ymm0, %ymm3, %ymm3; vpxor %ymm0, %ymm3, %ymm3");
	cli();
	wrmsr(X2(APIC_LVT_TIMER), APIC_MASKED | 0x45);
	__asm__ volatile("vpaddq %%ymm1, %%ymm0, %%ymm2; vmovups %%ymm2, (%0)" : : "r"(ymm[2]) : "memory");
	CHECK_YMM();
	__asm__ volatile("fistpll %0; fistpll %1" : "=m"(sum[0]), "=m"(sum[1]));
	check_eq(sum[1], 1);
	check(sum[0] > 0);
}

/* Chips reached through memory are C code of the host's: it must not spoil what lives in registers. */
static void device_memory(void)
{
	volatile u8 *apic = (volatile u8 *)(VA + 0x100000);

	map_page((u64)apic, 0xfee00000, PTE_P | PTE_W | 0x18);
	load_ymm(11);
	for (unsigned i = 0; i < 3; i++) {
		*(volatile u32 *)(apic + APIC_SVR) = 0xff; /* off: masks every LVT entry */
		*(volatile u32 *)(apic + APIC_SVR) = 0x1ff;
		*(volatile u32 *)(apic + APIC_LVT_TIMER) = APIC_MASKED | 0x45;
		*(volatile u32 *)(apic + APIC_TIMER_DIVIDE) = 0xb;
		*(volatile u32 *)(apic + APIC_ESR) = 0;
	}
	CHECK_YMM();
}

static unsigned faults;

static bool page_in(struct frame *f)
{
	(void)f;
	faults++;
	__asm__ volatile("vmovups %ymm7, -64(%rsp)"); /* below everything in use */
	map_page(read_cr2() & ~0xffful, (u64)pages[faults & 1], PTE_P | PTE_W | PTE_U);
	return true;
}

static void paged_in(void)
{
	on_trap(VEC_PF, page_in);
	load_ymm(10);
	for (unsigned i = 0; i < 20; i++) {
		u64 *at = (u64 *)(VA + 0x10000 + i * 4096ul);

		__asm__ volatile("vmovups %%ymm5, 4080(%0)" : : "r"(at) : "memory"); /* two pages, two faults */
		__asm__ volatile("vmovups 4080(%0), %%ymm6" : : "r"(at) : "memory");
		memcpy(ymm[6], ymm[5], 32);
	}
	CHECK_YMM();
	check_eq(faults, 21);
	on_trap(VEC_PF, 0);
}

/* --- gathers and masked moves --- */

static void masked(void)
{
	u64 regs[16] = {[RSP] = (u64)&pages[3][2048]}, at;
	u8 *last = (u8 *)VA + 4096;
	u32 *index = (u32 *)ymm[1], *mask = (u32 *)ymm[2], *out = (u32 *)got[0];

	map_page(VA, (u64)pages[0], PTE_P | PTE_W | PTE_U);
	map_page(VA + 4096, 0, 0);
	for (unsigned i = 0; i < 1024; i++)
		((u32 *)pages[0])[i] = i * 3;

	/* A gather whose fifth element is missing. */
	for (unsigned user = 0; user < 2; user++) {
		load_ymm(20);
		for (unsigned i = 0; i < 8; i++) {
			index[i] = i == 4 ? 1024 + 5 : 1000 + i;
			mask[i] = i == 1 ? 0 : 0x80000000;
		}
		__asm__ volatile("vmovups (%0), %%ymm1; vmovups 32(%0), %%ymm2" : : "r"(ymm[1]) : "memory");
		regs[RBX] = VA;
		at = CODE("vpgatherdd %%ymm2, (%%rbx,%%ymm1,4), %%ymm0");
		go(at, regs, 2, user);
		__asm__ volatile(YMM16(STORE_YMM) : : "r"(got) : "memory");
		check_eq(trap.f.vector, VEC_PF);
		check_eq(trap.f.rip, at);
		check_eq(trap.cr2, VA + 4096 + 20);
		check_eq(trap.f.error, user ? 4 : 0);
		for (unsigned i = 0; i < 4; i++) {
			check_eq(out[i], i == 1 ? ((u32 *)ymm[0])[1] : (1000 + i) * 3);
			check_eq(((u32 *)got[2])[i], 0);
		}
		check_eq(((u32 *)got[2])[4], 0x80000000);
		for (unsigned i = 4; i < 5; i++)
			check_eq(out[i], ((u32 *)ymm[0])[i]);
		/* Masked out, the missing page does not matter; the rest follows. */
		for (unsigned i = 0; i < 8; i++)
			mask[i] = i == 4 ? 0 : 0xffffffff;
		__asm__ volatile("vmovups (%0), %%ymm2" : : "r"(ymm[2]) : "memory");
		go(at, regs, 2, user);
		__asm__ volatile(YMM16(STORE_YMM) : : "r"(got) : "memory");
		check_eq(trap.f.vector, END);
		for (unsigned i = 0; i < 8; i++) {
			if (i != 4)
				check_eq(out[i], (1000 + i) * 3);
			check_eq(((u32 *)got[2])[i], 0);
		}
	}
	/* Equal registers are not allowed. */
	go(CODE(".byte 0xc4, 0xe2, 0x75, 0x90, 0x04, 0x8b") /* vpgatherdd ymm0, [rbx + ymm1 * 4], ymm1 */, regs, 2, false);
	check_eq(trap.f.vector, VEC_UD);

	/* VMASKMOV over the edge: no fault where the mask is clear. */
	load_ymm(21);
	for (unsigned i = 0; i < 8; i++)
		mask[i] = i < 4 ? 0x80000000 : 0;
	__asm__ volatile("vmovups (%0), %%ymm2" : : "r"(ymm[2]) : "memory");
	regs[RBX] = (u64)last - 16;
	go(CODE("vmaskmovps %%ymm3, %%ymm2, (%%rbx)"), regs, 2, false);
	check_eq(trap.f.vector, END);
	check(same(last - 16, ymm[3], 16));
	go(CODE("vmaskmovps (%%rbx), %%ymm2, %%ymm4"), regs, 2, true);
	check_eq(trap.f.vector, END);
	memcpy(ymm[4], ymm[3], 16);
	memset(ymm[4] + 16, 0, 16);
	CHECK_YMM();
	go(CODE("vpmaskmovd %%ymm3, %%ymm2, (%%rbx)"), regs, 2, false);
	check_eq(trap.f.vector, END);
	regs[RBX] = (u64)last - 12;
	at = CODE("vpmaskmovq %%ymm3, %%ymm2, 4(%%rbx)"); /* the mask's second quadword is clear on top */
	go(CODE("vmaskmovps %%ymm3, %%ymm2, (%%rbx)"), regs, 2, false);
	check_eq(trap.f.vector, VEC_PF);
	check_eq(trap.cr2, VA + 4096);
	check_eq(trap.f.error, 2);
	/* All clear: any address will do. */
	memset(ymm[2], 0, 32);
	__asm__ volatile("vxorps %ymm2, %ymm2, %ymm2");
	regs[RBX] = (u64)last + 64;
	go(CODE("vmaskmovps %%ymm3, %%ymm2, (%%rbx)"), regs, 2, false);
	check_eq(trap.f.vector, END);
	go(CODE("vmaskmovpd (%%rbx), %%ymm2, %%ymm5"), regs, 2, false);
	check_eq(trap.f.vector, END);
	memset(ymm[5], 0, 32);
	CHECK_YMM();

	load_ymm(21);

	/* MASKMOVDQU. */
	for (unsigned i = 0; i < 16; i++)
		ymm[2][i] = i < 6 ? 0x80 : 0x7f;
	__asm__ volatile("vmovups (%0), %%xmm2; vmovups 32(%0), %%xmm3" : : "r"(ymm[2]) : "memory");
	regs[RDI] = (u64)last - 6;
	go(CODE("maskmovdqu %%xmm2, %%xmm3"), regs, 2, true);
	check_eq(trap.f.vector, END);
	check(same(last - 6, ymm[3], 6));
	regs[RDI] = (u64)last - 5;
	at = CODE("maskmovdqu %%xmm2, %%xmm3");
	go(at, regs, 2, true);
	check_eq(trap.f.vector, VEC_PF);
	check_eq(trap.f.error, 6);
	check_eq(trap.cr2, VA + 4096);
	check_eq(trap.f.rip, at);

	if (!wide)
		return;
	/* AVX-512: a masked store and load over the edge, a scatter that faults. */
	__asm__ volatile("kmovw %0, %%k1; vpbroadcastd %0, %%zmm6" : : "r"(0xff));
	regs[RBX] = (u64)last - 32;
	go(CODE("vmovdqu32 %%zmm6, (%%rbx)%{%%k1%}"), regs, 2, false);
	check_eq(trap.f.vector, END);
	check_eq(*(u32 *)(last - 4), 0xff);
	go(CODE("vmovdqu32 (%%rbx), %%zmm7%{%%k1%}%{z%}"), regs, 2, false);
	check_eq(trap.f.vector, END);
	for (unsigned i = 0; i < 8; i++)
		index[i] = i == 3 ? 1024 : i;
	__asm__ volatile("vmovups (%0), %%ymm1" : : "r"(ymm[1]) : "memory");
	regs[RBX] = VA;
	go(CODE("vpscatterdd %%ymm6, (%%rbx,%%ymm1,4)%{%%k1%}"), regs, 2, false);
	check_eq(trap.f.vector, VEC_PF);
	check_eq(trap.cr2, VA + 4096);
	check_eq(trap.f.error, 2);
	{
		u32 k;

		__asm__ volatile("kmovw %%k1, %0" : "=r"(k));
		check_eq(k, 0xf8);
		check_eq(*(u32 *)(VA + 8), 0xff);
	}
}

static void xgetbv(void)
{
	u32 a, d;

	__asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
	check_eq(a | (u64)d << 32, xcr0);
	clear_all();
	__asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(1));
	check_eq(a & 4, 0);
	load_ymm(30);
	__asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(1));
	check_eq(a & 6, 6);
	__asm__ volatile("cpuid" : "=a"(a), "=d"(d) : "a"(0xd), "c"(0) : "rbx");
	check_eq(a & xcr0, xcr0);
}

/* The end of the last part of `mask` in the standard format. */
static u32 area_end(u64 mask)
{
	u32 end = 576;

	for (u32 i = 2; i < 8; i++) {
		u32 size, offset, c, d;

		if (!(mask >> i & 1))
			continue;
		__asm__ volatile("cpuid" : "=a"(size), "=b"(offset), "=c"(c), "=d"(d) : "a"(0xd), "c"(i));
		check(size && offset >= 576);
		if (offset + size > end)
			end = offset + size;
	}
	return end;
}

int main(void)
{
	u32 a, b, c, d;

	open_to_user();
	for (unsigned i = 0x40; i < 0x50; i++)
		set_gate(i, (u64)trap_stubs + i * 16, 0, 0, false);
	write_cr4(read_cr4() | 1ul << 18);
	__asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(0xd), "c"(0));
	wide = (a & 0xe0) == 0xe0;
	xcr0 = wide ? 0xe7 : 7;
	__asm__ volatile("xsetbv" : : "c"(0), "a"((u32)xcr0), "d"(0));
	__asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(0xd), "c"(0));
	check_eq(b, area_end(xcr0)); /* where the parts lie is the processor's choice */
	saves((u64)area);
	/* Across two pages that do not follow each other. */
	map_page(VA, (u64)pages[2], PTE_P | PTE_W);
	map_page(VA + 4096, (u64)pages[0], PTE_P | PTE_W);
	saves(VA + 4096 - 64);
	saves(VA + 4096 - 576);
	saves(VA + 4096 - 320);
	bad_areas();
	xgetbv();
	device_memory();
	x2apic_on();
	interrupted();
	paged_in();
	masked();
	return 0;
}
