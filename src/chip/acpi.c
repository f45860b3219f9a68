#include "chip/acpi.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "chip/ioapic.h"
#include "chip/lapic.h"
#include "chip/pci.h"
#include "chip/power.h"
#include "chip/rtc.h"
#include "chip/uart.h"

#define HEADER_SIZE 36
#define FADT_SIZE 276

/* FADT: IA-PC boot flags and fixed feature flags (ACPI 6.5, 5.2.9) */
#define BOOT_LEGACY_DEVICES 0x0001
#define BOOT_NO_VGA 0x0004
#define FLAG_WBINVD (1u << 0)
#define FLAG_C1 (1u << 2)
#define FLAG_NO_POWER_BUTTON (1u << 4)
#define FLAG_NO_SLEEP_BUTTON (1u << 5)
#define FLAG_NO_FIXED_RTC (1u << 6)
#define FLAG_RESET_REGISTER (1u << 10)
#define FLAG_HARDWARE_REDUCED (1u << 20)

#define X2APIC_FIRST_ID 255

/* --- a bounded writer --- */

struct out {
	uint8_t *buf;
	size_t len, max;
};

static void put(struct out *o, const void *bytes, size_t n)
{
	assert(n <= o->max - o->len);
	memcpy(o->buf + o->len, bytes, n);
	o->len += n;
}

static void put8(struct out *o, uint8_t v)
{
	put(o, &v, 1);
}

static void put16(struct out *o, uint16_t v)
{
	put(o, &v, 2);
}

static void put32(struct out *o, uint32_t v)
{
	put(o, &v, 4);
}

static void put64(struct out *o, uint64_t v)
{
	put(o, &v, 8);
}

static uint8_t checksum(const uint8_t *p, size_t n)
{
	uint8_t sum = 0;

	while (n--)
		sum += *p++;
	return (uint8_t)-sum;
}

/* Starts a table; table_end() fills in its length and checksum. */
static size_t table_begin(struct out *o, const char *signature, uint8_t revision)
{
	size_t start;

	while (o->len % 16)
		put8(o, 0);
	start = o->len;
	put(o, signature, 4);
	put32(o, 0); /* length */
	put8(o, revision);
	put8(o, 0); /* checksum */
	put(o, "TAKT  ", 6);
	put(o, "TAKTMACH", 8);
	put32(o, 1);
	put(o, "TAKT", 4);
	put32(o, 1);
	return start;
}

static void table_end(struct out *o, size_t start)
{
	uint32_t length = (uint32_t)(o->len - start);

	memcpy(o->buf + start + 4, &length, 4);
	o->buf[start + 9] = checksum(o->buf + start, length);
}

/* --- AML (ACPI 6.5, 20.2) --- */

#define AML_ZERO 0x00
#define AML_NAME 0x08
#define AML_BYTE 0x0a
#define AML_WORD 0x0b
#define AML_DWORD 0x0c
#define AML_STRING 0x0d
#define AML_SCOPE 0x10
#define AML_BUFFER 0x11
#define AML_PACKAGE 0x12
#define AML_METHOD 0x14
#define AML_ARG0 0x68
#define AML_ARG3 0x6b
#define AML_OR 0x7d
#define AML_CREATE_DWORD_FIELD 0x8a
#define AML_LNOT 0x92
#define AML_LEQUAL 0x93
#define AML_IF 0xa0
#define AML_RETURN 0xa4
#define AML_EXT 0x5b
#define AML_EXT_DEVICE 0x82

/* Whatever has a PkgLength is written first and its length inserted at the end. */
static size_t aml_begin(struct out *o)
{
	return o->len;
}

