/* HLT with interrupts off: nothing can wake it. */
#include "guest.h"

int main(void)
{
	print("passed\n");
	__asm__ volatile("cli; hlt");
	print("alive\n");
	return 0;
}
