# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Network interfaces on the command line, except those of type hostdev, which are host devices.

Mirrors: qemuBuildInterfaceCommandLine, qemuBuildHostNetProps, qemuBuildNicDevProps (src/qemu/qemu_command.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.virtio_conf import VIRTIO_MODELS
from pyhostdev.qemu.qemu_command.builder import option_value, unsupported, virtio_driver, virtio_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.qemu.qemu_command.builder import CommandBuilder, Properties

# types with a tap device on the host; QEMU inherits its descriptor
TAP_TYPES = ("network", "bridge", "ethernet", "direct")
_RECONNECT_S = 5  # the delay before QEMU reconnects to passt


def build_interfaces(build: CommandBuilder) -> None:
    """
    Add the network interfaces.

    Raises:
        ConfigUnsupportedError: we cannot build this kind of interface, or a part of it.
    """
    for net in build.dom.interfaces:
        with build.collecting():
            if net.type != "hostdev":
                _build_interface(build, net)


def _build_interface(build: CommandBuilder, net: Any) -> None:
    netdev = f"host{net.info.alias}"
    build.add_json("-netdev", {**_backend(build, net), "id": netdev})
    build.add_device({**_frontend(net), **_identity(build, net, netdev)})


def _identity(build: CommandBuilder, net: Any, netdev: str) -> Properties:
    return {
        "netdev": netdev,
        "id": net.info.alias,
        "mac": net.mac,
        "bootindex": build.bootindex(net),
        **build.address(net),
        **build.rom(net),
    }


def _backend(build: CommandBuilder, net: Any) -> Properties:
    """
    Return the network backend of an interface: its side on the host.

    Raises:
        ConfigUnsupportedError: the backend is not supported.
    """
    rule = _BACKENDS.get(net.type)
    if rule is None:
        raise unsupported(f"An <interface> of type {net.type}", net)
    return rule(build, net)


def queues_of(net: Any) -> int:
    """Return the number of an interface's queues; each queue needs a descriptor."""
    return max(net.queues or 1, 1)


def wants_vhost(dom: Any, net: Any) -> bool:
    """
    Return True if vhost in the kernel moves the packets: for a virtio device with KVM, unless <driver> is qemu.

    Mirrors: qemuInterfaceOpenVhostNet (src/qemu/qemu_interface.c)
    """
    return bool(dom.type == "kvm" and net.type in TAP_TYPES and net.is_virtio and net.driver_name != "qemu")


def _tap(build: CommandBuilder, net: Any) -> Properties:
    taps = _descriptors(build, "tap", net)
    vhosts = _descriptors(build, "vhost", net) if wants_vhost(build.dom, net) else []
    return {
        "type": "tap",
        **_listed("fd", taps),
        "vhost": True if vhosts else None,
        **_listed("vhostfd", vhosts),
        "sndbuf": net.sndbuf,
    }


def _descriptors(build: CommandBuilder, purpose: str, net: Any) -> list[str]:
    return [build.descriptor(purpose, net) for _ in range(queues_of(net))]


def _listed(name: str, numbers: list[str]) -> Properties:
    """Return descriptors as a property; its name is a plural for more than one."""
    if not numbers:
        return {}
    return {name: numbers[0]} if len(numbers) == 1 else {f"{name}s": ":".join(numbers)}


def _user(build: CommandBuilder, net: Any) -> Properties:
    if net.backend_type == "passt":
        return _passt(build, net)
    found: Properties = {"type": "user"}
    for ip in net.ips:
        if ip.is_ipv6:
            found |= {"ipv6-prefix": ip.address, "ipv6-prefixlen": ip.prefix or None}
        else:
            found["net"] = f"{ip.address}/{ip.prefix}" if ip.prefix else ip.address
    return found


def _passt(build: CommandBuilder, net: Any) -> Properties:
    reconnect = _RECONNECT_S * 1000 if build.release.has("reconnect-in-ms") else None
    address = {"type": "unix", "path": build.paths.passt_socket(net.info.alias)}
    return {"type": "stream", "addr": address, "server": False, "reconnect-ms": reconnect}


def _socket(build: CommandBuilder, net: Any) -> Properties:
    """Return the backend that carries packets over a socket to another emulator."""
    word = {"server": "listen", "client": "connect"}.get(net.type, net.type)
    source = net.source
    found: Properties = {"type": "socket", word: f"{source.address or ''}:{source.port}"}
    if net.type == "udp":
        if source.local_port is None:
            raise unsupported("An <interface> of type udp without <local port=>", net)
        found["localaddr"] = f"{source.local_address or ''}:{source.local_port}"
    return found


def _vhostuser(build: CommandBuilder, net: Any) -> Properties:
    """Add the socket to a vhost-user process, which shares the guest's memory; return the backend."""
    chardev = f"char{net.info.alias}"
    build.add("-chardev", ",".join(["socket", f"id={chardev}", *_vhostuser_socket(build, net)]))
    queues = queues_of(net)
    return {"type": "vhost-user", "chardev": chardev, "queues": queues if queues > 1 else None}


def _vhostuser_socket(build: CommandBuilder, net: Any) -> list[str]:
    where = f"path={option_value(_vhostuser_path(build, net))}"
    if net.backend_type == "passt":  # passt listens, and <source> names an interface of the host
        return [where]
    if net.source.mode == "server":
        if build.socket_fd is not None:
            where = f"fd={build.socket_fd(net.source.path)}"
        return [where, "server=on"]  # QEMU must wait for the process, so no wait=off
    if not net.source.reconnect_enabled or not net.source.reconnect_timeout:
        return [where]
    seconds = net.source.reconnect_timeout
    is_new = build.release.has("reconnect-in-ms")
    return [where, f"reconnect-ms={seconds * 1000}" if is_new else f"reconnect={seconds}"]


def _vhostuser_path(build: CommandBuilder, net: Any) -> str:
    return build.paths.passt_socket(net.info.alias) if net.backend_type == "passt" else str(net.source.path)


def _vdpa(build: CommandBuilder, net: Any) -> Properties:
    """Return the backend of a vDPA device; QEMU inherits its node in a descriptor set."""
    fdset = build.add_fdset(build.descriptor("vdpa", net), f"{net.info.alias}-vdpa")
    queues = queues_of(net)
    return {"type": "vhost-vdpa", "vhostdev": fdset, "queues": queues if queues > 1 else None}


_BACKENDS: dict[str, Callable[[CommandBuilder, Any], Properties]] = {
    **dict.fromkeys(TAP_TYPES, _tap),
    **dict.fromkeys(("server", "client", "mcast", "udp"), _socket),
    "user": _user,
    "vhostuser": _vhostuser,
    "vdpa": _vdpa,
}


def _frontend(net: Any) -> Properties:
    if net.model not in VIRTIO_MODELS:
        return {"driver": net.model}
    queues = queues_of(net)
    return {
        "driver": virtio_driver("net", net.model),
        **virtio_options(net),
        "failover": True if net.teaming_type == "persistent" else None,
        "tx": {"iothread": "bh", "timer": "timer"}.get(net.txmode or ""),
        "ioeventfd": net.ioeventfd,
        "event_idx": net.event_idx,
        **_offloads(net.offloads),
        "mq": True if queues > 1 else None,
        "vectors": 2 * queues + 2 if queues > 1 else None,  # one per queue and direction, control, config
        "rx_queue_size": net.rx_queue_size,
        "tx_queue_size": net.tx_queue_size,
        "rss": net.rss,
        "hash": net.rss_hash_report,
        "host_mtu": net.mtu,
    }


def _offloads(offloads: Any) -> Properties:
    return {
        "csum": offloads.host_csum,
        "gso": offloads.host_gso,
        "host_tso4": offloads.host_tso4,
        "host_tso6": offloads.host_tso6,
        "host_ecn": offloads.host_ecn,
        "host_ufo": offloads.host_ufo,
        "mrg_rxbuf": offloads.host_mrg_rxbuf,
        "guest_csum": offloads.guest_csum,
        "guest_tso4": offloads.guest_tso4,
        "guest_tso6": offloads.guest_tso6,
        "guest_ecn": offloads.guest_ecn,
        "guest_ufo": offloads.guest_ufo,
    }
