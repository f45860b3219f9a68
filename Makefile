# takt: one non-recursive Makefile.
#
#   make                    build/takt
#   make CC=clang           build/clang/takt        (any compiler but gcc gets its own directory)
#   make DEBUG=1            build/debug/takt        (-Og, assertions)
#   make SAN=asan,ubsan     build/asan-ubsan/takt   (asan, ubsan or both)
#   make guest              build/guest/: Debian kernels and initramfs images
#   make guest-image        build/guest/debian.img: a Debian system (needs mmdebstrap)
#   make run                boot the Debian cloud kernel and end at its shell
#   make fuzz               fuzz targets, in build/clang-fuzzer-asan-ubsan; FUZZ_SECONDS=60 each
#   make check              unit tests, guest kernels, system tests
#   make check-long         the same, longer
#   make bench              measure; writes docs/performance.md
#   make install            PREFIX=/usr/local DESTDIR=
#   make format | clean
#
#   V=1 shows the commands; WERROR=1 makes warnings errors.

.DELETE_ON_ERROR:
.SUFFIXES:
.SECONDARY:
MAKEFLAGS += --no-builtin-rules

CC = gcc
AR = ar
CLANG_FORMAT = clang-format
PREFIX = /usr/local
VERSION := 0.1

comma := ,
empty :=
space := $(empty) $(empty)

ifeq ($(V),1)
Q =
say = @true
else
Q = @
say = @printf '  %-5s %s\n'
endif

# --- one build directory a variant -------------------------------------------------------------
compiler := $(notdir $(firstword $(CC)))
variant := $(strip $(filter-out gcc cc,$(compiler)) $(if $(filter 1,$(DEBUG)),debug) \
	$(subst $(comma),$(space),$(SAN)))
BUILD := build$(if $(variant),/$(subst $(space),-,$(variant)))

# --- flags -------------------------------------------------------------------------------------
LIBS := -lext2fs -lcom_err -lcrypt -lZydis -lZycore -lzstd -llz4 -llzma -lz -lbz2 -llzo2 -luring -lslirp -ljansson -lpthread -lm
TAKT_CFLAGS := -std=gnu17 -g -Wall -Wextra -Wshadow -Wstrict-prototypes -Isrc -D_GNU_SOURCE -pthread \
	-DTAKT_VERSION='"$(VERSION)"' $(if $(filter 1,$(DEBUG)),-Og,-O2) $(if $(WERROR),-Werror)
TAKT_LDFLAGS := -pthread
ifneq ($(SAN),)
SAN_FLAGS := -fno-omit-frame-pointer \
	$(if $(findstring asan,$(SAN)),-fsanitize=address) \
	$(if $(findstring ubsan,$(SAN)),-fsanitize=undefined -fno-sanitize-recover=undefined) \
	$(if $(findstring fuzzer,$(SAN)),-fsanitize=fuzzer-no-link)
TAKT_LDFLAGS += $(filter -fsanitize=%,$(SAN_FLAGS))
endif

# Sources that run while guest vector state is live in the host's registers: they must not touch
# a vector register, nor call into a sanitizer's run time.
BT_RUNTIME_SRC := $(addprefix src/engine/bt/,interp.c operand.c native.c flow.c system.c string.c vector.c space.c window.c run.c cache.c share.c \
	encode.c trace.c fast.c plan.c translate.c access.c branch.c template.c) \
	$(addprefix src/x86/,mmu.c segment.c event.c control.c)
BT_RUNTIME_CFLAGS := -mgeneral-regs-only -fno-stack-protector -mno-red-zone -fno-builtin
BT_RUNTIME := $(BT_RUNTIME_SRC:%.c=$(BUILD)/%.o)

