# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a definition can say that is not on QEMU's command line, and what becomes of it when we run the guest.

``IGNORED`` is told as a note: nothing here does it. ``REFUSED_BY_START`` would put a guest onto another network or
leave it without the confinement that was asked for, so ``start`` refuses it. ``ELSEWHERE`` needs no word, for the
reason that stands beside it. libvirt prints the same command line with all of these as without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pyhostdev.conf.disk_conf import IOTuneDef
from pyhostdev.conf.os_conf import LaunchSecurityDef
from pyhostdev.conf.passt_conf import NetRoute, PortForward, PortRange
from pyhostdev.conf.virtio_conf import VIRTIO_MODELS
from pyhostdev.qemu.qemu_command.namespace import around_words, namespace_words
from pyhostdev.qemu.qemu_command.net import TAP_TYPES
from pyhostdev.qemu.qemu_command.refused import parts_of
from pyhostdev.util.finding import ERROR, NOTE, Finding
from pyhostdev.util.virxml import parse_document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.xml.xmldef import ElementDef


class Word(NamedTuple):
    """What is told about a field: why, the values that ask for nothing, and where it means something here after all."""

    why: str
    harmless: tuple[object, ...] = (False,)
    asked: Callable[[Any], bool] = lambda definition: True

    def is_said(self, definition: ElementDef, name: str) -> bool:
        """True when a definition asks for what we do not do."""
        value = getattr(definition, name)
        return value not in (None, [], *self.harmless) and self.asked(definition)


def _is_not_virtio(device: Any) -> bool:
    return bool(device.bus != "virtio")


def _is_not_virtio_net(net: Any) -> bool:
    return bool(net.type != "hostdev" and net.model is not None and net.model not in VIRTIO_MODELS)


def _has_no_tap(net: Any) -> bool:
    return net.type not in TAP_TYPES


def _is_slirp(net: Any) -> bool:
    return bool(net.type == "user" and net.backend_type != "passt")


def _is_not_passt(net: Any) -> bool:
    return bool(net.backend_type != "passt")


def _is_not_spice(graphics: Any) -> bool:
    return bool(graphics.type != "spice")


def _is_not_qxl(video: Any) -> bool:
    return bool(video.model_type != "qxl")


def _has_one_screen(video: Any) -> bool:
    return video.model_type not in ("qxl", "virtio")


def _is_off(timer: Any) -> bool:
    return bool(timer.name in ("rtc", "pit", "tsc") and timer.present is False)


def _has_no_flash(os: Any) -> bool:
    return os.loader is not None and os.loader_type != "pflash"


_NO_CGROUP = "pyhostdev start makes no control group"
_NOT_VIRTIO = "only a virtio device has it"
_NOT_SPICE = "only a SPICE server has it"
_NOTHING_BUILT = "nothing that is built for QEMU has it"  # where a whole device has it, that is refused besides


def _of_other_kinds(*names: str) -> dict[str, Word]:
    """Return the rows of words that belong to other kinds of one element, which are not built."""
    return {name: Word(_NOTHING_BUILT) for name in names}


