# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The fields of a definition that do not change QEMU's command line and need no note, each with the reason.

libvirt prints the same command line with and without each of these fields.
"""

from __future__ import annotations

from pyhostdev.conf.launch_security_conf import LaunchSecurityDef
from pyhostdev.conf.passt_conf import NetRoute, PortForward, PortRange

_FOR_PEOPLE = "it is a description for the reader"
_REFUSED_AS_A_WHOLE = "a device or mode that has it is refused as a whole"
_WHO_OPENS_THE_TAP = "pyhostdev start applies it when it opens the tap"
_OUTPUT = "libvirt prints it for a running guest"
_PINS = "start pins the thread"

_TPM_EMULATOR = ("backend_version",)
_SCHEDS = "the row of <cputune> covers it"
_VIRTIOFSD = (
    "binary_path",
    "binary_xattr",
    "binary_cache",
    "binary_sandbox",
    "binary_posix_lock",
    "binary_flock",
    "binary_threads",
    "binary_openfiles",
)

# definition -> field -> why it needs no note
ELSEWHERE: dict[str, dict[str, str]] = {
    "DomainFields": {
        "id": "every run gets a new id",
        "title": _FOR_PEOPLE,
        "description": _FOR_PEOPLE,
        "metadata": _FOR_PEOPLE,
        "cputune": "each of its parts has its own row",
        "vcpu_cpuset": "start pins QEMU's threads",
        "on_poweroff": "start acts on QEMU's events",
        "on_reboot": "start acts on QEMU's events",
        "on_crash": "start acts on QEMU's events",
        "launch_security": "validation refuses it",
        "on_lockfailure": "pyhostdev uses no lock manager",
    },
    "OSDef": {
        "varstore_template": "no known firmware has such a store, so none is chosen",
        "varstore_path": "no known firmware has such a store, so none is chosen",
        "loader_stateless": "it means that the firmware has no variable store",
        "firmware_features": "the firmware is chosen by them",
        "nvram_template": "start makes the variable store from it",
        "nvram_template_format": "start makes the variable store from it",
    },
    "FirmwareFeature": {"name": "the firmware is chosen by it", "enabled": "the firmware is chosen by it"},
    "VcpuDef": {
        "id": "the order of the elements gives it",
        "order": "for hotpluggable CPUs, which start refuses",
    },
    "VcpuPin": {"vcpu": _PINS, "cpuset": _PINS},
    "EmulatorPin": {"cpuset": _PINS},
    "IOThreadPin": {"iothread": _PINS, "cpuset": _PINS},
    "ThreadSched": dict.fromkeys(("scheduler", "priority"), _SCHEDS),
    "VcpuSched": {"vcpus": _SCHEDS},
    "IOThreadSched": {"iothreads": _SCHEDS},
    "CPUTuneDef": {"vcpupins": _PINS, "emulatorpin": _PINS, "iothreadpins": _PINS},
    "BackingStoreDef": {"index": _OUTPUT},
    "LaunchSecurityDef": dict.fromkeys(LaunchSecurityDef.declared(), _REFUSED_AS_A_WHOLE),
    "StorageSlice": {"type": "there is one type, storage"},
    "HTTPCookie": dict.fromkeys(("name", "value"), _REFUSED_AS_A_WHOLE),
    "ReservationsDef": {"source_type": "there is one type, unix", "mode": "there is one mode, client"},
    "StorageSecret": dict.fromkeys(("type", "uuid", "usage"), _REFUSED_AS_A_WHOLE),
    "StorageAuth": dict.fromkeys(("username", "secret"), _REFUSED_AS_A_WHOLE),
    "StorageEncryption": dict.fromkeys(("format_", "engine", "secrets"), _REFUSED_AS_A_WHOLE),
    "InitArgument": {"value": "the row of <os> covers it"},
    "ClockDef": {"timezone": "QEMU is started in that zone"},
    "CPUDef": {
        "fallback": "the CPU is always the named model",
        "cache_level": "each mode has one level; others are refused",
    },
    "FeaturesDef": {"pae": "QEMU's processors always have it"},
    "DeviceAddress": {"type": "the class of the address stands for it"},
    "PCIGuestAddress": {"domain": "a guest has one PCI domain"},
    "CCIDAddress": {"slot": "QEMU assigns slots in the order of the devices"},
    "CCWAddress": {"cssid": _REFUSED_AS_A_WHOLE, "ssid": _REFUSED_AS_A_WHOLE, "devno": _REFUSED_AS_A_WHOLE},
    "DomainChrDef": {"target_state": _OUTPUT},
    "DomainRedirdevDef": {"bus": "there is one bus, USB"},
    "DomainTPMDef": dict.fromkeys(_TPM_EMULATOR, "start passes it to swtpm"),
    "DomainFSDef": dict.fromkeys(_VIRTIOFSD, "start passes it to virtiofsd"),
    "IdMapEntry": dict.fromkeys(("start", "target", "count"), "start passes it to virtiofsd"),
    "DomainConsoleDef": {"tty": _OUTPUT},
    "DomainShmemDef": {
        "msi_enabled": "the number of vectors implies it",
        "has_server": "the path of the socket follows from it",
        "has_msi": "its options are built",
    },
    "TPMSource": {"mode": "there is only one mode, connect"},
    "DomainCryptoDef": {"model": "there is one model", "type": "there is one type"},
    "DomainVsockDef": {"cid_auto": "it means that no CID is given"},
    "DomainMemoryDef": {"target_current": _OUTPUT},
    "DomainHubDef": {"type": "there is one type, USB"},
    "StorageSource": {
        "index": _OUTPUT,
        "startup_policy": "start follows it",
        "type": "each kind of disk that has it has one type",
        "managed": "it tells the plan how to prepare the controller on the host",
    },
    "DomainDiskDef": {
        "snapshot": "it tells libvirt's snapshots what to do",
    },
    "DomainGraphicsDef": {
        "display": "QEMU gets it in its environment",
        "xauth": "QEMU gets it in its environment",
        "passwd_valid_to": "start sets it over the monitor",
        "autoport": "the port implies it",
        "websocket_generated": _OUTPUT,
        "connected": "start sets it over the monitor",
        "listen": "the <listen> element repeats it",
    },
    "DomainVideoDef": {
        "primary": "the order of the cards gives it",
        "device": "newer libvirt releases write the device name, which follows from model and position",
    },
    "PCISource": {"write_filtering": "validation refuses it", "foreign": _OUTPUT},
    "NetHostdevSource": {"address_type": "there is one type, PCI"},
    "HostdevDriver": {"model": "it tells the plan how to prepare the device on the host"},
    "DomainHostdevDef": {
        "managed": "it tells the plan how to prepare the device on the host",
        "teaming_type": "the alias of its partner implies it",
    },
    "SCSIHostSource": {"protocol": "there is one protocol, vhost"},
    "NetSource": dict.fromkeys(
        (
            "network",
            "portgroup",
            "portid",
            "bridge",
            "dev",
            "managed",
        ),
        _WHO_OPENS_THE_TAP,
    )
    | {"type": "there is one type, unix", "name": _REFUSED_AS_A_WHOLE},
    "NetIP": {"peer": "validation refuses it"},
    "NetRoute": dict.fromkeys(NetRoute.declared(), "the row of the interface covers it"),
    "PortForward": dict.fromkeys(PortForward.declared(), "the row of the interface covers it"),
    "PortRange": dict.fromkeys(PortRange.declared(), "the row of the interface covers it"),
    "DomainNetDef": {
        "mac_type": "it tells VMware how the address was generated",
        "mac_check": "it tells VMware whether to check the address",
        "ifname": _WHO_OPENS_THE_TAP,
        "target_managed": _WHO_OPENS_THE_TAP,
        "link_state": "pyhostdev start sets it over the monitor before the guest runs",
        "port_isolated": _WHO_OPENS_THE_TAP,
        "backend_tap": _WHO_OPENS_THE_TAP,
        "backend_vhost": _WHO_OPENS_THE_TAP,
        "teaming_persistent": "the host device of the interface has it",
    },
}
