# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What all parts of the command line share: the list of arguments, JSON properties and addresses.

Text from the user reaches QEMU as JSON or through option_value(): a comma ends a value in QEMU's option grammar.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.address_conf import PCIGuestAddress
from pyhostdev.conf.bus_address_conf import (
    DIMMAddress,
    ISAAddress,
    SpaprVIOAddress,
    USBAddress,
    VirtioMMIOAddress,
    VirtioSerialAddress,
)
from pyhostdev.conf.device_conf import is_user_alias
from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE
from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, ConfigError, ConfigUnsupportedError
from pyhostdev.qemu.qemu_command.bootorder import boot_order
from pyhostdev.qemu.qemu_command.paths import DomainPaths
from pyhostdev.qemu.qemu_domain.namespace import namespace_of
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.virxml import printable, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.hostfacts import HostFacts
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities
    from pyhostdev.util.pciaddress import PCIDeviceAddress

    VFIODescriptor = Callable[[PCIDeviceAddress | None], int]

Properties = dict[str, Any]

_FIRST_FD = 3  # after standard input, output and error
DEVICE_JSON = "device.json"  # libvirt's name of the capability: -device accepts JSON
NULL = object()  # the value of a property that is printed as null; None omits the property
QDEV_WORDS = frozenset({"driver", "bus", "id"})  # keys that every -device accepts
_as_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def option_value(text: str) -> str:
    """Return a value for QEMU's option grammar, with its commas doubled."""
    return text.replace(",", ",,")


def plain_value(text: str, what: str, device: Any = None) -> str:
    """
    Return a value for an option in which a comma cannot be escaped.

    Raises:
        ConfigUnsupportedError: the value has a comma or a control character, and would add another option.
    """
    if "," in text or not text.isprintable():
        raise ConfigUnsupportedError(
            f"{what} '{shown(text)}' has a comma or a control character, which QEMU's option cannot contain",
            line=getattr(device, "line", None),
        )
    return text


def _without_none(properties: Properties) -> Properties:
    return {name: value for name, value in properties.items() if value is not None}


def option_string(properties: Properties) -> str:
    """
    Return the properties of a device in QEMU's option grammar: the driver, then NAME=VALUE.

    Mirrors: virQEMUBuildCommandLineJSON (src/util/virqemu.c)
    """
    words = [option_value(str(properties["driver"]))]
    for key, value in properties.items():
        if key != "driver":
            text = on_off(value) if isinstance(value, bool) else option_value(str(value))
            words.append(f"{key}={text}")
    return ",".join(words)


def on_off(value: bool) -> str:
    """Return a boolean in QEMU's option grammar."""
    return "on" if value else "off"


def unsupported(what: str, device: Any = None, instead: str | None = None) -> ConfigUnsupportedError:
    """Return the error for a part of a definition that we cannot build, with what to write instead if there is any."""
    ending = "" if instead is None else f": {instead}"
    return ConfigUnsupportedError(f"{printable(what)} is not supported{ending}", line=getattr(device, "line", None))


class _Collecting:
    """A block that keeps a ConfigError in a list and ends; hundreds are entered, and a generator costs three times."""

    __slots__ = ("errors",)

    def __init__(self, errors: list[ConfigError]) -> None:
        self.errors = errors

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> bool:
        if not isinstance(err, ConfigError):
            return False
        self.errors.append(err)
        return True


