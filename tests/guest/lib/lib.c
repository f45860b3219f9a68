/* Checks, output, traps and page tables of the test kernels. */
#include "guest.h"

#include <stdarg.h>

#define COM1 0x3f8

extern u8 try_recover[], user_done[];
unsigned checks;
static unsigned failures;
struct trap trap;
static trap_fn handlers[256];

void *memcpy(void *dst, const void *src, u64 n)
{
	void *d = dst;

	__asm__ volatile("rep movsb" : "+D"(d), "+S"(src), "+c"(n) : : "memory");
	return dst;
}

void *memset(void *dst, int c, u64 n)
{
	void *d = dst;

	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
	return dst;
}

static void put(char c)
{
	while (!(inb(COM1 + 5) & 0x20))
		;
	outb(COM1, (u8)c);
}

static void put_number(u64 v, unsigned base)
{
	char buf[24];
	unsigned n = 0;

	do {
		buf[n++] = "0123456789abcdef"[v % base];
		v /= base;
	} while (v);
	while (n)
		put(buf[--n]);
}

void print(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	for (; *fmt; fmt++) {
		const char *s;
		long v;

		if (*fmt != '%') {
			put(*fmt);
			continue;
		}
		switch (*++fmt) {
		case 's':
			for (s = va_arg(ap, const char *); *s; s++)
				put(*s);
			break;
		case 'd':
			v = va_arg(ap, long);
			if (v < 0)
				put('-');
			put_number((u64)(v < 0 ? -v : v), 10);
			break;
		case 'u': put_number(va_arg(ap, u64), 10); break;
		case 'x': put_number(va_arg(ap, u64), 16); break;
		default: put(*fmt);
		}
	}
	va_end(ap);
}

void check_failed(const char *file, int line, const char *what, u64 got, u64 want)
{
	if (++failures <= 20)
		print("FAIL %s:%d: %s: %x, not %x\n", file, (long)line, what, got, want);
}

void on_trap(unsigned vector, trap_fn fn)
{
	handlers[vector] = fn;
}

void trap_handler(struct frame *f)
{
	if (handlers[f->vector] && handlers[f->vector](f))
		return;
	if (f->vector == 0x80) {
		f->rip = (u64)user_done;
	} else if (try_rsp) {
		trap.f = *f;
		trap.cr2 = read_cr2();
		trap.rsp = (u64)f;
		f->rip = (u64)try_recover;
	} else {
		print("FAIL unexpected trap %u, error %x, at %x, cr2 %x\n", f->vector, f->error, f->rip,
		      read_cr2());
		print("failed\n");
		outb(0x64, 0xfe);
		for (;;)
			__asm__ volatile("cli; hlt");
	}
	f->cs = 0x10;
	f->ss = 0x18;
	f->rsp = try_rsp;
	f->rflags = 2;
}

void set_gate(unsigned vector, u64 target, unsigned ist, unsigned dpl, bool trap_gate)
{
	idt[vector * 2] = (target & 0xffff) | 0x10 << 16 | (u64)ist << 32 |
	                  (u64)(0x8e | trap_gate | dpl << 5) << 40 | (target >> 16 & 0xffff) << 48;
	idt[vector * 2 + 1] = target >> 32;
}

void lib_init(void)
{
	u64 base = (u64)tss;
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) idtr = {4095, (u64)idt}, gdtr = {0x57, (u64)gdt};

	for (unsigned i = 0; i < 256; i++)
		set_gate(i, (u64)trap_stubs + i * 16, 0, i == 0x80 || i == 3 || i == 4 ? 3 : 0, false);
	*(u64 *)(tss + 4) = (u64)trap_stack_top;  /* RSP0 */
	*(u64 *)(tss + 36) = (u64)trap_stack_top; /* IST1 */
	*(u16 *)(tss + 102) = 104;
	gdt_tss[0] = 103 | (base & 0xffffff) << 16 | 0x89ul << 40 | (base >> 24 & 0xff) << 56;
	gdt_tss[1] = base >> 32;
	__asm__ volatile("lgdt %0" : : "m"(gdtr));
	__asm__ volatile("lidt %0" : : "m"(idtr));
	__asm__ volatile("ltr %w0" : : "r"(0x48));
}

void lib_end(void)
{
	print("%u checks, %u failed\n", (u64)checks, (u64)failures);
	print(failures || !checks ? "failed\n" : "passed\n");
	outb(0x600, 0x34); /* ACPI sleep control: S5, enable */
}

static u8 tables[64][4096] __attribute__((aligned(4096)));
static unsigned tables_used;

u64 *table_alloc(void)
{
	if (tables_used == 64) {
		print("FAIL out of page tables\n");
		return (u64 *)tables[0];
	}
	return (u64 *)tables[tables_used++];
}

u64 *pte_of(u64 va)
{
	u64 *table = pml4;

	for (unsigned level = 4; level > 1; level--) {
		u64 *e = &table[va >> (12 + 9 * (level - 1)) & 511];

		if (!(*e & PTE_P))
			*e = (u64)table_alloc() | PTE_P | PTE_W | PTE_U;
		*e |= PTE_U;
		table = (u64 *)(*e & 0xffffffffff000);
	}
	return &table[va >> 12 & 511];
}

void map_page(u64 va, u64 pa, u64 flags)
{
	*pte_of(va) = pa | flags;
	invlpg(va);
}