static void aml_end(struct out *o, size_t start)
{
	size_t content = o->len - start;
	unsigned follow = content + 1 < 0x40       ? 0
			  : content + 2 < 0x1000   ? 1
			  : content + 3 < 0x100000 ? 2
						   : 3;
	size_t total = content + 1 + follow;
	uint8_t bytes[4] = {0};

	bytes[0] = follow ? (uint8_t)(follow << 6 | (total & 0xf)) : (uint8_t)total;
	for (unsigned i = 1; i <= follow; i++)
		bytes[i] = (uint8_t)(total >> (4 + (i - 1) * 8));
	put(o, bytes, follow + 1);
	memmove(o->buf + start + follow + 1, o->buf + start, content);
	memcpy(o->buf + start, bytes, follow + 1);
}

static void aml_integer(struct out *o, uint32_t v)
{
	if (v <= 1) {
		put8(o, (uint8_t)v); /* ZeroOp, OneOp */
	} else if (v <= 0xff) {
		put8(o, AML_BYTE);
		put8(o, (uint8_t)v);
	} else if (v <= 0xffff) {
		put8(o, AML_WORD);
		put16(o, (uint16_t)v);
	} else {
		put8(o, AML_DWORD);
		put32(o, v);
	}
}

static void aml_name(struct out *o, const char name[4])
{
	put8(o, AML_NAME);
	put(o, name, 4);
}

static void aml_name_integer(struct out *o, const char name[4], uint32_t v)
{
	aml_name(o, name);
	aml_integer(o, v);
}

static void aml_name_string(struct out *o, const char name[4], const char *text)
{
	aml_name(o, name);
	put8(o, AML_STRING);
	put(o, text, strlen(text) + 1);
}

static unsigned hex(char c)
{
	return c <= '9' ? (unsigned)(c - '0') : (unsigned)(c - 'A' + 10);
}

/* EISAID() of "PNP0501" and the like (ACPI 6.5, 19.3.4). */
static uint32_t eisa_id(const char *id)
{
	uint32_t big = (uint32_t)(id[0] - 0x40) << 26 | (uint32_t)(id[1] - 0x40) << 21 |
		       (uint32_t)(id[2] - 0x40) << 16 | hex(id[3]) << 12 | hex(id[4]) << 8 |
		       hex(id[5]) << 4 | hex(id[6]);

	return __builtin_bswap32(big);
}

static size_t device_begin(struct out *o, const char name[4], const char *hid, uint32_t uid)
{
	size_t start;

	put8(o, AML_EXT);
	put8(o, AML_EXT_DEVICE);
	start = aml_begin(o);
	put(o, name, 4);
	if (strlen(hid) == 7)
		aml_name_integer(o, "_HID", eisa_id(hid));
	else
		aml_name_string(o, "_HID", hid);
	aml_name_integer(o, "_UID", uid);
	return start;
}

/* --- resources (ACPI 6.4) --- */

struct crs {
	uint8_t bytes[256];
	struct out out;
};

static void crs_begin(struct crs *c)
{
	c->out = (struct out){c->bytes, 0, sizeof(c->bytes)};
}

static void crs_end(struct crs *c, struct out *o)
{
	size_t start;

	put8(&c->out, 0x79); /* end tag, without checksum */
	put8(&c->out, 0);
	aml_name(o, "_CRS");
	put8(o, AML_BUFFER);
	start = aml_begin(o);
	aml_integer(o, (uint32_t)c->out.len);
	put(o, c->bytes, c->out.len);
	aml_end(o, start);
}

static void crs_io(struct crs *c, uint16_t port, uint8_t count)
{
	put8(&c->out, 0x47);
	put8(&c->out, 1); /* decodes 16 bits */
	put16(&c->out, port);
	put16(&c->out, port);
	put8(&c->out, 1);
	put8(&c->out, count);
}

static void crs_interrupt(struct crs *c, uint32_t gsi)
{
	put8(&c->out, 0x89);
	put16(&c->out, 6);
	put8(&c->out, 0x03); /* consumer, edge, active high, exclusive */
	put8(&c->out, 1);
	put32(&c->out, gsi);
}

