# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The supported libvirt releases, and one table of all differences between them.

A release is a value that callers pass on. Code asks it for a row by name and never compares versions. What the
emulator supports is decided by its capabilities: a row never prints what the emulator lacks. ``since`` is the first of
``RELEASES`` with the behaviour, according to their recorded answers; for words without a recording, to their grammars.
"""

from __future__ import annotations

from pyhostdev.errors import ConfigError
from pyhostdev.util.typed import NamedTuple


class Change(NamedTuple):
    """One difference: the first release that has it, and the observed behaviour."""

    since: tuple[int, int]
    what: str


_11_3 = (11, 3)
_12_8 = (12, 8)

CHANGES: dict[str, Change] = {
    "memory-size-in-kib": Change(_11_3, "-m size=1048576k instead of -m 1024"),
    "machine-acpi": Change(_11_3, "acpi=on|off in -machine, at its end, instead of -no-acpi"),
    "machine-hpet": Change(_11_3, "hpet=off in -machine, before acpi=, instead of -no-hpet"),
    "added-controllers-sorted": Change(_11_3, "added controllers are printed among those of their type, by index"),
    "itco-watchdog": Change(_11_3, "the watchdog of q35 is added to the XML, and may reboot the guest"),
    "raw-image-one-node": Change(_11_3, "a raw image has no format node, and its storage node has read-only"),
    "storage-cache-last": Change(_11_3, "cache of a storage node after auto-read-only and discard"),
    "hostdev-driver-model": Change(_11_3, "<driver model=> of a host device is kept"),
    "vfio-variants": Change(_11_3, "a managed device gets the best VFIO driver of modules.alias; was vfio-pci"),
    "attribute-number": Change(_11_3, "27 for invalid values of hostdev's mode and type, and of address types; was 67"),
    "mdev-uuid-number": Change(_12_8, "27 for a mediated device's missing or wrong uuid; was 67 or 1"),
    "disk-queue-size": Change(_11_3, "67 for queue_size of a disk that is not on virtio"),
    "port-number": Change(_12_8, "27 for an invalid port of VNC; was 1"),
    "ib700-machine": Change(_11_3, "67 for the watchdog ib700 of a machine other than i440fx"),
    "one-listen": Change(_12_8, "67 for several <listen> of one <graphics>"),
    "blank-metadata": Change(_11_3, "empty <metadata> is not printed"),
    "net-source-number": Change(_11_3, "67 for an interface of type hostdev without <source>; was 27"),
    "memory-slots": Change(_11_3, "<maxMemory> without NUMA cells, or without slots; 67 or 27 before"),
    "several-watchdogs": Change(_11_3, "more than one <watchdog>; 1 before"),
    "usb-nets": Change(_11_3, "an interface of model usb-net is a USB device; 1 before"),
    "usb-ports-of-xhci": Change(_12_8, "67 for ports= of a USB controller that is not XHCI; argv refused them before"),
    "default-spinlocks": Change(_12_8, "<spinlocks> of <hyperv> without retries; 27 before"),
    "video-device": Change(_12_8, "<model device=> of a virtio video"),
    "controller-mem-reserve": Change(_11_3, "<target memReserve=> of a PCI controller"),
    "acpi-needs-machine": Change(_11_3, "67 for <acpi/> on a machine without ACPI"),
    "pci-hostdev-display": Change(
        _11_3, "display and ramfb of a PCI host device; 67 for display='on' without graphics"
    ),
    "sheepdog-is-gone": Change(_11_3, "67 for a disk of protocol sheepdog"),
    "pvpanic-pci": Change(_11_3, "<panic model='pvpanic'>, a PCI device"),
    "pstore": Change(_11_3, "<pstore>, memory of the guest for its last messages"),
    "iommu-defaults": Change(
        _11_3, "interrupt remapping adds <ioapic driver='qemu'/>; more than 255 vCPUs add an IOMMU"
    ),
    "iommu-dma-translation": Change(_11_3, "<driver dma_translation=> of an IOMMU"),
    "machine-iommu-first": Change(_11_3, "iommu=smmuv3 before dump-guest-core in -machine"),
    "cpu-clusters": Change(_11_3, "<topology clusters='1'>"),
    "firmware-in-definition": Change(_11_3, "the definition says which firmware was chosen; 9.0 chooses at start"),
    "firmware-and-loader": Change(_11_3, "<os firmware=> with a <loader>; 35 before"),
    "audio-pipewire": Change(_11_3, "<audio type='pipewire'>"),
    "tpm-source": Change(_11_3, "<source> of a TPM's emulator"),
    "tpm-profile": Change(_11_3, "<profile> and debug= of a TPM's emulator"),
    "virtiofs-readonly": Change(_11_3, "<readonly/> of a file system by virtiofs; 67 before"),
    "virtiofs-idmap": Change(_11_3, "<idmap>, <openfiles> and <cache mode='metadata'> of virtiofs"),
    "fs-readonly-on": Change(_12_8, "readonly=on of -fsdev; was readonly"),
    "hv-crash-on": Change(_12_8, "hv-crash=on in -cpu; was hv-crash"),
    "cpu-address-limit": Change(_11_3, "<maxphysaddr limit=>"),
    "iothread-poll": Change(_11_3, "<poll> of an <iothread>"),
    "iothread-mapping": Change(_11_3, "<iothreads> of a disk's or SCSI controller's <driver>"),
    "feature-ps2": Change(_11_3, "<ps2 state=> of <features>; 67 before"),
    "feature-ras": Change(_11_3, "<ras state=> of <features>; 67 before"),
    "memory-target-words": Change(_11_3, "<target dynamicMemslots=> of a <memory>"),
    "passt-names": Change(_12_8, "hostname and fqdn of <backend type='passt'>; 67 for another backend"),
    "route-to-all": Change(_12_8, "a <route> without an address is the default route; 27 before"),
    "hyperv-newer": Change(_11_3, "<emsr_bitmap>, <xmm_input> and the parts of <tlbflush>; 67 before"),
    "accel3d-anywhere": Change(_12_8, "3D acceleration of a video that is not virtio is accepted; 67 before"),
    "usb-disk-model": Change(_12_8, "<disk model=> of a USB disk is named, and a CD on USB is a SCSI drive"),
    "nvme-bus": Change(_12_8, "disks on the bus nvme"),
    "word-numbers": Change(
        _11_3, "27 for unknown models of watchdog, video and random numbers, protocols, actions and ports; was 67 or 1"
    ),
    "spice-unix-on": Change(_11_3, "-spice unix=on instead of unix"),
    "nvram-template": Change(_11_3, "<nvram template=> of a firmware that libvirt knows by its path"),
    "template-format-always": Change(_12_8, "<nvram templateFormat=> of firmware that no descriptor knows"),
    "firmware-format": Change(_11_3, "<loader format=>, <nvram format= templateFormat=>"),
    "several-iommus": Change(_12_8, "more than one <iommu>; 27 before"),
    "amd-iommu": Change(_12_8, "<iommu model='amd'> with xtsup and passthrough"),
    "smmuv3-options": Change(_12_8, "<driver pciBus=> and the rest of <iommu model='smmuv3'>"),
    "iommu-granule": Change(_12_8, "<granule> of <iommu model='virtio'>"),
    "iommu-after-controllers": Change(_12_8, "intel-iommu and virtio-iommu behind the controllers"),
    "iommufd": Change(_12_8, "<driver iommufd=> of a host device, <iommufd> of a domain, and the object iommufd"),
    "pci-needs-machine": Change(_12_8, "67 for a PCI controller in a machine without PCI"),
    "acpi-nodeset": Change(_12_8, "<acpi nodeset=>, an acpi-generic-initiator for each node"),
    "numa-cells-without-memory": Change(_12_8, "a NUMA cell of size 0 has no memory backend"),
    "unknown-machine-number": Change(_12_8, "1 for a PCI device in an unknown machine; was 27"),
    "reconnect-in-ms": Change(_11_3, "reconnect-ms of vhost-user, and of a -netdev that leads to passt"),
    "direct-shim": Change(_12_8, "<shim> of a kernel that is booted directly"),
    "disk-words": Change(_11_3, "<identity> and <reconnect delay=> of a network disk"),
    "disk-ssh": Change(_11_3, "<identity username=> and <knownHosts> of an ssh disk"),
    "disk-discard": Change(_11_3, "<driver discard_no_unref=> and <blockio discard_granularity=> of a disk"),
    "disk-vdpa": Change(_11_3, "<disk type='vhostvdpa'>"),
    "disk-data-store": Change(_11_3, "<dataStore> of a qcow2 image"),
    "disk-throttle": Change(_11_3, "<throttlegroups>, and <throttlefilters> of a disk"),
    "throttle-discard": Change(_12_8, "discard=unmap of a throttle filter"),
    "disk-dpofua": Change(_12_8, "<target dpofua=> of a SCSI disk"),
    "disk-idle-words": Change(_12_8, "67 for the <blockio> of a lun, and for tray='closed' of a disk without a tray"),
    "disk-statistics": Change(_12_8, "<statistics> of a disk's <driver>"),
    "disk-migrate-reservations": Change(_12_8, "<reservations migration=> of a lun"),
    "feature-async-teardown": Change(_11_3, "<async-teardown enabled=> of <features>; 67 before"),
    "hyperv-dependencies": Change(_12_8, "67 for a Hyper-V feature without those that it needs"),
    "hyperv-host-model": Change(_12_8, "<hyperv mode='host-model'>"),
    "firmware-varstore": Change(_12_8, "<varstore> of firmware whose variables QEMU keeps as JSON"),
    "shares-unbounded": Change(_11_3, "any number of <shares> of <cputune>; 67 before"),
    "chardev-protocols": Change(_11_3, "67 for <protocol type='tls'> of a character device"),
    "restrictive-memnode": Change(_11_3, "27 for a restrictive <memnode> where <memory> is not"),
    "luks-any": Change(_11_3, "<encryption format='luks-any'>"),
    "disk-product": Change(_11_3, "<product> of a SATA or IDE disk, and removable SCSI disks; 67 or 27 before"),
    "lun-needs-scsi": Change(_11_3, "67 for a lun on the bus virtio"),
    "shmem-sizes": Change(_11_3, "27 for shared memory of a size other than a power of two from 1 MiB on"),
    "port-forward-rule": Change(_11_3, "67 for <portForward> without passt"),
    "vhostuser-memory": Change(_11_3, "67 for a vhostuser <interface> with passt without shared memory"),
    "fs-mtp": Change(_11_3, "<driver type='mtp'> of a file system, a USB device"),
    "fs-limits": Change(_11_3, "67 for limits of a file system"),
    "vnc-wait": Change(_12_8, "<graphics type='vnc' wait=>"),
    "hostdev-scsi-model": Change(
        _12_8, "the SCSI controller added for a host device has the model of the others; was the last needed model"
    ),
    "cpu-deprecated-features": Change(_11_3, "<cpu deprecated_features=>"),
    "usb-order": Change(_11_3, "ports of USB devices in the order of the definition's kinds"),
    "usb-empty-disk": Change(_11_3, "67 for an empty disk on USB; from 12.8 on only of model usb-storage"),
    "console-ports": Change(_11_3, "the ports of consoles count the one of the first serial port"),
    "crypto": Change(_11_3, "<crypto>"),
    "rom-format": Change(_12_8, "<loader format=> of firmware whose <loader> has type='rom'"),
    "backing-detect-zeroes": Change(_11_3, "detect-zeroes of a backing image, too"),
    "hwuuid": Change(_12_8, "<hwuuid>, the UUID that the guest sees"),
    "poll-weight": Change(_12_8, "<poll weight=> of an I/O thread"),
    "fs-handle-is-gone": Change(_12_8, "67 for <driver type='handle'> of a file system"),
    "launch-snp": Change(_11_3, "<launchSecurity type='sev-snp'>"),
    "launch-tdx": Change(_12_8, "<launchSecurity type='tdx'>"),
    "passt-backend": Change(_11_3, "<backend type='passt'>"),
    "acpi-tables": Change(_11_3, "<table type='raw'> of <acpi>, and more than one table"),
    "virtio-sound": Change(_11_3, "<sound model='virtio'>"),
    "sound-words": Change(_11_3, "<sound multichannel=>"),
    "video-blob": Change(_11_3, "<model blob=> of a video"),
    "video-edid": Change(_12_8, "<model edid=> of a video"),
    "monitor-object": Change(_12_8, "-object monitor-qmp instead of -mon"),
}


class LibvirtRelease(NamedTuple):
    """A release, ordered by version, with the QEMU release that Debian ships with it."""

    version: tuple[int, int]
    qemu: str

    def __str__(self) -> str:
        return ".".join(map(str, self.version))

    def has(self, change: str) -> bool:
        """
        Return True if the release has the behaviour of a row of ``CHANGES``.

        Raises:
            KeyError: the row does not exist.
        """
        return CHANGES[change].since <= self.version

    @classmethod
    def since(cls, change: str) -> LibvirtRelease:
        """Return the first release that has the behaviour of a row of ``CHANGES``."""
        return next(release for release in RELEASES if release.has(change))

    @classmethod
    def parse(cls, text: str) -> LibvirtRelease:
        """
        Return the release of a version: 12.8, or 12.8.0.

        Raises:
            ConfigError: the release is not supported.
        """
        found = next((release for release in RELEASES if text in (str(release), f"{release}.0")), None)
        if found is None:
            known = ", ".join(map(str, RELEASES))
            raise ConfigError(f"libvirt release {text!a} is not supported: expected one of {known}")
        return found

    @classmethod
    def nearest(cls, version: tuple[int, int]) -> LibvirtRelease:
        """Return the newest known release that is not newer than a version; the oldest if all of them are."""
        return max((release for release in RELEASES if release.version <= version), default=RELEASES[0])


RELEASES = (
    LibvirtRelease((9, 0), "7.2"),  # Debian 12
    LibvirtRelease(_11_3, "10.0"),  # Debian 13
    LibvirtRelease(_12_8, "11.1"),  # Debian forky
)
DEFAULT_RELEASE = RELEASES[-1]
