# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Network interfaces, those that are host devices among them.

Mirrors: virDomainNetDef (src/conf/domain_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.device_conf import DeviceInfo
from pyhostdev.conf.hostdev_conf import DomainHostdevDef, InterfaceNetwork, PCISource, check_teaming
from pyhostdev.conf.virtio_conf import VirtioOptions
from pyhostdev.conf.xml.xmlcodec import Codec, enum, number, on_off, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, child, embedded, opaque
from pyhostdev.errors import VIR_ERR_CONFIG_UNSUPPORTED, XMLError
from pyhostdev.util.virxml import parse_unsigned, shown

if TYPE_CHECKING:
    from typing_extensions import Self

    from pyhostdev.conf.xml.xmlfield import Field
    from pyhostdev.util.virxml import Element

NET_TYPES = (
    "user",
    "ethernet",
    "vhostuser",
    "server",
    "client",
    "mcast",
    "network",
    "bridge",
    "internal",
    "direct",
    "hostdev",
    "udp",
    "vdpa",
    "null",
    "vds",
)


_MULTICAST = 0x01  # IEEE 802-2014 8.2.2, the I/G bit of the first octet


def _parse_mac(text: str) -> str:
    """
    Return a MAC address in the usual form.

    Mirrors: virMacAddrParse (src/util/virmacaddr.c)
    """
    octets = [parse_unsigned(part, 16, 0xFF) for part in text.split(":") if len(part) <= 2]
    if len(octets) != 6 or text.count(":") != 5 or octets[0] & _MULTICAST:
        raise ValueError(text)
    return ":".join(f"{octet:02x}" for octet in octets)


_mac = Codec(_parse_mac, str, "a MAC address of one station")


class NetSource(ElementDef):
    """The host side of an interface that is not a host device."""

    tag = "source"

    network = attribute("network")
    portgroup = attribute("portgroup")
    portid = attribute("portid")
    bridge = attribute("bridge")
    dev = attribute("dev")
    mode = attribute("mode")
    managed = attribute("managed", yes_no)
    address = attribute("address")
    port = attribute("port", number)
    type = attribute("type")
    path = attribute("path")
    name = attribute("name")
    local_address = attribute("local/@address")
    local_port = attribute("local/@port", number)
    reconnect = opaque("reconnect")
    ip = opaque("ip")


class NetHostdevSource(PCISource):
    """The host side of an interface that is a PCI function; its address says its type."""

    address_type = attribute("address/@type", enum("pci"), code=VIR_ERR_CONFIG_UNSUPPORTED)

    @classmethod
    def from_element(cls, element: Element) -> Self:
        """
        Read the source of an interface.

        Raises:
            XMLError: a part of the address is not valid.
        """
        self = cls()
        self.read(element)
        if self.address_type is None:
            raise XMLError("The <address> of a host device's interface has no type", line=self.line)
        return self


class DomainNetDef(ElementDef):
    """A network interface."""

    tag = "interface"

    type = attribute("type", enum(*NET_TYPES), default="user")
    managed = attribute("managed", yes_no, lenient=True)
    trust_guest_rx_filters = attribute("trustGuestRxFilters", yes_no)
    mac = attribute("mac/@address", _mac)
    mac_type = attribute("mac/@type", enum("generated", "static"))
    mac_check = attribute("mac/@check", yes_no)
    source = child("source", NetSource)
    vlan = opaque("vlan", for_host=True)
    virtualport = opaque("virtualport", for_host=True)
    ip = opaque("ip")
    route = opaque("route")
    script = attribute("script/@path")
    downscript = attribute("downscript/@path")
    backend_domain = attribute("backenddomain/@name")
    bandwidth = opaque("bandwidth", for_host=True)
    ifname = attribute("target/@dev")
    target_managed = attribute("target/@managed", yes_no)
    guest_dev = attribute("guest/@dev")
    model = attribute("model/@type")
    driver_name = attribute("driver/@name")
    txmode = attribute("driver/@txmode", enum("iothread", "timer"))
    ioeventfd = attribute("driver/@ioeventfd", on_off)
    event_idx = attribute("driver/@event_idx", on_off)
    queues = attribute("driver/@queues", number)
    rx_queue_size = attribute("driver/@rx_queue_size", number)
    tx_queue_size = attribute("driver/@tx_queue_size", number)
    rss = attribute("driver/@rss", on_off)
    rss_hash_report = attribute("driver/@rss_hash_report", on_off)
    host_options = opaque("driver/host")
    guest_options = opaque("driver/guest")
    virtio = embedded(VirtioOptions)
    backend_type = attribute("backend/@type", enum("default", "passt"))
    backend_tap = attribute("backend/@tap")
    backend_vhost = attribute("backend/@vhost")
    filterref = opaque("filterref")
    tune = opaque("tune")
    link_state = attribute("link/@state", enum("up", "down"))
    mtu = attribute("mtu/@size", number)
    teaming_type = attribute("teaming/@type", enum("persistent", "transient"))
    teaming_persistent = attribute("teaming/@persistent")
    coalesce = opaque("coalesce")
    port_isolated = attribute("port/@isolated", yes_no)
    info = embedded(DeviceInfo)

    @classmethod
    def from_element(cls, element: Element) -> Self:
        """
        Parse an interface; one that is a host device becomes a DomainHostdevNetDef.

        Raises:
            XMLError: a value is invalid.
        """
        self = DomainHostdevNetDef() if element.get("type") == "hostdev" else cls()
        self.read(element)
        return self  # type: ignore[return-value]  # asked for as DomainNetDef only

    host_driver_names: tuple[str, ...] = ("driver_name",)  # of <driver>, not about virtio
    mac_is_made = False  # the MAC address is a default, not a request of the user

    def network_identity(self) -> list[str]:
        """Return the settings of the interface's identity and of its network."""
        mac = self.mac if not self.mac_is_made else None
        said = {"mac": mac, "vlan": self.vlan, "virtualport": self.virtualport}
        return [name for name, value in said.items() if value]

    @property
    def hostdev(self) -> DomainHostdevDef | None:
        """The host device that an interface of type hostdev is."""
        return None

    def parsed(self, element: Element) -> None:
        """Refuse what is incomplete."""
        check_teaming(self.teaming_type, element)

    def drop_virtio_driver(self) -> None:
        """Forget what <driver> says about virtio; libvirt does not read it for other models."""
        for name, field in type(self).declared().items():
            if field.path[:1] == ("driver",) and name not in self.host_driver_names:
                setattr(self, name, None)
        self.virtio = VirtioOptions()


class DomainHostdevNetDef(DomainNetDef):
    """An interface that is a PCI function of the host; driver name means the host's driver here."""

    host_driver_names = ("driver_name", "driver_model", "iommufd")

    driver_model = attribute("driver/@model", since="hostdev-driver-model")
    iommufd = attribute("driver/@iommufd", yes_no, since="iommufd")
    host_source = child("source", NetHostdevSource)

    def parsed(self, element: Element) -> None:
        """Refuse an interface without a device, and a driver that hands over no devices."""
        super().parsed(element)
        if self.host_source is None:
            raise XMLError("An <interface type='hostdev'> has no <source>", line=self.line)
        if self.driver_name not in (None, "kvm", "vfio", "xen"):
            raise XMLError(f"Driver '{shown(str(self.driver_name))}' does not assign devices", line=self.line)

    @classmethod
    def declared(cls) -> dict[str, Field[Any]]:
        """Return the fields, with the driver before the source and another source."""
        fields = super().declared()
        order = list(fields)
        order.remove("source")
        order.remove("host_source")
        drivers = [name for name in order if fields[name].path == ("driver",)]
        at = order.index("mac_check") + 1
        rest = [name for name in order[at:] if name not in drivers]
        return {name: fields[name] for name in [*order[:at], *drivers, "host_source", *rest]}

    @property
    def hostdev(self) -> DomainHostdevDef:
        """
        The host device behind the interface, made from it each time; it shares alias, address, boot order and ROM.

        Mirrors: virDomainNetGetActualHostdev (src/conf/domain_conf.c)
        """
        hostdev = DomainHostdevDef(
            type="pci",
            managed=bool(self.managed),
            driver_name=self.driver_name,
            driver_model=self.driver_model,
            iommufd=self.iommufd,
            source_def=self.host_source,
            teaming_type=self.teaming_type,
            teaming_persistent=self.teaming_persistent,
            info=self.info,
        )
        hostdev.interface = InterfaceNetwork(tuple(self.network_identity()), self.virtualport is not None)
        hostdev.line = self.line
        return hostdev
