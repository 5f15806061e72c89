# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The fields of a domain's XML, and facts derived from them alone.

Mirrors: virDomainDef (src/conf/domain_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pyhostdev.conf.hostdev_conf import DomainHostdevDef
from pyhostdev.conf.os_conf import DomainMemorySize, MaxMemorySize, MemoryBackingDef, NumaTuneDef, OSDef, SizeDef
from pyhostdev.conf.xml.xmlcodec import Codec, cpuset, enum, name_text, number, unsigned, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import (
    DefaultElement,
    Elements,
    OptionalElement,
    attribute,
    content,
    element_or_default,
    elements,
    opaque,
    optional_element,
)
from pyhostdev.errors import (
    VIR_ERR_CONFIG_UNSUPPORTED,
    VIR_ERR_INTERNAL_ERROR,
    VIR_ERR_INVALID_ARG,
    VIR_ERR_NO_NAME,
    VIR_ERR_XML_ERROR,
)
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.viruuid import normal_uuid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.board_conf import (
        DomainHubDef,
        DomainMemoryDef,
        DomainNVRAMDef,
        DomainPanicDef,
        DomainPstoreDef,
        DomainTPMDef,
        DomainWatchdogDef,
    )
    from pyhostdev.conf.chr_conf import (
        DomainChannelDef,
        DomainConsoleDef,
        DomainParallelDef,
        DomainRedirdevDef,
        DomainSerialDef,
        DomainSmartcardDef,
        RedirFilterUSBDev,
    )
    from pyhostdev.conf.clock_conf import ClockDef
    from pyhostdev.conf.controller_conf import DomainControllerDef
    from pyhostdev.conf.cpu_conf import CPUDef
    from pyhostdev.conf.device_conf import DeviceInfo
    from pyhostdev.conf.disk_conf import DomainDiskDef, ThrottleGroupDef
    from pyhostdev.conf.features_conf import FeaturesDef
    from pyhostdev.conf.fs_conf import DomainFSDef
    from pyhostdev.conf.graphics_conf import (
        DomainAudioDef,
        DomainGraphicsDef,
        DomainSoundDef,
        DomainVideoDef,
    )
    from pyhostdev.conf.launch_security_conf import LaunchSecurityDef
    from pyhostdev.conf.net_conf import DomainNetDef
    from pyhostdev.conf.os_conf import IOMMUFDDef
    from pyhostdev.conf.rng_conf import DomainRNGDef
    from pyhostdev.conf.small_device_conf import (
        DomainCryptoDef,
        DomainInputDef,
        DomainIOMMUDef,
        DomainShmemDef,
        DomainVsockDef,
    )
    from pyhostdev.conf.sysinfo_conf import SysinfoDef
    from pyhostdev.conf.vcpu_conf import CPUTuneDef, DefaultIOThread, IOThreadDef, VcpuDef
    from pyhostdev.conf.virtio_conf import DomainMemballoonDef


uuid_text = Codec(normal_uuid, str, "32 hexadecimal digits", code=VIR_ERR_INTERNAL_ERROR)


def _parse_genid(text: str) -> str:
    """Return an id in libvirt's spelling; empty text stays empty: libvirt generates the id."""
    return normal_uuid(text) if text else ""


genid_text = Codec(_parse_genid, str, "32 hexadecimal digits", code=VIR_ERR_INTERNAL_ERROR)
VIRT_TYPES = (
    "qemu",
    "kqemu",
    "kvm",
    "xen",
    "lxc",
    "uml",
    "openvz",
    "test",
    "vmware",
    "hyperv",
    "vbox",
    "phyp",
    "parallels",
    "bhyve",
    "vz",
    "hvf",
)
LIFECYCLE_ACTIONS = ("destroy", "restart", "rename-restart", "preserve")
CRASH_ACTIONS = (*LIFECYCLE_ACTIONS, "coredump-destroy", "coredump-restart")


class DomainFields(ElementDef):
    """
    The fields of a domain, see ``DomainDef``.

    ``parse`` is pure: it knows neither the host nor the emulator, and fills in no defaults.

    Mirrors: virDomainDef (src/conf/domain_conf.h)
    """

    tag = "domain"
    _devices: ClassVar[list[str]]  # of this class, once it was asked for them

    type = attribute(
        "type", enum(*VIRT_TYPES), code=VIR_ERR_CONFIG_UNSUPPORTED, missing=VIR_ERR_INTERNAL_ERROR, required=True
    )
    id = attribute("id", number, lenient=True)
    name = content("name", name_text, required=True, code=VIR_ERR_NO_NAME)
    uuid = content("uuid", uuid_text)
    hwuuid = content("hwuuid", uuid_text, since="hwuuid")
    genid = content("genid", genid_text, keeps_empty=True)
    title = content("title")
    description = content("description")
    metadata = opaque("metadata", for_host=True)
    max_memory = optional_element("maxMemory", MaxMemorySize)
    memory = element_or_default("memory", DomainMemorySize)
    current_memory = optional_element("currentMemory", SizeDef)
    blkiotune = opaque("blkiotune", for_host=True)
    hard_limit = optional_element("memtune/hard_limit", SizeDef)
    soft_limit = optional_element("memtune/soft_limit", SizeDef)
    min_guarantee = optional_element("memtune/min_guarantee", SizeDef)
    swap_hard_limit = optional_element("memtune/swap_hard_limit", SizeDef)
    memory_backing = element_or_default("memoryBacking", MemoryBackingDef)
    vcpus = content("vcpu", unsigned(minimum=1, code=VIR_ERR_INVALID_ARG), default=1, keeps_empty=True)
    vcpu_placement = attribute("vcpu/@placement", enum("static", "auto"), lenient=True)
    vcpu_cpuset = attribute("vcpu/@cpuset", cpuset)
    vcpu_current = attribute("vcpu/@current", number)
    vcpu_list: Elements[VcpuDef] = elements("vcpus/vcpu", "vcpu_conf.VcpuDef")
    iothreads = content("iothreads", number)
    iothread_ids: Elements[IOThreadDef] = elements("iothreadids/iothread", "vcpu_conf.IOThreadDef")
    default_iothread: OptionalElement[DefaultIOThread] = optional_element(
        "defaultiothread", "vcpu_conf.DefaultIOThread"
    )
    throttle_groups: Elements[ThrottleGroupDef] = elements(
        "throttlegroups/throttlegroup", "disk_conf.ThrottleGroupDef", since="disk-throttle"
    )
    cputune: OptionalElement[CPUTuneDef] = optional_element("cputune", "vcpu_conf.CPUTuneDef")
    numatune = element_or_default("numatune", NumaTuneDef, second=VIR_ERR_XML_ERROR)
    resource = opaque("resource", for_host=True, second=VIR_ERR_XML_ERROR)
    sysinfos: Elements[SysinfoDef] = elements("sysinfo", "sysinfo_conf.SysinfoDef")
    bootloader = content("bootloader")
    bootloader_args = content("bootloader_args")
    iommufds: Elements[IOMMUFDDef] = elements("iommufd", "os_conf.IOMMUFDDef", since="iommufd")
    os = element_or_default("os", OSDef)
    idmap = opaque("idmap", for_host=True)
    features: DefaultElement[FeaturesDef] = element_or_default("features", "features_conf.FeaturesDef")
    cpu: OptionalElement[CPUDef] = optional_element("cpu", "cpu_conf.CPUDef")
    clock: OptionalElement[ClockDef] = optional_element("clock", "clock_conf.ClockDef")
    on_poweroff = content("on_poweroff", enum(*LIFECYCLE_ACTIONS), code=VIR_ERR_CONFIG_UNSUPPORTED)
    on_reboot = content("on_reboot", enum(*LIFECYCLE_ACTIONS), code=VIR_ERR_CONFIG_UNSUPPORTED)
    on_crash = content("on_crash", enum(*CRASH_ACTIONS), code=VIR_ERR_CONFIG_UNSUPPORTED)
    on_lockfailure = content(
        "on_lockfailure", enum("poweroff", "restart", "pause", "ignore"), code=VIR_ERR_CONFIG_UNSUPPORTED
    )
    suspend_to_mem = attribute("pm/suspend-to-mem/@enabled", yes_no)
    suspend_to_disk = attribute("pm/suspend-to-disk/@enabled", yes_no)
    perf = opaque("perf", for_host=True)
    emulator = content("devices/emulator")
    disks: Elements[DomainDiskDef] = elements("devices/disk", "disk_conf.DomainDiskDef")
    controllers: Elements[DomainControllerDef] = elements("devices/controller", "controller_conf.DomainControllerDef")
    lease = opaque("devices/lease", for_host=True)
    filesystems: Elements[DomainFSDef] = elements("devices/filesystem", "fs_conf.DomainFSDef")
    interfaces: Elements[DomainNetDef] = elements("devices/interface", "net_conf.DomainNetDef")
    smartcards: Elements[DomainSmartcardDef] = elements("devices/smartcard", "chr_conf.DomainSmartcardDef")
    serials: Elements[DomainSerialDef] = elements("devices/serial", "chr_conf.DomainSerialDef")
    parallels: Elements[DomainParallelDef] = elements("devices/parallel", "chr_conf.DomainParallelDef")
    consoles: Elements[DomainConsoleDef] = elements("devices/console", "chr_conf.DomainConsoleDef")
    channels: Elements[DomainChannelDef] = elements("devices/channel", "chr_conf.DomainChannelDef")
    inputs: Elements[DomainInputDef] = elements("devices/input", "small_device_conf.DomainInputDef")
    tpms: Elements[DomainTPMDef] = elements("devices/tpm", "board_conf.DomainTPMDef")
    graphics: Elements[DomainGraphicsDef] = elements("devices/graphics", "graphics_conf.DomainGraphicsDef")
    sounds: Elements[DomainSoundDef] = elements("devices/sound", "graphics_conf.DomainSoundDef")
    audios: Elements[DomainAudioDef] = elements("devices/audio", "graphics_conf.DomainAudioDef")
    videos: Elements[DomainVideoDef] = elements("devices/video", "graphics_conf.DomainVideoDef")
    hostdevs = elements("devices/hostdev", DomainHostdevDef)
    redirdevs: Elements[DomainRedirdevDef] = elements("devices/redirdev", "chr_conf.DomainRedirdevDef")
    redirfilter: Elements[RedirFilterUSBDev] = elements("devices/redirfilter/usbdev", "chr_conf.RedirFilterUSBDev")
    hubs: Elements[DomainHubDef] = elements("devices/hub", "board_conf.DomainHubDef")
    watchdogs: Elements[DomainWatchdogDef] = elements("devices/watchdog", "board_conf.DomainWatchdogDef")
    memballoon: OptionalElement[DomainMemballoonDef] = optional_element(
        "devices/memballoon", "virtio_conf.DomainMemballoonDef", second=VIR_ERR_INTERNAL_ERROR
    )
    rngs: Elements[DomainRNGDef] = elements("devices/rng", "rng_conf.DomainRNGDef")
    nvram: OptionalElement[DomainNVRAMDef] = optional_element(
        "devices/nvram", "board_conf.DomainNVRAMDef", second=VIR_ERR_INTERNAL_ERROR
    )
    panics: Elements[DomainPanicDef] = elements("devices/panic", "board_conf.DomainPanicDef")
    shmems: Elements[DomainShmemDef] = elements("devices/shmem", "small_device_conf.DomainShmemDef")
    memories: Elements[DomainMemoryDef] = elements("devices/memory", "board_conf.DomainMemoryDef")
    cryptos: Elements[DomainCryptoDef] = elements("devices/crypto", "small_device_conf.DomainCryptoDef", since="crypto")
    iommus: Elements[DomainIOMMUDef] = elements("devices/iommu", "small_device_conf.DomainIOMMUDef")
    vsock: OptionalElement[DomainVsockDef] = optional_element(
        "devices/vsock", "small_device_conf.DomainVsockDef", second=VIR_ERR_XML_ERROR
    )
    pstore: OptionalElement[DomainPstoreDef] = optional_element(
        "devices/pstore", "board_conf.DomainPstoreDef", since="pstore", second=VIR_ERR_XML_ERROR
    )
    seclabel = opaque("seclabel", for_host=True)
    keywrap = opaque("keywrap")
    launch_security: OptionalElement[LaunchSecurityDef] = optional_element(
        "launchSecurity", "launch_security_conf.LaunchSecurityDef"
    )

    @property
    def memory_kib(self) -> int:
        """Memory at start, in KiB."""
        return self.memory.kib

    @property
    def current_memory_kib(self) -> int:
        """The memory that the balloon leaves to the guest, in KiB."""
        return self.current_memory.kib if self.current_memory is not None else self.memory_kib

    @property
    def max_memory_kib(self) -> int | None:
        """The maximum memory with hot-plug, in KiB; None without hot-plug."""
        return self.max_memory.kib if self.max_memory is not None else None

    @property
    def has_memory_hotplug(self) -> bool:
        """True when memory can be plugged in; that needs NUMA cells. Mirrors: virDomainDefHasMemoryHotplug"""
        return self.max_memory is not None and bool(self.max_memory.slots or self.max_memory.kib)

    @property
    def memtune_hard_limit_kib(self) -> int | None:
        """The hard limit of the emulator's memory, in KiB; None without one."""
        return self.hard_limit.kib if self.hard_limit is not None else None

    @property
    def memory_locked(self) -> bool:
        """True if the guest's memory is locked."""
        return self.memory_backing.locked

    def all_hostdevs(self) -> list[DomainHostdevDef]:
        """
        Return the host devices of all types, in libvirt's order: interfaces of type hostdev come first, and those that
        a network's pool gives come last.

        Mirrors: the hostdevs of virDomainDef, filled by the parser and qemuProcessNetworkPrepareDevices
        """
        nets = [(net.is_from_pool, net.hostdev) for net in self.interfaces if net.hostdev is not None]
        last = [hostdev for is_from_pool, hostdev in nets if is_from_pool]
        return [hostdev for is_from_pool, hostdev in nets if not is_from_pool] + self.hostdevs + last

    def pci_hostdevs(self) -> list[DomainHostdevDef]:
        """Return all PCI host devices, in the order of all_hostdevs()."""
        return [hostdev for hostdev in self.all_hostdevs() if hostdev.is_pci]

    def nvme_hostdevs(self) -> list[DomainHostdevDef]:
        """
        Return the NVMe controllers under the disks, each once, as host devices that the guest itself does not see.

        Mirrors: virHostdevGetNVMeDeviceList (src/hypervisor/virhostdev.c)
        """
        found: dict[PCIDeviceAddress, DomainHostdevDef] = {}
        for disk in self.disks:
            for source in disk.nvme_sources():
                assert source.address is not None
                made = DomainHostdevDef.for_pci(source.address.pci, managed=source.managed is not False)
                made.line = source.line
                hostdev = found.setdefault(source.address.pci, made)
                hostdev.nvme_disks = tuple(dict.fromkeys((*hostdev.nvme_disks, str(disk.target))))
        return list(found.values())

    def host_functions(self) -> list[DomainHostdevDef]:
        """
        Return all PCI functions that the domain takes from the host: the controllers of NVMe disks, then host devices.

        Mirrors: qemuHostdevPrepareDomainDevices (src/qemu/qemu_hostdev.c)
        """
        return [*self.nvme_hostdevs(), *self.pci_hostdevs()]

    def guest_visible_hostdevs(self) -> list[DomainHostdevDef]:
        """Return the assigned host devices of all types, in the order of all_hostdevs()."""
        return [hostdev for hostdev in self.all_hostdevs() if hostdev.is_assigned]

    def uses_iommufd(self, hostdev: DomainHostdevDef) -> bool:
        """
        Return True if a PCI host device uses iommufd: by its own setting, or else by the domain's.

        QEMU reaches the controller of an NVMe disk by its group only.
        """
        if not hostdev.is_pci or hostdev.nvme_disks:
            return False
        own = hostdev.host_driver.iommufd
        return any(row.enabled for row in self.iommufds) if own is None else own

    @property
    def iommufd_fdgroup(self) -> str | None:
        """The name of the descriptor group in which the caller passes ``/dev/iommu``; None without one."""
        return next((row.fdgroup for row in self.iommufds if row.fdgroup is not None), None)

    def needs_iommufd(self) -> bool:
        """Return True if QEMU needs the object iommufd: for a host device, or for a passed descriptor."""
        return self.iommufd_fdgroup is not None or any(map(self.uses_iommufd, self.pci_hostdevs()))

    def guest_pci_addresses(self) -> set[PCIDeviceAddress]:
        """Return the guest addresses of all devices except host devices."""
        hostdevs = {id(net.hostdev.info) for net in self.interfaces if net.hostdev is not None}
        infos = (info for _, info in self._infos_but("hostdevs") if id(info) not in hostdevs)
        return {info.pci.pci for info in infos if info.pci is not None}

    def devices(self) -> list[ElementDef]:
        """Return all devices in the order of printing."""
        return [device for _, devices in self._by_field() for device in devices]

    def _by_field(self) -> Iterator[tuple[str, list[Any]]]:
        """Yield the name of each field with devices, in the order of printing, and the devices."""
        for name in self._device_fields():
            value = getattr(self, name)
            if isinstance(value, ElementDef):
                yield name, [value]
            elif value and isinstance(value, list):
                yield name, value

    @classmethod
    def _device_fields(cls) -> list[str]:
        """Return the names of the fields below <devices>, in the order of printing; they are looked up once."""
        found: list[str] | None = vars(cls).get("_devices")
        if found is None:
            found = cls._devices = [name for name, field in cls.declared().items() if field.path[:1] == ("devices",)]
        return found

    def device_infos(self) -> list[tuple[ElementDef, DeviceInfo]]:
        """
        Return every device that has a DeviceInfo, with it.

        Mirrors: virDomainDeviceInfoIterate (src/conf/domain_conf.c)
        """
        return self._infos_but(None)

    def _infos_but(self, left_out: str | None) -> list[tuple[ElementDef, DeviceInfo]]:
        """Return the devices that have a DeviceInfo of their own, with it, except those of one field."""
        found: list[tuple[ElementDef, DeviceInfo]] = []
        for name, devices in self._by_field():
            if name == left_out or not hasattr(devices[0], "info"):  # the devices of a field are alike
                continue
            if name == "consoles":
                devices = [console for console in devices if not console.mirrors_serial]
            found += [(device, device.info) for device in devices]
        return found

    def format_lines(self, tag: str, indent: str = "", *, always: bool = True) -> list[str]:
        """Return the lines of the domain; a console that is a serial port is printed as that port."""
        for console in self.consoles[:1]:
            if console.mirrors_serial and self.serials:
                port = self.serials[0]
                console.source, console.info = port.source.copy(), port.info.copy()
                console.target_port = port.target_port
        return super().format_lines(tag, indent, always=always)

    def has_guest_iommu(self) -> bool:
        """Return True if the guest has a virtual IOMMU, with an address space per device."""
        return bool(self.iommus)

    @property
    def iommu(self) -> DomainIOMMUDef | None:
        """The first virtual IOMMU of the guest, None without one."""
        return next(iter(self.iommus), None)

    def guest_address_space(self, address: PCIDeviceAddress | str) -> PCIDeviceAddress:
        """
        Return the requester address that a guest device uses for DMA, as the guest's IOMMU sees it.

        It is the device's address; behind a conventional bridge, it is the first address of the topmost conventional
        bus.
        """
        from pyhostdev.conf.controller_conf import CONVENTIONAL_BRIDGES

        bridges = {controller.index: controller for controller in self.controllers if controller.type == "pci"}
        address = PCIDeviceAddress.of(address)
        space, bus, seen = address, address.bus, set[int]()
        while bus in bridges and bus not in seen:
            seen.add(bus)
            if bridges[bus].model in CONVENTIONAL_BRIDGES:
                space = PCIDeviceAddress(address.domain, bus, 0, 0)
            above = bridges[bus].info.pci
            bus = bus if above is None else above.bus
        return space
