# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The guest's virtual CPUs and I/O threads, and their pinning to host CPUs.

Mirrors: virDomainVcpuDef, virDomainIOThreadIDDef, virDomainCputune (src/conf/domain_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.xml.xmlcodec import big_number, cpuset, enum, number, positive, signed, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, content, elements, opaque, optional_element
from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, VIR_ERR_XML_ERROR, XMLError
from pyhostdev.util.virxml import ULLONG_MAX

if TYPE_CHECKING:
    from pyhostdev.util.virxml import Element

quota_us = signed(-ULLONG_MAX, maximum=ULLONG_MAX)  # a negative one lifts the limit


class VcpuDef(ElementDef):
    """One virtual CPU of the list in the definition."""

    tag = "vcpu"

    id = attribute("id", number, required=True)
    enabled = attribute("enabled", yes_no, required=True)
    hotpluggable = attribute("hotpluggable", yes_no)
    order = attribute("order", positive)


class ThreadPool(ElementDef):
    """The worker pool of an event loop."""

    thread_pool_min = attribute("thread_pool_min", number)
    thread_pool_max = attribute("thread_pool_max", number)


class IOThreadDef(ThreadPool):
    """An I/O thread with an explicit id."""

    tag = "iothread"

    id = attribute("id", positive, required=True)
    poll_max = attribute("poll/@max", big_number, since="iothread-poll")
    poll_grow = attribute("poll/@grow", big_number, since="iothread-poll")
    poll_shrink = attribute("poll/@shrink", big_number, since="iothread-poll")
    poll_weight = attribute("poll/@weight", big_number, since="poll-weight")


class MappedQueue(ElementDef):
    """A queue of a device that an I/O thread serves."""

    tag = "queue"

    id = attribute("id", number, required=True)


class MappedIOThread(ElementDef):
    """An I/O thread that serves a device: the queues that are named, or its share of them."""

    tag = "iothread"

    id = attribute("id", positive, required=True)
    queues = elements("queue", MappedQueue)


class DefaultIOThread(ThreadPool):
    """The worker pool of QEMU's main loop."""

    tag = "defaultiothread"


class VcpuPin(ElementDef):
    """The host CPUs of one virtual CPU."""

    tag = "vcpupin"

    vcpu = attribute("vcpu", number, required=True)
    cpuset = attribute("cpuset", cpuset, missing=VIR_ERR_INTERNAL_ERROR, required=True)


class EmulatorPin(ElementDef):
    """The host CPUs of QEMU's other threads."""

    tag = "emulatorpin"

    cpuset = attribute("cpuset", cpuset, missing=VIR_ERR_INTERNAL_ERROR, required=True)


class IOThreadPin(ElementDef):
    """The host CPUs of one I/O thread."""

    tag = "iothreadpin"

    iothread = attribute("iothread", positive, required=True)
    cpuset = attribute("cpuset", cpuset, missing=VIR_ERR_INTERNAL_ERROR, required=True)


class ThreadSched(ElementDef):
    """A scheduler of the kernel for some threads of a guest."""

    scheduler = attribute("scheduler", enum("batch", "idle", "fifo", "rr"), required=True)
    priority = attribute("priority", signed())

    def parsed(self, element: Element) -> None:
        """
        Refuse a real-time scheduler without a priority.

        Mirrors: virDomainSchedulerParseCommonAttrs (src/conf/domain_conf.c)
        """
        if self.scheduler in ("fifo", "rr") and self.priority is None:
            raise XMLError(f"<{self.tag}> with scheduler='{self.scheduler}' lacks 'priority'", line=self.line)
        if self.scheduler not in ("fifo", "rr"):
            self.priority = None


class VcpuSched(ThreadSched):
    """A scheduler for virtual CPUs."""

    tag = "vcpusched"

    vcpus = attribute("vcpus", cpuset, missing=VIR_ERR_XML_ERROR, required=True)


class IOThreadSched(ThreadSched):
    """A scheduler for I/O threads."""

    tag = "iothreadsched"

    iothreads = attribute("iothreads", cpuset, required=True)


class EmulatorSched(ThreadSched):
    """A scheduler for QEMU's other threads."""

    tag = "emulatorsched"


class CPUTuneDef(ElementDef):
    """
    Pinning, bandwidth and scheduling of the guest's threads.

    Mirrors: virDomainCputune (src/conf/domain_conf.h)
    """

    tag = "cputune"

    shares = content("shares", big_number)
    period = content("period", big_number)
    quota = content("quota", quota_us)
    global_period = content("global_period", big_number)
    global_quota = content("global_quota", quota_us)
    emulator_period = content("emulator_period", big_number)
    emulator_quota = content("emulator_quota", quota_us)
    iothread_period = content("iothread_period", big_number)
    iothread_quota = content("iothread_quota", quota_us)
    vcpupins = elements("vcpupin", VcpuPin)
    emulatorpin = optional_element("emulatorpin", EmulatorPin, second=VIR_ERR_XML_ERROR)
    iothreadpins = elements("iothreadpin", IOThreadPin)
    emulatorsched = optional_element("emulatorsched", EmulatorSched)
    vcpusched = elements("vcpusched", VcpuSched)
    iothreadsched = elements("iothreadsched", IOThreadSched)
    cachetune = opaque("cachetune", for_host=True)
    memorytune = opaque("memorytune", for_host=True)
