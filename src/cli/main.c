#include <stdio.h>

int main(void)
{
	puts("takt " TAKT_VERSION);
	return 0;
}