# definition -> field -> why nothing here does it
IGNORED: dict[str, dict[str, Word]] = {
    "DomainFields": {
        "current_memory": Word(
            "the guest starts with all of its memory", asked=lambda dom: dom.current_memory_kib < dom.memory_kib
        ),
        "blkiotune": Word(_NO_CGROUP),
        "hard_limit": Word(f"{_NO_CGROUP}; it is the limit of locked memory only"),
        "soft_limit": Word(_NO_CGROUP),
        "min_guarantee": Word(_NO_CGROUP),
        "swap_hard_limit": Word(_NO_CGROUP),
        "resource": Word(_NO_CGROUP),
        "vcpu_placement": Word("pyhostdev start does not ask numad", ("static",)),
        "perf": Word("pyhostdev start counts no events"),
    },
    "OSDef": {
        "nvram": Word("firmware that is not in flash has no variable store", asked=_has_no_flash),
        "nvram_type": Word("firmware that is not in flash has no variable store", asked=_has_no_flash),
    },
    "ClockTimer": {
        "mode": Word("QEMU has one kind of this timer"),
        "present": Word("QEMU does not leave this timer out", (True,), _is_off),
        "frequency": Word("only the timer tsc has it", asked=lambda timer: timer.name != "tsc"),
        "track": Word("only the timer rtc has it", asked=lambda timer: timer.name != "rtc"),
        "tickpolicy": Word("only rtc and pit have it", asked=lambda timer: timer.name not in ("rtc", "pit")),
    },
    "DomainTPMDef": {
        "persistent_state": Word("pyhostdev start always keeps the state of the emulator", (True,)),
        **dict.fromkeys(
            ("pcr_sha1", "pcr_sha256", "pcr_sha384", "pcr_sha512"),
            Word("swtpm and the guest's firmware choose the banks"),
        ),
        **dict.fromkeys(
            ("debug", "profile_name", "profile_source", "profile_remove_disabled"),
            Word("pyhostdev start uses the emulator's defaults"),
        ),
    },
    "DomainAudioDef": dict.fromkeys(("driver", "runtime_dir"), Word("pyhostdev start sets no environment for sound")),
    "ClockDef": _of_other_kinds("basis", "start"),
    "ChrSourceElement": _of_other_kinds("master", "slave", "clipboard_copypaste", "mouse_mode"),
    "DomainControllerDef": _of_other_kinds("max_grant_frames", "max_event_channels"),
    "StorageSource": _of_other_kinds("mode", "pool", "type", "managed", "namespace", "path"),
    "DomainFSDef": _of_other_kinds("source_file", "source_dev", "source_name"),
    "GraphicsListen": _of_other_kinds("network"),
    "SCSISource": _of_other_kinds("adapter", "bus", "target", "unit"),
    "USBSource": {
        "vendor_id": Word("the device is found by its address alone", asked=lambda usb: usb.bus is not None),
        "product_id": Word("the device is found by its address alone", asked=lambda usb: usb.bus is not None),
    },
    "CPUTuneDef": {
        name: Word(_NO_CGROUP)
        for name in (
            *("shares", "period", "quota", "global_period", "global_quota", "emulator_period", "emulator_quota"),
            *("iothread_period", "iothread_quota", "cachetune", "memorytune"),
        )
    }
    | {
        name: Word("pyhostdev start gives no thread another scheduler")
        for name in ("emulatorsched", "vcpusched", "iothreadsched")
    },
    "CPUFeature": {
        "policy": Word(
            "the guest's processor has the flag if its model has it",
            ("force", "require", "disable", "forbid"),
            asked=lambda feature: feature.policy == "optional",
        )
    },
    "CPUDef": {
        "mode": Word(
            "the guest gets the host's processor as far as it can be migrated, and not a named model",
            ("custom", "host-passthrough", "maximum"),
        ),
        "check": Word("pyhostdev start does not compare the guest's processor with what was asked for", ("none",)),
        "match": Word("pyhostdev start does not compare the host's processor with it", ("exact",)),
        "vendor": Word("pyhostdev start does not compare the host's processor with it"),
    },
    "FeaturesDef": {
        "msrs_unknown": Word("the kernel module kvm decides for all guests", ("fault",)),
        "hap": Word("the kernel module kvm decides for all guests"),
        "hap_state": Word("as <hap>"),
    },
    "MemoryBackingDef": {"discard": Word("memory that no file backs is given back at the guest's end anyway")},
    "NumaCell": {"discard": Word("memory that no file backs is given back at the guest's end anyway")},
    "DeviceInfo": {"boot_loadparm": Word("only machines of s390x have it")},
    "DomainMemballoonDef": {"stats_period": Word("pyhostdev start does not ask the balloon for statistics")},
    "NetSource": {"ip": Word("pyhostdev start gives the host's side no address")},
    "DomainNetDef": {
        "bandwidth": Word("pyhostdev start limits no traffic"),
        "coalesce": Word("pyhostdev start leaves the host's side as the kernel made it"),
        "trust_guest_rx_filters": Word("pyhostdev start does not follow what the guest's card receives"),
        "sndbuf": Word("only a tap has it", asked=_has_no_tap),
        "source": Word("QEMU's own network has no other side", asked=_is_slirp),
        **{
            name: Word("only passt has it", asked=_is_not_passt)
            for name in ("routes", "port_forwards", "backend_log", "backend_hostname", "backend_fqdn")
        },
        **{
            name: Word(_NOT_VIRTIO, asked=_is_not_virtio_net)
            for name in ("txmode", "ioeventfd", "event_idx", "rx_queue_size", "tx_queue_size", "rss")
        },
        "rss_hash_report": Word(_NOT_VIRTIO, asked=_is_not_virtio_net),
    },
    "DomainDiskDef": {
        "iotune": Word("pyhostdev start limits no disk"),
        "rawio": Word("QEMU gets no privilege; a unit answers what its device node lets an ordinary user ask"),
        "tray": Word("every tray is closed at the start", ("closed",)),
    }
    | {
        name: Word(_NOT_VIRTIO, asked=_is_not_virtio)
        for name in ("ioeventfd", "event_idx", "iothread", "queues", "queue_size")
    },
    "DomainGraphicsDef": {
        **{
            name: Word(_NOT_SPICE, asked=_is_not_spice)
            for name in (
                "image_compression",
                "jpeg_compression",
                "zlib_compression",
                "playback_compression",
                "streaming_mode",
                "mouse_mode",
                "clipboard_copypaste",
                "filetransfer_enable",
                "channels",
            )
        },
    },
    "DomainVideoDef": {
        "heads": Word("this video card has one screen", (1,), _has_one_screen),
        "ram": Word("only a qxl card has it", asked=_is_not_qxl),
        "vram64": Word("only a qxl card has it", asked=_is_not_qxl),
        "vgamem": Word("only a qxl card has it", asked=_is_not_qxl),
    },
}


