/* Offsets that runtime.S needs; run.c asserts that they are true. */
#ifndef TAKT_BT_OFFSETS_H
#define TAKT_BT_OFFSETS_H

#define GS_BIAS 0x40000000
/* struct bt_vcpu */
#define BT_HOST_RSP 4992
#define BT_ENTER_PC 5000
#define BT_ARITH 5008
#define BT_ARG 5016
#define BT_SAVE 5032
#define BT_LEAVE 5064
#define BT_SITES 5072
#define BT_CODE 5080
#define BT_SPACE 5088
#define BT_SPACE_AC 5112
#define BT_SITE 5120
#define BT_SLOTS_LOCAL 5137
#define BT_REFILL 5138
#define BT_SLOT_FILLS 5140
#define BT_SLOT_LOG 5148
#define BT_SLOTS 117568
#define BT_SPACE_KERNEL 5104
#define BT_JUMPS 5096
#define BT_IF_FLAG 5124
#define BT_AC_FLAG 5128
#define FAST_RETURNS 78904
#define FAST_KERNEL_JUMPS 78912
#define FAST_USER_JUMPS 78920
#define FAST_LOOKUP_EXIT 78928
#define FAST_KERNEL_CS 78936
#define FAST_KERNEL_SS 78952
#define FAST_USER_CS 78968
#define FAST_USER_SS 78984
#define BT_IRQ_WAIT 5136
#define FAST_CS_AT 79016
#define FAST_SS_AT 79024
#define FAST_CS_DESCRIPTOR 79032
#define FAST_SS_DESCRIPTOR 79040
#define FAST_IRET_CS 79048
#define FAST_IRET_SS 79064
#define FAST_INTERP_EXIT 79080
/* its struct vcpu */
#define V_NMI_BLOCKED 749
#define V_RFLAGS 136
#define V_SFMASK 432
#define V_LSTAR 416
#define V_ATTENTION 144
#define V_CS 168
#define V_SS 184
#define SEG_SELECTOR 12
/* struct jump_cache */
#define JUMP_MASK 16383
/* struct bt_site */
#define SITE_HOST_OFF 4
#define SITE_USER 30
#define SITE_LIMIT 26
#define SITE_MISSES 28
#define SITE_MISSED 20
#define SITE_COUNTER 16
#define SITE_AFTER_OFF 8
#define SITE_MERGED 31
#define SITE_NO_RETRY 33
/* struct tlb_entry */
#define TLB_READ_TAG 0
#define TLB_WRITE_TAG 8
#define TLB_HOST 16
#define TLB_KIND 24

#endif
