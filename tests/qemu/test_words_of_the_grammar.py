# SPDX-License-Identifier: LGPL-2.1-or-later
# ruff: noqa: E501 - a row of a table is one line
"""Words of libvirt's domain grammar, one by one: what each becomes on the command line, and which are refused."""

from __future__ import annotations

import pytest

from pyhostdev import ConfigError, DomainDef
from pyhostdev.conf.libvirt_release import RELEASES, LibvirtRelease
from pyhostdev.qemu import build_command_line, define
from pyhostdev.qemu.qemu_command import stored_capabilities
from pyhostdev.qemu.qemu_command.ignored import start_findings

OLDEST, MIDDLE, NEWEST = RELEASES
DOMAIN = """<domain type='kvm'{space}><name>d</name><memory unit='GiB'>4</memory><vcpu>4</vcpu>{head}
<os{firmware}><type arch='x86_64' machine='{machine}'>hvm</type>{os}</os><features><acpi/><apic/>{features}</features>
<devices>{devices}{balloon}</devices></domain>"""
NONE = "<memballoon model='none'/>"
XHCI = "<controller type='usb' index='0' model='qemu-xhci'/>"
VNC = "<graphics type='vnc' port='5901' autoport='no'/>"
P2P = "<graphics type='dbus' p2p='yes'/>"
FILE = "<disk type='file' device='{0}'><driver name='qemu' type='{1}'{2}/><source file='/a'/><target dev='{3}' bus='{4}'/>{5}</disk>"
NETWORK = "<disk type='network'><driver name='qemu' type='raw'/><source {0}>{1}</source><target dev='vda' bus='virtio'/></disk>"
SOCKET = "<source mode='connect' path='/s'><reconnect enabled='{}' timeout='7'/></source>"
NUMA = "<maxMemory slots='8' unit='GiB'>16</maxMemory><cpu><numa><cell id='0' cpus='0-3' memory='4' unit='GiB'/></numa></cpu>"
SHARED = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
QEMU = " xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"


def domain(
    devices: str = "", *, head: str = "", os: str = "", features: str = "", machine: str = "q35", balloon: str = NONE
) -> str:
    space = QEMU if "<qemu:" in head else ""
    words = {"devices": devices, "head": head, "os": os, "features": features, "machine": machine, "balloon": balloon}
    return DOMAIN.format(space=space, firmware="", **words)


def argv(xml: str, release: LibvirtRelease = NEWEST) -> str:
    return " ".join(build_command_line(DomainDef.parse(xml), release=release))


def code_of(xml: str, release: LibvirtRelease) -> int | None:
    """Return libvirt's number of the refusal; None if the domain is accepted."""
    try:
        dom = DomainDef.parse(xml)
        define(dom, stored_capabilities(dom, release), release=release)
    except ConfigError as err:
        return err.code_in(release)
    return None


