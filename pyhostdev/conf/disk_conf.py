# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Disks and file systems.

Mirrors: virDomainDiskDef, virStorageSource, virDomainFSDef (src/conf/domain_conf.h)
"""

from __future__ import annotations

import re

from pyhostdev.conf.device_conf import DeviceInfo
from pyhostdev.conf.virtio_conf import VIRTIO_MODELS, VirtioOptions
from pyhostdev.conf.xml.xmlcodec import enum, number, on_off, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, child, children, content, embedded, flag, opaque

_DISK_NAME = r"(?:fd|hd|vd|sd|xvd|ubd)([a-z]{1,6})[0-9]*"


class StorageHost(ElementDef):
    """A server of a network disk."""

    tag = "host"

    transport = attribute("transport", enum("tcp", "unix", "rdma"))
    name = attribute("name")
    port = attribute("port", number)
    socket = attribute("socket")


class StorageSource(ElementDef):
    """
    Where a disk's content is.

    Mirrors: virStorageSource (src/conf/storage_source_conf.h)
    """

    tag = "source"

    file = attribute("file")
    dev = attribute("dev")
    dir = attribute("dir")
    pool = attribute("pool")
    volume = attribute("volume")
    mode = attribute("mode")
    protocol = attribute("protocol")
    name = attribute("name")
    query = attribute("query")
    tls = attribute("tls", yes_no)
    tls_hostname = attribute("tlsHostname")
    type = attribute("type")
    managed = attribute("managed", yes_no)
    namespace = attribute("namespace", number)
    path = attribute("path")
    startup_policy = attribute("startupPolicy", enum("mandatory", "requisite", "optional"))
    index = attribute("index", number)
    hosts = children("host", StorageHost)
    snapshot = attribute("snapshot/@name")
    config_file = attribute("config/@file")
    initiator = attribute("initiator/iqn/@name")
    auth = opaque("auth")
    encryption = opaque("encryption")
    reservations = opaque("reservations")
    slices = opaque("slices")
    ssl = opaque("ssl")
    cookies = opaque("cookies")
    readahead = opaque("readahead")
    timeout = opaque("timeout")
    address = opaque("address")
    seclabel = opaque("seclabel", for_host=True)


class DomainDiskDef(ElementDef):
    """A disk, cdrom, floppy or lun."""

    tag = "disk"

    type = attribute(
        "type",
        enum("file", "block", "dir", "network", "volume", "nvme", "vhostuser"),
        default="file",
    )
    device = attribute("device", enum("disk", "cdrom", "floppy", "lun"), default="disk")
    model = attribute("model", enum(*VIRTIO_MODELS))
    rawio = attribute("rawio", yes_no)
    sgio = attribute("sgio", enum("filtered", "unfiltered"))
    snapshot = attribute("snapshot", enum("no", "internal", "external", "manual"))
    driver_name = attribute("driver/@name")
    driver_type = attribute("driver/@type")
    cache = attribute(
        "driver/@cache",
        enum("default", "none", "writethrough", "writeback", "directsync", "unsafe"),
    )
    error_policy = attribute("driver/@error_policy", enum("stop", "report", "ignore", "enospace"))
    rerror_policy = attribute("driver/@rerror_policy", enum("stop", "report", "ignore"))
    io = attribute("driver/@io", enum("native", "threads", "io_uring"))
    ioeventfd = attribute("driver/@ioeventfd", on_off)
    event_idx = attribute("driver/@event_idx", on_off)
    copy_on_read = attribute("driver/@copy_on_read", on_off)
    discard = attribute("driver/@discard", enum("unmap", "ignore"))
    iothread = attribute("driver/@iothread", number)
    detect_zeroes = attribute("driver/@detect_zeroes", enum("off", "on", "unmap"))
    queues = attribute("driver/@queues", number)
    queue_size = attribute("driver/@queue_size", number)
    metadata_cache = opaque("driver/metadata_cache")
    virtio = embedded(VirtioOptions)
    auth = opaque("auth")
    source = child("source", StorageSource)
    backing_store = opaque("backingStore")
    backend_domain = attribute("backenddomain/@name")
    cyls = attribute("geometry/@cyls", number)
    heads = attribute("geometry/@heads", number)
    secs = attribute("geometry/@secs", number)
    trans = attribute("geometry/@trans", enum("none", "auto", "lba"))
    logical_block_size = attribute("blockio/@logical_block_size", number)
    physical_block_size = attribute("blockio/@physical_block_size", number)
    mirror = opaque("mirror")
    target = attribute("target/@dev")
    bus = attribute("target/@bus")
    tray = attribute("target/@tray", enum("open", "closed"))
    removable = attribute("target/@removable", on_off)
    rotation_rate = attribute("target/@rotation_rate", number)
    iotune = opaque("iotune")
    readonly = flag("readonly")
    shareable = flag("shareable")
    transient = opaque("transient")
    serial = content("serial")
    wwn = content("wwn")
    vendor = content("vendor")
    product = content("product")
    encryption = opaque("encryption")
    info = embedded(DeviceInfo)

    @property
    def is_empty(self) -> bool:
        """True when there is no medium."""
        source = self.source
        if source is None or self.type in ("nvme", "vhostuser"):
            return source is None
        if self.type == "network":
            return source.protocol is None
        wanted = {"file": source.file, "block": source.dev, "dir": source.dir, "volume": source.volume}
        return not wanted.get(self.type)

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