def _is_tap(net: Any) -> bool:
    """A host device's own words are the plan's: it asks for consent."""
    return bool(net.type != "hostdev")


def _is_confined(definition: Any) -> bool:
    labels = parse_document(f"<seclabels>{definition.seclabel}</seclabels>")
    return any(label.get("type") != "none" for label in labels)


def _is_labelled(source: Any) -> bool:
    labels = parse_document(f"<seclabels>{source.seclabel}</seclabels>")
    return any(label.get("relabel") != "no" and label.get("labelskip") != "yes" for label in labels)


# definition -> field -> why a guest must not run without it
REFUSED_BY_START: dict[str, dict[str, Word]] = {
    "DomainFields": {"seclabel": Word("pyhostdev start confines no guest with a security module", asked=_is_confined)},
    "VcpuDef": {"hotpluggable": Word("pyhostdev start plugs no virtual CPU", asked=lambda vcpu: bool(vcpu.enabled))},
    "StorageSource": {"seclabel": Word("pyhostdev start labels no image", asked=_is_labelled)},
    "ChrSourceElement": {"seclabel": Word("pyhostdev start labels no file", asked=_is_labelled)},
    "DomainTPMDef": {"encryption_secret": Word("pyhostdev start knows no secrets")},
    "DomainFSDef": {
        "uid_map": Word("pyhostdev start maps no ids"),
        "gid_map": Word("pyhostdev start maps no ids"),
    },
    "DomainNetDef": {
        "backend_type": Word("pyhostdev start runs no passt", asked=lambda net: net.backend_type == "passt"),
        "vlan": Word("pyhostdev start sets no VLAN", asked=_is_tap),
        "virtualport": Word("pyhostdev start sets no virtual port", asked=_is_tap),
        "filterref": Word("it needs libvirt's network filter driver"),
        "script": Word("pyhostdev start runs no script of an interface"),
        "downscript": Word("pyhostdev start runs no script of an interface"),
    },
}

