/* The ACPI tables of a machine, built in guest RAM.
 *
 *   RSDP (ACPI_RSDP_GPA) ─▶ XSDT ─┬▶ FADT (hardware-reduced) ─▶ DSDT (AML)
 *                                 ├▶ MADT
 *                                 └▶ MCFG
 *
 * ACPI Specification 6.5: chapter 5 (tables), 6.4 (resources), 20 (AML).
 */
#ifndef TAKT_CHIP_ACPI_H
#define TAKT_CHIP_ACPI_H

#include "base/error.h"
#include "mem/ram.h"

#define ACPI_RSDP_GPA 0xe0000ULL
#define ACPI_AREA_SIZE 0x20000 /* up to 1 MiB; reserved in the E820 map */

struct acpi_config {
	unsigned vcpus;
	gpa_t window64; /* the PCI host's 64-bit window */
};

/* -ENOMEM: RAM ends below 1 MiB (or the tables outgrow their area, which is a bug). */
int acpi_build(struct ram *ram, const struct acpi_config *config, struct error *err);

#endif
