# SPDX-License-Identifier: LGPL-2.1-or-later
"""The simulated kernel on large hosts: the cost of a step does not depend on the host's size."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from bench import Bench

from pyhostdev.errors import ConfigError
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.generator import synthetic_host
from pyhostdev.testing.kernel import SimulatedKernel
from pyhostdev.util.pciaddress import PCIDeviceAddress

F0, F1, F2, F3 = (f"0001:09:00.{function}" for function in range(4))
CALLS = ("open", "listdir", "stat", "readlink", "symlink")


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Count the calls that name files."""
    counts = dict.fromkeys(CALLS, 0)

    def counting(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            counts[name] += 1
            return real(*args, **kwargs)

        return call

    replaced: dict[str, Any] = {name: counting(name, getattr(os, name)) for name in CALLS}
    with mock.patch.multiple(os, **replaced):
        yield counts


def test_building_is_linear(tmp_path: Path) -> None:
    """A function costs the same number of calls on hosts of 100 and of 500 functions."""
    each = []
    for size in (100, 500):
        with counted() as counts:
            FakeHost(synthetic_host(size), tmp_path / str(size))
        each.append(sum(counts.values()) / size)
    assert each[1] / each[0] < 1.15


def test_a_bind_costs_the_same_on_any_host(tmp_path: Path) -> None:
    """Moving a function to vfio-pci and back does not read the other functions."""
    spent = []
    for size in (150, 500):
        fake = FakeHost(synthetic_host(size), tmp_path / str(size))
        address = next(a for a, spec in fake.spec.functions.items() if spec.driver == "nvme")
        before = fake.snapshot()
        with counted() as counts:
            move(fake.kernel, address, "nvme", "vfio-pci")
            move(fake.kernel, address, "vfio-pci", "nvme")
        assert before == fake.snapshot()
        spent.append(sum(counts.values()))
    assert spent[1] / spent[0] < 1.05


def move(kernel: SimulatedKernel, address: PCIDeviceAddress, old: str, new: str) -> None:
    root, name = kernel.root, str(address).encode()
    override = b"\n" if new != "vfio-pci" else b"vfio-pci"
    kernel.write(os.path.join(root.pci_device(address), "driver_override"), override, device=address)
    kernel.write(os.path.join(root.pci_driver(old), "unbind"), name, device=address)
    kernel.write(os.path.join(root.pci_driver(new), "bind"), name, device=address)


def number(card: Bench, address: str) -> int:
    (name,) = os.listdir(card.root.join(f"sys/bus/pci/devices/{address}/vfio-dev"))
    return int(name.removeprefix("vfio"))


def test_vfio_devices_get_the_lowest_free_number(card: Bench) -> None:
    """As in the kernel, the lowest free number is used first."""
    card.to_vfio(F0, F1, F2)
    assert [0, 1, 2] == [number(card, address) for address in (F0, F1, F2)]
    for address in (F1, F0):
        card.unbind("vfio-pci", address)
    card.to_vfio(F3)
    card.bind("vfio-pci", F1)
    card.bind("vfio-pci", F0)
    assert [2, 0, 1, 3] == [number(card, address) for address in (F2, F3, F1, F0)]


def test_numbers_are_counted_where_none_is_stored(card: Bench) -> None:
    """The numbers are counted in the tree if the state of an earlier version lacks them."""
    card.to_vfio(F0, F1)
    card.unbind("vfio-pci", F0)
    path = Path(card.root.join("fakehost.state"))
    state = json.loads(path.read_text())
    assert [0, 2] == state.pop("vfio_free")
    path.write_text(json.dumps(state))
    card.to_vfio(F2, F3)
    assert [0, 2] == [number(card, F2), number(card, F3)]
    assert [3] == json.loads(path.read_text())["vfio_free"]


@pytest.mark.parametrize("free", [[], [3, 1], [-1], ["x"], 7])
def test_invalid_free_numbers(card: Bench, free: object) -> None:
    """An invalid state is refused."""
    path = Path(card.root.join("fakehost.state"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "vfio_free": free}))
    with pytest.raises(ConfigError):
        card.override(F0, "vfio-pci")
