# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line of a domain in each libvirt release; properties that its emulator lacks are not printed."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pyhostdev import ConfigError, ConfigUnsupportedError, DomainDef, XMLError
from pyhostdev.conf.libvirt_release import RELEASES, LibvirtRelease
from pyhostdev.qemu import build_command_line, define
from pyhostdev.qemu.qemu_capabilities import STORED, QEMUCapabilities, load

R9_0, R11_3, R12_8 = RELEASES
DOMAIN = """
<domain type='qemu'><name>d</name><memory unit='MiB'>1024</memory>{head}
  <os><type arch='{arch}' machine='{machine}'>hvm</type></os><devices>{devices}</devices></domain>
"""


def domain(devices: str = "", head: str = "", arch: str = "x86_64", machine: str = "q35") -> DomainDef:
    return DomainDef.parse(DOMAIN.format(devices=devices, head=head, arch=arch, machine=machine))


def argv(dom: DomainDef, release: LibvirtRelease, qemu: str | None = None) -> list[str]:
    """The command line as a release with its QEMU, or with another one, has it."""
    return build_command_line(dom, load(str(dom.os.arch), qemu or release.qemu), release=release)


def value(args: list[str], option: str) -> str:
    return args[args.index(option) + 1]


@pytest.mark.parametrize(
    ("release", "machine"),
    [(R9_0, "pc-q35-7.2"), (R11_3, "pc-q35-10.0"), (R12_8, "pc-q35-11.1")],
    ids=str,
)
def test_each_release_comes_with_its_qemu(release: LibvirtRelease, machine: str) -> None:
    """An alias means the newest machine of the QEMU beside the release, where no capabilities are given."""
    assert value(build_command_line(domain(), release=release), "-machine").startswith(f"{machine},")


@pytest.mark.parametrize(("release", "size"), [(R9_0, "1024"), (R11_3, "size=1048576k"), (R12_8, "size=1048576k")])
def test_memory_size(release: LibvirtRelease, size: str) -> None:
    """9.0 says MiB, later releases KiB with a unit."""
    assert size == value(argv(domain(), release), "-m")


@pytest.mark.parametrize(
    ("release", "qemu", "option", "where"),
    [
        (R9_0, "7.2", True, ""),
        (R11_3, "10.0", False, ",acpi=off"),
        (R12_8, "11.1", False, ",acpi=off"),
        (R11_3, "7.2", False, ",acpi=off"),
        (R9_0, "10.0", False, ",acpi=off"),
        (R9_0, "11.1", False, ",acpi=off"),
    ],
)
def test_acpi_is_switched_where_the_emulator_can(release: LibvirtRelease, qemu: str, option: bool, where: str) -> None:
    """QEMU since 9.0 has no -no-acpi, whatever the libvirt; later libvirts name the state in -machine always."""
    args = argv(domain(), release, qemu)
    assert (option, where) == ("-no-acpi" in args, value(args, "-machine").partition("pc.ram")[2])
    assert "-no-acpi" not in argv(domain(head="<features><acpi/></features>"), release, qemu)


def test_pseries_has_no_acpi_to_switch() -> None:
    """A machine without the option gets no ACPI option."""
    for release in RELEASES:
        args = argv(domain(arch="ppc64", machine="pseries"), release)
        assert "acpi" not in value(args, "-machine")
        assert "-no-acpi" not in args


@pytest.mark.parametrize(
    ("release", "machine"), [(R9_0, ""), (R11_3, ",hpet=off,acpi=on"), (R12_8, ",hpet=off,acpi=on")]
)
def test_hpet_is_switched_before_acpi(release: LibvirtRelease, machine: str) -> None:
    """9.0 has an option of its own for the absent timer."""
    head = "<features><acpi/></features><clock offset='utc'><timer name='hpet' present='no'/></clock>"
    args = argv(domain(head=head), release)
    assert (not machine, machine) == ("-no-hpet" in args, value(args, "-machine").partition("pc.ram")[2])


@pytest.mark.parametrize(
    ("release", "qemu", "is_object"),
    [(R9_0, "7.2", False), (R11_3, "11.1", False), (R12_8, "11.1", True), (R12_8, "10.0", False)],
)
def test_monitor_is_an_object_where_both_know_it(release: LibvirtRelease, qemu: str, is_object: bool) -> None:
    """The object is of libvirt 12.8 and of QEMU 11.1; without one of them the option stays."""
    args = argv(domain(), release, qemu)
    assert (is_object, not is_object) == ('"qom-type":"monitor-qmp"' in "".join(args), "-mon" in args)


