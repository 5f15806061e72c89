# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The VFIO driver for a function: vfio-pci, or the variant that ``modules.alias`` has for this kind of device.

A module and the driver that it registers may have different names (``xe_vfio_pci``, ``xe-vfio-pci``), so the name of a
driver is only known while its module is loaded. The kernel binds a variant to any function whose override names it,
also to a device that the driver does not support: only the aliases tell.

Source: PCI_DRIVER_OVERRIDE_DEVICE_VFIO (include/linux/pci.h), Linux 5.16
"""

from __future__ import annotations

import os
import re

from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, ConfigError, OperationError
from pyhostdev.util.hostroot import HostRoot, check_driver_name
from pyhostdev.util.pcidriver import VFIO_PCI
from pyhostdev.util.typed import TYPE_CHECKING, NamedTuple
from pyhostdev.util.virfile import bounds_of, is_directory, list_names, read_attribute, read_bytes, read_link_name

if TYPE_CHECKING:
    from pyhostdev.util.finding import Finding
    from pyhostdev.util.virpci import PCIDevice

GENERIC_NAMES = (None, "vfio")  # no driver was named; libvirt's name of the backend counts as none
VFIO_PCI_MODULE = "vfio_pci"

_PREFIX = b"\nalias vfio_pci:"
_FIELD = rb"([a-z]+)([0-9A-F]+|\*)"
_NAMES = ("v", "d", "sv", "sd", "bc", "sc", "i")  # of the fields, in their order
_ANY = "*"


class ModuleAlias(NamedTuple):
    """
    A line of ``modules.alias``: the module of a VFIO driver, and the identity of the devices that it supports.

    ``fields`` are vendor, device, subsystem vendor, subsystem device, class, sub-class and interface, "*" for any.
    """

    fields: tuple[str, ...]
    module: str

    def matches(self, identity: tuple[str, ...]) -> bool:
        """Tell whether the module supports devices of this identity."""
        return all(field in (_ANY, value) for field, value in zip(self.fields, identity, strict=True))

    @property
    def wildcards(self) -> int:
        """The number of fields that match any value: the fewer, the better the match."""
        return self.fields.count(_ANY)

    def __str__(self) -> str:
        return "vfio_pci:" + "".join(name + field for name, field in zip(_NAMES, self.fields, strict=True))


class DriverChoice(NamedTuple):
    """
    The driver that a function gets, and why.

    ``module`` is the module to load first, None if the driver is registered; until it is loaded, the driver's name is
    assumed to be that of the module. Modules are named with ``-`` or with ``_``.
    """

    driver: str
    module: str | None
    why: str


def read_kernel_release(root: HostRoot) -> str | None:
    """
    Return the release of a host's kernel; for a directory without ``proc``, that of its only set of modules.

    Raises:
        SysfsError: the release cannot be read.

    Host: proc/sys/kernel/osrelease, lib/modules
    """
    if root.is_live:
        return os.uname().release
    release = read_attribute(root, root.kernel_release)
    if release is not None:
        return release
    names = list_names(root, root.installed_kernels)
    return names[0] if len(names) == 1 else None


def parse_aliases(data: bytes) -> list[ModuleAlias]:
    """Return the lines of ``modules.alias`` about VFIO drivers, in their order."""
    lines = (piece.partition(b"\n")[0] for piece in (b"\n" + data).split(_PREFIX)[1:])
    found = (_parse_alias(line.strip()) for line in lines)
    return [alias for alias in found if alias is not None]


def _parse_alias(line: bytes) -> ModuleAlias | None:
    identity, _, module = line.partition(b" ")
    parts = re.findall(_FIELD, identity)
    names = tuple(name.decode("ascii") for name, _ in parts)
    if names != _NAMES or b"".join(map(b"".join, parts)) != identity or module.split() != [module]:
        return None
    return ModuleAlias(tuple(value.decode("ascii") for _, value in parts), module.decode("utf-8", "surrogateescape"))


def identity_of(dev: PCIDevice) -> tuple[str, ...] | None:
    """
    Return what the aliases are compared with, as in the function's ``modalias``; None if a part of it is unknown.

    Source: modalias_show (drivers/pci/pci-sysfs.c)
    """
    *numbers, class_ = dev.identity
    if class_ is None or None in numbers:
        return None
    parts = (class_ >> 16 & 0xFF, class_ >> 8 & 0xFF, class_ & 0xFF)
    return (*(f"{number:08X}" for number in numbers), *(f"{part:02X}" for part in parts))


def driver_of_module(root: HostRoot, module: str) -> str | None:
    """
    Return the PCI driver that a loaded module has registered, the first of several; None if there is none.

    Host: sys/module/MODULE/drivers
    """
    names = sorted(list_names(root, os.path.join(root.module(module), "drivers")))
    drivers = (name.removeprefix("pci:") for name in names if name.startswith("pci:"))
    return next((name for name in drivers if is_directory(root, root.pci_driver(name))), None)


def find_driver(root: HostRoot, name: str) -> str | None:
    """
    Return the registered driver that a name means: the name of a driver, of a driver with ``_`` for ``-``, or of a
    module; None if no such driver is registered.

    Raises:
        ConfigError: the name cannot be that of a driver.
        SysfsError: the drivers cannot be read.

    Mirrors: virPCIDeviceFindDriver (src/util/virpci.c)
    """
    for driver in (name, name.replace("-", "_")):
        if is_directory(root, root.pci_driver(driver)):
            return driver
    return driver_of_module(root, name)


def loaded_driver(root: HostRoot, module: str) -> str:
    """
    Return the driver of a module that was just loaded.

    Raises:
        OperationError: the module has registered no PCI driver.
    """
    driver = find_driver(root, module)
    if driver is None:
        text = f"The module '{module}' is loaded, but it has no PCI driver"
        raise OperationError(text, reason="driver-missing", libvirt_code=VIR_ERR_INTERNAL_ERROR)
    return driver


class VFIODrivers:
    """
    The VFIO drivers of one host; the table of aliases and each driver are read once, at the first question.

    Args:
        variants: choose variants, as libvirt does since 10.0; before, only vfio-pci was chosen.
    """

    def __init__(self, root: HostRoot, *, variants: bool = True) -> None:
        self.root = root
        self.variants = variants
        self._data: bytes | None = None
        self._aliases: list[ModuleAlias] | None = None
        self._known: dict[str, DriverChoice] = {}
        self._chosen: dict[tuple[int | None, ...], DriverChoice] = {}  # by the identity of a function

    def _table(self) -> bytes:
        """
        Return the aliases of the host's modules; empty if the host has no list of them.

        Host: lib/modules/RELEASE/modules.alias
        """
        if self._data is None:
            release = read_kernel_release(self.root)
            if release is not None:
                self._data = read_bytes(self.root, self.root.modules_alias(release), bounds_of(self.root).size)
            self._data = self._data or b""
        return self._data

    def aliases(self) -> list[ModuleAlias]:
        """
        Return the aliases of the host's VFIO drivers; empty if the host has no list of them.

        Raises:
            SysfsError: the list exists but cannot be read.
        """
        if self._aliases is None:
            self._aliases = parse_aliases(self._table())
        return self._aliases

    def best_alias(self, dev: PCIDevice) -> ModuleAlias | None:
        """
        Return the best match for a function: the alias with the fewest wildcards, the first of equals.

        Mirrors: virPCIDeviceFindBestVFIOVariant (src/util/virpci.c)
        """
        identity = identity_of(dev)
        if identity is None:
            return None
        found = (alias for alias in self.aliases() if alias.matches(identity))
        return min(found, key=lambda alias: alias.wildcards, default=None)

    def choose(self, dev: PCIDevice, name: str | None = None) -> DriverChoice:
        """
        Return the driver for a function.

        Args:
            name: the driver or the module that the user named; None or "vfio" to choose the best match.

        Raises:
            ConfigError: the name cannot be that of a driver.
            SysfsError: the drivers or the aliases cannot be read.
        """
        if name not in GENERIC_NAMES:
            return self._named(_checked(str(name)))._replace(why="as the definition names it")
        kind = dev.identity
        if kind not in self._chosen:
            self._chosen[kind] = self._choose_best(dev)
        return self._chosen[kind]

    def _choose_best(self, dev: PCIDevice) -> DriverChoice:
        alias = self.best_alias(dev) if self.variants else None
        if alias is None or alias.module == VFIO_PCI_MODULE:
            return self.common()
        return self._named(alias.module)._replace(why=f"the best match of modules.alias, {alias}")

    def common(self) -> DriverChoice:
        """Return the choice for functions that have no variant."""
        return self._named(VFIO_PCI)

    def vendors_with_variants(self) -> set[int | None]:
        """Return the vendors of devices that have a variant; None in it stands for all vendors."""
        fields = [alias.fields[0] for alias in self.aliases() if alias.module != VFIO_PCI_MODULE]
        return {None if field == _ANY else int(field, 16) for field in fields}

    def _named(self, name: str) -> DriverChoice:
        if name not in self._known:
            driver = find_driver(self.root, name)
            module = None
            if driver is None and is_directory(self.root, self.root.pci_drivers):
                module = name
            self._known[name] = DriverChoice(driver or name, module, "")
        return self._known[name]

    def mismatch(self, dev: PCIDevice, choice: DriverChoice) -> Finding | None:
        """
        Return a finding if the module of a driver lists the devices that it supports, and this is not one of them.

        Source: pci_match_device (drivers/pci/pci-driver.c) accepts every function whose override names the driver
        """
        module = (choice.module or self._module_of(choice.driver)).replace("-", "_")
        listed = [alias for alias in self.aliases() if alias.module == module]
        identity = identity_of(dev)
        if identity is None or any(alias.matches(identity) for alias in listed):
            return None
        if listed:
            text = f"The driver '{choice.driver}' does not support device {dev.address}, and the kernel would bind it"
        elif self._serves_host(module):
            text = f"The driver '{choice.driver}' named for device {dev.address} is not a VFIO driver"
        else:
            return None
        from pyhostdev.util.finding import ERROR, Finding  # a list of devices has no findings

        return Finding("driver-mismatch", ERROR, dev.address, text)

    def _serves_host(self, module: str) -> bool:
        """Tell whether a module has aliases of ordinary PCI drivers."""
        line = rb"^alias pci:\S+ " + re.escape(module.encode("utf-8", "surrogateescape")) + rb"$"
        return re.search(line, self._table(), re.MULTILINE) is not None

    def _module_of(self, driver: str) -> str:
        """Return the module of a registered driver; without the link, a module with the driver's name."""
        link = os.path.join(self.root.pci_driver(driver), "module")
        return read_link_name(self.root, link) or driver


def _checked(name: str) -> str:
    try:
        return check_driver_name(name)
    except ConfigError as err:
        raise ConfigError(str(err), libvirt_code=VIR_ERR_INTERNAL_ERROR) from None
