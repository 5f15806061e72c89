# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The cost of a host's objects, indexes, queries and events, compared with the C scan below them.

Ratios of CPU time of works timed in turns; each is looked at a second time before it fails.
"""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pyhostdev.util import pciscan, pcisnapshot
from pyhostdev.util.events import PCIEvent, PCIMonitor
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostscan import Scan
from pyhostdev.util.livescan import LiveScan

LargeHost = Callable[[int, str], HostRoot]
CPUTimes = Callable[..., dict[str, float]]
SHAPES = ("sriov", "plain")
FUNCTIONS = 10000

# Times the three calls of the C side
GROUPS_AT_MOST = 1.15  # snapshot and group index: measured 1.07
OBJECTS_AT_MOST = 1.4  # all objects and the group index: measured 1.13
# Times the scan's cost of one function, which is low where a scan lists large groups: measured 14 there
EVENT_AT_MOST = 18
BYTES_AT_MOST = 120  # a function, until objects are asked for


def scan_groups(root: HostRoot) -> Scan:
    """Scan and index the groups."""
    scan = Scan(root, pciscan.scan(root))
    assert 0 in scan.groups
    return scan


def scan_objects(root: HostRoot) -> tuple[list[Any], Scan]:
    """Scan, index the groups and make every object."""
    scan = scan_groups(root)
    return list(scan), scan


class CallsOfC:
    """The three calls of a scan, ready to be made again and again."""

    def __init__(self, root: HostRoot) -> None:
        self.fd = os.open(root.pci_bus, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.root = root

    def __call__(self) -> int:
        """Make the calls, and return the number of functions."""
        lib, ffi = pciscan._c.lib, pciscan._c.ffi
        scanner = pciscan._Scanner(self.root, self.fd, pciscan.Tuning())
        keys, count = scanner._list()
        records = ffi.from_buffer("struct phd_record[]", bytearray(count * pcisnapshot.RECORD.size))
        summary = ffi.new("struct phd_summary *")
        ret = lib.phd_fill(self.fd, scanner.tuning, keys, count, records, scanner.buffers, summary, scanner.error)
        assert 0 == ret
        text = bytearray(summary.count * pciscan._ADDRESS_SIZE)
        lib.phd_format(records, summary.count, ffi.from_buffer(text))
        return int(summary.count)


class Repeated:
    """A given number of events of one function."""

    def __init__(self, *events: PCIEvent) -> None:
        self.events = events
        self.waiting: list[PCIEvent] = []

    def receive(self, timeout_s: float) -> PCIEvent | None:
        return self.waiting.pop() if self.waiting else None

    def close(self) -> None:
        pass


def assert_ratios(measure: Callable[[], dict[str, float]], limits: dict[str, float], extra: dict[str, Any]) -> None:
    """Compare measured ratios with their limits; measure a second time before a failure."""
    ratios = measure()
    if any(ratios[name] > limit for name, limit in limits.items()):
        ratios = measure()
    extra.update(ratios)
    for name, limit in limits.items():
        assert ratios[name] <= limit, ratios


@pytest.mark.parametrize("shape", SHAPES)
def test_objects_cost_little_beside_the_scan(
    large_host: LargeHost, cpu_times: CPUTimes, record_property: Any, shape: str
) -> None:
    """Snapshot, groups and objects each cost at most a given part of the C scan's time."""
    root = large_host(FUNCTIONS, shape)
    calls = CallsOfC(root)
    devices, scan = scan_objects(root)
    assert calls() == FUNCTIONS == len(devices)
    assert FUNCTIONS == sum(len(members) for members in scan.groups.values())

    def measure() -> dict[str, float]:
        times = cpu_times(
            9,
            c=calls,
            snapshot=lambda: pciscan.scan(root),
            groups=lambda: scan_groups(root),
            objects=lambda: scan_objects(root),
            facts=lambda: [(d.address, d.vendor, d.driver, d.physfn) for d in scan_objects(root)[0]],
        )
        return {name: taken / times["c"] for name, taken in times.items()}

    found: dict[str, Any] = {}
    assert_ratios(measure, {"groups": GROUPS_AT_MOST, "objects": OBJECTS_AT_MOST}, found)
    report(record_property, f"{shape} {FUNCTIONS}, times C", found)