static void crs_memory_fixed(struct crs *c, uint32_t base, uint32_t size)
{
	put8(&c->out, 0x86);
	put16(&c->out, 9);
	put8(&c->out, 1); /* writable */
	put32(&c->out, base);
	put32(&c->out, size);
}

/* What a bridge passes on: fixed minimum and maximum. */
#define CRS_PRODUCER_FIXED 0x0c

static void crs_bus(struct crs *c, uint16_t first, uint16_t last)
{
	put8(&c->out, 0x88);
	put16(&c->out, 13);
	put8(&c->out, 2); /* bus numbers */
	put8(&c->out, CRS_PRODUCER_FIXED);
	put8(&c->out, 0);
	put16(&c->out, 0);
	put16(&c->out, first);
	put16(&c->out, last);
	put16(&c->out, 0);
	put16(&c->out, last - first + 1);
}

static void crs_memory32(struct crs *c, uint32_t base, uint32_t size)
{
	put8(&c->out, 0x87);
	put16(&c->out, 23);
	put8(&c->out, 0);
	put8(&c->out, CRS_PRODUCER_FIXED);
	put8(&c->out, 1); /* writable, not cacheable */
	put32(&c->out, 0);
	put32(&c->out, base);
	put32(&c->out, base + size - 1);
	put32(&c->out, 0);
	put32(&c->out, size);
}

static void crs_memory64(struct crs *c, uint64_t base, uint64_t size)
{
	put8(&c->out, 0x8a);
	put16(&c->out, 43);
	put8(&c->out, 0);
	put8(&c->out, CRS_PRODUCER_FIXED);
	put8(&c->out, 1);
	put64(&c->out, 0);
	put64(&c->out, base);
	put64(&c->out, base + size - 1);
	put64(&c->out, 0);
	put64(&c->out, size);
}

/* --- DSDT --- */

static void dsdt_s5(struct out *o)
{
	size_t start;

	aml_name(o, "_S5_");
	put8(o, AML_PACKAGE);
	start = aml_begin(o);
	put8(o, 4);
	aml_integer(o, POWER_SLEEP_TYPE_S5);
	for (int i = 0; i < 3; i++)
		aml_integer(o, 0);
	aml_end(o, start);
}

static void dsdt_legacy(struct out *o, const char name[4], const char *hid, uint16_t port,
			uint8_t ports, uint32_t irq)
{
	size_t start = device_begin(o, name, hid, 0);
	struct crs crs;

	crs_begin(&crs);
	crs_io(&crs, port, ports);
	crs_interrupt(&crs, irq);
	crs_end(&crs, o);
	aml_end(o, start);
}

/* Linux uses ECAM only where a device claims its memory. */
static void dsdt_motherboard(struct out *o)
{
	size_t start = device_begin(o, "MBRD", "PNP0C02", 0);
	struct crs crs;

	crs_begin(&crs);
	crs_memory_fixed(&crs, PCI_ECAM_GPA, PCI_ECAM_SIZE);
	crs_io(&crs, POWER_PORT, POWER_PORTS);
	crs_end(&crs, o);
	aml_end(o, start);
}

/* The operating system controls all of PCI Express that it asks for: no firmware does, and without
 * this method Linux takes nothing and says so.  ACPI 6.5, 6.2.11; PCI Firmware 3.3, 4.5.1.
 *
 *   Method (_OSC, 4, NotSerialized) {
 *       If (LNot (LEqual (Arg0, "33db4d5b-..."))) {
 *           CreateDWordField (Arg3, Zero, CDW1)
 *           Or (CDW1, 4, CDW1)      // unrecognized UUID
 *       }
 *       Return (Arg3)
 *   }
 */
