/* What bare-metal test kernels have: checks, traps, user mode, page tables, ports.
 *
 * A kernel's main() runs at CPL 0 in 64-bit mode with interrupts off.  It ends with power-off; every
 * failed check prints a line "FAIL ...", and the harness wants the last line to be "passed". */
#ifndef GUEST_H
#define GUEST_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef _Bool bool;
#define true 1
#define false 0

int main(void);

void print(const char *fmt, ...); /* %s %d %u %x (64-bit all) */
void check_failed(const char *file, int line, const char *what, u64 got, u64 want);
extern unsigned checks;

#define check(cond) (checks++, (cond) ? (void)0 : check_failed(__FILE__, __LINE__, #cond, 0, 1))
#define check_eq(got, want)                                                                         \
	do {                                                                                        \
		u64 got_ = (u64)(got), want_ = (u64)(want);                                         \
		checks++;                                                                           \
		if (got_ != want_)                                                                  \
			check_failed(__FILE__, __LINE__, #got, got_, want_);                        \
	} while (0)

struct frame { /* as trap_common lays it out */
	u64 rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
	u64 vector, error, rip, cs, rflags, rsp, ss;
};

/* The last trap that try() or try_user() caught. */
struct trap {
	struct frame f;
	u64 cr2;
	u64 rsp; /* of the handler: which stack it ran on */
};
extern struct trap trap;
extern u64 try_rsp;

/* Runs fn(arg); 0, or 1 if a trap ended it (then see `trap`). */
int try(void (*fn)(u64), u64 arg);
/* Runs code at CPL 3 until int $0x80 (0) or a trap (1). */
int try_user(u64 rip, u64 rsp, u64 arg);
/* A handler for one vector; returns true if it dealt with the trap (which then returns by IRET). */
typedef bool (*trap_fn)(struct frame *f);
void on_trap(unsigned vector, trap_fn fn);
void set_gate(unsigned vector, u64 target, unsigned ist, unsigned dpl, bool trap_gate);

extern u64 gdt[], gdt_tss[], pml4[], pdpt[], pd[], idt[];
extern u8 tss[], trap_stubs[], boot_stack_top[], trap_stack_top[];

/* Page tables above 1 GiB: maps one 4 KiB page; `flags` are PTE bits, tables get P, W and U. */
#define PTE_P 1ul
#define PTE_W 2ul
#define PTE_U 4ul
#define PTE_A 0x20ul
#define PTE_D 0x40ul
#define PTE_PS 0x80ul
#define PTE_G 0x100ul
#define PTE_NX (1ul << 63)
u64 *pte_of(u64 va); /* the entry, tables made as needed */
void map_page(u64 va, u64 pa, u64 flags);
u64 *table_alloc(void); /* one zeroed page */

static inline void invlpg(u64 va)
{
	__asm__ volatile("invlpg (%0)" : : "r"(va) : "memory");
}
#define CR(n)                                                                                       \
	static inline u64 read_cr##n(void)                                                          \
	{                                                                                           \
		u64 v;                                                                              \
		__asm__ volatile("mov %%cr" #n ", %0" : "=r"(v) : : "memory");                      \
		return v;                                                                           \
	}                                                                                           \
	static inline void write_cr##n(u64 v)                                                       \
	{                                                                                           \
		__asm__ volatile("mov %0, %%cr" #n : : "r"(v) : "memory");                          \
	}
CR(0)
CR(2)
CR(3)
CR(4)
CR(8)
static inline u64 rdmsr(u32 msr)
{
	u32 a, d;
	__asm__ volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(msr));
	return a | (u64)d << 32;
}
static inline void wrmsr(u32 msr, u64 v)
{
	__asm__ volatile("wrmsr" : : "c"(msr), "a"((u32)v), "d"((u32)(v >> 32)) : "memory");
}
static inline void outb(u16 port, u8 v)
{
	__asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}
static inline u8 inb(u16 port)
{
	u8 v;
	__asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}
static inline void outl(u16 port, u32 v)
{
	__asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port));
}
static inline u32 inl(u16 port)
{
	u32 v;
	__asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}
static inline u64 rdtsc(void)
{
	u32 a, d;
	__asm__ volatile("rdtsc" : "=a"(a), "=d"(d));
	return a | (u64)d << 32;
}
void *memcpy(void *dst, const void *src, u64 n);
void *memset(void *dst, int c, u64 n);

enum { VEC_DE, VEC_DB, VEC_NMI, VEC_BP, VEC_OF, VEC_BR, VEC_UD, VEC_NM, VEC_DF, VEC_TS = 10, VEC_NP,
       VEC_SS, VEC_GP, VEC_PF, VEC_MF = 16, VEC_AC, VEC_MC, VEC_XM };
#define NO_TRAP 0xffffu

#endif
