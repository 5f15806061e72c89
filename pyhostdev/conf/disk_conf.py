# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Disks of a domain.

Mirrors: virDomainDiskDef (src/conf/domain_conf.h)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.device_conf import DeviceInfo
from pyhostdev.conf.storage_source_conf import (
    IMAGE_FORMATS,
    SOURCE_TYPES,
    BackingStoreDef,
    StorageAuth,
    StorageEncryption,
    StorageSource,
)
from pyhostdev.conf.virtio_conf import VIRTIO_MODELS, VirtioOptions
from pyhostdev.conf.xml.xmlcodec import big_number, enum, number, on_off, positive, size_unit, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import (
    Elements,
    attribute,
    content,
    elements,
    flag,
    ignored,
    inline,
    opaque,
    optional_element,
)
from pyhostdev.errors import VIR_ERR_CONFIG_UNSUPPORTED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.vcpu_conf import MappedIOThread
    from pyhostdev.conf.xml.xmlfield import Field
    from pyhostdev.util.pciaddress import PCIDeviceAddress

DISK_BUSES = ("ide", "fdc", "scsi", "virtio", "xen", "usb", "uml", "sata", "sd")
_DISK_NAME = r"(?:fd|hd|vd|sd|xvd|ubd)([a-z]{1,6})[0-9]*"
_NVME_NAME = r"nvme([0-9]{1,6})n([0-9]{1,6})(?:p[0-9]+)?"


class DiskStatistics(ElementDef):
    """An interval over which QEMU counts a disk's requests, in seconds."""

    tag = "statistic"

    interval = attribute("interval", positive)


class IOTuneDef(ElementDef):
    """I/O limits of a disk, in bytes and operations per second."""

    tag = "iotune"

    total_bytes_sec = content("total_bytes_sec", big_number)
    read_bytes_sec = content("read_bytes_sec", big_number)
    write_bytes_sec = content("write_bytes_sec", big_number)
    total_iops_sec = content("total_iops_sec", big_number)
    read_iops_sec = content("read_iops_sec", big_number)
    write_iops_sec = content("write_iops_sec", big_number)
    total_bytes_sec_max = content("total_bytes_sec_max", big_number)
    read_bytes_sec_max = content("read_bytes_sec_max", big_number)
    write_bytes_sec_max = content("write_bytes_sec_max", big_number)
    total_iops_sec_max = content("total_iops_sec_max", big_number)
    read_iops_sec_max = content("read_iops_sec_max", big_number)
    write_iops_sec_max = content("write_iops_sec_max", big_number)
    size_iops_sec = content("size_iops_sec", big_number)
    group_name = content("group_name")
    total_bytes_sec_max_length = content("total_bytes_sec_max_length", big_number)
    read_bytes_sec_max_length = content("read_bytes_sec_max_length", big_number)
    write_bytes_sec_max_length = content("write_bytes_sec_max_length", big_number)
    total_iops_sec_max_length = content("total_iops_sec_max_length", big_number)
    read_iops_sec_max_length = content("read_iops_sec_max_length", big_number)
    write_iops_sec_max_length = content("write_iops_sec_max_length", big_number)

    def limits(self) -> dict[str, int]:
        """Return the limits that are set; QEMU's monitor and libvirt use the same names."""
        names = (name for name, field in self.declared().items() if field.name != "group_name")
        return {name: value for name in names if (value := getattr(self, name))}


class ThrottleGroupDef(IOTuneDef):
    """
    Limits that disks share through their filters.

    Mirrors: virDomainThrottleGroupDef (src/conf/domain_conf.h)
    """

    tag = "throttlegroup"

    @classmethod
    def declared(cls) -> dict[str, Field[Any]]:
        """Return the fields, with the name last."""
        fields = dict(super().declared())
        fields["group_name"] = fields.pop("group_name")
        return fields


class ThrottleFilterDef(ElementDef):
    """A filter of a disk, by the group whose limits it applies."""

    tag = "throttlefilter"

    group = attribute("group", required=True)


