/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef PHD_PCISCAN_H
#define PHD_PCISCAN_H

#include <stddef.h>
#include <stdint.h>

#include "pciscan.cdef.h"

#define PHD_NONE32 UINT32_MAX
#define PHD_NONE64 UINT64_MAX

#endif
