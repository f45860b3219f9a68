#include "chip/power.h"

#define SLEEP_ENABLE 0x20
#define CF9_RESET_CPU 0x04
#define KEYBOARD_PULSE_RESET 0xfe

uint8_t power_read(struct power *p, uint16_t port)
{
	(void)p;
	(void)port;
	return 0; /* not asleep; the keyboard controller's buffers are empty */
}

void power_write(struct power *p, uint16_t port, uint8_t value)
{
	switch (port) {
	case POWER_SLEEP_CONTROL:
		if (value & SLEEP_ENABLE && (value >> 2 & 7) == POWER_SLEEP_TYPE_S5)
			p->off(p->data);
		break;
	case POWER_RESET:
		if (value == POWER_RESET_VALUE)
			p->reset(p->data);
		break;
	case POWER_CF9:
		if (value & CF9_RESET_CPU)
			p->reset(p->data);
		break;
	case POWER_KEYBOARD:
		if (value == KEYBOARD_PULSE_RESET)
			p->reset(p->data);
		break;
	}
}