BUILT = {
    "virtio sound": (
        domain("<sound model='virtio'/>"),
        '"driver":"virtio-sound-pci","id":"sound0","audiodev":"audio1","streams":2',
    ),
    "sound of USB": (domain(XHCI + "<sound model='usb' multichannel='yes'/>"), '"audiodev":"audio1","multi":true'),
    "speaker": (domain("<sound model='pcspk'/>"), "memory-backend=pc.ram,pcspk-audiodev=audio1"),
    "VNC nowhere": (domain("<graphics type='vnc'><listen type='none'/></graphics>"), "-vnc none,audiodev=audio1"),
    "VNC socket": (domain("<graphics type='vnc'><listen type='socket'/></graphics>"), "/vnc.sock,audiodev=audio1"),
    "SPICE socket": (domain("<graphics type='spice'><listen type='socket'/></graphics>"), "-spice unix=on,addr="),
    "bus of its own": (domain("<graphics type='dbus'/>"), "/run/qemu/dbus/-1-d-dbus.sock"),
    "edid": (domain(VNC + "<video><model type='virtio' edid='off'/></video>"), '"max_outputs":1,"edid":false'),
    "ACPI table": (domain(os="<acpi><table type='raw'>/t</table></acpi>"), "-acpitable file=/t"),
    "shim": (domain(os="<kernel>/k</kernel><shim>/s</shim>"), "-kernel /k -shim /s"),
    "serial BIOS": (domain("<serial type='pty'/>", os="<bios useserial='yes'/>"), ",graphics=off"),
    "boot menu": (
        domain(os="<bootmenu enable='yes' timeout='3000'/><bios rebootTimeout='5'/>"),
        "-boot menu=on,reboot-timeout=5,splash-time=3000,strict=on",
    ),
    "teardown": (domain(features="<async-teardown enabled='yes'/>"), "-run-with async-teardown=on"),
    "deprecation": (
        domain(head="<qemu:deprecation behavior='reject'/>"),
        '-compat {"deprecated-output":"hide","deprecated-input":"reject"}',
    ),
    "address bits": (
        domain(head="<cpu mode='host-passthrough' check='none'><maxphysaddr mode='emulate'/></cpu>"),
        "host-phys-bits=off",
    ),
    "forwarded address": (
        domain(
            "<channel type='unix'><source mode='bind' path='/g'/><target type='guestfwd' address='10.0.2.1' port='46'/></channel>"
        ),
        '{"type":"user","guestfwd":[{"str":"tcp:10.0.2.1:46-chardev:charchannel0"}],"id":"channel0"}',
    ),
    "certificates": (
        domain(XHCI + "<smartcard mode='host-certificates'>" + "<certificate>c</certificate>" * 3 + "</smartcard>"),
        '"backend":"certificates","cert1":"c","cert2":"c","cert3":"c","db":"/etc/pki/nssdb"',
    ),
    "reconnect": (domain(f"<serial type='unix'>{SOCKET.format('yes')}</serial>"), "path=/s,reconnect-ms=7000"),
    "no reconnect": (domain(f"<serial type='unix'>{SOCKET.format('no')}</serial>"), "path=/s,reconnect-ms=0"),
    "variables on a block device": (
        domain(os="<loader readonly='yes' type='pflash'>/c</loader><nvram type='block'><source dev='/dev/v'/></nvram>"),
        '{"driver":"host_device","filename":"/dev/v","node-name":"libvirt-pflash1-storage","read-only":false}',
    ),
    "memory in a slot": (
        domain(
            "<memory model='dimm'><target><size unit='MiB'>512</size><node>0</node></target><address type='dimm' slot='3'/></memory>",
            head=NUMA,
        ),
        '-boot strict=on -object {"qom-type":"memory-backend-ram","id":"memdimm3"',
    ),
    "deliberate write errors": (
        domain(FILE.format("disk", "raw", " error_policy='enospace'", "vda", "virtio", "")),
        '"werror":"enospc"}',
    ),
    "shared disk": (
        domain(FILE.format("disk", "raw", "", "vda", "virtio", "<shareable/>")),
        '"cache":{"direct":true,"no-flush":false}',
    ),
    "CD on USB": (
        domain(XHCI + FILE.format("cdrom", "raw", "", "sda", "usb", "")),
        '"driver":"scsi-cd","bus":"usb-disk0.0","scsi-id":0',
    ),
    "disk on USB": (
        domain(XHCI + FILE.format("disk", "raw", "", "sda", "usb", "")),
        '"id":"usb-disk0","bootindex":1,"removable":false',
    ),
    "discard": (
        domain(FILE.format("disk", "qcow2", " discard='unmap' discard_no_unref='on'", "vda", "virtio", "")),
        '"discard-no-unref":true',
    ),
    "nbd": (
        domain(NETWORK.format("protocol='nbd' name='x'", "<host name='h'/><reconnect delay='9'/>")),
        '"port":"10809"},"export":"x","reconnect-delay":9',
    ),
    "nfs": (
        domain(NETWORK.format("protocol='nfs' name='/a'", "<host name='h'/><identity user='+1' group='2'/>")),
        '"path":"/a","user":1,"group":2',
    ),
    "ssh": (
        domain(NETWORK.format("protocol='ssh' name='a'", "<host name='h'/>")),
        '{"driver":"ssh","path":"a","server":{"host":"h","port":"22"}',
    ),
    "http": (
        domain(
            NETWORK.format("protocol='http' name='a'", "<host name='h'/><readahead size='8'/><timeout seconds='6'/>")
        ),
        '"timeout":6,"readahead":8',
    ),
    "directory": (
        domain(
            "<disk type='dir'><driver name='qemu' type='fat'/><source dir='/d'/><target dev='vda' bus='virtio'/><readonly/></disk>"
        ),
        '{"driver":"vvfat","dir":"/d","floppy":false,"rw":false',
    ),
    "iSCSI unit": (
        domain(
            "<hostdev mode='subsystem' type='scsi'><source protocol='iscsi' name='iqn.x:y/1'><host name='h' port='3260'/></source></hostdev>"
        ),
        '{"driver":"scsi-generic","drive":"libvirt-1-backend","id":"hostdev0","bus":"scsi0.0"',
    ),
    "vhostuser disk": (
        domain(
            "<disk type='vhostuser'><source type='unix' path='/s'><reconnect enabled='yes' timeout='2'/></source><target dev='vda' bus='virtio'/></disk>",
            head=SHARED,
        ),
        "socket,id=chr-vu-virtio-disk0,path=/s,reconnect-ms=2000",
    ),
    "doorbell": (domain("<shmem name='a'><model type='ivshmem-doorbell'/><server/></shmem>"), '"ioeventfd":true'),
    "role": (domain("<shmem name='a' role='peer'><model type='ivshmem-plain'/></shmem>"), '"master":"off"'),
}