def controllers(dom: DomainDef, release: LibvirtRelease) -> list[tuple[str, int | None]]:
    defined = define(dom, load(str(dom.os.arch or "x86_64"), release.qemu), release=release)
    return [(controller.type, controller.index) for controller in defined.controllers]


def test_added_controllers_stand_among_their_type() -> None:
    """9.0 adds at the end; later releases put a controller before the first of its type with a larger index."""
    dom = domain("<controller type='pci' index='2' model='pcie-root-port'/><controller type='usb' model='none'/>")
    first = [("pci", 2), ("usb", 0), ("sata", 0), ("pci", 0), ("pci", 1)]
    later = [("pci", 0), ("pci", 1), ("pci", 2), ("usb", 0), ("sata", 0)]
    assert [first, later, later] == [controllers(dom, release) for release in RELEASES]


@pytest.mark.parametrize(
    ("machine", "devices", "expected"),
    [
        ("q35", "", [("itco", "reset")]),
        ("q35", "<watchdog model='i6300esb' action='dump'/>", [("i6300esb", "dump"), ("itco", "dump")]),
        ("q35", "<watchdog model='itco' action='pause'/>", [("itco", "pause")]),
        ("pc", "", []),
    ],
)
def test_the_chipset_has_a_watchdog(machine: str, devices: str, expected: list[tuple[str, str]]) -> None:
    """q35's own watchdog is in the definition since 11.3, has the action of the others, and is enabled once."""
    dom = domain(devices, machine=machine)
    for release in (R11_3, R12_8):
        defined = define(dom, load("x86_64", release.qemu), release=release)
        assert expected == [(watchdog.model, watchdog.action) for watchdog in defined.watchdogs]
        args = argv(dom, release)
        assert args.count("ICH9-LPC.noreboot=off") == args.count("-watchdog-action") == len(expected[-1:])
    if "itco" not in devices:
        assert "ICH9-LPC.noreboot=off" not in argv(dom, R9_0)


DISK = (
    "<disk type='file' device='disk'><driver name='qemu' type='{}' cache='none' discard='unmap'/>"
    "<source file='/d'/><target dev='vda' bus='virtio'/></disk>"
)


def blockdevs(args: list[str]) -> list[dict[str, Any]]:
    return [json.loads(value) for option, value in pairwise(args) if option == "-blockdev"]


def test_a_raw_image_is_one_node() -> None:
    """Since 11.3 the storage node of a raw image is what the device reads; other formats keep two nodes."""
    two = ["libvirt-1-storage", "libvirt-1-format"]
    for release, image, nodes in ((R9_0, "raw", two), (R11_3, "raw", two[:1]), (R12_8, "qcow2", two)):
        args = argv(domain(DISK.format(image)), release)
        assert nodes == [node["node-name"] for node in blockdevs(args)]
        assert f'"drive":"{nodes[-1]}"' in "".join(args)
    (node,) = blockdevs(argv(domain(DISK.format("raw")), R12_8))
    cache = {"direct": True, "no-flush": False}
    assert {"read-only": False, "discard": "unmap", "cache": cache} == {key: node[key] for key in list(node)[-3:]}


def test_variables_of_firmware_are_one_node() -> None:
    """The firmware itself keeps its format node, its variables have none since 11.3."""
    loader = "<loader readonly='yes' type='pflash'>/code</loader><nvram>/vars</nvram>"
    dom = domain(head="<features><acpi/></features>")
    dom = DomainDef.parse(dom.format().replace("</os>", f"{loader}</os>"))
    for release, last in ((R9_0, "libvirt-pflash1-format"), (R11_3, "libvirt-pflash1-storage")):
        args = argv(dom, release)
        assert last == blockdevs(args)[-1]["node-name"]
        assert f"pflash0=libvirt-pflash0-format,pflash1={last}" in value(args, "-machine")


@pytest.mark.parametrize(
    ("machine", "arch", "expected"),
    [("q35", "x86_64", ["virtio-vga", "virtio-gpu"]), ("virt", "aarch64", ["virtio-gpu", "virtio-gpu"])],
)
def test_a_virtio_video_names_its_device(machine: str, arch: str, expected: list[str]) -> None:
    """Since 12.8 the definition says which device a virtio video is; before, the word is dropped."""
    videos = "<video><model type='virtio'/></video>" * 2
    for release, named in ((R11_3, [None, None]), (R12_8, expected)):
        defined = define(domain(videos, arch=arch, machine=machine), load(arch, release.qemu), release=release)
        assert named == [video.device for video in defined.videos]


