# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run QEMU: its requirements, start, monitor, log and end. Only ``process`` needs the extra 'start'."""