static void dsdt_osc(struct out *o)
{
	static const uint8_t uuid[16] = {0x5b, 0x4d, 0xdb, 0x33, 0xf7, 0x1f, 0x1c, 0x40,
					 0x96, 0x57, 0x74, 0x41, 0xc0, 0x3d, 0xd7, 0x66};
	size_t method, condition, buffer;

	put8(o, AML_METHOD);
	method = aml_begin(o);
	put(o, "_OSC", 4);
	put8(o, 4); /* arguments */
	put8(o, AML_IF);
	condition = aml_begin(o);
	put8(o, AML_LNOT);
	put8(o, AML_LEQUAL);
	put8(o, AML_ARG0);
	put8(o, AML_BUFFER);
	buffer = aml_begin(o);
	aml_integer(o, sizeof(uuid));
	put(o, uuid, sizeof(uuid));
	aml_end(o, buffer);
	put8(o, AML_CREATE_DWORD_FIELD);
	put8(o, AML_ARG3);
	put8(o, AML_ZERO);
	put(o, "CDW1", 4);
	put8(o, AML_OR);
	put(o, "CDW1", 4);
	aml_integer(o, 4);
	put(o, "CDW1", 4);
	aml_end(o, condition);
	put8(o, AML_RETURN);
	put8(o, AML_ARG3);
	aml_end(o, method);
}

static void dsdt_pci(struct out *o, gpa_t window64)
{
	size_t start = device_begin(o, "PCI0", "PNP0A08", 0), routing;
	struct crs crs;

	aml_name_integer(o, "_CID", eisa_id("PNP0A03"));
	aml_name_integer(o, "_SEG", 0);
	aml_name_integer(o, "_BBN", 0);
	aml_name(o, "_PRT"); /* no pin interrupts: devices signal by MSI-X */
	put8(o, AML_PACKAGE);
	routing = aml_begin(o);
	put8(o, 0);
	aml_end(o, routing);
	crs_begin(&crs);
	crs_bus(&crs, 0, 0);
	crs_io(&crs, PCI_PORT, PCI_PORTS);
	crs_memory32(&crs, PCI_WINDOW32_GPA, PCI_WINDOW32_SIZE);
	crs_memory64(&crs, window64, PCI_WINDOW64_SIZE);
	crs_end(&crs, o);
	dsdt_osc(o);
	aml_end(o, start);
}

static void dsdt_processors(struct out *o, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		char name[8];
		size_t start;

		snprintf(name, sizeof(name), "C%03X", i & 0xfff);
		start = device_begin(o, name, "ACPI0007", i);
		aml_end(o, start);
	}
}

static void build_dsdt(struct out *o, const struct acpi_config *config)
{
	size_t table = table_begin(o, "DSDT", 2), scope;

	dsdt_s5(o);
	put8(o, AML_SCOPE);
	scope = aml_begin(o);
	put(o, "\\_SB_", 5);
	dsdt_legacy(o, "COM1", "PNP0501", UART_PORT, UART_PORTS, UART_IRQ);
	dsdt_legacy(o, "RTC_", "PNP0B00", RTC_PORT, RTC_PORTS, RTC_IRQ);
	dsdt_motherboard(o);
	dsdt_pci(o, config->window64);
	dsdt_processors(o, config->vcpus);
	aml_end(o, scope);
	table_end(o, table);
}

/* --- the other tables --- */

static void put_port(uint8_t *gas, uint16_t port)
{
	gas[0] = 1; /* system I/O */
	gas[1] = 8; /* bits */
	gas[3] = 1; /* byte access */
	memcpy(gas + 4, &port, 2);
}

static void build_fadt(struct out *o, uint64_t dsdt)
{
	size_t start = table_begin(o, "FACP", 6);
	uint32_t flags = FLAG_WBINVD | FLAG_C1 | FLAG_NO_POWER_BUTTON | FLAG_NO_SLEEP_BUTTON |
			 FLAG_NO_FIXED_RTC | FLAG_RESET_REGISTER | FLAG_HARDWARE_REDUCED;
	uint16_t boot = BOOT_LEGACY_DEVICES | BOOT_NO_VGA; /* and no 8042 */
	uint8_t *t = o->buf + start;

	while (o->len < start + FADT_SIZE)
		put8(o, 0);
	t[108] = RTC_CENTURY;
	memcpy(t + 109, &boot, 2);
	memcpy(t + 112, &flags, 4);
	put_port(t + 116, POWER_RESET);
	t[128] = POWER_RESET_VALUE;
	t[131] = 5; /* minor version: ACPI 6.5 */
	memcpy(t + 140, &dsdt, 8);
	put_port(t + 244, POWER_SLEEP_CONTROL);
	put_port(t + 256, POWER_SLEEP_STATUS);
	memcpy(t + 268, "TAKT", 4); /* hypervisor vendor */
	table_end(o, start);
}

