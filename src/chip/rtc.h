/* MC146818 real-time clock with its 128 bytes of CMOS RAM.
 *
 * The time registers are not stored: they are computed from the machine's wall clock plus `offset`,
 * which a guest that sets the clock changes.  While the SET bit holds the clock still, the
 * registers live in `cmos` and `offset` is computed from them when the bit is cleared.
 *
 * Invariant: `seconds` is armed exactly while alarm or update interrupts are enabled, `periodic`
 * while periodic ones are, so that a guest that only reads the clock causes no timer.
 *
 * Motorola MC146818A data sheet; the century byte is that of the FADT.
 */
#ifndef TAKT_CHIP_RTC_H
#define TAKT_CHIP_RTC_H

#include "base/clock.h"
#include "base/state.h"
#include "base/timer.h"
#include "chip/irq.h"

#define RTC_PORT 0x70
#define RTC_PORTS 2
#define RTC_IRQ 8
#define RTC_CENTURY 0x32

struct rtc {
	/* --- state --- */
	uint8_t cmos[128];
	uint8_t index;
	uint64_t offset;            /* signed seconds: guest's time = wall clock + offset */
	uint64_t periodic_deadline; /* machine ns, 0 = off */
	/* --- wiring --- */
	struct mclock *clock;
	struct timer_queue *timers;
	struct irq_line irq;
	struct timer periodic, seconds;
};

extern const struct state_table rtc_state_table;

void rtc_reset(struct rtc *r);
uint8_t rtc_read(struct rtc *r, unsigned port); /* 0: index, 1: data */
void rtc_write(struct rtc *r, unsigned port, uint8_t value);

#endif