class CommandBuilder:
    """
    The command line under construction, with the facts that its parts need.

    Args:
        device_fd: opens a device for a purpose ("tap", "vhost", "vdpa", "vsock" or "usb") and returns the descriptor
            that QEMU inherits; for "usb" it may return None, and QEMU opens the node. Without it, descriptors are
            numbered from 3, and the caller opens them.
        socket_fd: returns the descriptor of the socket that listens at a path; None lets QEMU create the sockets.
        release: the libvirt release whose command line is built.
        vfio_fd: returns the descriptor of a function's VFIO node, or of ``/dev/iommu`` for None; not given if the
            command line is only shown.
        file_fd: opens a file of the host and returns the descriptor that QEMU inherits, or None if QEMU opens it.
        host: the facts that only the host knows, such as which functions are conventional PCI; without it, all count
            as PCI Express.
    """

    def __init__(
        self,
        dom: DomainDef,
        capabilities: QEMUCapabilities,
        paths: DomainPaths,
        device_fd: Callable[[str, Any], int | None] | None = None,
        socket_fd: Callable[[str], int] | None = None,
        release: LibvirtRelease = DEFAULT_RELEASE,
        vfio_fd: VFIODescriptor | None = None,
        file_fd: Callable[[str], int | None] | None = None,
        host: HostFacts | None = None,
    ) -> None:
        self.file_fd = file_fd
        self.host = host
        self.passed_files = 0
        self.block_nodes = 0  # the numbers that disks and SCSI host devices have used up
        self.dom = dom
        self.capabilities = capabilities
        self.paths = paths
        self.device_fd = device_fd
        self.socket_fd = socket_fd
        self.namespace = namespace_of(dom)
        self._fds = 0
        self._fdsets = 0
        self.release = release
        self.vfio_fd = vfio_fd
        self.args: list[str] = []
        self.errors: list[ConfigError] = []
        self._collecting = _Collecting(self.errors)
        self._checked: set[tuple[str, ...]] = set()  # kinds with the names of properties that the emulator has
        self.boot_order = boot_order(dom)
        self.controllers = {(c.type, c.index): c for c in reversed(dom.controllers)}

    def collecting(self) -> _Collecting:
        """Collect a ConfigError of one device or part, so that the following ones are still built."""
        return self._collecting

    def add(self, *args: str) -> None:
        """Append plain arguments."""
        self.args += args

    def passed_file(self, path: str, name: str) -> str:
        """
        Return the path at which QEMU opens a file: of a descriptor set if QEMU inherits it, else its own.

        Mirrors: qemuFDPassTransferCommand (src/qemu/qemu_fd.c)
        """
        fd = None if self.file_fd is None else self.file_fd(path)
        if fd is None:
            return path
        number = self.passed_files
        self.passed_files += 1
        self.add("-add-fd", f"set={number},fd={fd},opaque={name}")
        return f"{HostRoot.DEV}fdset/{number}"

    def add_json(self, option: str, properties: Properties) -> None:
        """Append an option with a JSON value; properties that are None are omitted."""
        self._add_said(option, _without_none(properties))

    def _add_said(self, option: str, said: Properties) -> None:
        """Append an option with a JSON value, whose properties are all printed."""
        if NULL in said.values():
            said = {name: None if value is NULL else value for name, value in said.items()}
        self.args += (option, _as_json(said))

    def add_object(self, qom_type: str, object_id: str, **properties: Any) -> None:
        """
        Append a backend object.

        Raises:
            ConfigUnsupportedError: the emulator lacks the object or one of the properties.
        """
        if not self.capabilities.has_object(qom_type):
            raise unsupported(f"The object '{qom_type}', which {self._emulator} does not have,")
        said = _without_none(properties)
        self._check_properties(qom_type, said, frozenset())
        self._add_said("-object", {"qom-type": qom_type, "id": object_id, **said})

    def add_device(self, properties: Properties) -> None:
        """
        Append a device.

        Raises:
            ConfigUnsupportedError: the emulator lacks the device or one of the properties.
        """
        driver = properties["driver"]
        if not self.capabilities.has_device(driver):
            raise unsupported(f"The device '{shown(str(driver))}', which {self._emulator} does not have,")
        said = _without_none(properties)
        self._check_properties(driver, said, QDEV_WORDS)
        said = self.namespace.overridden(said.get("id"), said)
        if DEVICE_JSON in self.namespace.deleted_capabilities:
            self.add("-device", option_string(said))
        else:
            self._add_said("-device", said)

    def descriptor(self, purpose: str, device: Any) -> str:
        """Return the number of a descriptor that QEMU inherits for a device."""
        opened = self.opened(purpose, device)
        if opened is not None:
            return opened
        self._fds += 1
        return str(_FIRST_FD + self._fds - 1)

    def opened(self, purpose: str, device: Any) -> str | None:
        """Return the number of a descriptor that the caller has opened for a device; None if QEMU opens the node."""
        number = None if self.device_fd is None else self.device_fd(purpose, device)
        return None if number is None else str(number)

    def add_fdset(self, descriptor: str, name: str) -> str:
        """Append a descriptor set with one descriptor; return the path at which QEMU opens it."""
        self.add("-add-fd", f"set={self._fdsets},fd={descriptor},opaque={name}")
        self._fdsets += 1
        return f"/dev/fdset/{self._fdsets - 1}"

    @property
    def _emulator(self) -> str:
        return f"QEMU {self.capabilities.release}"

    def _check_properties(self, kind: str, said: Properties, words: frozenset[str]) -> None:
        """
        Refuse a property that the emulator lacks; if the properties of a kind are not recorded, accept all.

        Args:
            words: keys that need no check, since every kind accepts them.
        """
        shape = (kind, *said)
        if shape in self._checked:  # most devices of a large guest are alike
            return
        unknown = said.keys() - words - self.capabilities.properties_of(kind, said.keys())
        if unknown:
            raise unsupported(f"The property '{min(unknown)}' of '{kind}', which {self._emulator} does not have,")
        self._checked.add(shape)

    def vfio_descriptor(self, address: PCIDeviceAddress | None) -> str | None:
        """Return the number of an inherited descriptor for iommufd; None if the command line is only shown."""
        return None if self.vfio_fd is None else str(self.vfio_fd(address))

    def bootindex(self, device: Any) -> int | None:
        """Return the boot index of a device; None if QEMU does not boot from it."""
        return self.boot_order.get(id(device.info))

    def controller(self, kind: str, index: int) -> Any:
        """
        Return a controller.

        Raises:
            ConfigError: the guest has no such controller.
        """
        try:
            return self.controllers[kind, index]
        except KeyError:
            raise ConfigError(
                f"The guest has no {kind} controller {index}", libvirt_code=VIR_ERR_INTERNAL_ERROR
            ) from None

    def bus_name(self, index: int) -> str:
        """
        Return QEMU's name of a PCI bus; the machine's own root bus keeps its name even if it has an alias.

        Mirrors: qemuBuildDeviceAddressPCIGetBus (src/qemu/qemu_command.c)
        """
        controller = self.controller("pci", index)
        alias = str(controller.info.alias)
        if controller.model == "pci-root" and controller.target_index:
            return f"{alias}.0"
        if controller.is_pci_root and is_user_alias(alias):
            return "pcie.0" if controller.model == "pcie-root" else "pci.0"
        return alias

    def address(self, device: Any) -> Properties:
        """
        Return the properties that place a device on a bus of the guest.

        Raises:
            ConfigUnsupportedError: we cannot build this type of address.

        Mirrors: qemuBuildDeviceAddressProps (src/qemu/qemu_command.c)
        """
        address = device.info.address
        if address is None:
            return {}
        if isinstance(address, PCIGuestAddress):
            return self._pci_address(device, address)
        if isinstance(address, USBAddress):
            bus = self.controller("usb", address.bus).info.alias
            return {"bus": f"{bus}.0", "port": address.port}
        if isinstance(address, SpaprVIOAddress):
            return {"reg": address.reg}
        if isinstance(address, VirtioMMIOAddress) and device.tag in _MMIO_DEVICES:
            kind = device.type.removeprefix("virtio-") if device.tag == "controller" else _MMIO_DEVICES[device.tag]
            return {"driver": f"virtio-{kind}-device"}  # the transport decides the driver and has no addresses
        if isinstance(address, ISAAddress):
            return {"iobase": address.iobase, "irq": address.irq}
        if isinstance(address, DIMMAddress):
            return {"slot": address.slot, "addr": address.base}
        if isinstance(address, VirtioSerialAddress):
            bus = self.controller("virtio-serial", address.controller).info.alias
            return {"bus": f"{bus}.{address.bus}", "nr": address.port}
        raise unsupported(f"An <address> of type {address.kind} for <{device.tag}>", device)

    def _pci_address(self, device: Any, address: PCIGuestAddress) -> Properties:
        if address.zpci_uid is not None or address.zpci_fid is not None:
            raise unsupported("<zpci>", device)
        slot = f"{address.slot:#x}"
        return {
            "bus": self.bus_name(address.bus),
            "multifunction": address.multifunction,
            "addr": f"{slot}.{address.function:#x}" if address.function else slot,
            "acpi-index": device.info.acpi_index or None,
        }

    def rom(self, device: Any) -> Properties:
        """
        Return the properties of a device's option ROM.

        Raises:
            ConfigUnsupportedError: the device is not on PCI.

        Mirrors: qemuBuildRomProps (src/qemu/qemu_command.c)
        """
        info = device.info
        if info.rom_enabled is None and info.rom_bar is None and info.rom_file is None:
            return {}
        if not isinstance(info.address, PCIGuestAddress):
            raise unsupported(f"<rom> of a <{device.tag}> that is not on PCI", device)
        if info.rom_enabled is False:
            return {"romfile": ""}  # to QEMU an empty name means: without a ROM
        return {"rombar": None if info.rom_bar is None else int(info.rom_bar), "romfile": info.rom_file}