_FOR_PEOPLE = "it is for people"
_REFUSED_AS_A_WHOLE = "a device or mode that has it is refused as a whole"
_WHO_OPENS_THE_TAP = "who opens the tap does it: pyhostdev start"
_OUTPUT = "libvirt prints it for a running guest"
_PINS = "start pins the thread"

_TPM_EMULATOR = ("backend_version",)
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

# definition -> field -> why it needs no word
ELSEWHERE: dict[str, dict[str, str]] = {
    "DomainFields": {
        "id": "every run has one of its own",
        "title": _FOR_PEOPLE,
        "description": _FOR_PEOPLE,
        "metadata": _FOR_PEOPLE,
        "cputune": "each of its parts has its own word",
        "vcpu_cpuset": "start pins QEMU's threads",
        "on_poweroff": "start acts on QEMU's events",
        "on_reboot": "start acts on QEMU's events",
        "on_crash": "start acts on QEMU's events",
        "launch_security": "validation refuses it",
        "on_lockfailure": "no lock manager is in use, so none fails",
    },
    "OSDef": {
        "loader_stateless": "it says that there is no variable store",
        "firmware_features": "the firmware is chosen by them",
        "nvram_template": "start makes the variable store from it",
        "nvram_template_format": "start makes the variable store from it",
    },
    "FirmwareFeature": {"name": "the firmware is chosen by it", "enabled": "the firmware is chosen by it"},
    "VcpuDef": {"id": "their number says it", "order": "a plugged one has it, and start refuses those"},
    "VcpuPin": {"vcpu": _PINS, "cpuset": _PINS},
    "EmulatorPin": {"cpuset": _PINS},
    "IOThreadPin": {"iothread": _PINS, "cpuset": _PINS},
    "CPUTuneDef": {"vcpupins": _PINS, "emulatorpin": _PINS, "iothreadpins": _PINS},
    "BackingStoreDef": {"index": _OUTPUT},
    "IOTuneDef": dict.fromkeys(IOTuneDef.declared(), "the disk's word says it"),
    "LaunchSecurityDef": dict.fromkeys(LaunchSecurityDef.declared(), _REFUSED_AS_A_WHOLE),
    "InitArgument": {"value": _REFUSED_AS_A_WHOLE},
    "ClockDef": {"timezone": "QEMU is started in that zone"},
    "ACPITable": {"type": "there is one type, which is written as a constant"},
    "CPUDef": {
        "fallback": "we never take another model than the named one",
        "cache_level": "each mode has one level; another is refused",
    },
    "FeaturesDef": {"pae": "QEMU's processors always have it"},
    "DeviceAddress": {"type": "the class of the address says it"},
    "PCIGuestAddress": {"domain": "a guest has one PCI domain"},
    "CCIDAddress": {"slot": "QEMU gives slots in the order of the devices"},
    "CCWAddress": {"cssid": _REFUSED_AS_A_WHOLE, "ssid": _REFUSED_AS_A_WHOLE, "devno": _REFUSED_AS_A_WHOLE},
    "DomainChrDef": {"target_state": _OUTPUT},
    "SmartcardCertificate": {"name": _REFUSED_AS_A_WHOLE},
    "DomainRedirdevDef": {"bus": "there is one bus, USB"},
    "DomainTPMDef": dict.fromkeys(_TPM_EMULATOR, "start tells the emulator"),
    "DomainFSDef": dict.fromkeys(_VIRTIOFSD, "start tells virtiofsd"),
    "IdMapEntry": dict.fromkeys(("start", "target", "count"), "start tells virtiofsd"),
    "DomainConsoleDef": {"tty": _OUTPUT},
    "DomainShmemDef": {"msi_enabled": "the number of vectors says it"},
    "TPMSource": {"mode": "there is one way, to connect"},
    "DomainCryptoDef": {"model": "there is one model", "type": "there is one type"},
    "DomainVsockDef": {"cid_auto": "it says that no number is given"},
    "DomainMemoryDef": {"target_current": _OUTPUT},
    "DomainHubDef": {"type": "there is one type, USB"},
    "StorageSource": {"index": _OUTPUT},
    "DomainDiskDef": {
        "snapshot": "it tells libvirt's snapshots what to do",
    },
    "DomainGraphicsDef": {
        "display": "QEMU has it in its environment",
        "xauth": "QEMU has it in its environment",
        "passwd_valid_to": "start tells the monitor",
        "autoport": "the port says it",
        "websocket_generated": _OUTPUT,
        "connected": "start tells the monitor",
        "listen": "<listen> says it",
    },
    "DomainVideoDef": {
        "primary": "the order of the cards says it",
        "device": "a later libvirt writes the name of the device that follows from model and place",
    },
    "PCISource": {"write_filtering": "validation refuses it", "foreign": _OUTPUT},
    "NetHostdevSource": {"address_type": "there is one type, PCI"},
    "DomainHostdevDef": {
        "managed": "it tells the plan how to prepare the host's side",
        "driver_model": "it tells the plan how to prepare the host's side",
        "teaming_type": "an interface's name as partner says it",
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
    "NetRoute": dict.fromkeys(NetRoute.declared(), "the interface's word says it"),
    "PortForward": dict.fromkeys(PortForward.declared(), "the interface's word says it"),
    "PortRange": dict.fromkeys(PortRange.declared(), "the interface's word says it"),
    "DomainNetDef": {
        "mac_type": "it tells VMware how an address was made",
        "mac_check": "it tells VMware whether to check an address",
        "ifname": _WHO_OPENS_THE_TAP,
        "target_managed": _WHO_OPENS_THE_TAP,
        "link_state": "pyhostdev start tells QEMU before the guest runs",
        "port_isolated": _WHO_OPENS_THE_TAP,
        "backend_tap": _WHO_OPENS_THE_TAP,
        "backend_vhost": _WHO_OPENS_THE_TAP,
        "teaming_persistent": "the host device of the interface says it",
    },
    "DomainHostdevNetDef": {
        "driver_model": "the host device of the interface says it",
    },
}


def start_words(dom: DomainDef) -> list[Finding]:
    """
    Return what a definition asks for and a command line does not say: notes, and errors where ``start`` refuses it.

    Args:
        dom: as it was written; defaults would be taken for wishes.
    """
    return [*_words(dom), *_of_unassigned(dom), *namespace_words(dom), *around_words(dom)]


def _words(definition: ElementDef) -> Iterator[Finding]:
    for kind in type(definition).__mro__:
        for name, word in REFUSED_BY_START.get(kind.__name__, {}).items():
            if word.is_said(definition, name):
                message = f"{_place(definition, name)} is not supported: {word.why}"
                yield Finding("unsupported", ERROR, None, message, definition.line_of(name))
        for name, word in IGNORED.get(kind.__name__, {}).items():
            if word.is_said(definition, name):
                message = f"{_place(definition, name)} is ignored: {word.why}"
                yield Finding("ignored", NOTE, None, message, definition.line_of(name))
    for part in parts_of(definition):
        yield from _words(part)


def _place(definition: ElementDef, name: str) -> str:
    """Return where a field stands, in the words of the XML."""
    field = type(definition).declared()[name]
    element = [definition.tag, *field.path][-1]
    place = f"<{element}>" if element else "a device"
    return f"'{field.leaf}' of {place}" if field.leaf else place


def _of_unassigned(dom: DomainDef) -> Iterator[Finding]:
    """Yield what is said for the guest about a function that it does not get."""
    for hostdev in dom.pci_hostdevs():
        info = hostdev.info
        said: dict[str, list[object]] = {
            "<boot>": [info.boot_order],
            "<rom>": [info.rom_file, info.rom_enabled, info.rom_bar],
            "<acpi>": [info.acpi_index],
            "<teaming>": [hostdev.teaming_type],
        }
        for word in (w for w, values in said.items() if any(v is not None for v in values) and not hostdev.is_assigned):
            message = f"{word} of <hostdev> is ignored: the guest does not get device {hostdev.pci_address}"
            yield Finding("ignored", NOTE, hostdev.pci_address, message, hostdev.line)
