/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef PHD_PCISCAN_H
#define PHD_PCISCAN_H

#include <stddef.h>
#include <stdint.h>

/*
 * Read size bytes of an open-able file at offset with one pread.
 * The number of bytes, which may be smaller than size, or -errno.
 */
int64_t phd_read_at(const char *path, uint64_t offset, uint8_t *out, size_t size);

#endif
