/* A Multiboot kernel that says what it was told, on the serial port, and ends by the debug-exit port.
 *
 * VERSION is 1 or 2; with ADDRESSES its header says where to load it, for a file that is no ELF. */
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define STRING_(x) #x
#define STRING(x) STRING_(x)

#if VERSION == 1
#define MAGIC 0x2badb002
#define FLAGS (ADDRESSES * 0x10000 + 3)
__asm__(".section .header, \"ax\"\n"
	".balign 4\n"
	"header: .long 0x1badb002, " STRING(FLAGS) ", -(0x1badb002 + " STRING(FLAGS) ")\n"
	".long header, load_start, load_end, bss_end, entry\n");
#else
#define MAGIC 0x36d76289
__asm__(".section .header, \"ax\"\n"
	".balign 8\n"
	"header: .long 0xe85250d6, 0, header_end - header, -(0xe85250d6 + (header_end - header))\n"
	".short 1, 0; .long 24, 1, 3, 6, 15\n" /* asks for command line, modules, map, ACPI */
	".short 5, 1; .long 20, 0, 0, 0\n"     /* a framebuffer would be nice */
	".balign 8\n"
	".if " STRING(ADDRESSES) "\n"
	".short 2, 0; .long 24, header, load_start, load_end, bss_end\n"
	".short 3, 0; .long 12, entry\n"
	".balign 8\n"
	".endif\n"
	".short 0, 0; .long 8\n"
	"header_end:\n");
#endif
__asm__(".text\n"
	".globl entry\n"
	"entry: movl $stack_top, %esp\n"
	"pushl %ebx\n"
	"pushl %eax\n"
	"call main\n"
	"1: hlt; jmp 1b\n"
	".bss\n"
	".balign 16\n"
	".skip 8192\n"
	"stack_top:\n"
	".text\n");

static void outb(unsigned short port, u8 v)
{
	__asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}

static void text(const char *s)
{
	while (*s)
		outb(0x3f8, (u8)*s++);
}

static void number(u64 n)
{
	char digits[24], *p = digits + sizeof(digits) - 1;

	/* No 64-bit division without a library: hexadecimal. */
	for (*p = 0; n || !*p; n >>= 4)
		*--p = "0123456789abcdef"[n & 15];
	text(p);
}

static void module(u32 start, u32 end, const char *words)
{
	u32 sum = 0;

	for (const u8 *p = (const u8 *)start; p < (const u8 *)end; p++)
		sum += *p;
	text("module [");
	text(words);
	text("] bytes ");
	number(end - start);
	text(" sum ");
	number(sum);
	text(start & 0xfff ? " not aligned\n" : "\n");
}

static void range(u64 addr, u64 size, u32 type)
{
	text("range ");
	number(addr);
	text(" ");
	number(size);
	text(type == 1 ? " ram\n" : " reserved\n");
}

static void memory(u32 lower, u32 upper)
{
	text("memory ");
	number(lower);
	text(" ");
	number(upper);
	text("\n");
}

static void cmdline(const char *words)
{
	text("cmdline [");
	text(words);
	text("]\n");
}

#if VERSION == 1
static void tell(const u32 *info)
{
	const u32 *m = (const u32 *)info[6];

	memory(info[1], info[2]);
	cmdline((const char *)info[4]);
	for (u32 i = 0; i < info[5]; i++, m += 4)
		module(m[0], m[1], (const char *)m[2]);
	for (const u8 *p = (const u8 *)info[12], *end = p + info[11]; p < end; p += *(const u32 *)p + 4)
		range(*(const u64 *)(p + 4), *(const u64 *)(p + 12), *(const u32 *)(p + 20));
	text((const char *)info[16]);
	text("\n");
}
#else
static void map(const u32 *tag)
{
	for (const u8 *p = (const u8 *)(tag + 4); p < (const u8 *)tag + tag[1]; p += tag[2])
		range(*(const u64 *)p, *(const u64 *)(p + 8), *(const u32 *)(p + 16));
}

static void rsdp(const u8 *p)
{
	u8 sum = 0;

	for (unsigned i = 0; i < 36; i++)
		sum += p[i];
	text(sum || p[0] != 'R' ? "bad ACPI\n" : "ACPI\n");
}

static void tell(const u32 *info)
{
	const u32 *tag = info + 2;

	for (; tag[0]; tag = (const u32 *)(((u32)tag + tag[1] + 7) & ~7u)) {
		switch (tag[0]) {
		case 1: cmdline((const char *)(tag + 2)); break;
		case 2: text((const char *)(tag + 2)), text("\n"); break;
		case 3: module(tag[2], tag[3], (const char *)(tag + 4)); break;
		case 4: memory(tag[2], tag[3]); break;
		case 6: map(tag); break;
		case 15: rsdp((const u8 *)(tag + 2)); break;
		default: text("an unknown tag\n");
		}
	}
	if ((const u8 *)tag + 8 != (const u8 *)info + info[0])
		text("a wrong size\n");
}
#endif

static u32 zero[1024]; /* is it? */

void main(u32 magic, const u32 *info)
{
	for (unsigned i = 0; i < 1024; i++)
		if (zero[i])
			text("the bss is not empty\n");
	if (magic == MAGIC)
		tell(info);
	else
		text("a wrong magic number\n");
	text("passed\n");
	outb(0xf4, 5);
}
