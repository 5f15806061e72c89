# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Assumptions of a scan about a host, and the sizes from which it shares work.
"""

from __future__ import annotations

from pyhostdev.util.typed import NamedTuple


class Tuning(NamedTuple):
    """
    The sizes from which the scanner shares work between functions.

    On a smaller host every attribute of every function is read, which costs less than sharing.

    ``crowd`` is a number of functions: on larger hosts, VFs are found through the links of their PF, and drivers
    through the listings of ``drivers/*``. ``share`` is a number of VFs of one PF: the kernel gives all of them the same
    identity, so it is read once. ``linked`` asserts that a directory has the form of the kernel's sysfs: drivers list
    all their functions, and no link leads out of the directory. The scanner knows this for sysfs itself.
    ``confined`` keeps links from leading out of a directory without this assertion. ``inverted`` finds drivers through
    their listings on a host of any size. ``stamped`` asserts that directories' times follow their entries and that
    no inode number is used twice, as in the sysfs of kernels where that was measured.
    """

    crowd: int = 512
    share: int = 16
    linked: bool = False
    confined: bool = True
    inverted: bool = False
    stamped: bool = False
