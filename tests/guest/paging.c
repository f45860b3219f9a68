/* Paging: every combination of rights at two levels, of accessor and of control bits, against the rules
 * written out below (SDM 3A, 4.6); error codes, CR2, accessed and dirty bits; large pages; INVLPG, PCID. */
#include "guest.h"

#define TEST_VA 0x40000000ul
#define USER_VA 0x50000000ul
#define SMEP (1ul << 20)
#define SMAP (1ul << 21)
#define WP (1ul << 16)
#define AC (1ul << 18)

static u8 page[4096] __attribute__((aligned(4096)));
static u8 user_code[4096] __attribute__((aligned(4096)));
static u8 user_stack[4096] __attribute__((aligned(4096)));

enum { READ, WRITE, EXEC };

static void k_read(u64 va)
{
	__asm__ volatile("movq (%0), %%rax" : : "r"(va) : "rax", "memory");
}
static void k_write(u64 va)
{
	__asm__ volatile("movq $0x1122, 8(%0)" : : "r"(va) : "memory");
}
static void k_exec(u64 va)
{
	__asm__ volatile("call *%0" : : "r"(va) : "memory");
}
static void k_read_ac(u64 va)
{
	__asm__ volatile("stac; movq (%0), %%rax; clac" : : "r"(va) : "rax", "memory");
}
static void k_write_ac(u64 va)
{
	__asm__ volatile("stac; movq $0x1122, 8(%0); clac" : : "r"(va) : "memory");
}

/* What a user program does at USER_VA + 16 * kind, rdi = address. */
static void make_user_code(void)
{
	memcpy(user_code + 0, "\x48\x8b\x07\xcd\x80", 5);                         /* mov rax, [rdi]; int 80 */
	memcpy(user_code + 16, "\x48\xc7\x47\x08\x22\x11\x00\x00\xcd\x80", 10); /* mov qword [rdi + 8] */
	memcpy(user_code + 32, "\xff\xd7\xcd\x80", 4);                            /* call rdi; int 80 */
	map_page(USER_VA, (u64)user_code, PTE_P | PTE_U);
	map_page(USER_VA + 0x1000, (u64)user_stack, PTE_P | PTE_W | PTE_U);
}

struct rights {
	bool p, w, u, nx;
};

static void one(u64 *pde, u64 pde_base, u64 *pte, struct rights d, struct rights t, int kind, bool user,
                bool ac)
{
	bool w = d.w && t.w, u = d.u && t.u, nx = d.nx || t.nx, allowed = t.p;
	u64 cr0 = read_cr0(), cr4 = read_cr4(), error = 0;
	int faulted;

	if (t.p) {
		if (user)
			allowed = u && (kind != WRITE || w) && (kind != EXEC || !nx);
		else if (kind == EXEC)
			allowed = !nx && !(u && (cr4 & SMEP));
		else
			allowed = !(u && (cr4 & SMAP) && !ac) && (kind != WRITE || w || !(cr0 & WP));
		error |= 1;
	}
	error |= (kind == WRITE ? 2 : 0) | (user ? 4 : 0) | (kind == EXEC ? 16 : 0);
	*pde = pde_base | PTE_P | (d.w ? PTE_W : 0) | (d.u ? PTE_U : 0) | (d.nx ? PTE_NX : 0);
	*pte = (u64)page | (t.p ? PTE_P : 0) | (t.w ? PTE_W : 0) | (t.u ? PTE_U : 0) | (t.nx ? PTE_NX : 0);
	invlpg(TEST_VA);
	if (user)
		faulted = try_user(USER_VA + 16 * (unsigned)kind, USER_VA + 0x2000, TEST_VA);
	else
		faulted = try(kind == EXEC ? k_exec : kind == READ ? (ac ? k_read_ac : k_read)
		                                                   : (ac ? k_write_ac : k_write),
		              TEST_VA);
	check_eq(faulted, !allowed);
	if (faulted) {
		check_eq(trap.f.vector, VEC_PF);
		check_eq(trap.f.error, error);
		check_eq(trap.cr2, TEST_VA + (kind == WRITE ? 8 : 0));
	} else {
		check_eq(*pte & (PTE_A | PTE_D), kind == WRITE ? PTE_A | PTE_D : PTE_A);
		check(*pde & PTE_A);
	}
}

