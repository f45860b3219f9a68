/* A wire from a chip to an interrupt controller's pin. */
#ifndef TAKT_CHIP_IRQ_H
#define TAKT_CHIP_IRQ_H

#include "base/types.h"

struct irq_line {
	void (*set)(void *controller, unsigned pin, bool level); /* ioapic_set, for one */
	void *controller;
	unsigned pin;
};

static inline void irq_line_set(const struct irq_line *line, bool level)
{
	if (line->set)
		line->set(line->controller, line->pin, level);
}

#endif
