# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a definition can say and we do not put on a command line.

Every field of every definition is either built, or in one of these two tables; a test holds us to that.
So nothing that a user wrote is ever left out without a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.xmldef import ElementDef
from pyhostdev.qemu.qemu_command_builder import unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.errors import ConfigUnsupportedError

# definition -> field -> the values that change nothing, besides absence
REFUSED: dict[str, dict[str, tuple[object, ...]]] = {
    "DomainDef": {
        "bootloader": (),
        "bootloader_args": (),
        "tpms": (),
        "iommufds": (),
    },
    "OSDef": {
        "loader_format": ("raw",),
        "nvram_format": ("raw",),
        "firmware_features": (),
        "init": (),
        "init_arguments": (),
        "init_dir": (),
        "init_user": (),
        "init_group": (),
        "root": (),
        "bios_useserial": (False,),
    },
    "NumaTuneDef": {"mode": (), "nodeset": (), "placement": (), "memnodes": ()},
    "ClockTimer": {"threshold": (), "slew": (), "limit": ()},
    "FeaturesDef": {
        "viridian": (),
        "privnet": (),
                "msrs_unknown": (),
        "async_teardown": (False,),
    },
    "CPUDef": {"maxphysaddr_mode": (), "maxphysaddr_bits": ()},
    "MemoryBackingDef": {"allocation_threads": ()},
    "DomainChrDef": {"target_address": ()},
    "DomainSmartcardDef": {"certificates": (), "database": ()},
    "StorageSource": {"tls_hostname": (), "volume": (), "dir": (), "startup_policy": ("mandatory",)},
    "DomainDiskDef": {"rawio": (False,), "sgio": ("filtered",), "tray": ("closed",)},
    "DomainFSDef": {"driver_format": (), "queue": (), "source_socket": (), "space_soft_limit": ()},
    "DomainNetDef": {
        "guest_dev": (),
        "link_state": ("up",),
        "script": (),
        "downscript": (),
        "trust_guest_rx_filters": (False,),
    },
    "DomainGraphicsDef": {
        "default_mode": ("any",),
        "fullscreen": (False,),
        "multi_user": (),
        "replace_user": (),
        "p2p": (),
        "passwd_valid_to": (),
    },
    "DomainVideoDef": {"accel2d": (False,), "rendernode": ()},
    "DomainAudioDef": {"try_mmap": (), "exclusive": (), "dsp_policy": ()},
    "HostdevSource": {"startup_policy": ("mandatory",)},
    "DomainHostdevDef": {"rawio": (), "sgio": (), "iommufd": (False,)},
    "DomainVsockDef": {"cid_auto": (False,)},
}

# definition -> fields that QEMU is not told: what they mean happens elsewhere, is said by other
# fields, or belongs to a kind of device that is refused as a whole
HARMLESS: dict[str, tuple[str, ...]] = {
    "DomainDef": (
        "title",
        "description",
        "current_memory",  # the balloon's, once the guest runs
        "numatune",  # refused by its parts
        "hard_limit",  # of the process, as are its neighbours
        "soft_limit",
        "min_guarantee",
        "swap_hard_limit",
        "vcpu_placement",
        "vcpu_cpuset",
        "on_poweroff",  # who runs the guest acts on events
        "on_reboot",
        "on_crash",
        "on_lockfailure",
        "hostdevs",  # asked for by guest_visible_hostdevs()
    ),
    "OSDef": ("boots", "nvram_template", "nvram_template_format", "loader_stateless"),
    "InitArgument": ("value",),
    "FirmwareFeature": ("enabled",),
    "ClockDef": ("basis", "timezone", "start"),
    "CPUDef": ("check", "fallback", "cache_level"),
    "FeaturesDef": ("pae", "hap", "hap_state", "hpt_maxpagesize_unit", "tcg_tb_cache_unit"),
    "SizeDef": ("value",),
    "NumaMemNode": ("cellid",),
    "DeviceInfo": ("boot_loadparm",),  # of s390x only
    "PCIGuestAddress": ("domain",),
    "CCWAddress": ("cssid", "ssid", "devno"),
    "ChrSourceElement": ("slave",),
    "DomainChrDef": ("target_state",),
    "DomainTPMDef": ("backend_version", "persistent_state", "device_path", "encryption_secret", "backend_sources"),
    "DomainMemoryDef": (
        "source_path",
        "source_pagesize_unit",
        "source_alignsize",
        "source_alignsize_unit",
        "target_size",
        "target_size_unit",
        "target_label_size",
        "target_label_size_unit",
        "target_block",
        "target_block_unit",
        "target_requested",
        "target_requested_unit",
    ),
    "DomainMemballoonDef": ("stats_period",),  # asked of the running guest
    "DomainInputDef": ("source_dev", "source_grab", "source_repeat", "source_grab_toggle"),
    "DomainShmemDef": ("server_path", "msi_enabled", "msi_vectors", "msi_ioeventfd"),
    "DomainControllerDef": ("max_grant_frames", "max_event_channels"),
    "StorageSource": ("managed", "namespace"),
    "DomainFSDef": ("source_file", "source_dev", "source_name"),
    "DomainGraphicsDef": ("autoport", "websocket_generated", "connected"),
    "DomainVideoDef": ("primary", "device"),  # which one it is follows from the model; another is refused
    "DomainIOMMUDef": ("granule_unit",),
    "IOMMUFDDef": ("fdgroup",),
    "PCISource": ("domain", "foreign"),
    "NetHostdevSource": ("address_type",),
    "USBSource": ("product_id",),
    "SCSISource": ("adapter",),
    "DomainHostdevDef": ("managed", "driver_model"),  # how the host's side is prepared
    "NetSource": ("portgroup", "portid", "managed", "local_address", "local_port"),  # who opens the tap connects it
    "DomainNetDef": ("managed", "mac_type", "mac_check", "ifname", "target_managed", "port_isolated"),
    "DomainHostdevNetDef": ("host_source",),
}


def unbuilt_errors(dom: DomainDef) -> list[ConfigUnsupportedError]:
    """Return an error for each field of a definition that is not built, with its line."""
    return list(_unbuilt(dom))


def _unbuilt(definition: ElementDef) -> Iterator[ConfigUnsupportedError]:
    for kind in type(definition).__mro__:
        for name, harmless in REFUSED.get(kind.__name__, {}).items():
            value = getattr(definition, name)
            if value not in (None, False, [], *harmless):
                yield _error(definition, name, value)
    for part in _parts(definition):
        yield from _unbuilt(part)


def _parts(definition: ElementDef) -> Iterator[ElementDef]:
    """Yield the definitions within one: those that share its element, and those of elements below."""
    table = definition.table()
    for name in (*table.embedded, *(row.field.name for row in table.rows if row.owner is None)):
        value = getattr(definition, name)
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, ElementDef):
                yield part


def _error(definition: ElementDef, name: str, value: Any) -> ConfigUnsupportedError:
    where = value[0] if isinstance(value, list) and isinstance(value[0], ElementDef) else definition
    tag = f"<{definition.tag}>" if definition.tag else "the device"
    return unsupported(f"'{name.replace('_', ' ')}' of {tag}", where)