def test_the_guests_iommu_follows_the_pci_controllers() -> None:
    """It came first until 11.3, since it has to be there before the devices behind it."""
    head = "<features><ioapic driver='qemu'/></features>"
    iommu = "<iommu model='intel'><driver intremap='on'/></iommu>"
    ports = "<controller type='pci' index='1' model='pcie-root-port'/>"
    found = []
    for release in RELEASES:
        args = argv(domain(iommu + ports, head), release)
        devices = [json.loads(value)["driver"] for option, value in pairwise(args) if option == "-device"]
        found.append(devices.index("intel-iommu") > devices.index("pcie-root-port"))
    assert [False, False, True] == found


TESTDATA = Path(__file__).parents[2] / "testdata"
CORPUS = sorted(path for path in TESTDATA.rglob("*.xml") if not path.name.endswith(".out.xml"))


# QEMU 7.2 aborts when it is asked about these without its OpenGL modules -> the device that has the same properties
ALIKE = {"virtio-vga-gl": "virtio-vga", "virtio-gpu-gl-pci": "virtio-gpu-pci"}


def option_values(args: list[str], option: str) -> list[dict[str, Any]]:
    """The JSON values of an option."""
    return [json.loads(value) for name, value in pairwise(args) if name == option and value.startswith("{")]


@pytest.mark.parametrize("release", RELEASES, ids=str)
def test_all_that_is_printed_is_a_property_of_the_emulator(release: LibvirtRelease) -> None:
    """In the whole corpus, each property of a device or an object was recorded from its QEMU."""
    printed = set()
    for path in CORPUS:
        try:
            dom = DomainDef.parse(path.read_bytes())
            args = build_command_line(dom, release=release, tap_fd=lambda _net: 3)
        except ConfigError:
            continue
        known = load(str(dom.os.arch or "x86_64"), release.qemu)
        for kind, words in (("driver", {"driver", "bus", "id"}), ("qom-type", {"qom-type", "id"})):
            for properties in option_values(args, "-device" if kind == "driver" else "-object"):
                found = known.properties_of(ALIKE.get(properties[kind], properties[kind]))
                assert set(properties) - words <= found, (path.name, properties)
                printed.add(properties[kind])
    assert len(printed) > 40


def changed_capabilities(kind: str, *missing: str) -> QEMUCapabilities:
    """The stored capabilities of QEMU 11.1 without some properties of a device or an object, or without it."""
    data = json.loads((Path(STORED) / "11.1/x86_64.json").read_text())
    if missing:
        data["properties"][kind] = sorted(set(data["properties"][kind]) - set(missing))
    data["objects"] = [name for name in data["objects"] if missing or name != kind]
    return QEMUCapabilities(data)


@pytest.mark.parametrize(
    ("kind", "missing", "said"),
    [
        ("vfio-pci", ["bootindex"], "The property 'bootindex' of 'vfio-pci', which QEMU 11.1.2 does not have"),
        ("pcie-root-port", ["chassis"], "The property 'chassis' of 'pcie-root-port', which QEMU 11.1.2"),
        ("secret", ["format"], "The property 'format' of 'secret', which QEMU 11.1.2 does not have"),
        ("secret", [], "The object 'secret', which QEMU 11.1.2 does not have"),
    ],
)
def test_a_property_that_the_emulator_lacks_is_refused(kind: str, missing: list[str], said: str) -> None:
    """Nothing that this QEMU does not have is printed; the error names the property and QEMU's version."""
    source = "<source><address domain='0' bus='1' slot='0' function='0'/></source><boot order='1'/>"
    dom = domain(f"<hostdev mode='subsystem' type='pci'>{source}</hostdev>")
    build_command_line(dom, changed_capabilities("vmcoreinfo"), release=R12_8)
    with pytest.raises(ConfigUnsupportedError, match=re.escape(said)):
        build_command_line(dom, changed_capabilities(kind, *missing), release=R12_8)


