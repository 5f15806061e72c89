# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Network interfaces, including those of type hostdev.

Mirrors: virDomainNetDef (src/conf/domain_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.device_conf import WORD_NUMBERS, DeviceInfo
from pyhostdev.conf.hostdev_conf import DomainHostdevDef, HostdevDriver, InterfaceNetwork, PCISource
from pyhostdev.conf.passt_conf import NetRoute, PortForward, is_ip_address
from pyhostdev.conf.virtio_conf import VIRTIO_MODELS, VirtioOptions
from pyhostdev.conf.xml.xmlcodec import Codec, big_number, enum, number, on_off, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, content, elements, ignored, inline, opaque, optional_element
from pyhostdev.errors import (
    VIR_ERR_CONFIG_UNSUPPORTED,
    VIR_ERR_INVALID_ARG,
    ConfigUnsupportedError,
    Renumbering,
    XMLError,
)
from pyhostdev.util.virxml import parse_elements, parse_unsigned, shown

if TYPE_CHECKING:
    from typing_extensions import Self

    from pyhostdev.conf.network_conf import NetworkDef
    from pyhostdev.conf.xml.xmlfield import Field
    from pyhostdev.util.pciaddress import PCIDeviceAddress
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


_VLAN_MAX = 4095  # 12 bits of the 802.1Q tag
_VIRTUALPORTS = ("802.1Qbg", "802.1Qbh", "openvswitch", "midonet")
_VIRTUALPORT_TYPES = ("network", "bridge", "direct", "hostdev")
_NET_SOURCE_NUMBER = Renumbering("net-source-number", VIR_ERR_CONFIG_UNSUPPORTED)

# type -> the attributes that its <source> must have
_REQUIRED_OF_SOURCE: dict[str, tuple[str, ...]] = {
    "network": ("network",),
    "bridge": ("bridge",),
    "direct": ("dev",),
    "vdpa": ("dev",),
    "internal": ("name",),
    "vhostuser": ("type", "path", "mode"),
    "server": ("port",),
    "client": ("port", "address"),
    "mcast": ("port", "address"),
    "udp": ("port", "address"),
}
DIRECT_MODES = ("vepa", "private", "bridge", "passthrough")
_MODES = {"direct": DIRECT_MODES, "vhostuser": ("client", "server")}
_MODEL_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")

_GENERATED_NAMES = ("vnet", "macvtap", "macvlan")  # prefixes of interface names that libvirt generates at start
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


_mac = Codec(_parse_mac, str, "a unicast MAC address")


def _checked_model(text: str) -> str:
    if not _MODEL_CHARACTERS.issuperset(text):
        raise ValueError(text)
    return text


_model = Codec(_checked_model, str, "letters, digits, '-' and '_'", code=VIR_ERR_INVALID_ARG)


class NetIP(ElementDef):
    """An IP address of the guest; user-mode networking accepts one of each family."""

    tag = "ip"

    address = attribute("address", required=True)
    family = attribute("family", enum("ipv4", "ipv6"))
    prefix = attribute("prefix", number)
    peer = attribute("peer")

    def parsed(self, element: Element) -> None:
        """Refuse a text that is not an address. Mirrors: virDomainNetIPParseXML (src/conf/domain_conf.c)"""
        if not is_ip_address(self.address, self.family):
            raise XMLError(f"Invalid IP address '{shown(self.address)}' in <ip>", line=self.line)

    @property
    def is_ipv6(self) -> bool:
        """True for an IPv6 address; without a family, the address decides."""
        return self.family == "ipv6" or (self.family is None and ":" in self.address)


def _check_vlan(tag: str, line: int | None) -> None:
    try:
        parse_unsigned(tag, maximum=_VLAN_MAX)
    except ValueError:
        raise XMLError(f"Invalid VLAN '{shown(tag)}': expected a number up to {_VLAN_MAX}", line=line) from None


class NetOffloads(ElementDef):
    """
    The offloads of a virtio interface, in both directions.

    Mirrors: driver.virtio.host and driver.virtio.guest of virDomainNetDef (src/conf/domain_conf.h)
    """

    host_csum = attribute("driver/host/@csum", on_off)
    host_gso = attribute("driver/host/@gso", on_off)
    host_tso4 = attribute("driver/host/@tso4", on_off)
    host_tso6 = attribute("driver/host/@tso6", on_off)
    host_ecn = attribute("driver/host/@ecn", on_off)
    host_ufo = attribute("driver/host/@ufo", on_off)
    host_mrg_rxbuf = attribute("driver/host/@mrg_rxbuf", on_off)
    guest_csum = attribute("driver/guest/@csum", on_off)
    guest_tso4 = attribute("driver/guest/@tso4", on_off)
    guest_tso6 = attribute("driver/guest/@tso6", on_off)
    guest_ecn = attribute("driver/guest/@ecn", on_off)
    guest_ufo = attribute("driver/guest/@ufo", on_off)


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
    reconnect_enabled = attribute("reconnect/@enabled", yes_no)
    reconnect_timeout = attribute("reconnect/@timeout", number)
    ip = opaque("ip", for_host=True)
    of_others = ignored(
        "reconnect/@delay", "@macTableManager", "@portgroupid", "@switchid", "@connectionid", "@missing"
    )  # of other hypervisors, disks and running guests

    def check(self, kind: str) -> None:
        """
        Refuse a source without the attributes that its type of interface needs.

        Raises:
            XMLError: an attribute is missing or invalid; the message names it.
        """
        for name in _REQUIRED_OF_SOURCE.get(kind, ()):
            if getattr(self, name) in (None, ""):
                raise XMLError(f"The <source> of an <interface type='{kind}'> has no {name}", line=self.line)
        modes = _MODES.get(kind, ())
        if self.mode is not None and modes and self.mode not in modes:
            text = f"'{shown(self.mode)}' in the <source> of an <interface type='{kind}'>"
            raise XMLError(f"Invalid mode {text}: expected one of {', '.join(modes)}", line=self.line)
        if kind == "vhostuser" and self.type != "unix":
            text = f"The <source> of an <interface type='vhostuser'> cannot have the type '{shown(str(self.type))}'"
            raise XMLError(text, line=self.line, libvirt_code=VIR_ERR_CONFIG_UNSUPPORTED)


class NetHostdevSource(PCISource):
    """The host side of an interface of type hostdev; its address has a type."""

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
            text = "The <address> of a host device's interface has no type"
            raise XMLError(text, line=self.line, renumbered=_NET_SOURCE_NUMBER)
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
    source = optional_element("source", NetSource)
    vlan = opaque("vlan", for_host=True)
    virtualport = opaque("virtualport", for_host=True)
    bandwidth = opaque("bandwidth", for_host=True)
    port_isolated = attribute("port/@isolated", yes_no)
    ips = elements("ip", NetIP)
    routes = elements("route", NetRoute)
    port_forwards = elements("portForward", PortForward)
    script = attribute("script/@path")
    downscript = attribute("downscript/@path")
    backend_domain = attribute("backenddomain/@name")
    ifname = attribute("target/@dev")
    target_managed = attribute("target/@managed", yes_no)
    guest_dev = attribute("guest/@dev")
    model = attribute("model/@type", _model)
    driver_name = attribute("driver/@name")
    txmode = attribute("driver/@txmode", enum("iothread", "timer"))
    ioeventfd = attribute("driver/@ioeventfd", on_off)
    event_idx = attribute("driver/@event_idx", on_off)
    queues = attribute("driver/@queues", number)
    rx_queue_size = attribute("driver/@rx_queue_size", number)
    tx_queue_size = attribute("driver/@tx_queue_size", number)
    rss = attribute("driver/@rss", on_off)
    rss_hash_report = attribute("driver/@rss_hash_report", on_off)
    virtio = inline(VirtioOptions)
    offloads = inline(NetOffloads)
    backend_type = attribute("backend/@type", enum(since={"default": "passt-backend", "passt": "passt-backend"}))
    backend_log = attribute("backend/@logFile")
    backend_hostname = attribute("backend/@hostname", since="passt-names")
    backend_fqdn = attribute("backend/@fqdn", since="passt-names")
    backend_tap = attribute("backend/@tap")
    backend_vhost = attribute("backend/@vhost")
    filterref = opaque("filterref", for_host=True)
    sndbuf = content("tune/sndbuf", big_number)
    link_state = attribute("link/@state", enum("up", "down"), code=VIR_ERR_CONFIG_UNSUPPORTED)
    mtu = attribute("mtu/@size", number)
    teaming_type = attribute("teaming/@type", enum("persistent", "transient"), code=VIR_ERR_CONFIG_UNSUPPORTED)
    teaming_persistent = attribute("teaming/@persistent")
    coalesce = opaque("coalesce", for_host=True)
    info = inline(DeviceInfo)

    @classmethod
    def from_element(cls, element: Element) -> Self:
        """
        Parse an interface; type hostdev gives a DomainHostdevNetDef.

        Raises:
            XMLError: a value is invalid.
        """
        self = DomainHostdevNetDef() if element.get("type") == "hostdev" else cls()
        self.read(element)
        return self  # type: ignore[return-value]  # only called on DomainNetDef

    host_driver_names: tuple[str, ...] = ()  # values of <driver name=> that are not about virtio
    is_from_pool = False  # a network's pool gave the host device
    mac_is_made = False  # the MAC address is a default, not a request of the user

    def network_identity(self) -> list[str]:
        """Return the settings of the interface's identity and of its network."""
        mac = self.mac if not self.mac_is_made else None
        said: dict[str, object] = {"mac": mac, "vlan": self.vlan, "virtualport": self.virtualport}
        said |= {"link down": self.link_state == "down", "trustGuestRxFilters": self.trust_guest_rx_filters}
        return [name for name, value in said.items() if value]

    @property
    def hostdev(self) -> DomainHostdevDef | None:
        """The host device that an interface of type hostdev is."""
        return None

    @property
    def chosen_ifname(self) -> str | None:
        """
        The name of the interface on the host; None if it is one that libvirt generated for an earlier run.

        Mirrors: the end of virDomainNetDefParseXML
        """
        is_generated = (self.ifname or "").startswith(_GENERATED_NAMES) and self.target_managed is not False
        return None if is_generated else self.ifname

    @property
    def is_virtio(self) -> bool:
        """True for a virtio device of the guest."""
        return self.model in VIRTIO_MODELS

    def parsed(self, element: Element) -> None:
        """
        Refuse an incomplete definition, and a backend or virtual port that the interface cannot have.

        Mirrors: virDomainNetDefParseXML (src/conf/domain_conf.c)
        """
        if self.is_virtio and self.driver_name not in (None, "qemu", "vhost"):
            raise XMLError(
                f"Invalid name '{shown(str(self.driver_name))}' of <driver>: expected qemu or vhost", line=self.line
            )
        if self.virtualport is not None and self.type not in _VIRTUALPORT_TYPES:
            text = f"An interface of type {self.type} has no <virtualport>"
            raise ConfigUnsupportedError(text, line=self.line)
        self.check_network()
        if self.type not in _REQUIRED_OF_SOURCE or (self.type == "vhostuser" and self.backend_type == "passt"):
            return
        if self.source is None:
            raise XMLError(f"An <interface type='{self.type}'> has no <source>", line=self.line)
        self.source.check(self.type)

    def check_network(self) -> None:
        """
        Refuse a VLAN without valid tags, and a virtual port of an unknown type.

        Raises:
            XMLError: the message names the value.

        Mirrors: virNetDevVlanParse (src/conf/netdev_vlan_conf.c), virNetDevVPortProfileParse
        """
        for vlan in parse_elements(self.vlan):
            tags = [tag.get("id", "") for tag in vlan.findall("tag")]
            if not tags:
                raise XMLError("A <vlan> needs a <tag>", line=self.line)
            for tag in tags:
                _check_vlan(tag, self.line)
        for port in parse_elements(self.virtualport):
            kind = port.get("type")
            if kind not in _VIRTUALPORTS and not (kind is None and self.type == "network"):
                code = None if kind is None else VIR_ERR_CONFIG_UNSUPPORTED
                text = f"Invalid type of <virtualport>: expected one of {', '.join(_VIRTUALPORTS)}"
                raise XMLError(text, line=self.line, libvirt_code=code, renumbered=WORD_NUMBERS)

    def drop_virtio_driver(self) -> None:
        """Drop the options of <driver> that libvirt reads of a virtio model only; ``virtio`` is not among them."""
        for name, field in type(self).declared().items():
            if field.path[:1] == ("driver",) and name not in self.host_driver_names:
                setattr(self, name, None)
        self.offloads = NetOffloads()


class DomainHostdevNetDef(DomainNetDef):
    """An interface of type hostdev; <driver name=> is the backend driver of the host device."""

    host_driver_names = ("driver_name",)

    host_driver = inline(HostdevDriver)
    host_source = optional_element("source", NetHostdevSource)

    def parsed(self, element: Element) -> None:
        """Refuse an interface without a device, and a driver that cannot assign devices."""
        self.check_network()
        if self.host_source is None:
            text = "An <interface type='hostdev'> has no <source>"
            raise XMLError(text, line=self.line, renumbered=_NET_SOURCE_NUMBER)
        if self.driver_name not in (None, "kvm", "vfio", "xen"):
            raise XMLError(f"Driver '{shown(str(self.driver_name))}' does not assign devices", line=self.line)

    @classmethod
    def declared(cls) -> dict[str, Field[Any]]:
        """Return the fields, with the driver before the source, and a source of another class."""
        fields = super().declared()
        order = list(fields)
        order.remove("source")
        order.remove("host_source")
        drivers = [name for name in order if fields[name].path == ("driver",) or name == "host_driver"]
        at = order.index("mac_check") + 1
        rest = [name for name in order[at:] if name not in drivers]
        return {name: fields[name] for name in [*order[:at], *drivers, "host_source", *rest]}

    @property
    def hostdev(self) -> DomainHostdevDef:
        """
        The host device of the interface, created at each access; it shares alias, address, boot order and ROM.

        Mirrors: virDomainNetGetActualHostdev (src/conf/domain_conf.c)
        """
        hostdev = DomainHostdevDef(
            type="pci",
            managed=bool(self.managed),
            driver_name=self.driver_name,
            host_driver=self.host_driver,
            source_def=self.host_source,
            teaming_type=self.teaming_type,
            teaming_persistent=self.teaming_persistent,
            info=self.info,
        )
        hostdev.interface = InterfaceNetwork(tuple(self.network_identity()), self.virtualport is not None)
        hostdev.line = self.line
        return hostdev


class PoolNetDef(DomainHostdevNetDef):
    """
    An interface of type network as it runs: its network is a pool, which gave it a host device.

    It is never parsed or stored; ``network`` is the name of the network.

    Mirrors: virDomainActualNetDef of type hostdev (src/conf/domain_conf.h)
    """

    is_from_pool = True
    network = ""

    @classmethod
    def of(cls, net: DomainNetDef, address: PCIDeviceAddress, network: NetworkDef) -> PoolNetDef:
        """
        Return an interface of type network as the host device that it gets.

        The network decides whether the device is managed, and its driver; its VLAN applies if the interface has none.

        Mirrors: virDomainNetDefActualFromNetworkPort (src/conf/domain_conf.c)
        """
        self = cls()
        vars(self).update(vars(net.copy()))
        self.drop_virtio_driver()
        self.network, self.type, self.source = network.name, "hostdev", None
        self.managed, self.driver_name, self.host_driver.model = network.managed, network.driver, network.driver_model
        self.vlan = net.vlan or network.vlan
        self.host_source = NetHostdevSource(address_type="pci", **address._asdict())
        self.host_source.line = net.line
        return self
