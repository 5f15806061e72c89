# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Hosts as text: the ``.tree`` format, with one reviewable line for each function, a driver, a group.

``#`` starts a comment. PCI numbers are hexadecimal, all others decimal.

A **function** starts with its address, then ids, class, and fields in any order::

    0001:08:00.0 8086:6f08 060400 driver=pcieport group=13 bridge=09-09 express=root-port acs
    0001:09:00.0 14e4:1657 020000 driver=tg3 group=14 multifunction express=endpoint pm flr net=enp9s0f0
      40: 01 00 03 c8 08 00 00 00          # bytes that replace generated ones, in the form of lspci -xxxx

=====================  ==================================================================================
``driver=NAME``        the bound driver; ``nodriver`` states explicitly that the function is unbound
``override=NAME``      the content of ``driver_override``
``group=N``            the IOMMU group; without it the host does not translate the function's DMA
``subsys=VVVV:DDDD``   subsystem ids; default: the function's own ids
``rev=XX`` ``numa=N``  revision (00) and NUMA node (-1)
``multifunction``      header type bit 7
``bridge=SS-UU``       a bridge to the buses SS to UU: header type 1
``express=KIND``       PCI Express, 4096 bytes of config: endpoint, legacy-endpoint, root-port, upstream-port,
                       downstream-port, pci-bridge, integrated-endpoint; without it conventional, 256 bytes
``pm``                 resets on the way from D3hot to D0; ``pm=noreset`` has power states but does not reset
``flr`` ``af``         function-level reset by PCI Express, by Advanced Features
``acs`` ``acs=off``    Access Control Services, switched on or off
``ari``                ARI: on a bridge, forwarding is on (``ari_enabled`` of its bus is 1); else the capability
``sriov=N``            a PF of up to N VFs, with ``vf-device=DDDD vf-offset=N vf-stride=N``; ``autoprobe=0``
``physfn=ADDRESS``     a VF of that PF: ids read ffff:ffff in config space; its index follows the order of lines
``parent=ADDRESS``     the bridge above, if the bus ranges do not show it
``boot-vga``           the firmware's display
``net=NAME``           network interfaces of its host driver, separated by commas
``block=NAME``         block devices of its host driver
``dump=NAME``          the whole config space, from NAME.hex next to the file
=====================  ==================================================================================

A function bound to the driver ``vmd`` has its own PCI domain below it: the first one has 10000, the next 10001.
Unbinding the driver removes that domain's functions, binding it brings them back.

A **driver**; the order of the lines is the order of registration, and the first matching driver binds a function::

    driver tg3 14e4:1657 14e4:1682
    driver pcieport class:0604 builtin
    driver vfio-pci available
    driver mlx5_vfio_pci 15b3:101e module=mlx5-vfio-pci missing

Ids are ``VVVV:DDDD`` (``*`` matches anything) or ``class:`` with leading digits of the class. ``loaded`` is the
default; ``available`` appears when its module is loaded; ``missing`` cannot be loaded; ``builtin`` has no module;
``module=NAME`` gives a module name that differs from the driver's. ``managed-dma`` leaves the group's DMA alone
(default for vfio-pci, pci-stub, pcieport). ``vfio`` behaves like vfio-pci (default for a name that ends in vfio-pci or
vfio_pci): its ids only match a function with an override. ``probe=ERRNO``, ``probe=defer``, ``probe=hang`` and
``remove=hang`` make the driver misbehave. ``remove=vfs`` is a driver that removes the VFs of a function with it.

The **rest**::

    group 14 DMA-FQ                        # type, default DMA
    member 14 platform-dma0 driver=idma    # a group member that is not a PCI function
    release 6.1.0-56-amd64                 # uname -r
    boot-id 7d4c3a3e-…                     # /proc/sys/kernel/random/boot_id
    iommufd available                      # the module iommufd can be loaded, or is loaded
    mount nvme0n1 / ext4
    swap nvme0n1
    route enp9s0f0                         # the default route
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from typing import TYPE_CHECKING, Any

