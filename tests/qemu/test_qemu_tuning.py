# SPDX-License-Identifier: LGPL-2.1-or-later
"""Settings of a paused QEMU, and the resources of the host that it needs: threads, passwords, huge pages."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, cast

import pytest

from pyhostdev import DomainDef, Host
from pyhostdev.errors import OperationError
from pyhostdev.qemu.qemu_process.monitor import QEMUMonitor
from pyhostdev.qemu.qemu_process.resources import resource_obstacles
from pyhostdev.qemu.qemu_process.tuning import apply_tuning, guest_environment


class Answering:
    """A monitor that answers from a table and records the commands."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.told: list[tuple[str, dict[str, object]]] = []

    async def execute(self, command: str, **arguments: object) -> object:
        self.told.append((command, arguments))
        return self.answers.get(command, {})


def parse(head: str = "", devices: str = "") -> DomainDef:
    return DomainDef.parse(
        f"<domain type='kvm'><name>vm</name><memory unit='MiB'>64</memory>{head}"
        f"<os><type arch='x86_64'>hvm</type></os><devices>{devices}</devices></domain>"
    )


def settled(dom: DomainDef, answers: dict[str, Any] | None = None) -> Answering:
    monitor = Answering(answers or {})
    asyncio.run(apply_tuning(dom, cast(QEMUMonitor, monitor), os.getpid()))
    return monitor


def test_threads_run_where_the_definition_says() -> None:
    """A virtual processor has its own pin, and every other thread of QEMU the emulator's."""
    before = os.sched_getaffinity(0)
    cpu = min(before)
    head = f"<cputune><vcpupin vcpu='0' cpuset='{cpu}'/><emulatorpin cpuset='{cpu}'/></cputune>"
    answers = {"query-cpus-fast": [{"cpu-index": 0, "thread-id": os.getpid()}], "query-iothreads": []}
    try:
        settled(parse(head), answers)
        assert {cpu} == os.sched_getaffinity(0)
    finally:
        os.sched_setaffinity(0, before)


def test_without_pins_nothing_is_asked() -> None:
    """A domain without pins and passwords costs no question."""
    assert [] == settled(parse()).told


def test_a_processor_that_is_not_there_is_one_error() -> None:
    """The kernel's refusal names the thread and the set."""
    head = "<cputune><vcpupin vcpu='0' cpuset='1023'/></cputune>"
    answers = {"query-cpus-fast": [{"cpu-index": 0, "thread-id": os.getpid()}], "query-iothreads": []}
    with pytest.raises(OperationError, match="1023"):
        settled(parse(head), answers)


def test_passwords_are_sent_to_the_monitor_only() -> None:
    """The arguments of a process can be read by everyone, so the monitor gets the password and its end."""
    vnc = "<graphics type='vnc' passwd='pw' passwdValidTo='2030-01-02T03:04:05' connected='keep'/>"
    expected = [
        ("set_password", {"protocol": "vnc", "password": "pw", "connected": "keep"}),
        ("expire_password", {"protocol": "vnc", "time": "1893553445"}),
    ]
    assert expected == settled(parse(devices=vnc)).told


def test_a_time_zone_and_a_display_are_in_the_environment() -> None:
    """QEMU's local time is the guest's zone, and a window needs its display."""
    clock = "<clock offset='timezone' timezone='Europe/Berlin'/>"
    sdl = "<graphics type='sdl' display=':1' xauth='/x'/>"
    expected = {"TZ": "Europe/Berlin", "DISPLAY": ":1", "XAUTHORITY": "/x"}
    assert expected == guest_environment(parse(clock, sdl))


@pytest.mark.parametrize(
    ("head", "reasons"),
    [
        ("<vcpu cpuset='0-3'>1</vcpu>", ["no-processor"]),
        ("<cputune><emulatorpin cpuset='1'/></cputune>", []),
        ("<numatune><memory mode='strict' nodeset='1'/></numatune>", ["no-processor"]),
        ("<memoryBacking><hugepages/></memoryBacking>", ["no-hugepages"]),
        ("<memoryBacking><hugepages><page size='1' unit='GiB'/></hugepages></memoryBacking>", []),
    ],
)
def test_what_the_host_lacks_is_a_finding(head: str, reasons: list[str], tmp_path: Path) -> None:
    """Processors and nodes must be online and huge pages free; what the host does not show is not refused."""
    files = {
        "devices/system/cpu/online": "0-1\n",
        "devices/system/node/online": "0\n",
        "kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "31\n",
    }
    for name, text in files.items():
        path = tmp_path / "sys" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert reasons == [finding.reason for finding in resource_obstacles(parse(head), Host(tmp_path))]


def memory_findings(size: str, head: str = "", root: Path | str = "/") -> list[tuple[str, str]]:
    text = parse(head).format().replace("<memory unit='MiB'>64<", f"<memory {size}<")
    assert size in text
    found = resource_obstacles(DomainDef.parse(text), Host(root))
    return [(finding.reason, finding.message) for finding in found]


@pytest.mark.parametrize(
    "head",
    [
        "",
        "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>",
        "<memoryBacking><source type='file'/></memoryBacking>",
    ],
)
def test_memory_beyond_every_address_space(head: str, tmp_path: Path) -> None:
    """No process can map it, whatever backs it; another machine may be larger."""
    message = f"The host cannot map {1 << 53} KiB of memory for the guest, which is more than it has"
    assert [("no-memory", message)] == memory_findings("unit='EiB'>8", head)
    assert [] == memory_findings("unit='EiB'>8", head, tmp_path)


def test_memory_is_refused_as_the_kernel_does() -> None:
    """A mapping larger than memory and swap is refused unless the administrator allows it; shared memory is not."""
    sizes = dict(line.split()[:2] for line in Path("/proc/meminfo").read_text().splitlines())
    kib = int(sizes["MemTotal:"]) + int(sizes["SwapTotal:"]) + (1 << 20)
    by_machine = Path("/proc/sys/vm/overcommit_memory").read_text() == "0\n"
    assert ["no-memory"] * by_machine == [reason for reason, _ in memory_findings(f"unit='KiB'>{kib}")]
    shared = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
    assert [] == memory_findings(f"unit='KiB'>{kib}", shared)
    cells = "".join(f"<cell id='{n}' cpus='{n}' memory='{kib // 2}' unit='KiB'/>" for n in range(2))
    assert [] == memory_findings(f"unit='KiB'>{kib}", f"<vcpu>2</vcpu><cpu><numa>{cells}</numa></cpu>")
    assert [] == memory_findings("unit='MiB'>64")
