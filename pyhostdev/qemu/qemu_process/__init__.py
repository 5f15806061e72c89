# SPDX-License-Identifier: LGPL-2.1-or-later
"""A running QEMU: what it needs, its start, its monitor, its log, its end. Only ``process`` needs the extra 'start'."""