# --- sources -----------------------------------------------------------------------------------
MAIN_SRC := src/cli/main.c
LIB_SRC := $(filter-out $(MAIN_SRC),$(wildcard src/*/*.c src/engine/*/*.c))
LIB_ASM := $(wildcard src/*/*.S src/engine/*/*.S)
LIB_OBJ := $(LIB_SRC:%.c=$(BUILD)/%.o) $(LIB_ASM:%.S=$(BUILD)/%.S.o)
MAIN_OBJ := $(MAIN_SRC:%.c=$(BUILD)/%.o)
UNIT_SRC := $(wildcard tests/unit/test_*.c)
UNIT_BIN := $(UNIT_SRC:tests/unit/%.c=$(BUILD)/tests/%)
# Helpers that several unit tests share: every other C file in tests/unit.
UNIT_COMMON_SRC := $(filter-out $(UNIT_SRC),$(wildcard tests/unit/*.c))
UNIT_COMMON_OBJ := $(UNIT_COMMON_SRC:%.c=$(BUILD)/%.o)
# Calls of the host's that a unit test can have fail: tests/unit/host_faults.c.
HOST_FAULTS := $(addprefix -Wl$(comma)--wrap=,pwrite pwritev fdatasync fallocate)
# Bare-metal kernels: each tests/guest/NAME.S (or .c) becomes build/.../guest-tests/NAME, an ELF linked by
# tests/guest/guest.ld together with tests/guest/lib/*.
GUEST_TEST_SRC := $(wildcard tests/guest/*.S tests/guest/*.c)
GUEST_TEST_BIN := $(addprefix $(BUILD)/guest-tests/,$(basename $(notdir $(GUEST_TEST_SRC))))
GUEST_LIB_SRC := $(wildcard tests/guest/lib/*.S tests/guest/lib/*.c)
GUEST_LIB_OBJ := $(GUEST_LIB_SRC:tests/guest/lib/%=$(BUILD)/guest-tests/lib/%.o)
# Multiboot kernels: build/.../guest-tests/boot/mbV as 32-bit ELF, mbV-64 as 64-bit ELF, mbV-flat as no ELF.
MULTIBOOT_BIN := $(addprefix $(BUILD)/guest-tests/boot/,mb1 mb2 mb1-64 mb2-64 mb1-flat mb2-flat)
# gcc whatever builds takt: what takt runs is the same, and clang's assembler lacks INT1 and far jumps.
GUEST_CC = gcc
GUEST_CFLAGS := -ffreestanding -nostdlib -static -fno-pic -fno-pie -no-pie -mno-red-zone -mcmodel=kernel \
	-fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables -mgeneral-regs-only \
	-O1 -g -Wall -Wextra -Wno-main -Itests/guest
# The kernels are one segment that may be written and executed; linkers that warn of it know the option.
GUEST_LDFLAGS = -Wl,--build-id=none \
	$(shell $(CC) -Wl,--no-warn-rwx-segments -Wl,--version >/dev/null 2>&1 && echo -Wl,--no-warn-rwx-segments)

.PHONY: all guest guest-image guest-tests unit fuzz fuzz-targets run check check-long bench install clean format
all: $(BUILD)/takt

$(BUILD)/takt: $(MAIN_OBJ) $(BUILD)/libtakt.a
	$(say) LINK $@
	$(Q)$(CC) $(TAKT_LDFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

# Made anew each time (q: members may share a name), and again when the list of objects changes.
$(BUILD)/libtakt.a: $(LIB_OBJ) $(BUILD)/objects.list
	@rm -f $@
	$(say) AR $@
	$(Q)$(AR) qcs $@ $(LIB_OBJ)

$(BUILD)/objects.list: FORCE
	@mkdir -p $(@D)
	@echo '$(LIB_OBJ)' | cmp -s - $@ || echo '$(LIB_OBJ)' > $@
.PHONY: FORCE

$(BT_RUNTIME): RUNTIME_FLAGS := $(BT_RUNTIME_CFLAGS)
$(BT_RUNTIME): SAN_FLAGS :=

$(BUILD)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(say) CC $<
	$(Q)$(CC) $(TAKT_CFLAGS) $(SAN_FLAGS) $(RUNTIME_FLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/%.S.o: %.S Makefile
	@mkdir -p $(@D)
	$(say) AS $<
	$(Q)$(CC) -g -Isrc $(INCLUDED) $(CFLAGS) -MMD -MP -c -o $@ $<

# What takt run -- COMMAND boots into, part of takt itself.
$(BUILD)/command-init: guest/command-init.c Makefile
	@mkdir -p $(@D)
	$(say) CC $<
	$(Q)$(GUEST_CC) -std=gnu17 -Os -s -static -Wall -Wextra -Wshadow -MMD -MP -MF $@.d -o $@ $<
$(BUILD)/src/cli/command_init.S.o: $(BUILD)/command-init
$(BUILD)/src/cli/command_init.S.o: INCLUDED := -DCOMMAND_INIT='"$(BUILD)/command-init"'

# --- tests -------------------------------------------------------------------------------------
unit: $(UNIT_BIN)

$(UNIT_BIN): $(BUILD)/tests/%: $(BUILD)/tests/unit/%.o $(UNIT_COMMON_OBJ) $(BUILD)/libtakt.a
	@mkdir -p $(@D)
	$(say) LINK $@
	$(Q)$(CC) $(TAKT_LDFLAGS) $(LDFLAGS) $(HOST_FAULTS) -o $@ $^ -lcmocka $(LIBS)

guest-tests: $(GUEST_TEST_BIN) $(MULTIBOOT_BIN)

$(BUILD)/guest-tests/lib/%.o: tests/guest/lib/% Makefile
	@mkdir -p $(@D)
	$(say) GUEST $@
	$(Q)$(GUEST_CC) $(GUEST_CFLAGS) -MMD -MP -c -o $@ $<

MULTIBOOT_CFLAGS := -m32 -march=i686 -ffreestanding -nostdlib -static -fno-pic -fno-pie -no-pie -fno-stack-protector \
	-fcf-protection=none -fno-asynchronous-unwind-tables -mgeneral-regs-only -O1 -Wall -Wextra -Wno-main
$(BUILD)/guest-tests/boot/mb%.o: tests/guest/boot/multiboot.c Makefile
	@mkdir -p $(@D)
	$(say) GUEST $@
	$(Q)$(GUEST_CC) $(MULTIBOOT_CFLAGS) -DVERSION=$(firstword $(subst -, ,$*)) -DADDRESSES=$(if $(findstring flat,$*),1,0) -c -o $@ $<
$(BUILD)/guest-tests/boot/%.elf: $(BUILD)/guest-tests/boot/%.o tests/guest/boot/multiboot.ld
	$(Q)ld -m elf_i386 --no-warn-rwx-segments --build-id=none -T tests/guest/boot/multiboot.ld -o $@ $<
$(BUILD)/guest-tests/boot/mb1 $(BUILD)/guest-tests/boot/mb2: %: %.elf
	$(Q)cp $< $@
$(BUILD)/guest-tests/boot/%-64: $(BUILD)/guest-tests/boot/%.elf
	$(Q)objcopy -O elf64-x86-64 $< $@
$(BUILD)/guest-tests/boot/%-flat: $(BUILD)/guest-tests/boot/%-flat.elf
	$(Q)objcopy -O binary $< $@

$(BUILD)/guest-tests/%: tests/guest/%.S $(GUEST_LIB_OBJ) tests/guest/guest.ld Makefile
	@mkdir -p $(@D)
	$(say) GUEST $@
	$(Q)$(GUEST_CC) $(GUEST_CFLAGS) -MMD -MP -MF $@.d $(GUEST_LDFLAGS) -T tests/guest/guest.ld -o $@ $< $(GUEST_LIB_OBJ)

$(BUILD)/guest-tests/%: tests/guest/%.c $(GUEST_LIB_OBJ) tests/guest/guest.ld Makefile
	@mkdir -p $(@D)
	$(say) GUEST $@
	$(Q)$(GUEST_CC) $(GUEST_CFLAGS) -MMD -MP -MF $@.d $(GUEST_LDFLAGS) -T tests/guest/guest.ld -o $@ $< $(GUEST_LIB_OBJ)

$(BUILD)/bench-kernels/%: bench/kernels/%.c $(GUEST_LIB_OBJ) tests/guest/guest.ld Makefile
	@mkdir -p $(@D)
	$(say) GUEST $@
	$(Q)$(GUEST_CC) $(GUEST_CFLAGS) -MMD -MP -MF $@.d $(GUEST_LDFLAGS) -T tests/guest/guest.ld -o $@ $< $(GUEST_LIB_OBJ)

# Fuzz targets, each tests/fuzz/NAME.c; make fuzz builds them with what libFuzzer needs, and runs them.
FUZZ_COMMON_SRC := tests/fuzz/fuzz.c tests/fuzz/machine.c tests/unit/script_engine.c tests/unit/virtio_guest.c
FUZZ_COMMON_OBJ := $(FUZZ_COMMON_SRC:%.c=$(BUILD)/%.o)
FUZZ_SRC := $(filter-out $(FUZZ_COMMON_SRC),$(wildcard tests/fuzz/*.c))
FUZZ_BIN := $(FUZZ_SRC:tests/fuzz/%.c=$(BUILD)/fuzz/%)
FUZZ_SECONDS = 60

fuzz-targets: $(FUZZ_BIN)

$(FUZZ_BIN): $(BUILD)/fuzz/%: $(BUILD)/tests/fuzz/%.o $(FUZZ_COMMON_OBJ) $(BUILD)/libtakt.a
	@mkdir -p $(@D)
	$(say) LINK $@
	$(Q)$(CC) -fsanitize=fuzzer $(TAKT_LDFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

fuzz:
	$(MAKE) CC=clang SAN=fuzzer,asan,ubsan fuzz-targets
	tests/fuzz/run build/clang-fuzzer-asan-ubsan $(FUZZ_SECONDS)

check: $(BUILD)/takt unit guest-tests guest
	BT_RUNTIME="$(BT_RUNTIME)" scripts/check $(BUILD)

check-long: $(BUILD)/takt unit guest-tests guest guest-image $(GUEST)/initrd-soak
	BT_RUNTIME="$(BT_RUNTIME)" TAKT_TEST_LONG=1 scripts/check $(BUILD)

# --- guests, running, measuring ----------------------------------------------------------------
GUEST := build/guest
guest: $(GUEST)/vmlinuz $(GUEST)/vmlinuz-generic $(GUEST)/initrd $(GUEST)/initrd-full

$(GUEST)/vmlinuz: scripts/fetch-kernel
	scripts/fetch-kernel cloud-amd64 $@

$(GUEST)/vmlinuz-generic: scripts/fetch-kernel
	scripts/fetch-kernel amd64 $@

# What runs in the images and is not Debian's.
$(GUEST)/vsock-pipe: guest/vsock-pipe.c
	@mkdir -p $(@D)
	$(GUEST_CC) -static -O2 -Wall -Wextra -Wshadow -o $@ $<

$(GUEST)/initrd: scripts/make-initrd guest/init guest/udhcpc $(GUEST)/vsock-pipe $(GUEST)/vmlinuz $(GUEST)/vmlinuz-generic
	scripts/make-initrd $@

$(GUEST)/initrd-full: scripts/make-initrd-full scripts/make-tree scripts/make-initrd guest/init guest/udhcpc $(GUEST)/vsock-pipe $(wildcard guest/tests/*) \
		$(GUEST)/vmlinuz $(GUEST)/vmlinuz-generic
	scripts/make-initrd-full $@

$(GUEST)/initrd-soak: scripts/make-initrd-soak scripts/make-tree scripts/make-initrd guest/init guest/udhcpc $(GUEST)/vsock-pipe \
		$(GUEST)/vmlinuz $(GUEST)/vmlinuz-generic
	scripts/make-initrd-soak $@

# Nobody else's: a new takt need not make a new one, a new recipe does.
guest-image: $(GUEST)/debian.img
$(GUEST)/debian.img: src/cli/image_build.c | $(BUILD)/takt
	@mkdir -p $(@D)
	$(BUILD)/takt image build -o $@ --hostname takt-debian --force

build/bench/initrd: scripts/make-initrd-bench scripts/make-tree scripts/make-initrd guest/init guest/udhcpc $(GUEST)/vsock-pipe $(GUEST)/vmlinuz \
		$(GUEST)/vmlinuz-generic
	@mkdir -p $(@D)
	scripts/make-initrd-bench $@

build/bench/io: scripts/make-initrd-io bench/programs/io.sh scripts/make-tree scripts/make-initrd guest/init guest/udhcpc $(GUEST)/vsock-pipe \
		$(GUEST)/vmlinuz-generic
	@mkdir -p $(@D)
	scripts/make-initrd-io $@

run: $(BUILD)/takt $(GUEST)/vmlinuz $(GUEST)/initrd
	$(BUILD)/takt run --kernel $(GUEST)/vmlinuz --initrd $(GUEST)/initrd --append quiet

bench: $(BUILD)/takt $(BUILD)/bench-kernels/exits $(GUEST)/vmlinuz $(GUEST)/initrd $(GUEST)/debian.img build/bench/initrd build/bench/io
	bench/exits $(BUILD)/takt
	bench/boot $(BUILD)/takt
	bench/debian $(BUILD)/takt
	bench/commands $(BUILD)/takt
	bench/io $(BUILD)/takt
	bench/rows $(BUILD)/takt

# --- housekeeping ------------------------------------------------------------------------------
install: $(BUILD)/takt
	install -D -m 755 $(BUILD)/takt $(DESTDIR)$(PREFIX)/bin/takt
	install -D -m 644 docs/takt.1 $(DESTDIR)$(PREFIX)/share/man/man1/takt.1
	install -D -m 644 docs/machine.schema.json $(DESTDIR)$(PREFIX)/share/takt/machine.schema.json

format:
	$(CLANG_FORMAT) -i $(wildcard src/*/*.[ch] src/engine/*/*.[ch] tests/unit/*.[ch])

clean:
	rm -rf build

-include $(LIB_OBJ:.o=.d) $(MAIN_OBJ:.o=.d) $(UNIT_COMMON_OBJ:.o=.d) \
	$(UNIT_SRC:%.c=$(BUILD)/%.d) $(FUZZ_COMMON_OBJ:.o=.d) $(FUZZ_SRC:%.c=$(BUILD)/%.d) $(GUEST_LIB_OBJ:.o=.d) $(GUEST_TEST_BIN:=.d)
