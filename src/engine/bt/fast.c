/* System calls that stay in translated code: SYSCALL into the kernel, SYSRET back (runtime.S).
 *
 * Invariant: `fast.enters` and `fast.returns` are set only while everything that the routines take for granted
 * holds; whoever changes some of it calls bt_fast_forget(), and the next look-up prepares them anew.
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
	f->lookup_exit = bv->m->lookup_exit;
	f->kernel_jumps = bv->kernel_jumps;
	/* Behind it, no interrupt is due and no access counts as the user's. */
	f->enters = (v->sfmask & (RFLAGS_IF | RFLAGS_AC)) == (RFLAGS_IF | RFLAGS_AC);
	if (!user || (user->window && (!user->window->open || user->window->stale || bv->window != user->window)))
		return;
	f->user_jumps = &user->jump;
	f->returns = user;
}
