# SPDX-License-Identifier: LGPL-2.1-or-later
"""
libvirt's virtual networks, as far as an interface needs them.

Mirrors: virNetworkDef (src/conf/network_conf.h)
"""

from __future__ import annotations

from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virxml import dump_element, parse_document

_BRIDGED = (None, "nat", "route", "open")  # modes for which libvirt creates the bridge
DIRECT_MODES = ("bridge", "private", "vepa", "passthrough")


class NetworkDef(NamedTuple):
    """A virtual network: its bridge, the host interfaces that it shares, or its pool of functions."""

    name: str
    bridge: str | None = None
    mode: str | None = None  # of <forward>
    devices: tuple[str, ...] = ()
    pf: str | None = None
    functions: tuple[PCIDeviceAddress, ...] = ()
    managed: bool = False
    driver: str | None = None  # of a pool's functions
    driver_model: str | None = None
    vlan: str | None = None  # the element, as XML
    address: str | None = None  # of its bridge, the first one
    special: tuple[str, ...] = ()  # elements that a port on a bridge alone cannot provide

    @property
    def is_pool(self) -> bool:
        """True for a pool of host devices."""
        return self.mode == "hostdev"

    @property
    def is_direct(self) -> bool:
        """True for a network that uses a macvtap on a host interface."""
        return self.mode in DIRECT_MODES and self.bridge is None


def parse_network(source: bytes) -> NetworkDef:
    """
    Read a network from its definition, or from the status of one that is active.

    Raises:
        XMLError: it is not well-formed, or an address is not valid.

    Mirrors: virNetworkDefParseXML (src/conf/network_conf.c)
    """
    root = parse_document(source)
    network = root if root.tag == "network" else root.find("network")
    if network is None:
        return NetworkDef("")
    forward, pf, bridge = (network.find(path) for path in ("forward", "forward/pf", "bridge"))
    driver, vlan, ip = (network.find(path) for path in ("forward/driver", "vlan", "ip"))
    mode = None if forward is None else forward.get("mode", "nat")
    devices = [part.get("dev") for part in network.iterfind("forward/interface")]
    devices += [forward.get("dev")] if forward is not None and mode in DIRECT_MODES else []
    special = [name for name in ("vlan", "virtualport", "portgroup/vlan") if network.find(name) is not None]
    return NetworkDef(
        name=network.findtext("name") or "",
        bridge=None if bridge is None else bridge.get("name"),
        mode=None if mode in _BRIDGED else mode,
        devices=tuple(dict.fromkeys(device for device in devices if device)),
        pf=None if pf is None else pf.get("dev"),
        functions=tuple(_address(part) for part in network.iterfind("forward/address")),
        managed=forward is not None and forward.get("managed") == "yes",
        driver=None if driver is None else driver.get("name"),
        driver_model=None if driver is None else driver.get("model"),
        vlan=None if vlan is None else dump_element(vlan),
        address=None if ip is None else ip.get("address"),
        special=tuple(special),
    )


def _address(element: object) -> PCIDeviceAddress:
    words = [element.get(name, "0") for name in ("domain", "bus", "slot", "function")]  # type: ignore[attr-defined]
    domain, bus, slot, function = (word.removeprefix("0x") for word in words)
    return PCIDeviceAddress.parse(f"{domain:0>4}:{bus:0>2}:{slot:0>2}.{function}")


def parse_port(source: bytes) -> PCIDeviceAddress | None:
    """
    Return the host device that a port of a pool's network gave to a domain; None for a port of another kind.

    Raises:
        XMLError: it is not well-formed, or the address is not valid.

    Mirrors: virNetworkPortDefParseXML (src/conf/virnetworkportdef.c)
    """
    address = parse_document(source).find(".//plug[@type='hostdev-pci']/address")
    return None if address is None else _address(address)
