/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef PHD_SPAWN_H
#define PHD_SPAWN_H

#include <stddef.h>
#include <stdint.h>

#include "spawn.cdef.h"

#endif