static void rights_matrix(void)
{
	u64 *pte = pte_of(TEST_VA), *pde, base;
	u64 cr0 = read_cr0(), cr4 = read_cr4();

	pde = (u64 *)(((u64 *)(pml4[0] & ~0xffful))[1] & 0xffffffffff000ul);
	base = *pde & 0xffffffffff000ul;
	page[0] = 0xc3; /* ret */
	for (unsigned control = 0; control < 8; control++) {
		write_cr0(control & 1 ? cr0 | WP : cr0 & ~WP);
		write_cr4((cr4 & ~(SMEP | SMAP)) | (control & 2 ? SMEP : 0) | (control & 4 ? SMAP : 0));
		for (unsigned bits = 0; bits < 128; bits++) {
			struct rights d = {true, bits & 1, bits & 2, bits & 4};
			struct rights t = {bits & 8, bits & 16, bits & 32, bits & 64};

			for (int kind = READ; kind <= EXEC; kind++) {
				one(pde, base, pte, d, t, kind, false, false);
				one(pde, base, pte, d, t, kind, true, false);
				if (kind != EXEC && (control & 4))
					one(pde, base, pte, d, t, kind, false, true);
			}
		}
	}
	write_cr0(cr0);
	write_cr4(cr4);
	*pde = base | PTE_P | PTE_W | PTE_U;
}

/* A stale entry may be used until INVLPG, not after. */
static void invalidation(void)
{
	static u64 a[512] __attribute__((aligned(4096))), b[512] __attribute__((aligned(4096)));
	volatile u64 *va = (volatile u64 *)TEST_VA;

	a[0] = 0xaaaa;
	b[0] = 0xbbbb;
	map_page(TEST_VA, (u64)a, PTE_P | PTE_W);
	check_eq(*va, 0xaaaa);
	*pte_of(TEST_VA) = (u64)b | PTE_P | PTE_W;
	invlpg(TEST_VA);
	check_eq(*va, 0xbbbb);
	*va = 0xcccc;
	check_eq(b[0], 0xcccc);
	*pte_of(TEST_VA) = (u64)a | PTE_P | PTE_W;
	write_cr3(read_cr3());
	check_eq(*va, 0xaaaa);
	/* Global pages survive a CR3 write, not a change of CR4.PGE. */
	write_cr4(read_cr4() | 0x80);
	map_page(TEST_VA, (u64)a, PTE_P | PTE_W | PTE_G);
	check_eq(*va, 0xaaaa);
	*pte_of(TEST_VA) = (u64)b | PTE_P | PTE_W | PTE_G;
	write_cr4(read_cr4() & ~0x80ul);
	check_eq(*va, 0xcccc);
}

static void large_pages(void)
{
	static u64 pdpt_entry;
	u64 *pdpt0 = (u64 *)(pml4[0] & 0xffffffffff000ul);
	volatile u32 *low = (volatile u32 *)0x300000, *alias;

	/* 1 GiB page at 4 GiB shows physical 0. */
	pdpt_entry = PTE_P | PTE_W | PTE_PS;
	pdpt0[4] = pdpt_entry;
	alias = (volatile u32 *)(0x100000000ul + 0x300000);
	*low = 0x12345678;
	check_eq(*alias, 0x12345678);
	*alias = 0x9abcdef0;
	check_eq(*low, 0x9abcdef0);
	check_eq(pdpt0[4] & (PTE_A | PTE_D), PTE_A | PTE_D);
	/* A reserved bit in it faults. */
	pdpt0[4] = PTE_P | PTE_W | PTE_PS | 1ul << 20;
	invlpg((u64)alias);
	check_eq(try(k_read, (u64)alias), 1);
	check_eq(trap.f.vector, VEC_PF);
	check_eq(trap.f.error, 9);
	pdpt0[4] = 0;
	invlpg((u64)alias);
}