from pyhostdev.errors import ConfigError
from pyhostdev.testing.driverspec import DriverSpec, driver_kind
from pyhostdev.testing.hostspec import (
    EXPRESS_KINDS,
    IOMMUFD_KINDS,
    FunctionSpec,
    HostSpec,
    MemberSpec,
)
from pyhostdev.testing.topology import Topology
from pyhostdev.util.hostroot import check_driver_name
from pyhostdev.util.pciaddress import PCIDeviceAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ADDRESS_START = re.compile(r"[0-9A-Fa-f]{4,8}:")
_DUMP_LINE = re.compile(r"([0-9A-Fa-f]{1,3}):((?: [0-9A-Fa-f]{2})+)")
_DRIVER_ID = re.compile(r"(?:[0-9a-f]{4}|\*):(?:[0-9a-f]{4}|\*)|class:[0-9a-f]{2,6}")
_FLAGS = ("multifunction", "pm", "flr", "af", "acs", "ari", "boot-vga", "nodriver")


def _ids(text: str) -> tuple[int, int]:
    vendor, device = text.split(":")
    return _hex(vendor, 4), _hex(device, 4)


def _hex(text: str, digits: int) -> int:
    if re.fullmatch(f"[0-9A-Fa-f]{{{digits}}}", text) is None:
        raise ValueError(f"'{text}' is not a number of {digits} hexadecimal digits")
    return int(text, 16)


def _bus_range(text: str) -> tuple[int, int]:
    first, last = text.split("-")
    return _hex(first, 2), _hex(last, 2)


def _express(text: str) -> int:
    if text not in EXPRESS_KINDS:
        raise ValueError(f"Unknown kind '{text}': expected one of {', '.join(EXPRESS_KINDS)}")
    return EXPRESS_KINDS[text]


def _names(text: str) -> tuple[str, ...]:
    return tuple(check_driver_name(name) for name in text.split(","))


def _component(text: str) -> str:
    """Return a device's name; it may contain colons, as on the platform bus."""
    if "/" in text or text in (".", ".."):
        raise ValueError(f"Invalid device name '{text}'")
    return text


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"Invalid value '{text}': expected {' or '.join(choices)}")
        return text

    return read


_VALUES: dict[str, Callable[[str], Any]] = {
    "driver": check_driver_name,
    "override": str,
    "group": int,
    "subsys": _ids,
    "rev": lambda text: _hex(text, 2),
    "numa": int,
    "bridge": _bus_range,
    "express": _express,
    "pm": _one_of("noreset"),
    "acs": _one_of("off"),
    "sriov": int,
    "vf-device": lambda text: _hex(text, 4),
    "vf-offset": int,
    "vf-stride": int,
    "autoprobe": int,
    "physfn": PCIDeviceAddress.parse,
    "parent": PCIDeviceAddress.parse,
    "net": _names,
    "block": _names,
    "dump": check_driver_name,
}
_FIELDS = {"subsys": "subsystem", "rev": "revision", "numa": "numa_node"}


def _word(word: str) -> tuple[str, Any]:
    """Return the field of a FunctionSpec and its value, from one field of a function's line."""
    key, equals, text = word.partition("=")
    field = _FIELDS.get(key, key.replace("-", "_"))
    if not equals and key in _FLAGS:
        return field, "on" if key in ("pm", "acs") else True
    if not equals or key not in _VALUES:
        raise ValueError(f"Unknown function field '{word}'")
    return field, _VALUES[key](text)


def parse_function(line: str) -> FunctionSpec:
    """
    Parse one function's line.

    Raises:
        ConfigError: the address is invalid.
        ValueError: another part is invalid.
    """
    words = line.split()
    if len(words) < 3:
        raise ValueError("a function needs an address, ids and a class")
    vendor, device = _ids(words[1])
    fields = dict(_word(word) for word in words[3:])
    spec = FunctionSpec(PCIDeviceAddress.parse(words[0]), vendor, device, _hex(words[2], 6), **fields)
    if spec.nodriver and spec.driver is not None:
        raise ValueError("'driver=' and 'nodriver' exclude each other")
    return spec


