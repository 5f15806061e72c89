# SPDX-License-Identifier: LGPL-2.1-or-later
"""A small document costs little time and memory, whatever its numbers are, and a large one about its size."""

from __future__ import annotations

import contextlib
import gc
import itertools
import resource
import time
from collections.abc import Callable

import pytest

from pyhostdev.conf.domain_conf import DomainDef
from pyhostdev.conf.domain_schema import validate_schema
from pyhostdev.errors import ConfigError, ConfigUnsupportedError
from pyhostdev.qemu.qemu_command import build_command_line

MUCH_MORE = 3.5  # times the cost of half the size: linear work has 2, quadratic 4
LEAST_S = 0.02  # cheaper than this is noise
MOST_RUNS = 15  # further runs of each, while the ratio is too high
MEMORY_KIB = 256 << 10


def domain(devices: str = "", more: str = "") -> str:
    return (
        "<domain type='qemu'><name>vm</name><memory unit='MiB'>512</memory>"
        f"<os><type arch='x86_64' machine='q35'>hvm</type></os>{more}"
        f"<devices><emulator>/nowhere</emulator>{devices}</devices></domain>"
    )


def disk(target: str, bus: str, address: str = "") -> str:
    return domain(f"<disk type='file'><source file='/x'/><target dev='{target}' bus='{bus}'/>{address}</disk>")


def build(text: str) -> None:
    with contextlib.suppress(ConfigError):
        build_command_line(DomainDef.parse(text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(domain(more="<iothreads>4000000</iothreads>"), "<iothreads> is 4000000", id="iothreads"),
        pytest.param(domain(more="<vcpu>4000000</vcpu>"), "4000000 virtual CPUs", id="virtual CPUs"),
        pytest.param(
            disk("sda", "scsi", "<address type='drive' controller='4000000' bus='0' target='0' unit='0'/>"),
            "controller 4000000",
            id="drive address",
        ),
        pytest.param(disk("sdzzzzzz", "sata"), "'sdzzzzzz' asks for sata controller", id="disk name"),
        pytest.param(disk("sdzzzzzz", "scsi"), "'sdzzzzzz' asks for scsi controller", id="SCSI disk name"),
        pytest.param(
            domain("<controller type='pci' index='4000000' model='pcie-root-port'/>"), "index 4000000", id="bus"
        ),
        pytest.param(domain("<controller type='scsi' index='4000000'/>"), "index 4000000", id="controller"),
        pytest.param(
            domain("<controller type='usb' model='qemu-xhci' ports='4000000'/>"), "4000000 ports", id="USB ports"
        ),
        pytest.param(domain("<controller type='virtio-serial' ports='4000000'/>"), "4000000 ports", id="serial ports"),
        pytest.param(
            domain(
                "<channel type='pty'><target type='virtio' name='a'/>"
                "<address type='virtio-serial' controller='4000000' bus='0' port='1'/></channel>"
            ),
            "controller 4000000",
            id="serial address",
        ),
        pytest.param(domain("<sound model='ac97'/>" * 5000), "5000 devices", id="devices"),
        pytest.param(domain("<graphics type='vnc'/>" * 100), "100 <graphics>", id="graphics"),
    ],
)
def test_a_number_that_makes_things_is_bounded(text: str, said: str) -> None:
    """More than any guest can have is refused by name before anything is made from it."""
    with pytest.raises(ConfigUnsupportedError, match="limit of|too high") as error:
        build_command_line(DomainDef.parse(text))
    assert said in str(error.value)


def hostdevs(count: int) -> str:
    one = "<hostdev type='pci'><source><address domain='{}' bus='{}' slot='{}' function='0'/></source></hostdev>"
    return domain("".join(one.format(n >> 13, n >> 5 & 255, n & 31) for n in range(count)))


def root_ports(count: int) -> str:
    return domain(
        "".join(f"<controller type='pci' index='{n % 255 + 1}' model='pcie-root-port'/>" for n in range(count))
    )


def scsi_disks(count: int) -> str:
    one = "<disk type='file'><source file='/x'/><target dev='sd{}' bus='scsi'/></disk>"
    names = ("".join(letters) for letters in itertools.product("abcdefghijklmnopqrstuvwxyz", repeat=3))
    return domain("".join(one.format(name) for name in itertools.islice(names, count)))


def namespaces(depth: int) -> str:
    spaces = ("<a " + " ".join(f"xmlns:p{level}x{n}='u'" for n in range(90)) + ">" for level in range(depth))
    inner = "<q:b/>" * 4000
    return domain("".join(spaces) + inner + "</a>" * depth).replace("<devices>", "<devices xmlns:q='q'>")


def cost(work: Callable[[str], object], text: str) -> float:
    """Return the CPU time of one run, in seconds, without the collection of what earlier tests left."""
    gc.collect()
    gc.disable()
    try:
        begin = time.process_time()
        work(text)
        return time.process_time() - begin
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("work", "make", "size"),
    [
        pytest.param(build, hostdevs, 1000, id="hostdevs"),
        pytest.param(build, root_ports, 1000, id="root ports"),
        pytest.param(build, scsi_disks, 600, id="SCSI disks"),
        pytest.param(build, lambda n: domain("<input type='tablet' bus='usb'/>" * n), 1000, id="USB devices"),
        pytest.param(validate_schema, lambda n: domain("<a/>" * n), 10000, id="schema"),
        pytest.param(validate_schema, hostdevs, 1000, id="schema of hostdevs"),
        pytest.param(DomainDef.parse, namespaces, 60, id="namespaces"),
    ],
)
def test_work_grows_with_the_size(work: Callable[[str], object], make: Callable[[int], str], size: int) -> None:
    """Twice the document takes about twice the time; a busy machine only adds, so the fastest of several runs count."""
    small, large = make(size), make(2 * size)
    once, twice = cost(work, small), cost(work, large)
    for _ in range(MOST_RUNS):
        if twice < MUCH_MORE * max(once, LEAST_S):
            break
        once, twice = min(once, cost(work, small)), min(twice, cost(work, large))
    assert twice < MUCH_MORE * max(once, LEAST_S)


def test_memory_stays_small() -> None:
    """No document of a megabyte needs hundreds of megabytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for text in (hostdevs(9000), domain("<a/>" * 90000), root_ports(15000)):
        build(text)
        validate_schema(text)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY_KIB