def test_a_property_that_libvirt_prints_and_qemu_dropped_is_refused() -> None:
    """QEMU 11.1 has no 'pt' of an AMD IOMMU: libvirt 12.8 prints it, and such a guest does not start."""
    with pytest.raises(ConfigUnsupportedError, match="The property 'pt' of 'amd-iommu', which QEMU 11"):
        argv(domain("<iommu model='amd'><driver passthrough='on'/></iommu>"), R12_8)


IOAPIC = "<features><acpi/><ioapic driver='qemu'/></features>"


@pytest.mark.parametrize(
    ("devices", "arch", "machine", "expected"),
    [
        (
            "<iommu model='amd'><driver intremap='on'/></iommu><iommu model='amd'/>",
            "x86_64",
            "q35",
            [
                {"driver": "AMDVI-PCI", "id": "iommu0", "bus": "pcie.0", "addr": "0x2"},
                {"driver": "amd-iommu", "pci-id": "iommu0", "intremap": "on"},
                {"driver": "AMDVI-PCI", "id": "iommu1", "bus": "pcie.0", "addr": "0x3"},
                {"driver": "amd-iommu", "pci-id": "iommu1"},
            ],
        ),
        (
            "<controller type='pci' index='1' model='pcie-expander-bus'/>"
            "<iommu model='smmuv3'><driver pciBus='1' accel='on' ats='off' oas='48'/></iommu>",
            "aarch64",
            "virt",
            [
                {
                    "driver": "arm-smmuv3",
                    "primary-bus": "pci.1",
                    "id": "iommu0",
                    "accel": True,
                    "ats": "off",
                    "oas": "48",
                }
            ],
        ),
        (
            "<iommu model='virtio'><driver><granule size='64' unit='KiB'/></driver></iommu>",
            "x86_64",
            "q35",
            [{"driver": "virtio-iommu", "id": "iommu0", "granule": "64k", "bus": "pcie.0", "addr": "0x2"}],
        ),
    ],
    ids=["amd", "smmuv3", "virtio"],
)
def test_iommus_of_12_8(devices: str, arch: str, machine: str, expected: list[dict[str, Any]]) -> None:
    """Several of them, AMD's as two devices, SMMUv3 behind one bus, virtio's with a granule."""
    head = IOAPIC if arch == "x86_64" else ""
    found = option_values(argv(domain(devices, head, arch, machine), R12_8), "-device")
    assert expected == [row for row in found if "iommu" in str(row.get("id", row.get("pci-id")))]


def test_an_older_libvirt_has_one_iommu() -> None:
    """Two IOMMUs are refused with 27 before 12.8."""
    dom = domain("<iommu model='intel'/><iommu model='intel'/>", IOAPIC)
    for release in (R9_0, R11_3):
        with pytest.raises(XMLError, match="only one IOMMU") as caught:
            argv(dom, release)
        assert 27 == caught.value.code_in(release)
    assert 2 == argv(dom, R12_8).count("-device") - argv(domain(head=IOAPIC), R12_8).count("-device")


def test_many_processors_bring_an_iommu() -> None:
    """Since 11.3 more than 255 processors get interrupt remapping with wide ids, and the I/O APIC that needs it."""
    dom = domain(head="<vcpu>256</vcpu>")
    defined = define(dom, load("x86_64", "10.0"), release=R11_3)
    (iommu,) = defined.iommus
    assert ("intel", True, True, "qemu") == (iommu.model, iommu.intremap, iommu.eim, defined.features.ioapic_driver)
    with pytest.raises(ConfigUnsupportedError, match="extended interrupt mode"):
        define(dom, load("x86_64"), release=R9_0)
    with pytest.raises(ConfigUnsupportedError, match="at most 255 processors"):
        argv(domain(head="<vcpu>256</vcpu>", machine="pc"), R11_3)


CELLS = "<cpu><numa><cell id='0' cpus='0' memory='1048576'/><cell id='1' memory='0'/></numa></cpu>"


def test_node_sets_and_cells_without_memory() -> None:
    """A node set is an object a node behind its device; a cell of size 0 has no backend."""
    source = "<source><address domain='0' bus='1' slot='0' function='0'/></source><acpi nodeset='0-1'/>"
    dom = domain(f"<hostdev mode='subsystem' type='pci'>{source}</hostdev>", CELLS)
    objects = option_values(argv(dom, R12_8), "-object")
    found = [(row["id"], row["pci-dev"], row["node"]) for row in objects if row["qom-type"] == "acpi-generic-initiator"]
    assert [("gi0", "hostdev0", 0), ("gi1", "hostdev0", 1)] == found
    assert "node,nodeid=1" in argv(dom, R12_8)
    assert "node,nodeid=1,memdev=ram-node1" in argv(dom, R11_3)
    assert "generic-initiator" not in "".join(argv(dom, R11_3))


