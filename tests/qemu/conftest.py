# SPDX-License-Identifier: LGPL-2.1-or-later
"""The option that rewrites golden files instead of comparing with them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pyhostdev import PCIDeviceAddress
from pyhostdev.testing import fakehost
from pyhostdev.testing.treefile import read_host


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --regenerate, unless another conftest has it already."""
    with suppress(ValueError):
        parser.addoption("--regenerate", action="store_true", help="write golden files anew")


@pytest.fixture
def check_golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """A function that compares a text with a golden file, or with --regenerate writes the file."""

    def check(path: Path, text: str) -> None:
        if request.config.getoption("--regenerate", default=False):
            path.write_text(text)
        assert path.read_text() == text

    return check


class DescribedHost:
    """A host without files, from a description: the facts that address assignment needs."""

    def __init__(self, path: Path) -> None:
        self.functions = read_host(path).functions

    def is_pci_express(self, address: PCIDeviceAddress) -> bool | None:
        """Return whether the function is PCI Express, None if the host does not have it."""
        spec = self.functions.get(address)
        return None if spec is None else spec.express is not None

    def iommu_group(self, address: PCIDeviceAddress) -> int | None:
        """Return the function's group, None if the host does not have it."""
        spec = self.functions.get(address)
        return None if spec is None else spec.group


@pytest.fixture
def libvirt_host() -> DescribedHost:
    """The fake host of libvirt's own tests."""
    return DescribedHost(Path(fakehost.HOSTS) / "libvirt.tree")
