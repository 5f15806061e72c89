# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What all parts of the command line share: collecting arguments, JSON properties, addresses.

Whatever a user wrote goes into QEMU through JSON, or through option_value(): QEMU's own option grammar
ends a value at a comma.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from pyhostdev.conf.device_conf import (
    DIMMAddress,
    ISAAddress,
    PCIGuestAddress,
    SpaprVIOAddress,
    USBAddress,
    VirtioMMIOAddress,
    VirtioSerialAddress,
    is_user_alias,
)
from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE
from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, ConfigError, ConfigUnsupportedError
from pyhostdev.qemu.qemu_command.bootorder import boot_order
from pyhostdev.qemu.qemu_domain.namespace import namespace_of
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.virxml import printable, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.hostfacts import HostFacts
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities
    from pyhostdev.util.pciaddress import PCIDeviceAddress

    VFIODescriptor = Callable[[PCIDeviceAddress | None], int]

Properties = dict[str, Any]

_SHORT_NAME_MAX = 20
_FIRST_FD = 3  # behind standard input, output and error
DEVICE_JSON = "device.json"  # libvirt's name of the capability that -device takes JSON
NULL = object()  # a property that is JSON's null; None leaves a property out
QDEV_WORDS = ("driver", "bus", "id")  # of every -device


class DomainPaths(NamedTuple):
    """
    Where the files of one run of a domain are.

    Mirrors: virDomainDefGetShortName (src/conf/domain_conf.c), qemuDomainSetPrivatePaths
    """

    state_dir: str
    short_name: str

    @classmethod
    def of(cls, state_dir: str, name: str, domain_id: int) -> DomainPaths:
        """Return the paths of a domain; long names are cut, the id keeps them apart."""
        return cls(state_dir, f"{domain_id}-{name[:_SHORT_NAME_MAX]}")

    @property
    def lib_dir(self) -> str:
        """The directory of this run's own files."""
        return f"{self.state_dir}/lib/qemu/domain-{self.short_name}"

    @property
    def master_key(self) -> str:
        """The key that secrets on the command line are encrypted with; exists before QEMU starts."""
        return f"{self.lib_dir}/master-key.aes"

    def memory(self, alias: str) -> str:
        """
        Return the file that shared memory is in.

        Mirrors: qemuGetMemoryBackingPath (src/qemu/qemu_conf.c)
        """
        return f"{self.state_dir}/lib/qemu/ram/{self.short_name}/{alias}"

    @property
    def tpm_socket(self) -> str:
        """The socket where the emulator of this run's TPM listens."""
        return f"{self.state_dir}/swtpm/{self.short_name}-swtpm.sock"

    def fs_socket(self, alias: str) -> str:
        """Return the socket where the daemon of a file system listens."""
        return f"{self.lib_dir}/{alias}-fs.sock"

    @property
    def channels(self) -> str:
        """The directory of sockets of channels that have no path of their own."""
        return f"{self.state_dir}/lib/qemu/channel/target/domain-{self.short_name}"


def option_value(text: str) -> str:
    """Return a value as QEMU's option grammar wants it: commas are doubled."""
    return text.replace(",", ",,")


def plain_value(text: str, what: str, device: Any = None) -> str:
    """
    Return a value for an option whose grammar has no way to write a comma.

    Raises:
        ConfigUnsupportedError: the value has a comma or a control character, which would end it and begin another.
    """
    if "," in text or not text.isprintable():
        raise ConfigUnsupportedError(
            f"{what} '{shown(text)}' has a comma or a control character, which QEMU's option cannot take",
            line=getattr(device, "line", None),
        )
    return text


def option_string(properties: Properties) -> str:
    """
    Return the properties of a device in QEMU's option grammar, the driver first and without its name.

    Mirrors: virQEMUBuildCommandLineJSON (src/util/virqemu.c)
    """
    words = [option_value(str(properties["driver"]))]
    for key, value in properties.items():
        if key != "driver":
            text = on_off(value) if isinstance(value, bool) else option_value(str(value))
            words.append(f"{key}={text}")
    return ",".join(words)


def on_off(value: bool) -> str:
    """Return a switch as QEMU's option grammar spells it."""
    return "on" if value else "off"


def unsupported(what: str, device: Any = None) -> ConfigUnsupportedError:
    """Return the error of something that we cannot put on a command line."""
    return ConfigUnsupportedError(f"{printable(what)} is not supported", line=getattr(device, "line", None))