def test_reserved_memory_of_a_port() -> None:
    """KiB in the definition, bytes on the command line; only root ports and bridges have it."""
    port = "<controller type='pci' index='1' model='{}'><target memReserve='8192'/></controller>"
    (found,) = (
        row
        for row in option_values(argv(domain(port.format("pcie-root-port")), R11_3), "-device")
        if row["id"] == "pci.1"
    )
    assert 8192 * 1024 == found["mem-reserve"]
    assert "mem-reserve" not in "".join(argv(domain(port.format("pcie-root-port")), R9_0))
    with pytest.raises(ConfigUnsupportedError, match="mem_reserve"):
        argv(domain(port.format("dmi-to-pci-bridge")), R11_3)


def test_acpi_needs_a_machine_that_has_it() -> None:
    """QEMU says which machines have ACPI since 8.0; libvirt 11.3 looks at that."""
    dom = domain(head="<features><acpi/></features>", arch="ppc64", machine="pseries")
    argv(dom, R9_0)
    argv(dom, R11_3, "7.2")
    with pytest.raises(ConfigUnsupportedError, match="does not support ACPI"):
        argv(dom, R11_3)


def test_cache_of_a_storage_node_comes_last() -> None:
    """Since 11.3 the cache of an image with a format follows the options that the node always has."""
    for release, last in ((R9_0, "discard"), (R11_3, "cache")):
        assert last == list(blockdevs(argv(domain(DISK.format("qcow2")), release))[0])[-1]


def test_iommufd_means_nothing_before_12_1() -> None:
    """11.3 drops the attributes, also with invalid values; 12.8 refuses invalid values."""
    source = "<source><address domain='0' bus='1' slot='0' function='0'/></source>"
    hostdev = "<hostdev mode='subsystem' type='pci'><driver iommufd='{}'/>{}</hostdev>"
    for word in ("yes", "maybe"):
        assert "iommufd" not in "".join(argv(domain(hostdev.format(word, source)), R11_3))
    with pytest.raises(XMLError, match="Invalid value 'maybe' of 'iommufd'"):
        argv(domain(hostdev.format("maybe", source)), R12_8)


def nvme_disk(target: str, serial: str = "") -> str:
    """A disk on the bus nvme."""
    name = f"<serial>{serial}</serial>" if serial else ""
    return f"<disk type='file'><source file='/a'/><target dev='{target}' bus='nvme'/>{name}</disk>"


def test_an_nvme_name_gives_the_controller_and_the_namespace() -> None:
    """nvme1n2 is namespace 2 of controller 1; an added controller has the serial number of its first disk."""
    dom = domain(nvme_disk("nvme0n1", "S0") + nvme_disk("nvme0n3") + nvme_disk("nvme1n2", "S1"))
    devices = option_values(argv(dom, R12_8), "-device")
    controllers = [(d["id"], d["serial"]) for d in devices if d["driver"] == "nvme"]
    spaces = [(d["bus"], d["nsid"], d["id"]) for d in devices if d["driver"] == "nvme-ns"]
    assert [("nvme0", "S0"), ("nvme1", "S1")] == controllers
    assert [("nvme0", 1, "nvme0-0-0"), ("nvme0", 3, "nvme0-0-2"), ("nvme1", 2, "nvme1-0-1")] == spaces


@pytest.mark.parametrize("target", ["nvme0", "nvme0n0", "nvmen1", "nvme0n1p1", "vda"])
def test_an_invalid_nvme_name_is_refused(target: str) -> None:
    """Names without a namespace, of a partition or of another bus."""
    with pytest.raises(ConfigError):
        argv(domain(nvme_disk(target, "S")), R12_8)


def test_an_nvme_controller_needs_a_serial_number() -> None:
    """QEMU has no default for it; older releases have no such bus."""
    with pytest.raises(XMLError, match="serial"):
        argv(domain(nvme_disk("nvme0n1")), R12_8)
    with pytest.raises(XMLError, match="nvme"):
        argv(domain(nvme_disk("nvme0n1", "S")), R11_3)
