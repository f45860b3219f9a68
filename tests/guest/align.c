/* Alignment checks: #AC at CPL 3 with CR0.AM and EFLAGS.AC, and only then (SDM 3A, 6.15). */
#include "guest.h"

#define VA 0x40000000ul
#define CR0_AM (1ul << 18)

static u8 code[4096] __attribute__((aligned(4096))), data[4096] __attribute__((aligned(4096)));
static unsigned length;

static void put(const char *bytes, unsigned n)
{
	memcpy(code + length, bytes, n);
	length += n;
}

/* Sets AC (or not), runs one instruction with rdi = address, ends with int $0x80; where the
 * instruction stands. */
static u64 prepare(bool ac, const char *bytes, unsigned n)
{
	u64 at;

	length = 0;
	put("\x9c\x81\x0c\x24\x00\x00\x04\x00", 8); /* pushfq; or dword [rsp], 1 << 18 */
	if (!ac)
		code[6] = 0;
	put("\x9d", 1); /* popfq */
	at = VA + length;
	put(bytes, n);
	put("\xcd\x80", 2);
	return at;
}

static void one(const char *bytes, unsigned n, u64 address, bool am, bool ac, bool want)
{
	u64 at = prepare(ac, bytes, n), cr0 = read_cr0();
	int faulted;

	write_cr0(am ? cr0 | CR0_AM : cr0 & ~CR0_AM);
	faulted = try_user(VA, VA + 0x2000, address);
	write_cr0(cr0);
	check_eq(faulted, want);
	if (!faulted)
		return;
	check_eq(trap.f.vector, VEC_AC);
	check_eq(trap.f.error, 0);
	check_eq(trap.f.rip, at);
	check_eq(trap.f.rdi, address);
}

int main(void)
{
	map_page(VA, (u64)code, PTE_P | PTE_W | PTE_U);
	map_page(VA + 0x1000, (u64)data, PTE_P | PTE_W | PTE_U);
	for (unsigned i = 0; i < 16; i++) {
		bool am = i & 1, ac = i & 2, both = am && ac;
		u64 at = VA + 0x1000 + (i & 4 ? 64 : 0);

		one("\x8b\x07", 2, at + 1, am, ac, both);         /* mov eax, [rdi] */
		one("\x8b\x07", 2, at + 4, am, ac, false);
		one("\x48\x89\x07", 3, at + 4, am, ac, both);     /* mov [rdi], rax */
		one("\x48\x89\x07", 3, at + 8, am, ac, false);
		one("\x66\xff\x07", 3, at + 3, am, ac, both);     /* inc word [rdi] */
		one("\x8a\x07", 2, at + 1, am, ac, false);        /* mov al, [rdi] */
		one("\x0f\x10\x07", 3, at + 1, am, ac, false);    /* movups: its own rules */
		one("\x48\x8b\x07", 3, VA + 0x1000 + 4028, am, ac, both);
	}
	return 0;
}