static void madt_processor(struct out *o, unsigned id)
{
	if (id < X2APIC_FIRST_ID) {
		put8(o, 0); /* local APIC */
		put8(o, 8);
		put8(o, (uint8_t)id);
		put8(o, (uint8_t)id);
		put32(o, 1); /* enabled */
	} else {
		put8(o, 9); /* local x2APIC */
		put8(o, 16);
		put16(o, 0);
		put32(o, id);
		put32(o, 1);
		put32(o, id);
	}
}

static void build_madt(struct out *o, unsigned vcpus)
{
	size_t start = table_begin(o, "APIC", 5);

	put32(o, LAPIC_GPA);
	put32(o, 0); /* no 8259 */
	for (unsigned i = 0; i < vcpus; i++)
		madt_processor(o, i);
	put8(o, 1); /* I/O APIC */
	put8(o, 12);
	put8(o, 0); /* id */
	put8(o, 0);
	put32(o, IOAPIC_GPA);
	put32(o, 0); /* first GSI */
	put8(o, 4);  /* local APIC NMI: LINT1 of all */
	put8(o, 6);
	put8(o, 0xff);
	put16(o, 0);
	put8(o, 1);
	table_end(o, start);
}

static void build_mcfg(struct out *o)
{
	size_t start = table_begin(o, "MCFG", 1);

	put64(o, 0);
	put64(o, PCI_ECAM_GPA);
	put16(o, 0); /* segment */
	put8(o, 0);  /* first and last bus */
	put8(o, 0);
	put32(o, 0);
	table_end(o, start);
}

static void build_rsdp(uint8_t *p, uint64_t xsdt)
{
	uint32_t length = 36;

	memcpy(p, "RSD PTR ", 8);
	memcpy(p + 9, "TAKT  ", 6);
	p[15] = 2; /* revision */
	memcpy(p + 20, &length, 4);
	memcpy(p + 24, &xsdt, 8);
	p[8] = checksum(p, 20);
	p[32] = checksum(p, 36);
}

int acpi_build(struct ram *ram, const struct acpi_config *config, struct error *err)
{
	struct out o = {ram_host(ram, ACPI_RSDP_GPA, ACPI_AREA_SIZE), 0, ACPI_AREA_SIZE};
	uint64_t at[4];
	size_t xsdt;

	if (!o.buf)
		return error_set(err, ENOMEM,
				 "no room for the ACPI tables below 1 MiB: give more --memory");
	memset(o.buf, 0, 64);
	o.len = 64; /* the RSDP */
	at[0] = ACPI_RSDP_GPA + o.len;
	build_dsdt(&o, config);
	at[1] = ACPI_RSDP_GPA + ALIGN_UP(o.len, (size_t)16);
	build_fadt(&o, at[0]);
	at[2] = ACPI_RSDP_GPA + ALIGN_UP(o.len, (size_t)16);
	build_madt(&o, config->vcpus);
	at[3] = ACPI_RSDP_GPA + ALIGN_UP(o.len, (size_t)16);
	build_mcfg(&o);
	xsdt = table_begin(&o, "XSDT", 1);
	for (int i = 1; i < 4; i++)
		put64(&o, at[i]);
	table_end(&o, xsdt);
	build_rsdp(o.buf, ACPI_RSDP_GPA + xsdt);
	return 0;
}
