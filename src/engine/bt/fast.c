/* What stays in translated code of system calls and of interrupts (runtime.S): SYSCALL into the kernel, SYSRET back,
 * and IRET from kernel to kernel, which is also how Linux serializes the processor after each change of its code.
 *
 * Invariant: `fast.enters`, `fast.returns` and `fast.irets` are set only while everything that the routines take for
 * granted holds; whoever changes some of it calls bt_fast_forget().  The next look-up prepares system calls anew, the
 * next interpreted IRET others of its kind.
 */
#include "engine/bt/bt.h"

/* What x86_syscall() and x86_sysret() would load. */
static void prepare_segments(struct bt_vcpu *bv)
{
	struct vcpu *v = &bv->v;
	struct bt_fast *f = &bv->fast;
	struct segment cs = v->seg[SEG_CS], ss = v->seg[SEG_SS];
	uint16_t enter = (uint16_t)(v->star >> 32) & 0xfffc, leave = (uint16_t)(v->star >> 48);

	x86_set_flat_code(v, enter, 0, true);
	x86_set_flat_stack(v, enter + 8, 0);
	f->kernel_cs = v->seg[SEG_CS];
	f->kernel_ss = v->seg[SEG_SS];
	x86_set_flat_code(v, (uint16_t)((leave + 16) | 3), 3, true);
	x86_set_flat_stack(v, (uint16_t)((leave + 8) | 3), 3);
	f->user_cs = v->seg[SEG_CS];
	f->user_ss = v->seg[SEG_SS];
	v->seg[SEG_CS] = cs;
	v->seg[SEG_SS] = ss;
}

void bt_fast_prepare(struct bt_vcpu *bv)
{
	struct vcpu *v = &bv->v;
	struct bt_fast *f = &bv->fast;
	struct bt_space *user = bv->set->space[SPACE_USER];

	if (likely(f->valid))
		return;
	f->valid = true;
	if ((bv->m->dev & DEV_NO_FAST_CALLS) || !(v->efer & EFER_SCE) || v->debug || x86_breaks(v) || !bv->space_kernel)
		return;
	prepare_segments(bv);
	f->kernel_jumps = bv->kernel_jumps;
	/* Behind it, no interrupt is due and no access counts as the user's. */
	f->enters = (v->sfmask & (RFLAGS_IF | RFLAGS_AC)) == (RFLAGS_IF | RFLAGS_AC);
	if (!user || (user->window && (!user->window->open || bt_window_stale(user->window) || bv->window != user->window)))
		return;
	f->user_jumps = &user->jump;
	f->returns = user;
}

/* Where the descriptor lies that was just loaded for `selector`, or NULL. */
static const uint64_t *descriptor_at(struct bt_vcpu *bv, uint16_t selector)
{
	struct vcpu *v = &bv->v;
	gva_t at = v->gdt.base + (selector & ~7u);
	struct page_walk walk;

	if ((selector & 4) || (at & 7) || x86_walk(v, at, ACC_READ, &walk))
		return NULL;
	return ram_host(v->ram, walk.gpa, sizeof(uint64_t));
}

void bt_fast_returned(struct bt_vcpu *bv)
{
	struct vcpu *v = &bv->v;
	struct bt_fast *f = &bv->fast;

	f->irets = 0;
	if ((bv->m->dev & DEV_NO_FAST_CALLS) || v->debug || x86_breaks(v))
		return;
	f->iret_cs = v->seg[SEG_CS];
	f->iret_ss = v->seg[SEG_SS];
	f->cs_at = descriptor_at(bv, f->iret_cs.selector);
	/* The null selector, which a kernel's SS may be, has none: one that never changes will do. */
	f->ss_at = f->iret_ss.selector & ~3 ? descriptor_at(bv, f->iret_ss.selector) : &f->ss_descriptor;
	if (!f->cs_at || !f->ss_at)
		return;
	f->cs_descriptor = *f->cs_at;
	f->ss_descriptor = *f->ss_at;
	f->irets = 1;
}