def _driver_word(word: str) -> tuple[str, Any]:
    key, equals, text = word.partition("=")
    if word in ("loaded", "available", "missing"):
        return "availability", word
    if word in ("managed-dma", "vfio"):
        return "kind", word
    if word == "builtin":
        return "module", ""
    if equals and key == "module":
        return "module", check_driver_name(text)
    if equals and (key == "probe" or word in ("remove=hang", "remove=vfs")):
        return key, text
    if _DRIVER_ID.fullmatch(word):
        return "ids", word
    raise ValueError(f"Unknown driver field '{word}'")


def parse_driver(words: list[str]) -> DriverSpec:
    """
    Parse the fields after ``driver``.

    Raises:
        ValueError, ConfigError: a field is invalid.
    """
    name = check_driver_name(words[0])
    found = [_driver_word(word) for word in words[1:]]
    fields = {key: value for key, value in found if key != "ids"}
    probe = fields.get("probe")
    if probe not in (None, "hang", "defer") and probe not in errno.errorcode.values():
        raise ValueError(f"Invalid probe '{probe}': expected the name of an errno, hang or defer")
    module = fields.pop("module", name.replace("-", "_"))
    kind = fields.pop("kind", driver_kind(name))
    ids = tuple(value for key, value in found if key == "ids")
    return DriverSpec(name, ids, kind, module.replace("-", "_") or None, **fields)


def parse_dump_line(line: str) -> tuple[int, bytes]:
    """
    Parse the offset and the bytes of a line in the form of ``lspci -xxxx``.

    Raises:
        ValueError: the line has another form.
    """
    match = _DUMP_LINE.fullmatch(line.strip())
    if match is None:
        raise ValueError(f"Invalid line of a hex dump: '{line.strip()}'")
    return int(match[1], 16), bytes.fromhex(match[2])


class _Reader:
    """Fills a HostSpec line by line."""

    def __init__(self, host: HostSpec) -> None:
        self.host = host
        self.last: PCIDeviceAddress | None = None
        self.lines: dict[PCIDeviceAddress, int] = {}

    def read(self, number: int, line: str) -> None:
        """Parse one line without its comment."""
        if line[0].isspace():
            self._patch(line)
        elif _ADDRESS_START.match(line):
            self._function(line)
            assert self.last is not None
            self.lines[self.last] = number
        else:
            key, *words = line.split()
            reader = getattr(self, f"read_{key.replace('-', '_')}", None)
            if reader is None:
                raise ValueError(f"Unknown kind of line '{key}'")
            reader(words)

    def _patch(self, line: str) -> None:
        if self.last is None:
            raise ValueError("a hex dump belongs below a function")
        spec = self.host.functions[self.last]
        patches = (*spec.patches, parse_dump_line(line))
        self.host.functions[self.last] = spec._replace(patches=patches)

    def _function(self, line: str) -> None:
        spec = parse_function(line)
        if spec.address in self.host.functions:
            raise ValueError(f"{spec.address} is described twice")
        self.host.functions[spec.address] = spec
        self.last = spec.address

    def read_driver(self, words: list[str]) -> None:
        spec = parse_driver(words)
        if spec.name in self.host.drivers:
            raise ValueError(f"the driver '{spec.name}' is described twice")
        self.host.drivers[spec.name] = spec

    def read_member(self, words: list[str]) -> None:
        driver = words[2].removeprefix("driver=") if len(words) > 2 else None
        if any(member.name == words[1] for member in self.host.members):
            raise ValueError(f"'{words[1]}' is described twice")
        self.host.members.append(MemberSpec(int(words[0]), _component(words[1]), driver))

    def read_group(self, words: list[str]) -> None:
        self.host.group_types[int(words[0])] = words[1]

    def read_release(self, words: list[str]) -> None:
        self.host.settings["release"] = check_driver_name(words[0])

    def read_boot_id(self, words: list[str]) -> None:
        self.host.settings["boot-id"] = words[0]

    def read_iommufd(self, words: list[str]) -> None:
        if words[0] not in IOMMUFD_KINDS:
            raise ValueError(f"Invalid iommufd '{words[0]}': expected one of {', '.join(IOMMUFD_KINDS)}")
        self.host.settings["iommufd"] = words[0]

    def read_mount(self, words: list[str]) -> None:
        device, where, filesystem = words
        self.host.mounts.append((device, where, filesystem))

    def read_swap(self, words: list[str]) -> None:
        self.host.swaps.append(words[0])

    def read_route(self, words: list[str]) -> None:
        self.host.routes.append(words[0])