static void crossing(void)
{
	static u8 two[8192] __attribute__((aligned(4096)));
	volatile u64 *at = (volatile u64 *)(TEST_VA + 4092);

	map_page(TEST_VA, (u64)two + 4096, PTE_P | PTE_W); /* the two in the other order */
	map_page(TEST_VA + 4096, (u64)two, PTE_P | PTE_W);
	*at = 0x1122334455667788;
	check_eq(*(u32 *)(two + 8188), 0x55667788);
	check_eq(*(u32 *)two, 0x11223344);
	check_eq(*at, 0x1122334455667788);
	/* The second page is missing: nothing of the first may be written. */
	*pte_of(TEST_VA + 4096) = 0;
	invlpg(TEST_VA + 4096);
	check_eq(try(k_write, TEST_VA + 4092 - 8), 1);
	check_eq(trap.cr2, TEST_VA + 4096);
	check_eq(trap.f.error, 2);
	check_eq(*(u32 *)(two + 8188), 0x55667788);
}

/* Two accesses off one base, as far apart as the translator checks together, at every offset. */
static void pairs_at_every_offset(void)
{
	static u8 three[3 * 4096] __attribute__((aligned(4096)));
	u64 a, b;

	for (unsigned i = 0; i < 3; i++)
		map_page(TEST_VA + i * 4096, (u64)three + i * 4096, PTE_P | PTE_W);
	for (u64 at = 3800; at < 4200; at++) {
		*(volatile u64 *)(three + at) = at;
		*(volatile u64 *)(three + at + 248) = ~at;
		invlpg(TEST_VA); /* what was cached must not hide a failing check */
		__asm__ volatile("movq (%2), %0; movq 248(%2), %1" : "=&r"(a), "=&r"(b) : "r"(TEST_VA + at) : "memory");
		check_eq(a, at);
		check_eq(b, ~at);
	}
}

static void pcid(void)
{
	static u64 a[512] __attribute__((aligned(4096))), b[512] __attribute__((aligned(4096)));
	static u64 root[512] __attribute__((aligned(4096)));
	volatile u64 *va = (volatile u64 *)TEST_VA;
	u64 cr3 = read_cr3() & ~0xffful, *l3, *l2, *l1;

	a[0] = 1;
	b[0] = 2;
	map_page(TEST_VA, (u64)a, PTE_P | PTE_W);
	write_cr4(read_cr4() | 1ul << 17);
	/* A second address space that differs in one page. */
	memcpy(root, pml4, 4096);
	l3 = table_alloc();
	l2 = table_alloc();
	l1 = table_alloc();
	memcpy(l3, (void *)(pml4[0] & 0xffffffffff000ul), 4096);
	memcpy(l2, (void *)(l3[1] & 0xffffffffff000ul), 4096);
	memcpy(l1, (void *)(l2[0] & 0xffffffffff000ul), 4096);
	root[0] = (u64)l3 | 7;
	l3[1] = (u64)l2 | 7;
	l2[0] = (u64)l1 | 7;
	l1[0] = (u64)b | PTE_P | PTE_W;
	for (unsigned i = 0; i < 50; i++) {
		write_cr3(cr3 | 1 | 1ul << 63);
		check_eq(*va, 1);
		write_cr3((u64)root | 2 | 1ul << 63);
		check_eq(*va, 2);
	}
	/* INVPCID of one address in PCID 1 while in PCID 2. */
	write_cr3(cr3 | 1 | 1ul << 63);
	check_eq(*va, 1);
	write_cr3((u64)root | 2 | 1ul << 63);
	*pte_of(TEST_VA) = (u64)b | PTE_P | PTE_W;
	{
		struct {
			u64 pcid, address;
		} d = {1, TEST_VA};

		__asm__ volatile("invpcid %0, %1" : : "m"(d), "r"(0ul) : "memory");
	}
	write_cr3(cr3 | 1 | 1ul << 63);
	check_eq(*va, 2);
	write_cr3(cr3);
	write_cr4(read_cr4() & ~(1ul << 17));
}

static void noncanonical(void)
{
	check_eq(try(k_read, 0x800000000000ul), 1);
	check_eq(trap.f.vector, VEC_GP);
	check_eq(trap.f.error, 0);
	check_eq(try(k_write, 0x8000000000000000ul), 1);
	check_eq(trap.f.vector, VEC_GP);
	check_eq(try(k_read, 0x8000000000000010ul), 1);
	check_eq(trap.f.vector, VEC_GP);
}

int main(void)
{
	make_user_code();
	rights_matrix();
	invalidation();
	large_pages();
	crossing();
	pairs_at_every_offset();
	pcid();
	noncanonical();
	return 0;
}
