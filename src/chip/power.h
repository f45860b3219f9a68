/* How a guest switches itself off or resets: ACPI's hardware-reduced sleep and reset registers, and
 * the two older ways kernels fall back to (port 0xcf9, the keyboard controller's reset line).
 *
 * ACPI 6.5, sections 4.8.3.6 (reset register) and 4.8.3.7 (sleep registers).
 */
#ifndef TAKT_CHIP_POWER_H
#define TAKT_CHIP_POWER_H

#include "base/types.h"

#define POWER_PORT 0x600 /* +0 sleep control, +1 sleep status, +2 reset */
#define POWER_PORTS 3
#define POWER_SLEEP_CONTROL 0x600
#define POWER_SLEEP_STATUS 0x601
#define POWER_RESET 0x602
#define POWER_RESET_VALUE 1
#define POWER_SLEEP_TYPE_S5 5
#define POWER_CF9 0xcf9
#define POWER_KEYBOARD 0x64

struct power {
	void (*off)(void *data);
	void (*reset)(void *data);
	void *data;
};

/* Port accesses of one byte. */
uint8_t power_read(struct power *p, uint16_t port);
void power_write(struct power *p, uint16_t port, uint8_t value);

#endif
