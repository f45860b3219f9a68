/* Offsets in struct bt_vcpu that runtime.S needs; run.c asserts that they are true. */
#ifndef TAKT_BT_OFFSETS_H
#define TAKT_BT_OFFSETS_H

#define BT_HOST_RSP 4928
#define BT_ENTER_PC 4936
#define BT_ARITH 4944

#endif
