# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Network interfaces on the command line; those that are host devices are built as such.

Mirrors: qemuBuildInterfaceCommandLine, qemuBuildNicDevProps (src/qemu/qemu_command.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.qemu.qemu_command.builder import unsupported, virtio_driver, virtio_options

if TYPE_CHECKING:
    from pyhostdev.qemu.qemu_command.builder import CommandBuilder, Properties

# backends with a tap that the caller must open and connect to the definition's network
TAP_TYPES = ("network", "bridge", "ethernet", "direct")
VIRTIO_MODELS = ("virtio", "virtio-transitional", "virtio-non-transitional")
_REFUSED = ("route", "tune", "coalesce", "host_options", "guest_options", "backend_tap", "backend_vhost")


def build_interfaces(build: CommandBuilder) -> None:
    """
    Add the network interfaces.

    Raises:
        ConfigUnsupportedError: an interface, or a part of one, that we do not build.
    """
    for net in build.dom.interfaces:
        with build.collecting():
            if net.type != "hostdev":
                _build_interface(build, net)


def _build_interface(build: CommandBuilder, net: Any) -> None:
    for name in _REFUSED:
        if getattr(net, name) is not None:
            raise unsupported(f"{name.replace('_', ' ')} of an <interface>", net)
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
    Return where an interface leads on the host.

    Raises:
        ConfigUnsupportedError: the backend is not supported, or needs a tap opened by the caller.
    """
    if net.type == "user":
        if net.backend_type not in (None, "default") or net.ip is not None:
            raise unsupported("<backend> or <ip> of a user <interface>", net)
        return {"type": "user"}
    if net.type in TAP_TYPES:
        if build.tap_fd is None:
            raise unsupported(f"An <interface> of type {net.type}, which needs a tap opened by the caller,", net)
        return {"type": "tap", "fd": str(build.tap_fd(net))}
    raise unsupported(f"An <interface> of type {net.type}", net)


def _frontend(net: Any) -> Properties:
    model = net.model
    if model not in VIRTIO_MODELS:
        if net.driver_name is not None or net.queues:
            raise unsupported(f"<driver> of an <interface> of model {model}", net)
        return {"driver": model}
    queues = net.queues or 0
    return {
        "driver": virtio_driver("net", model),
        **virtio_options(net),
        "failover": True if net.teaming_type == "persistent" else None,
        "tx": {"iothread": "bh", "timer": "timer"}.get(net.txmode or ""),
        "ioeventfd": net.ioeventfd,
        "event_idx": net.event_idx,
        "mq": True if queues > 1 else None,
        "vectors": 2 * queues + 2 if queues > 1 else None,  # one a queue and direction, control, config
        "rx_queue_size": net.rx_queue_size,
        "tx_queue_size": net.tx_queue_size,
        "rss": net.rss,
        "hash": net.rss_hash_report,
        "host_mtu": net.mtu,
    }