def parse_host(text: str, *, name: str = "host", directory: str = "") -> HostSpec:
    """
    Parse a host's description.

    Args:
        directory: where the files of ``dump=`` are looked up.

    Raises:
        ConfigError: a line is invalid, or contradicts another; ``line`` is the number of the line, if there is one.
    """
    host = HostSpec(name, directory)
    host.text = text
    reader = _Reader(host)
    for number, line in enumerate(text.splitlines(), 1):
        content = line.split("#", 1)[0].rstrip()
        if content:
            with _naming_line(number, name):
                reader.read(number, content)
    for address, number in reader.lines.items():
        with _naming_line(number, name):
            check_function(host, host.functions[address])
    topology = Topology(host)
    for address, number in reader.lines.items():
        with _naming_line(number, name):
            _check_place(topology, host.functions[address])
    return host


def _check_place(topology: Topology, spec: FunctionSpec) -> None:
    """Refuse a bridge that would be below itself."""
    above, seen = topology.bridge_above(spec), set()
    while above is not None:
        if above.address in seen:
            raise ValueError(f"the bridge {above.address} is below itself")
        seen.add(above.address)
        above = topology.bridge_above(above)


@contextlib.contextmanager
def _naming_line(number: int, name: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, IndexError, TypeError, ConfigError) as err:
        raise ConfigError(f"Line {number} of host '{name}': {err}", line=number) from err


def _check_relatives(host: HostSpec, spec: FunctionSpec) -> None:
    for address in (spec.physfn, spec.parent):
        if address is not None and address not in host.functions:
            raise ValueError(f"{address} is not described")
    if spec.physfn is not None and host.functions[spec.physfn].sriov is None:
        raise ValueError(f"{spec.physfn} has no VFs")
    if spec.physfn is not None and host.functions[spec.physfn].physfn is not None:
        raise ValueError(f"{spec.physfn} is a VF itself")
    if spec.parent is not None and host.functions[spec.parent].bridge is None:
        raise ValueError(f"{spec.parent} is not a bridge")


def check_function(host: HostSpec, spec: FunctionSpec) -> None:
    """
    Refuse a function that contradicts the rest of its host.

    Raises:
        ValueError: it names an undescribed object, or an object of the wrong kind.
    """
    _check_relatives(host, spec)
    driver = host.drivers.get(spec.driver or "")
    if spec.driver is not None and (driver is None or driver.availability != "loaded"):
        raise ValueError(f"the driver '{spec.driver}' is not loaded")
    if spec.driver is None and (spec.net or spec.block):
        raise ValueError("interfaces and block devices need a driver")


def read_host(path: str | os.PathLike[str]) -> HostSpec:
    """
    Read a host's description from a file.

    Raises:
        ConfigError: as parse_host().
        OSError: the file cannot be read.
    """
    with open(path, encoding="utf-8") as file:
        text = file.read()
    directory, base = os.path.split(os.fspath(path))
    return parse_host(text, name=base.removesuffix(".tree"), directory=directory)
