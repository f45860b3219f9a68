/* Offsets that runtime.S needs; run.c asserts that they are true. */
#ifndef TAKT_BT_OFFSETS_H
#define TAKT_BT_OFFSETS_H

/* struct bt_vcpu */
#define BT_HOST_RSP 4928
#define BT_ENTER_PC 4936
#define BT_ARITH 4944
#define BT_ARG 4952
#define BT_SAVE 4968
#define BT_LEAVE 5000
#define BT_SITES 5008
#define BT_CODE 5016
#define BT_SPACE 5024
#define BT_SPACE_AC 5048
#define BT_SITE 5056
#define BT_SLOTS_LOCAL 5069
#define BT_REFILL 5070
#define BT_SLOT_FILLS 5072
#define BT_SLOT_LOG 5080
#define BT_SLOTS 82112
/* struct bt_site */
#define SITE_SHIFT 6
#define SITE_HOST_OFF 8
#define SITE_USER 19
#define SITE_LIMIT 22
#define SITE_MISSES 24
#define SITE_MISSED 40
#define SITE_SOON 44
#define SITE_AFTER_OFF 12
#define SITE_MERGED 29
/* struct tlb_entry */
#define TLB_READ_TAG 0
#define TLB_WRITE_TAG 8
#define TLB_HOST 16
#define TLB_KIND 24

#endif
