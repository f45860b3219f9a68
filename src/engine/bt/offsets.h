/* Offsets in struct bt_vcpu that runtime.S needs; run.c asserts that they are true. */
#ifndef TAKT_BT_OFFSETS_H
#define TAKT_BT_OFFSETS_H

#define BT_HOST_RSP 4992
#define BT_ENTER_PC 5000
#define BT_ARITH 5008

#endif
