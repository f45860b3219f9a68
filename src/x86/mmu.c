/* Page walk and linear memory (SDM 3A, chapter 4: all paging modes).
 *
 *   linear address --walk--> gpa, rights of this kind of accessor --> RAM (host pointer) or MMIO
 *
 * The tables are guest memory and hostile: entries may change under the walk (accessed and dirty bits
 * are set by compare-and-swap) and may point anywhere (outside RAM they read as not present).
 */
#include "x86/cpu.h"

int x86_fault(struct vcpu *v, unsigned vector)
{
	v->fault.vector = vector;
	v->fault.has_error = 0;
	v->fault.error = 0;
	return X86_FAULT;
}

int x86_fault_code(struct vcpu *v, unsigned vector, uint32_t error)
{
	v->fault.vector = vector;
	v->fault.has_error = 1;
	v->fault.error = error;
	return X86_FAULT;
}

static int page_fault(struct vcpu *v, gva_t la, unsigned access, uint32_t error)
{
	if ((access & ACC_KIND) == ACC_WRITE)
		error |= PF_WRITE;
	if (access & ACC_USER)
		error |= PF_USER;
	if ((access & ACC_KIND) == ACC_EXEC && ((v->efer & EFER_NXE) || (v->cr4 & CR4_SMEP)))
		error |= PF_FETCH;
	v->fault.cr2 = la;
	return x86_fault_code(v, VEC_PF, error);
}

/* What an accessor may do with a page whose combined rights are `w` (writable), `u` (user) and
 * `nx`. */
static unsigned page_rights(const struct vcpu *v, unsigned access, bool w, bool u, bool nx)
{
	unsigned prot = 0;

	if (access & ACC_USER) {
		if (!u)
			return 0;
		prot = PROT_R | (w ? PROT_W : 0);
	} else {
		bool smap = u && (v->cr4 & CR4_SMAP) &&
			    ((access & ACC_IMPLICIT) || !(v->rflags & RFLAGS_AC));

		if (!smap)
			prot = PROT_R | (w || !(v->cr0 & CR0_WP) ? PROT_W : 0);
		if (u && (v->cr4 & CR4_SMEP))
			nx = true;
	}
	return prot | (nx ? 0 : PROT_X);
}

/* Sets `bits` in an entry that still reads `old`; false: somebody changed it, walk again. */
static bool set_entry_bits(const struct ram *ram, void *entry, unsigned size, uint64_t old,
			   uint64_t bits)
{
	ram_mark_dirty(ram, ram_gpa(ram, entry));
	if (size == 8)
		return __sync_bool_compare_and_swap((uint64_t *)entry, old, old | bits);
	return __sync_bool_compare_and_swap((uint32_t *)entry, (uint32_t)old,
					    (uint32_t)(old | bits));
}

/* Bits that must be zero in an entry of the 8-byte formats. */
static uint64_t reserved_bits(const struct vcpu *v, unsigned level, bool leaf)
{
	uint64_t rsvd = ((1ull << 52) - 1) & ~((1ull << X86_PHYS_BITS) - 1);

	if (!(v->efer & EFER_NXE))
		rsvd |= PTE_NX;
	if (!x86_long_mode(v))
		rsvd |= 0x7ff0000000000000ull;
	if (level >= 4)
		rsvd |= PTE_PS;
	if (leaf && level == 2)
		rsvd |= 0x1fe000;
	if (leaf && level == 3)
		rsvd |= 0x3fffe000;
	return rsvd;
}

static int walk_tables(struct vcpu *v, gva_t la, unsigned access, struct page_walk *out)
{
	bool wide = v->cr4 & CR4_PAE; /* 8-byte entries */
	bool is_long = x86_long_mode(v);
	unsigned level = is_long ? (v->cr4 & CR4_LA57 ? 5 : 4) : wide ? 3 : 2;
	unsigned esize = wide ? 8 : 4;
	unsigned ibits = wide ? 9 : 10;
	unsigned want = (access & ACC_KIND) == ACC_WRITE  ? PROT_W
			: (access & ACC_KIND) == ACC_EXEC ? PROT_X
							  : PROT_R;
	bool w, u, nx;
	gpa_t table;
	uint64_t entry;
	void *p;

again:
	table = v->cr3 & (is_long ? ((1ull << X86_PHYS_BITS) - 1) & ~0xfffull
			  : wide  ? 0xffffffe0ull
				  : 0xfffff000ull);
	w = u = true;
	nx = false;
	for (unsigned l = level;; l--) {
		unsigned shift = 12 + ibits * (l - 1);
		uint64_t index = la >> shift & (l == 3 && wide && !is_long ? 3 : (1u << ibits) - 1);
		bool pdpte = l == 3 && wide && !is_long;
		bool leaf;

		p = ram_host(v->ram, table + index * esize, esize);
		entry = !p     ? 0
			: wide ? __atomic_load_n((uint64_t *)p, __ATOMIC_RELAXED)
			       : __atomic_load_n((uint32_t *)p, __ATOMIC_RELAXED);
		if (!(entry & PTE_P))
			return page_fault(v, la, access, 0);
		leaf = l == 1 ||
		       (!pdpte && (entry & PTE_PS) && l <= 3 && (wide || (v->cr4 & CR4_PSE)));
		if (wide && !pdpte && (entry & reserved_bits(v, l, leaf)))
			return page_fault(v, la, access, PF_PRESENT | PF_RSVD);
		if (!pdpte) {
			w = w && (entry & PTE_W);
			u = u && (entry & PTE_U);
			nx = nx || (wide && (entry & PTE_NX));
		}
		if (leaf) {
			uint64_t mask = (1ull << shift) - 1;
			uint64_t base = entry & ((1ull << X86_PHYS_BITS) - 1) & ~0xfffull & ~mask;

			if (!wide && l == 2) /* PSE-36: bits 13..20 are address bits 32..39 */
				base = (entry & 0xffc00000) | (entry >> 13 & 0xff) << 32;
			out->gpa = base | (la & mask);
			out->shift = (uint8_t)shift;
			break;
		}
		if (!pdpte && !(entry & PTE_A) && !set_entry_bits(v->ram, p, esize, entry, PTE_A))
			goto again;
		table = entry & ((1ull << X86_PHYS_BITS) - 1) & ~0xfffull;
	}
	out->prot = page_rights(v, access, w, u, nx);
	if (!(out->prot & want))
		return page_fault(v, la, access, PF_PRESENT);
	{
		uint64_t set = PTE_A | (want == PROT_W ? PTE_D : 0);

		if ((entry & set) != set && !set_entry_bits(v->ram, p, esize, entry, set))
			goto again;
		if (!((entry | set) & PTE_D))
			out->prot &= ~PROT_W;
	}
	out->user = u;
	out->global = (entry & PTE_G) && (v->cr4 & CR4_PGE);
	return 0;
}