# element -> its word in the name of the virtio-mmio driver; for a controller it is the controller's type
_MMIO_DEVICES = {"disk": "blk", "interface": "net", "controller": "", "memballoon": "balloon", "rng": "rng"}


def uses_machine_option(build: CommandBuilder, name: str) -> bool:
    """
    Return True if a -machine option switches ACPI or the HPET, False if -no-acpi or -no-hpet does.

    Newer libvirt releases prefer the -machine option if the machine has it, and QEMU 9.0 removed the other two.
    """
    prefers = {"acpi": build.release.has("machine-acpi"), "hpet": build.release.has("machine-hpet")}[name]
    can = build.capabilities.has_machine_option(str(build.dom.os.machine), name)
    return can and (prefers or not build.capabilities.has_option(f"no-{name}"))


def virtio_driver(name: str, model: str | None) -> str:
    """Return the PCI driver of a virtio device; its model selects virtio 0.9, 1.0 or both."""
    return f"virtio-{name}-pci" + (model or "virtio").removeprefix("virtio")


def virtio_options(device: Any) -> Properties:
    """Return the properties from <driver> that every virtio device has."""
    virtio = device.virtio
    return {
        "iommu_platform": virtio.iommu,
        "ats": virtio.ats,
        "packed": virtio.packed,
        "page-per-vq": virtio.page_per_vq,
    }
