# SPDX-License-Identifier: LGPL-2.1-or-later
"""PCI host devices for virtual machines: scan, plan, detach, give, take back."""
