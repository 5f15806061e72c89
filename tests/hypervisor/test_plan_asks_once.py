# SPDX-License-Identifier: LGPL-2.1-or-later
"""The reads of a plan: their number does not depend on the host's size, and shared facts are read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from reads import Reads

from pyhostdev import DomainDef, Host
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.generator import synthetic_host

Domain = Callable[..., DomainDef]


def asked(domain: Domain, size: int, count: int, top: Path) -> Counter[tuple[str, str]]:
    """Return how often a plan of some VFs reads each file."""
    fake = FakeHost(synthetic_host(size), top / f"{size}-{count}")
    vfs = [address for address, spec in fake.spec.functions.items() if spec.physfn and spec.driver != "vfio-pci"]
    definition = domain("vm1", *map(str, vfs[:count]))
    with Reads(fake) as reads:
        Host(fake.root).plan(definition)
    return Counter((read.call, read.path) for read in reads.log)


def test_a_plan_does_not_grow_with_the_host(domain: Domain, tmp_path: Path) -> None:
    """Only its devices and their groups are read."""
    small, large = (asked(domain, size, 8, tmp_path) for size in (140, 280))
    assert sum(small.values()) == sum(large.values())


def test_what_is_common_is_asked_once(domain: Domain, tmp_path: Path) -> None:
    """Drivers, modules and tables are read as often for two devices as for one."""
    few, many = (asked(domain, 140, count, tmp_path) for count in (4, 16))
    common = {what: times for what, times in many.items() if "0000:01:" not in what[1] and "iommu_group" not in what[1]}
    again = {what: times for what, times in common.items() if times > max(few[what], 1)}
    assert {} == again


def test_a_device_is_asked_little_twice(domain: Domain, tmp_path: Path) -> None:
    """The scanner reads the facts of all devices and their groups at once; no group is listed again."""
    counts = asked(domain, 140, 8, tmp_path)
    facts = ("/vendor", "/device", "/class", "/driver", "/modalias", "/physfn", "/iommu_group")
    assert [] == [path for _, path in counts if path.endswith(facts) and "/bus/pci/devices/" in path]
    assert [] == [path for call, path in counts if call == "scandir" and "iommu_groups/" in path]


def test_a_group_with_other_members_is_listed_once(fakehost: Callable[[str], FakeHost], domain: Domain) -> None:
    """Its members are read one by one, as they are not declared."""
    fake = fakehost("bcm5719")
    with Reads(fake) as reads:
        Host(fake.root).plan(domain("vm1", "0001:09:00.0"))
    listed = Counter(read.path for read in reads.log if read.call == "scandir" and "iommu_groups/" in read.path)
    assert [1] == [*listed.values()]
