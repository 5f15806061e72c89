# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The guest's threads: its virtual processors and I/O threads, and which host processors they run on.

Mirrors: virDomainVcpuDef, virDomainIOThreadIDDef, virDomainCputune (src/conf/domain_conf.h)
"""

from __future__ import annotations

from pyhostdev.conf.xml.xmlcodec import big_number, cpuset, number, positive, signed, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, child, children, content, opaque
from pyhostdev.util.virxml import ULLONG_MAX

quota_us = signed(-ULLONG_MAX, maximum=ULLONG_MAX)  # a negative one lifts the limit


class VcpuDef(ElementDef):
    """One virtual processor, where the definition lists them."""

    tag = "vcpu"

    id = attribute("id", number, required=True)
    enabled = attribute("enabled", yes_no, required=True)
    hotpluggable = attribute("hotpluggable", yes_no)
    order = attribute("order", positive)


class ThreadPool(ElementDef):
    """How many workers an event loop has."""

    thread_pool_min = attribute("thread_pool_min", number)
    thread_pool_max = attribute("thread_pool_max", number)


class IOThreadDef(ThreadPool):
    """An I/O thread with a number of its own."""

    tag = "iothread"

    id = attribute("id", positive, required=True)
    poll_max = attribute("poll/@max", big_number, since="iothread-poll")
    poll_grow = attribute("poll/@grow", big_number, since="iothread-poll")
    poll_shrink = attribute("poll/@shrink", big_number, since="iothread-poll")


class MappedQueue(ElementDef):
    """A queue of a device that an I/O thread serves."""

    tag = "queue"

    id = attribute("id", number, required=True)


class MappedIOThread(ElementDef):
    """An I/O thread that serves a device: the queues that are named, or its share of them."""

    tag = "iothread"

    id = attribute("id", positive, required=True)
    queues = children("queue", MappedQueue)


class DefaultIOThread(ThreadPool):
    """The workers of QEMU's main loop."""

    tag = "defaultiothread"


class VcpuPin(ElementDef):
    """The host processors of one virtual processor."""

    tag = "vcpupin"

    vcpu = attribute("vcpu", number, required=True)
    cpuset = attribute("cpuset", cpuset, required=True)


class EmulatorPin(ElementDef):
    """The host processors of QEMU's other threads."""

    tag = "emulatorpin"

    cpuset = attribute("cpuset", cpuset, required=True)


class IOThreadPin(ElementDef):
    """The host processors of one I/O thread."""

    tag = "iothreadpin"

    iothread = attribute("iothread", positive, required=True)
    cpuset = attribute("cpuset", cpuset, required=True)


class CPUTuneDef(ElementDef):
    """
    Where the guest's threads run, and their share of the host's processors.

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
    vcpupins = children("vcpupin", VcpuPin)
    emulatorpin = child("emulatorpin", EmulatorPin)
    iothreadpins = children("iothreadpin", IOThreadPin)
    emulatorsched = opaque("emulatorsched", for_host=True)
    vcpusched = opaque("vcpusched", for_host=True)
    iothreadsched = opaque("iothreadsched", for_host=True)
    cachetune = opaque("cachetune", for_host=True)
    memorytune = opaque("memorytune", for_host=True)