@pytest.mark.parametrize("name", BUILT)
def test_word_reaches_the_command_line(name: str) -> None:
    """As the newest release prints it."""
    dom, words = BUILT[name]
    assert words in argv(dom)


def test_order_of_memory_devices() -> None:
    """A module in a slot comes before the PCI controllers, a device on PCI after them."""
    pmem = "<memory model='virtio-pmem' access='shared'><source><path>/p</path></source><target><size>524288</size></target></memory>"
    found = argv(domain(pmem, head="<maxMemory slots='2' unit='GiB'>16</maxMemory>"))
    assert found.index("pcie-root-port") < found.index("virtio-pmem-pci")


def test_reconnect_of_the_oldest_release() -> None:
    """It counts seconds."""
    assert "path=/s,reconnect=7 " in argv(domain(f"<serial type='unix'>{SOCKET.format('yes')}</serial>"), OLDEST)


@pytest.mark.parametrize("graphics", [P2P, "<graphics type='egl-headless'/>", "<graphics type='sdl'/>"])
def test_graphics_without_sound(graphics: str) -> None:
    """These add no audio backend."""
    assert "-audiodev" not in argv(domain(graphics))


# name -> domain, and the number of each release; None where it is accepted
REFUSED: dict[str, tuple[str, tuple[int | None, int | None, int | None]]] = {
    "audio of SPICE": (domain("<sound model='ich9'/><audio id='1' type='spice'/>"), (67, 67, 67)),
    "settings": (domain("<audio id='1' type='alsa'><input><settings channels='2'/></input></audio>"), (67, 67, 67)),
    "two primary videos": (domain(VNC + "<video><model type='vga' primary='yes'/></video>" * 2), (67, 67, 67)),
    "reconnect at once": (domain("<serial type='unix'><source mode='connect' path='/s'><reconnect enabled='yes' timeout='0'/></source></serial>"), (8, 8, 8)),
    "listener that reconnects": (domain("<serial type='unix'><source mode='bind' path='/s'><reconnect enabled='yes' timeout='1'/></source></serial>"), (1, 1, 1)),
    "tls": (domain("<serial type='tcp'><source mode='connect' host='h' service='1'/><protocol type='tls'/></serial>"), (None, 67, 67)),
    "USB is off": (domain("<controller type='usb' model='none'/><hub type='usb'/>"), (67, 67, 67)),
    "virtio input": (domain("<input type='mouse' bus='virtio' model='virtio-transitional'/>"), (67, 67, 67)),
    "TPM": (domain("<tpm model='tpm-tis'/>"), (27, 27, 27)),
    "two TPMs": (domain("<tpm><backend type='passthrough'/></tpm>" * 2), (67, 67, 67)),
    "cell of a module": (domain("<memory model='dimm'><target><size>1</size><node>5</node></target></memory>", head=NUMA), (35, 35, 35)),
    "module without a cell": (domain("<memory model='dimm'><target><size>1</size></target></memory>", head=NUMA), (67, 67, 67)),
    "module without maxMemory": (domain("<memory model='dimm'><target><size>1</size><node>0</node></target></memory>", head="<cpu><numa><cell memory='4194304'/></numa></cpu>"), (67, 67, 67)),
    "label": (domain("<memory model='nvdimm'><source><path>/n</path></source><target><size unit='M'>9</size><node>0</node><label><size>64</size></label></target></memory>", head=NUMA), (27, 27, 27)),
    "restrictive": (domain(head=NUMA + "<numatune><memory mode='strict' nodeset='0'/><memnode cellid='0' mode='restrictive' nodeset='0'/></numatune>"), (None, 27, 27)),
    "too few vCPUs": (domain(head="<cpu><numa><cell cpus='0-9' memory='4194304'/></numa></cpu>"), (1, 1, 1)),
    "scheduler": (domain(head="<cputune><vcpusched vcpus='0' scheduler='fifo'/></cputune>"), (27, 27, 27)),
    "two schedulers": (domain(head="<cputune><vcpusched vcpus='0-1' scheduler='idle'/><vcpusched vcpus='1' scheduler='batch'/></cputune>"), (35, 35, 35)),
    "scheduler of nothing": (domain(head="<cputune><iothreadsched iothreads='3' scheduler='batch'/></cputune>"), (67, 67, 67)),
    "caches that overlap": (domain(head="<cputune><cachetune vcpus='0-1'/><memorytune vcpus='1-2'/></cputune>"), (27, 27, 27)),
    "shares": (domain(head="<cputune><shares>1</shares></cputune>"), (67, None, None)),
    "block weight": (domain(head="<blkiotune><device><weight>500</weight></device></blkiotune>"), (67, 67, 67)),
    "event": (domain(head="<perf><event name='foo' enabled='yes'/></perf>"), (27, 27, 27)),
    "source of memory": (domain(head="<memoryBacking><source type='file'/></memoryBacking>"), (None, None, None)),
    "ps2": (domain(features="<ps2 state='off'/><vmport state='on'/>"), (67, 67, 67)),
    "newer feature": (domain(features="<ps2 state='on'/>"), (67, None, None)),
    "unknown feature": (domain(features="<nosuch/>"), (67, 67, 67)),
    "tseg": (domain(features="<smm state='on'><tseg unit='KiB'>48</tseg></smm>"), (67, 67, 67)),
    "translation cache": (domain(features="<tcg><tb-cache>1024</tb-cache></tcg>"), (67, 67, 67)),
    "stimer": (domain(features="<hyperv><vpindex state='on'/><synic state='on'/><stimer state='on'/></hyperv>"), (None, None, 67)),
    "shim without kernel": (domain(os="<shim>/s</shim>"), (None, None, 67)),
    "variables without firmware": (domain(os="<nvram>/v</nvram>"), (35, 35, 35)),
    "stateless": (domain(os="<loader readonly='yes' type='pflash' stateless='yes'>/c</loader><nvram>/v</nvram>"), (35, 35, 35)),
    "serial BIOS": (domain(os="<bios useserial='yes'/>"), (27, 27, 27)),
    "date": (domain(head="<sysinfo type='smbios'><bios><entry name='date'>2023-10-30</entry></bios></sysinfo>"), (35, 35, 35)),
    "label of nothing": (domain(head="<seclabel type='static' model='dac'/>"), (27, 27, 27)),
    "format": (domain(FILE.format("disk", "cow", "", "vda", "virtio", "")), (67, 67, 67)),
    "product": (domain(FILE.format("disk", "raw", "", "sda", "sata", "<product>x</product>")), (67, None, None)),
    "lun": (domain("<disk type='block' device='lun'><driver name='qemu' type='raw'/><source dev='/d'/><target dev='vda' bus='virtio'/></disk>"), (None, 67, 67)),
    "protocol": (domain(NETWORK.format("protocol='vxhs' name='a'", "<host name='h'/>")), (67, 67, 67)),
    "secret": (domain(NETWORK.format("protocol='iscsi' name='a/1'", "<host name='h'/><auth username='u'><secret type='ceph' usage='x'/></auth>")), (67, 67, 67)),
    "encrypted format": (domain(FILE.format("disk", "vmdk", "", "vda", "virtio", "<encryption format='luks'/>")), (67, 67, 67)),
    "unshared memory": (domain("<disk type='vhostuser'><source type='unix' path='/s'/><target dev='vda' bus='virtio'/></disk>"), (67, 67, 67)),
    "shared size": (domain("<shmem name='a'><model type='ivshmem-plain'/><size unit='M'>3</size></shmem>"), (None, 27, 27)),
    "msi": (domain("<shmem name='a'><model type='ivshmem-plain'/><msi/></shmem>"), (27, 27, 27)),
    "file mode": (domain("<filesystem accessmode='squash' fmode='644'><source dir='/a'/><target dir='t'/></filesystem>"), (67, 67, 67)),
    "driver handle": (domain("<filesystem><driver type='handle'/><source dir='/a'/><target dir='t'/></filesystem>"), (None, None, 67)),
    "file system without source": (domain("<filesystem><target dir='t'/></filesystem>"), (19, 19, 19)),
    "forwarded port": (domain("<interface type='user'><portForward proto='tcp'><range start='22'/></portForward></interface>"), (None, 67, 67)),
    "bandwidth": (domain("<interface type='network'><source network='d'/><bandwidth><inbound peak='5'/></bandwidth></interface>"), (35, 35, 35)),
    "watchdog": (domain("<watchdog model='diag288'/>"), (67, 67, 67)),
    "title": (domain(head="<title>a\nb</title>"), (27, 27, 27)),
    "reboot": (domain(head="<on_reboot>preserve</on_reboot>"), (67, 67, 67)),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_number_of_each_release(name: str) -> None:
    """A wrong word has libvirt's number, in each release."""
    dom, codes = REFUSED[name]
    assert codes == tuple(code_of(dom, release) for release in RELEASES)


@pytest.mark.parametrize(
    ("element", "code"),
    [
        ("<os><type>foo</type></os>", 67),
        ("<os><type arch='foo'>hvm</type></os>", 67),
        ("<os firmware='foo'><type>hvm</type></os>", 27),
        ("<memoryBacking><source type='foo'/></memoryBacking>", 67),
        ("<clock offset='foo'/>", 67),
        ("<clock offset='timezone'/>", 1),
        ("<on_crash>foo</on_crash>", 67),
        ("<devices><serial type='foo'/></devices>", 67),
        ("<devices><controller type='scsi' model='foo'/></devices>", 67),
        ("<devices><sound model='ich9'><codec type='foo'/></sound></devices>", 67),
    ],
)
def test_number_of_an_unknown_word(element: str, code: int) -> None:
    """Some words have a number of their own."""
    with pytest.raises(ConfigError) as caught:
        DomainDef.parse(f"<domain type='kvm'><name>d</name>{element}</domain>")
    assert code == caught.value.libvirt_code


def defined(xml: str, release: LibvirtRelease = NEWEST) -> str:
    dom = DomainDef.parse(xml)
    return define(dom, stored_capabilities(dom, release), release=release).format()


@pytest.mark.parametrize(
    ("dom", "printed"),
    [
        (domain(head="<cpu mode='host-model'><model fallback='forbid'/></cpu>"), "<cpu mode='host-model' check='partial'/>"),
        (domain(head="<memtune><hard_limit>9007199254740991</hard_limit></memtune>"), "<vcpu placement='static'>4</vcpu>"),
        (domain(head="<cputune><vcpusched vcpus='0-1' scheduler='batch'/></cputune>"), "<vcpusched scheduler='batch' vcpus='0'/>"),
        (domain(os="<bootmenu enable='no' timeout='5'/>"), "<bootmenu enable='no'/>"),
        (domain(os="<loader>/rom</loader>"), "<loader type='rom' format='raw'>/rom</loader>"),
        (domain(head="<seclabel model='dac'/>"), "relabel=\"yes\""),
        (domain(FILE.format("disk", "raw", "", "vda", "virtio", "<encryption format='luks'/>")), "<encryption format='luks' engine='qemu'/>"),
        (domain(NETWORK.format("protocol='iscsi' name='iqn'", "<host name='h'/>")), "name='iqn/0'"),
        (domain("<disk type='block' device='cdrom'><target dev='sda' bus='sata'/></disk>"), "<disk type='file' device='cdrom'>"),
        (domain(features="<hyperv mode='passthrough'><relaxed state='on'/></hyperv>"), "<hyperv mode='passthrough'/>"),
    ],
)  # fmt: skip
def test_normal_form(dom: str, printed: str) -> None:
    """Redundant values are dropped; the others get the spelling of libvirt, and are stable."""
    first = defined(dom)
    assert printed in first
    assert first == defined(first)


def test_what_start_cannot_do() -> None:
    """A bus of its own needs a daemon, a lease the lock manager: start refuses both before the first write."""
    lease = "<lease><lockspace>a</lockspace><key>b</key><target path='/l'/></lease>"
    found = start_findings(DomainDef.parse(domain("<graphics type='dbus'/>" + lease)))
    assert ["error", "error"] == [finding.severity for finding in found]