int x86_walk(struct vcpu *v, gva_t la, unsigned access, struct page_walk *out)
{
	if (!(v->cr0 & CR0_PG)) {
		out->gpa = (uint32_t)la;
		out->prot = PROT_R | PROT_W | PROT_X;
		out->user = 0;
		out->global = 0;
		out->shift = GUEST_PAGE_SHIFT;
		return 0;
	}
	if (x86_long_mode(v) && !x86_canonical(v, la))
		return x86_fault_code(v, VEC_GP, 0);
	return walk_tables(v, la, access, out);
}

static void mmio_read(struct vcpu *v, gpa_t gpa, uint8_t *buf, unsigned len)
{
	if (v->before_mmio)
		v->before_mmio(v);
	while (len) {
		unsigned n = len >= 8 && !(gpa & 7)   ? 8
			     : len >= 4 && !(gpa & 3) ? 4
			     : len >= 2 && !(gpa & 1) ? 2
						      : 1;
		uint64_t value = v->ops->mmio_read(v->platform, gpa, n);

		for (unsigned i = 0; i < n; i++)
			*buf++ = (uint8_t)(value >> (8 * i));
		gpa += n;
		len -= n;
	}
}

static void mmio_write(struct vcpu *v, gpa_t gpa, const uint8_t *buf, unsigned len)
{
	if (v->before_mmio)
		v->before_mmio(v);
	while (len) {
		unsigned n = len >= 8 && !(gpa & 7)   ? 8
			     : len >= 4 && !(gpa & 3) ? 4
			     : len >= 2 && !(gpa & 1) ? 2
						      : 1;
		uint64_t value = 0;

		for (unsigned i = 0; i < n; i++)
			value |= (uint64_t)*buf++ << (8 * i);
		v->ops->mmio_write(v->platform, gpa, n, value);
		gpa += n;
		len -= n;
	}
}

int x86_read(struct vcpu *v, gva_t la, void *buf, unsigned len, unsigned access)
{
	uint8_t *to = buf;

	while (len) {
		unsigned n = GUEST_PAGE_SIZE - (unsigned)(la & GUEST_PAGE_MASK);
		struct page_walk walk;
		void *p;

		if (n > len)
			n = len;
		if (x86_walk(v, la, access, &walk))
			return X86_FAULT;
		p = ram_host(v->ram, walk.gpa, n);
		if (p)
			x86_copy(to, p, n);
		else
			mmio_read(v, walk.gpa, to, n);
		to += n;
		la += n;
		len -= n;
	}
	return 0;
}

int x86_write(struct vcpu *v, gva_t la, const void *buf, unsigned len, unsigned access)
{
	const uint8_t *from = buf;
	struct page_walk walk;

	access = (access & ~ACC_KIND) | ACC_WRITE;
	/* A fault on a later page must come before anything is written to an earlier one. */
	for (unsigned ahead = GUEST_PAGE_SIZE - (unsigned)(la & GUEST_PAGE_MASK); ahead < len;
	     ahead += GUEST_PAGE_SIZE)
		if (x86_walk(v, la, access, &walk) || x86_walk(v, la + ahead, access, &walk))
			return X86_FAULT;
	while (len) {
		unsigned n = GUEST_PAGE_SIZE - (unsigned)(la & GUEST_PAGE_MASK);
		void *p;

		if (n > len)
			n = len;
		if (x86_walk(v, la, access, &walk))
			return X86_FAULT;
		p = ram_host(v->ram, walk.gpa, n);
		if (p) {
			x86_copy(p, from, n);
			ram_written(v->ram, walk.gpa, n);
		} else {
			mmio_write(v, walk.gpa, from, n);
		}
		from += n;
		la += n;
		len -= n;
	}
	return 0;
}

int x86_read_uint(struct vcpu *v, gva_t la, unsigned size, unsigned access, uint64_t *value)
{
	*value = 0;
	return x86_read(v, la, value, size, access);
}

int x86_write_uint(struct vcpu *v, gva_t la, unsigned size, unsigned access, uint64_t value)
{
	return x86_write(v, la, &value, size, access);
}
