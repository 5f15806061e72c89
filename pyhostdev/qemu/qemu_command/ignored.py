# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The fields of a definition that do not change QEMU's command line, and what ``start`` does about each.

``IGNORED``: pyhostdev does not implement the field; a note reports it. ``REFUSED_BY_START``: without the field the
guest would be on another network or less confined than requested, so ``start`` refuses it. ``elsewhere``
lists the fields that need no note. libvirt prints the same command line with and without each of these fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.virtio_conf import VIRTIO_MODELS
from pyhostdev.qemu.qemu_command.namespace import bypass_findings, namespace_findings
from pyhostdev.qemu.qemu_command.net import TAP_TYPES
from pyhostdev.qemu.qemu_command.refused import nested_definitions
from pyhostdev.util.finding import ERROR, NOTE, Finding
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virxml import parse_elements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.xml.xmldef import ElementDef


class Note(NamedTuple):
    """A row of a table: the reason, the values that request nothing, and the definitions to which the row applies."""

    why: str
    harmless: tuple[object, ...] = (False,)
    asked: Callable[[Any], bool] = lambda definition: True

    def applies_to(self, definition: ElementDef, name: str) -> bool:
        """True if a definition requests what pyhostdev does not implement."""
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


_NO_CGROUP = "pyhostdev start does not create a control group"
_NOT_VIRTIO = "only a virtio device has it"
_NOT_SPICE = "only a SPICE server has it"
_NOTHING_BUILT = "no device that pyhostdev builds for QEMU has it"  # a device that has it is refused as a whole


def _of_other_kinds(*names: str) -> dict[str, Note]:
    """Return rows for fields of other kinds of an element, which are not built."""
    return {name: Note(_NOTHING_BUILT) for name in names}