@pytest.mark.parametrize("shape", SHAPES)
def test_event_costs_few_functions(
    large_host: LargeHost, cpu_times: CPUTimes, record_property: Any, shape: str
) -> None:
    """One event, with updates of all six indexes, costs at most 18 times a function's part of a scan."""
    root = large_host(FUNCTIONS, shape)
    address = Scan(root, pciscan.scan(root)).with_driver("nvme")[5].address
    source = Repeated()
    with PCIMonitor(root, source) as monitor:  # type: ignore[arg-type]  # nobody restarts it
        touch_indexes(monitor.functions)

        driver = os.path.join(root.pci_device(address), "driver")

        def changes(look: Callable[[], Any]) -> None:
            for _ in range(500):
                os.rename(driver, driver + "-off")
                look()
                os.rename(driver + "-off", driver)
                look()

        def event() -> None:
            source.waiting.append(PCIEvent("bind", address))
            assert 1 == len(monitor.poll())

        before = monitor.functions.find(address)
        os.rename(driver, driver + "-off")
        event()
        after = monitor.functions.find(address)
        assert before and after and ("nvme", None) == (before.driver, after.driver)
        os.rename(driver + "-off", driver)

        def measure() -> dict[str, float]:
            times = cpu_times(
                9,
                scan=lambda: pciscan.scan(root),
                events=lambda: changes(event),
                nothing=lambda: changes(lambda: None),
            )
            taken = (times["events"] - times["nothing"]) / 1000
            return {"event": taken / (times["scan"] / FUNCTIONS)}

        found: dict[str, Any] = {}
        assert_ratios(measure, {"event": EVENT_AT_MOST}, found)
        report(record_property, f"{shape} {FUNCTIONS}, times a function of a scan", found)


def touch_indexes(functions: Scan | LiveScan) -> None:
    """Make every index."""
    assert functions.groups and functions.slots and functions.buses and functions.identities
    assert functions.drivers
    assert functions.virtual_functions is not None


@pytest.mark.parametrize("shape", SHAPES)
def test_scan_is_small(large_host: LargeHost, record_property: Any, shape: str) -> None:
    """Without objects, a function and its entry in the group index need at most this many bytes."""
    root = large_host(FUNCTIONS, shape)
    scan_groups(root)
    with traced() as size:
        scan = scan_groups(root)
        used = size() / len(scan)
    report(record_property, f"{shape} {FUNCTIONS}", {"bytes a function": used})
    assert used <= BYTES_AT_MOST


@contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """Count the memory that is allocated from now on."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda scan: scan.groups[7], id="group"),
        pytest.param(lambda scan: scan.find(scan[4321].address), id="find"),
        pytest.param(lambda scan: scan.with_driver("vfio-pci"), id="driver"),
        pytest.param(lambda scan: scan.filter("15b3:101d"), id="filter"),
        pytest.param(lambda scan: scan.siblings(scan[1]), id="siblings"),
        pytest.param(lambda scan: scan.path_to_root_port(scan[500]), id="path"),
        pytest.param(lambda scan: scan.obstacles(scan[500]), id="obstacles"),
    ],
)
@pytest.mark.parametrize("kind", [Scan, LiveScan], ids=["scan", "live"])
def test_question(benchmark: Any, large_host: LargeHost, kind: Any, ask: Callable[[Any], Any]) -> None:
    """One query on an existing index."""
    root = large_host(FUNCTIONS, "sriov")
    functions = kind(root, pciscan.scan(root))
    assert ask(functions) is not None
    benchmark.group = f"question {FUNCTIONS}"
    benchmark.pedantic(ask, (functions,), rounds=9, iterations=100, warmup_rounds=1)


def test_assignable(benchmark: Any, large_host: LargeHost) -> None:
    """All functions of the host that can be given to a guest."""
    root = large_host(FUNCTIONS, "sriov")
    scan = Scan(root, pciscan.scan(root))
    found = scan.assignable()
    assert {"mlx5_core"} >= {dev.driver for dev in found if not dev.is_virtual_function} - {None, "nvme", "vfio-pci"}
    assert all(not scan.obstacles(dev) for dev in found[:50])
    assert FUNCTIONS // 2 < len(found) < FUNCTIONS
    benchmark.group = f"question {FUNCTIONS}"
    benchmark.pedantic(scan.assignable, rounds=3, warmup_rounds=1)


def report(record_property: Any, what: str, found: dict[str, Any]) -> None:
    """Print the measurement on the terminal and in the report."""
    figures = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    record_property(what, figures)
    print(f"\n{what}: {figures}")