class DomainDiskDef(ElementDef):
    """A disk, cdrom, floppy or lun."""

    tag = "disk"

    type = attribute(
        "type",
        enum(*SOURCE_TYPES, since={"vhostvdpa": "disk-vdpa"}),
        default="file",
    )
    device = attribute("device", enum("disk", "cdrom", "floppy", "lun"), default="disk")
    model = attribute(
        "model", enum(*VIRTIO_MODELS, since={"usb-storage": "usb-disk-model", "usb-bot": "usb-disk-model"})
    )
    rawio = attribute("rawio", yes_no)
    sgio = attribute("sgio", enum("filtered", "unfiltered"))
    snapshot = attribute("snapshot", enum("no", "internal", "external", "manual"))
    driver_name = attribute("driver/@name")
    driver_type = attribute("driver/@type", enum(*IMAGE_FORMATS[1:]), code=VIR_ERR_CONFIG_UNSUPPORTED)
    cache = attribute(
        "driver/@cache",
        enum("default", "none", "writethrough", "writeback", "directsync", "unsafe"),
    )
    error_policy = attribute("driver/@error_policy", enum("stop", "report", "ignore", "enospace"))
    rerror_policy = attribute("driver/@rerror_policy", enum("stop", "report", "ignore", "enospace"))
    io = attribute("driver/@io", enum("native", "threads", "io_uring"))
    ioeventfd = attribute("driver/@ioeventfd", on_off)
    event_idx = attribute("driver/@event_idx", on_off)
    copy_on_read = attribute("driver/@copy_on_read", on_off)
    discard = attribute("driver/@discard", enum("unmap", "ignore"))
    discard_no_unref = attribute("driver/@discard_no_unref", on_off, since="disk-discard")
    iothread = attribute("driver/@iothread", positive)
    detect_zeroes = attribute("driver/@detect_zeroes", enum("off", "on", "unmap"))
    queues = attribute("driver/@queues", number)
    queue_size = attribute("driver/@queue_size", number)
    iothread_mapping: Elements[MappedIOThread] = elements(
        "driver/iothreads/iothread", "vcpu_conf.MappedIOThread", since="iothread-mapping"
    )
    metadata_cache = content("driver/metadata_cache/max_size", big_number)
    metadata_cache_unit = attribute("driver/metadata_cache/max_size/@unit", size_unit)
    statistics = elements("driver/statistics/statistic", DiskStatistics, since="disk-statistics")
    histograms = opaque("driver/statistics/latency-histogram", for_host=True, since="disk-statistics")
    virtio = inline(VirtioOptions)
    auth = optional_element("auth", StorageAuth)
    source = optional_element("source", StorageSource)
    backing_store = optional_element("backingStore", BackingStoreDef)
    backend_domain = attribute("backenddomain/@name")
    cyls = attribute("geometry/@cyls", number)
    heads = attribute("geometry/@heads", number)
    secs = attribute("geometry/@secs", number)
    trans = attribute("geometry/@trans", enum("none", "auto", "lba"))
    logical_block_size = attribute("blockio/@logical_block_size", number)
    physical_block_size = attribute("blockio/@physical_block_size", number)
    discard_granularity = attribute("blockio/@discard_granularity", number, since="disk-discard")
    mirror = ignored("mirror")  # of a running guest
    target = attribute("target/@dev")
    bus = attribute("target/@bus", enum(*DISK_BUSES, since={"nvme": "nvme-bus"}))
    tray = attribute("target/@tray", enum("open", "closed"))
    removable = attribute("target/@removable", on_off)
    rotation_rate = attribute("target/@rotation_rate", number)
    dpofua = attribute("target/@dpofua", on_off, since="disk-dpofua")
    iotune = optional_element("iotune", IOTuneDef)
    throttle_filters = elements("throttlefilters/throttlefilter", ThrottleFilterDef, since="disk-throttle")
    readonly = flag("readonly")
    shareable = flag("shareable")
    transient = flag("transient")
    transient_share = attribute("transient/@shareBacking", yes_no)
    serial = content("serial")
    wwn = content("wwn")
    vendor = content("vendor")
    product = content("product")
    encryption = optional_element("encryption", StorageEncryption)
    info = inline(DeviceInfo)

    @property
    def is_empty(self) -> bool:
        """True if there is no medium."""
        source = self.source
        if source is None or self.type in ("nvme", "vhostuser"):
            return source is None
        if self.type == "network":
            return source.protocol is None
        wanted = {"file": source.file, "block": source.dev, "dir": source.dir, "volume": source.volume}
        wanted["vhostvdpa"] = source.dev
        return not wanted.get(self.type)

    def images(self) -> Iterator[tuple[str | None, StorageSource]]:
        """Yield type and source of each image of the disk from the top down, each followed by its data store."""
        kind, source, below = self.type, self.source, self.backing_store
        while True:
            if source is not None:
                yield kind, source
                store = source.data_store
                if store is not None and store.source is not None:
                    yield store.type, store.source
            if below is None or below.type is None:
                return
            kind, source, below = below.type, below.source, below.backing_store

    def nvme_sources(self) -> Iterator[StorageSource]:
        """
        Yield the images of the disk that are namespaces of the host's NVMe controllers, from the top down.

        Mirrors: virStorageSourceChainHasNVMe (src/conf/storage_source_conf.c)
        """
        return (source for kind, source in self.images() if kind == "nvme" and source.address is not None)

    def nvme_controllers(self) -> set[PCIDeviceAddress]:
        """Return the host's functions below the disk."""
        return {source.address.pci for source in self.nvme_sources() if source.address is not None}

    def nvme_place(self) -> tuple[int, int] | None:
        """
        Return the controller and the unit of an NVMe name, which counts namespaces from 1: 0 and 0 for ``nvme0n1``.

        Mirrors: virDiskNameParse (src/util/virutil.c)
        """
        match = re.fullmatch(_NVME_NAME, self.target or "", re.ASCII)
        if match is None or int(match[2]) < 1:
            return None
        return int(match[1]), int(match[2]) - 1

    def name_index(self) -> int:
        """
        Return the index of a target name, 0 for ``vda``; -1 if the name is invalid.

        Mirrors: virDiskNameToIndex (src/util/virutil.c)
        """
        match = re.fullmatch(_DISK_NAME, self.target or "", re.ASCII)
        if match is None:
            return -1
        index = 0
        for letter in match[1]:
            index = index * 26 + ord(letter) - ord("a") + 1
        return index - 1