# definition -> field -> why it is ignored
IGNORED: dict[str, dict[str, Note]] = {
    "DomainFields": {
        "current_memory": Note(
            "the guest starts with all of its memory", asked=lambda dom: dom.current_memory_kib < dom.memory_kib
        ),
        "blkiotune": Note(_NO_CGROUP),
        "idmap": Note("only containers have it"),
        "hard_limit": Note(f"{_NO_CGROUP}; only the limit of locked memory follows it"),
        "soft_limit": Note(_NO_CGROUP),
        "min_guarantee": Note(_NO_CGROUP),
        "swap_hard_limit": Note(_NO_CGROUP),
        "resource": Note(_NO_CGROUP),
        "vcpu_placement": Note("pyhostdev start does not ask numad", ("static",)),
        "perf": Note("pyhostdev start does not count performance events"),
        "seclabel": Note(
            "pyhostdev start does not use a security module; --user chooses QEMU's user",
            asked=lambda dom: _has_label(dom),
        ),
    },
    "OSDef": {
        **dict.fromkeys(
            ("init", "init_arguments", "init_dir", "init_user", "init_group"), Note("only containers have it")
        ),
        "root": Note("a guest finds its root by its own boot loader or by <cmdline>"),
        "nvram": Note("firmware that is not in flash has no variable store", asked=_has_no_flash),
        "nvram_type": Note("firmware that is not in flash has no variable store", asked=_has_no_flash),
    },
    "ClockTimer": {
        "mode": Note("QEMU has one kind of this timer"),
        "present": Note("QEMU cannot disable this timer", (True,), _is_off),
        "frequency": Note("only the timer tsc has it", asked=lambda timer: timer.name != "tsc"),
        "track": Note("only the timer rtc has it", asked=lambda timer: timer.name != "rtc"),
        **dict.fromkeys(("threshold", "slew", "limit"), Note("QEMU has no limits for catching up")),
        "tickpolicy": Note("only rtc and pit have it", asked=lambda timer: timer.name not in ("rtc", "pit")),
    },
    "DomainTPMDef": {
        "persistent_state": Note("pyhostdev start always keeps the state of the emulator", (True,)),
        **dict.fromkeys(
            ("pcr_sha1", "pcr_sha256", "pcr_sha384", "pcr_sha512"),
            Note("swtpm and the guest's firmware choose the banks"),
        ),
        **dict.fromkeys(
            ("debug", "profile_name", "profile_source", "profile_remove_disabled"),
            Note("pyhostdev start uses the emulator's defaults"),
        ),
    },
    "DomainAudioDef": dict.fromkeys(
        ("driver", "runtime_dir"), Note("pyhostdev start does not set an environment for sound")
    ),
    "ClockDef": _of_other_kinds("basis", "start"),
    "ChrSourceElement": _of_other_kinds("master", "slave", "clipboard_copypaste", "mouse_mode"),
    "DomainControllerDef": _of_other_kinds("max_grant_frames", "max_event_channels"),
    "StorageSource": _of_other_kinds("mode", "pool"),
    "DomainFSDef": _of_other_kinds("source_file", "source_dev", "source_name")
    | {"driver_format": Note("only an image has a format")},
    "GraphicsListen": {
        "network": Note("only type='network' has it", asked=lambda listen: bool(listen.type != "network"))
    },
    "SCSISource": _of_other_kinds("adapter", "bus", "target", "unit"),
    "USBSource": {
        "vendor_id": Note("the device is found by its address alone", asked=lambda usb: usb.bus is not None),
        "product_id": Note("the device is found by its address alone", asked=lambda usb: usb.bus is not None),
    },
    "CPUTuneDef": {
        name: Note(_NO_CGROUP)
        for name in (
            *("shares", "period", "quota", "global_period", "global_quota", "emulator_period", "emulator_quota"),
            *("iothread_period", "iothread_quota", "cachetune", "memorytune"),
        )
    }
    | {
        name: Note("pyhostdev start does not change the scheduler of a thread")
        for name in ("emulatorsched", "vcpusched", "iothreadsched")
    },
    "CPUFeature": {
        "policy": Note(
            "the guest's CPU has the flag if its model has it",
            ("force", "require", "disable", "forbid"),
            asked=lambda feature: feature.policy == "optional",
        )
    },
    "CPUDef": {
        "mode": Note(
            "the guest gets the host's CPU without the flags that prevent migration, not a named model",
            ("custom", "host-passthrough", "maximum"),
        ),
        "check": Note("pyhostdev start does not compare the guest's CPU with the definition", ("none",)),
        "deprecated_features": Note("only processors of s390x have such features", ()),
        "match": Note("pyhostdev start does not compare the host's processor with it", ("exact",)),
        "vendor": Note("pyhostdev start does not compare the host's processor with it"),
    },
    "FeaturesDef": {
        "msrs_unknown": Note("the kernel module kvm decides for all guests", ("fault",)),
        "viridian": Note("only Xen has it; QEMU has <hyperv>"),
        "privnet": Note("only containers have it"),
        "xen": Note("only Xen has it"),
        "hap": Note("the kernel module kvm decides for all guests"),
        "hap_state": Note("as <hap>"),
    },
    "MemoryBackingDef": {"discard": Note("memory without a file is freed at the end of the guest anyway")},
    "NumaCell": {"discard": Note("memory without a file is freed at the end of the guest anyway")},
    "DeviceInfo": {"boot_loadparm": Note("only machines of s390x have it")},
    "DomainMemballoonDef": {"stats_period": Note("pyhostdev start does not ask the balloon for statistics")},
    "NetSource": {"ip": Note("pyhostdev start does not set an address on the host's side")},
    "DomainNetDef": {
        "bandwidth": Note("pyhostdev start does not limit traffic"),
        "coalesce": Note("pyhostdev start leaves the host's side as the kernel made it"),
        "trust_guest_rx_filters": Note(
            "pyhostdev start does not apply the guest's receive filters to the host",
            asked=lambda net: net.type != "hostdev",  # for a virtual function it is the trust that start sets on its PF
        ),
        "sndbuf": Note("only a tap has it", asked=_has_no_tap),
        "source": Note("QEMU's user-mode network has no source on the host", asked=_is_slirp),
        **{
            name: Note("only passt has it", asked=_is_not_passt)
            for name in ("port_forwards", "backend_log", "backend_hostname", "backend_fqdn")
        },
        **{
            name: Note(_NOT_VIRTIO, asked=_is_not_virtio_net)
            for name in ("txmode", "ioeventfd", "event_idx", "rx_queue_size", "tx_queue_size", "rss")
        },
        "rss_hash_report": Note(_NOT_VIRTIO, asked=_is_not_virtio_net),
    },
    "DomainDiskDef": {
        "iotune": Note("pyhostdev start does not limit disks"),
        "rawio": Note("QEMU gets no privilege; the device node decides which commands an ordinary user may send"),
        "backend_domain": Note("only Xen has disks of another guest"),
        "histograms": Note("pyhostdev start does not ask QEMU for histograms"),
        "tray": Note("every tray is closed at the start", ("closed",)),
    }
    | {
        name: Note(_NOT_VIRTIO, asked=_is_not_virtio)
        for name in ("ioeventfd", "event_idx", "iothread", "queues", "queue_size")
    },
    "DomainGraphicsDef": {
        "fullscreen": Note("QEMU's window decides it"),
        "wait": Note("QEMU 11.1 does not wait for a viewer"),
        **{
            name: Note(_NOT_SPICE, asked=_is_not_spice)
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
    "DomainHostdevDef": {"shareable": Note("QEMU does not query it from a SCSI unit")},
    "DomainVideoDef": {
        "heads": Note("this video card has one screen", (1,), _has_one_screen),
        "ram": Note("only a qxl card has it", asked=_is_not_qxl),
        "vram64": Note("only a qxl card has it", asked=_is_not_qxl),
        "vgamem": Note("only a qxl card has it", asked=_is_not_qxl),
    },
}


def _is_tap(net: Any) -> bool:
    """True unless the interface is a host device: then the plan asks for consent instead."""
    return bool(net.type != "hostdev")


def _is_confined(definition: Any) -> bool:
    """True if a label is fixed; one that libvirt generates is what it gives to a domain without <seclabel>, too."""
    labels = parse_elements(definition.seclabel)
    return any(label.get("type") == "static" and label.get("model") != "dac" for label in labels)


def _has_label(definition: Any) -> bool:
    labels = parse_elements(definition.seclabel)
    return not _is_confined(definition) and any(label.get("type") != "none" for label in labels)


def _needs_own_bus(graphics: Any) -> bool:
    return bool(graphics.type == "dbus" and not graphics.p2p and graphics.address is None)


def _needs_helper(source: Any) -> bool:
    return bool(source.reservations.managed)


def _is_labelled(source: Any) -> bool:
    labels = parse_elements(source.seclabel)
    return any(label.get("relabel") != "no" and label.get("labelskip") != "yes" for label in labels)


# definition -> field -> why start refuses it
REFUSED_BY_START: dict[str, dict[str, Note]] = {
    "DomainFields": {
        "seclabel": Note("pyhostdev start does not confine guests with a security module", asked=_is_confined),
        "lease": Note("it needs libvirt's lock manager"),
    },
    "VcpuDef": {
        "hotpluggable": Note("pyhostdev start does not plug virtual CPUs", asked=lambda vcpu: bool(vcpu.enabled))
    },
    "StorageSource": {
        "seclabel": Note("pyhostdev start does not label images", asked=_is_labelled),
        "reservations": Note("pyhostdev start does not run qemu-pr-helper", asked=_needs_helper),
        **{
            name: Note("only nbdkit has it, which pyhostdev start does not run")
            for name in ("identity_keyfile", "identity_agent", "known_hosts")
        },
    },
    "DomainDiskDef": {"transient": Note("pyhostdev start does not create overlays of images")},
    "ChrSourceElement": {"seclabel": Note("pyhostdev start does not label files", asked=_is_labelled)},
    "DomainTPMDef": {"encryption_secret": Note("pyhostdev start does not have a store of secrets")},
    "DomainGraphicsDef": {"type": Note("pyhostdev start does not start a message bus", asked=_needs_own_bus)},
    "DomainFSDef": {
        "uid_map": Note("pyhostdev start does not map ids"),
        "gid_map": Note("pyhostdev start does not map ids"),
    },
    "DomainNetDef": {
        "routes": Note("a guest learns its routes from QEMU or passt, which have the host's"),
        "vlan": Note("pyhostdev start does not set a VLAN", asked=_is_tap),
        "virtualport": Note("pyhostdev start does not set a virtual port", asked=_is_tap),
        "filterref": Note("it needs libvirt's network filter driver"),
        "script": Note("pyhostdev start does not run the script of an interface"),
        "downscript": Note("pyhostdev start does not run the script of an interface"),
    },
}


def start_findings(dom: DomainDef) -> list[Finding]:
    """
    Return the findings about fields that do not reach the command line: a note if ignored, an error if refused.

    Args:
        dom: as the user wrote it, before defaults are filled in: a default is not a request.
    """
    return [*_words(dom), *_unassigned_findings(dom), *namespace_findings(dom), *bypass_findings(dom)]


def _words(definition: ElementDef) -> Iterator[Finding]:
    for kind in type(definition).__mro__:
        for name, word in REFUSED_BY_START.get(kind.__name__, {}).items():
            if word.applies_to(definition, name):
                message = f"{_place(definition, name)} is not supported: {word.why}"
                yield Finding("unsupported", ERROR, None, message, definition.line_of(name))
        for name, word in IGNORED.get(kind.__name__, {}).items():
            if word.applies_to(definition, name):
                message = f"{_place(definition, name)} is ignored: {word.why}"
                yield Finding("ignored", NOTE, None, message, definition.line_of(name))
    for part in nested_definitions(definition):
        yield from _words(part)


def _place(definition: ElementDef, name: str) -> str:
    """Return the place of a field in the XML, for a message."""
    field = type(definition).declared()[name]
    element = [definition.tag, *field.path][-1]
    place = f"<{element}>" if element else "a device"
    return f"'{field.leaf}' of {place}" if field.leaf else place


def _unassigned_findings(dom: DomainDef) -> Iterator[Finding]:
    """Yield a note for each guest-side element of a function that is not assigned."""
    for hostdev in dom.pci_hostdevs():
        info = hostdev.info
        said: dict[str, list[object]] = {
            "<boot>": [info.boot_order],
            "<rom>": [info.rom_file, info.rom_enabled, info.rom_bar],
            "<acpi>": [info.acpi_index],
            "<teaming>": [hostdev.teaming_type],
        }
        for word in (w for w, values in said.items() if any(v is not None for v in values) and not hostdev.is_assigned):
            message = f"{word} of <hostdev> is ignored: device {hostdev.pci_address} is not assigned to the guest"
            yield Finding("ignored", NOTE, hostdev.pci_address, message, hostdev.line)
