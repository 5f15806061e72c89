# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The speed of memory accesses between the guest's NUMA nodes, which the guest reads in the ACPI table HMAT.

Mirrors: virNumaCache, virNumaInterconnect (src/conf/numa_conf.c)
"""

from __future__ import annotations

from pyhostdev.conf.xml import xmlcodec
from pyhostdev.conf.xml.xmlcodec import big_number, enum, number, unit_factor
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute

_TYPES = ("access", "read", "write")


class NumaCache(ElementDef):
    """A cache in front of a node's memory."""

    tag = "cache"

    level = attribute("level", number, required=True)
    associativity = attribute("associativity", enum("none", "direct", "full"), required=True)
    policy = attribute("policy", enum("none", "writeback", "writethrough"), required=True)
    size = attribute("size/@value", big_number, required=True)
    size_unit = attribute("size/@unit", xmlcodec.size_unit)
    line_size = attribute("line/@value", big_number, required=True)
    line_size_unit = attribute("line/@unit", xmlcodec.size_unit)

    @property
    def size_kib(self) -> int:
        """The size in KiB, rounded up."""
        return -(-self.size * unit_factor(self.size_unit) // 1024)

    @property
    def line_bytes(self) -> int:
        """The size of a line; a number without a unit counts bytes."""
        return self.line_size * unit_factor(self.line_size_unit or "B")


class _Interconnect(ElementDef):
    """One figure of the path from an initiator to a target, or to the target's cache."""

    initiator = attribute("initiator", number, required=True)
    target = attribute("target", number, required=True)
    cache = attribute("cache", number)
    type = attribute("type", enum(*_TYPES), required=True)
    value = attribute("value", big_number, required=True)


class NumaLatency(_Interconnect):
    """The latency of an access, in nanoseconds."""

    tag = "latency"


class NumaBandwidth(_Interconnect):
    """The amount of memory that can be accessed in one second."""

    tag = "bandwidth"

    unit = attribute("unit", xmlcodec.size_unit)

    @property
    def kib(self) -> int:
        """The amount in KiB, rounded up."""
        return -(-self.value * unit_factor(self.unit) // 1024)
