/* A triple fault: nothing can deliver the page fault, nor the double fault. */
#include "guest.h"

int main(void)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) idtr = {0, 0};

	print("passed\n");
	__asm__ volatile("lidt %0" : : "m"(idtr));
	__asm__ volatile("movq 0x40000000, %%rax" : : : "rax");
	print("alive\n");
	return 0;
}
