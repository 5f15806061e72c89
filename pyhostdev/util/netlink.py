# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Changes of network interfaces that need netlink: macvtaps, and settings of virtual functions, which their PF keeps.

The library pyroute2, part of the extra ``start``, is imported on first use.

Mirrors: src/util/virnetlink.c, src/util/virnetdevmacvlan.c
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pyhostdev.errors import OperationError
from pyhostdev.util.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


def has_netlink() -> bool:
    """Return True if the library is installed."""
    return find_spec("pyroute2") is not None


def load() -> None:
    """Import the library before a deadline starts: it has a hundred modules, whose import is slow on a busy host."""
    with suppress(ImportError):  # reported by the operation
        import pyroute2  # noqa: F401


@contextmanager
def _route(doing: str) -> Iterator[Any]:
    """
    Connect to the kernel, and turn its refusals into errors that name the failed action.

    Raises:
        OperationError: the kernel refuses, or the library is not installed.
    """
    try:
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError
    except ImportError as err:
        raise OperationError(f"Cannot {doing}: the Python package pyroute2 is not installed") from err
    try:
        with IPRoute() as route:
            yield route
    except NetlinkError as err:
        raise OperationError(f"Cannot {doing}: {os.strerror(err.code)}") from err
    except OSError as err:
        raise OperationError(f"Cannot {doing}: {err.strerror or err}") from err


def add_macvtap(name: str, lower: int, mode: str, mac: str) -> int:
    """
    Create a macvtap and return its number.

    Args:
        lower: the index of the interface below it.

    Raises:
        OperationError: the kernel refuses.

    Mirrors: virNetDevMacVLanCreate
    """
    mode = {"passthrough": "passthru"}.get(mode, mode)
    with _route(f"create the macvtap '{name}'") as route:
        route.link("add", ifname=name, kind="macvtap", link=lower, macvtap_mode=mode, address=mac)
        return int(route.link_lookup(ifname=name)[0])


def remove_link(name: str, index: int) -> None:
    """
    Remove an interface, if it still has this index.

    Raises:
        OperationError: the kernel refuses.
    """
    with _route(f"remove the network interface '{name}'") as route:
        if route.link_lookup(ifname=name) == [index]:
            route.link("del", index=index)


class VFSettings(NamedTuple):
    """The settings of a virtual function that its PF keeps; None for one that the driver does not have."""

    mac: str
    vlan: int
    qos: int
    trust: int | None
    spoofchk: int | None = None
    link_state: int | None = None


_UNKNOWN = 0xFFFFFFFF  # the kernel's value for a setting that the driver does not support
_OPTIONAL = ("trust", "spoofchk", "link_state")
LINK_DISABLED = 2  # IFLA_VF_LINK_STATE_DISABLE (linux/if_link.h)


def read_vf(pf: int, number: int) -> VFSettings | None:
    """
    Return the settings of a virtual function; None if the PF's driver reports none.

    Args:
        pf: the index of the PF's network interface.

    Raises:
        OperationError: the kernel refuses.

    Mirrors: virNetDevGetVfConfig (src/util/virnetdev.c)
    """
    with _route(f"read the settings of virtual function {number}") as route:
        message = route.link("get", index=pf, ext_mask=1)[0]  # RTEXT_FILTER_VF
    return parse_vf(message.get_attr("IFLA_VFINFO_LIST"), number)


def parse_vf(functions: Any, number: int) -> VFSettings | None:
    """Return the settings of one virtual function in the kernel's list of all of a PF."""
    for function in functions.get_attrs("IFLA_VF_INFO") if functions is not None else ():
        mac, vlan = (function.get_attr(f"IFLA_VF_{name}") for name in ("MAC", "VLAN"))
        if mac is not None and mac["vf"] == number:
            tag, priority = (0, 0) if vlan is None else (vlan["vlan"], vlan["qos"])
            more = {name: _known(function, name) for name in _OPTIONAL}
            return VFSettings(mac["mac"], tag, priority, **more)
    return None


def _known(function: Any, name: str) -> int | None:
    """Return a setting that a driver need not have."""
    found = function.get_attr(f"IFLA_VF_{name.upper()}")
    return None if found is None or found[name] == _UNKNOWN else int(found[name])


def set_vf(pf: int, number: int, settings: VFSettings, names: Collection[str]) -> None:
    """
    Set some settings of a virtual function.

    Args:
        names: of the settings that are set.

    Raises:
        OperationError: the kernel refuses.

    Mirrors: virNetDevSetVfConfig (src/util/virnetdev.c)
    """
    wanted: dict[str, Any] = {"vf": number}
    if "mac" in names:
        wanted["mac"] = settings.mac
    if {"vlan", "qos"} & set(names):
        wanted["vlan"] = {"vlan": settings.vlan, "qos": settings.qos}
    wanted.update({name: getattr(settings, name) for name in _OPTIONAL if name in names})
    with _route(f"set {', '.join(names)} of virtual function {number}") as route:
        route.link("set", index=pf, vf=wanted)
