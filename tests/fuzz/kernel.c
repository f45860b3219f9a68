/* Kernel images: any bytes are a bzImage, a vmlinux or a PVH kernel that is opened and, if it can be,
 * loaded. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz.h"
#include "machine/boot.h"
#include "mem/ram.h"
#include "x86/vcpu.h"

#define MEMORY (64 * MiB)

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	static struct ram ram;
	static struct vcpu *v;
	struct boot_image image;
	struct boot_file kernel = {.name = "kernel"};
	struct error err = {0};

	if (!v) {
		v = aligned_alloc(64, ALIGN_UP(sizeof(*v), (size_t)64));
		if (!v || ram_init(&ram, MEMORY, &err))
			fuzz_fail("no memory");
	}
	kernel.fd = memfd_create("kernel", MFD_CLOEXEC);
	if (kernel.fd < 0 || write(kernel.fd, bytes, size) != (ssize_t)size)
		fuzz_fail("no file");
	if (!boot_image_open_files(&image, &kernel, NULL, &err)) {
		image.kaslr_seed = 1 + size;
		memset(v, 0, sizeof(*v));
		v->ram = &ram;
		if (boot_image_load(&image, &ram, v, "console=ttyS0", 0, &err))
			fuzz_check(err.text[0]);
		else
			fuzz_check(image.kernel_base + image.kernel_span <= MEMORY);
		boot_image_close(&image);
		ram_clear(&ram, NULL);
	} else {
		fuzz_check(err.text[0] && !strchr(err.text, '\n'));
	}
	close(kernel.fd);
	return 0;
}