class CommandBuilder:
    """
    The command line under construction, and what its parts ask.

    Args:
        device_fd: returns the descriptor that QEMU inherits for a purpose of a device, such as the tap of an interface;
            without it descriptors have the numbers that follow the standard ones.
        socket_fd: returns the descriptor of the socket that listens at a path; None lets QEMU make it.
        vfio_fd: returns the descriptor of a function's VFIO node, of ``/dev/iommu`` for None.
        file_fd: opens a file of the host and returns the descriptor that QEMU inherits, or None where QEMU opens it.
        host: has what only the host says; None has nothing.
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
        self.boot_order = boot_order(dom)
        self.controllers = {(c.type, c.index): c for c in reversed(dom.controllers)}

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep the error of one device or part, so that the next ones are looked at too."""
        try:
            yield
        except ConfigError as err:
            self.errors.append(err)

    def add(self, *args: str) -> None:
        """Append plain arguments."""
        self.args += args

    def passed_file(self, path: str, name: str) -> str:
        """
        Return the path under which QEMU opens a file: that of a set of one inherited descriptor, or its own.

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
        """Append an option whose value is JSON; what is None is left out."""
        kept = {k: None if value is NULL else value for k, value in properties.items() if value is not None}
        self.add(option, json.dumps(kept, separators=(",", ":"), ensure_ascii=False))

    def add_object(self, qom_type: str, object_id: str, **properties: Any) -> None:
        """
        Append a backend object.

        Raises:
            ConfigUnsupportedError: the binary has no such object, or the object no such property.
        """
        if not self.capabilities.has_object(qom_type):
            raise unsupported(f"The object '{qom_type}', which {self._emulator} does not have,")
        self._check_properties(qom_type, properties, ())
        self.add_json("-object", {"qom-type": qom_type, "id": object_id, **properties})

    def add_device(self, properties: Properties) -> None:
        """
        Append a device.

        Raises:
            ConfigUnsupportedError: the binary has no such device, or the device no such property.
        """
        driver = properties["driver"]
        if not self.capabilities.has_device(driver):
            raise unsupported(f"The device '{driver}', which {self._emulator} does not have,")
        self._check_properties(driver, properties, QDEV_WORDS)
        said = {key: value for key, value in properties.items() if value is not None}
        said = self.namespace.overridden(properties.get("id"), said)
        if DEVICE_JSON in self.namespace.deleted_capabilities:
            self.add("-device", option_string(said))
        else:
            self.add_json("-device", said)

    def descriptor(self, purpose: str, device: Any) -> str:
        """Return the number of a descriptor that QEMU inherits for a device."""
        opened = self.opened(purpose, device)
        if opened is not None:
            return opened
        self._fds += 1
        return str(_FIRST_FD + self._fds - 1)

    def opened(self, purpose: str, device: Any) -> str | None:
        """Return the number of a descriptor that the caller has opened for a device; None where QEMU opens it."""
        number = None if self.device_fd is None else self.device_fd(purpose, device)
        return None if number is None else str(number)

    def add_fdset(self, descriptor: str, name: str) -> str:
        """Append a set of one descriptor and return the path at which QEMU opens it."""
        self.add("-add-fd", f"set={self._fdsets},fd={descriptor},opaque={name}")
        self._fdsets += 1
        return f"/dev/fdset/{self._fdsets - 1}"

    @property
    def _emulator(self) -> str:
        return f"QEMU {self.capabilities.release}"

    def _check_properties(self, kind: str, properties: Properties, words: tuple[str, ...]) -> None:
        """
        Refuse a property that the emulator does not have; where its properties are not recorded, QEMU decides.

        Args:
            words: keys that are not properties; every kind accepts them.
        """
        said = {name for name, value in properties.items() if value is not None and name not in words}
        unknown = sorted(said - self.capabilities.properties_of(kind, said))
        if unknown:
            raise unsupported(f"The property '{unknown[0]}' of '{kind}', which {self._emulator} does not have,")

    def vfio_descriptor(self, address: PCIDeviceAddress | None) -> str | None:
        """Return what names an inherited node of iommufd; None where the domain is not started."""
        return None if self.vfio_fd is None else str(self.vfio_fd(address))

    def bootindex(self, device: Any) -> int | None:
        """Return when QEMU tries to boot from a device; None for not at all."""
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
        Return QEMU's name of a PCI bus; those of the machine itself cannot be renamed.

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
        Return where a device is plugged in, as properties.

        Raises:
            ConfigUnsupportedError: an address that QEMU takes no properties for.

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
            return {"driver": f"virtio-{kind}-device"}  # the transport decides on the driver, and has no places
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
        Return what is said about a device's option ROM.

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
            return {"romfile": ""}  # QEMU reads the empty name as "none"
        return {"rombar": None if info.rom_bar is None else int(info.rom_bar), "romfile": info.rom_file}


# devices that have a driver for virtio-mmio, and the word for them in its name; a controller's type is that word
_MMIO_DEVICES = {"disk": "blk", "interface": "net", "controller": "", "memballoon": "balloon", "rng": "rng"}


def uses_machine_option(build: CommandBuilder, name: str) -> bool:
    """
    Return True when ACPI or the HPET is switched in -machine, False when by an option of its own.

    Later releases of libvirt have done so where the machine can; and QEMU 9.0 dropped -no-acpi and -no-hpet.
    """
    prefers = {"acpi": build.release.has("machine-acpi"), "hpet": build.release.has("machine-hpet")}[name]
    can = build.capabilities.has_machine_option(str(build.dom.os.machine), name)
    return can and (prefers or not build.capabilities.has_option(f"no-{name}"))


def virtio_driver(name: str, model: str | None) -> str:
    """Return the PCI driver of a virtio device: virtio 1.0, 0.9 or both, as its model says."""
    return f"virtio-{name}-pci" + (model or "virtio").removeprefix("virtio")


def virtio_options(device: Any) -> Properties:
    """Return what <driver> says about virtio as such."""
    virtio = device.virtio
    return {
        "iommu_platform": virtio.iommu,
        "ats": virtio.ats,
        "packed": virtio.packed,
        "page-per-vq": virtio.page_per_vq,
    }
