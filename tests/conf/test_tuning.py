# SPDX-License-Identifier: LGPL-2.1-or-later
"""Threads, memory placement and clocks: libvirt's spelling, and its numbers for what is wrong."""

from __future__ import annotations

import pytest

from pyhostdev import ConfigError, DomainDef
from pyhostdev.conf.libvirt_release import RELEASES, LibvirtRelease
from pyhostdev.qemu import define
from pyhostdev.qemu.qemu_capabilities import load

OLDEST, NEWEST = RELEASES[0], RELEASES[-1]


def parse(head: str = "", devices: str = "") -> DomainDef:
    vcpu = "" if "</vcpu>" in head and "<vcpus>" not in head else "<vcpu>4</vcpu>"
    return DomainDef.parse(
        f"<domain type='kvm'><name>vm</name><memory unit='MiB'>1024</memory>{vcpu}{head}"
        f"<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{devices}</devices></domain>"
    )


def defined(head: str = "", devices: str = "", release: LibvirtRelease = NEWEST) -> str:
    dom = parse(head, devices)
    return define(dom, load("x86_64", release.qemu), release=release).format()


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("<iothreads>2</iothreads><iothreadids><iothread id='2'/></iothreadids>", "<iothread id='1'/>"),
        ("<vcpu cpuset='3,0-1,^1'>4</vcpu>", "cpuset='0,3'"),
        ("<vcpu placement='auto'>4</vcpu>", "<memory mode='strict' placement='auto'/>"),
        ("<numatune><memory nodeset='0,1'/></numatune>", "<memory mode='strict' nodeset='0-1'/>"),
        ("<clock offset='localtime' adjustment='+5'/>", "offset='variable' adjustment='5' basis='localtime'"),
        ("<cputune><vcpupin vcpu='9' cpuset='0'/><vcpupin vcpu='1' cpuset='0'/></cputune>", "<vcpupin vcpu='1'"),
        (
            "<vcpus><vcpu id='1' enabled='no'/><vcpu id='0' enabled='yes'/></vcpus>",
            "<vcpu id='0' enabled='yes' hotpluggable='no'/>",
        ),
        (
            "<cpu><numa><cell id='0' memory='512'><distances><sibling id='1' value='21'/></distances></cell>"
            "<cell id='1' memory='512'/></numa></cpu>",
            "<sibling id='0' value='21'/>",
        ),
    ],
)
def test_what_can_be_spelled_in_several_ways_has_libvirts_spelling(head: str, expected: str) -> None:
    """Sets are ranges, threads have numbers, an offset in seconds is variable, distances hold both ways."""
    assert expected in defined(head)


def test_pins_of_absent_processors_are_dropped() -> None:
    """libvirt ignores a pin for a virtual processor that the domain does not have."""
    assert "vcpu='9'" not in defined("<cputune><vcpupin vcpu='9' cpuset='0'/></cputune>")


DISK = "<disk type='{}' device='{}'><driver name='qemu' {}/><source {}/><target dev='{}' bus='{}'/>{}</disk>"


def disk(
    kind: str = "file",
    device: str = "disk",
    driver: str = "type='raw'",
    source: str = "file='/a'",
    target: str = "vda",
    bus: str = "virtio",
    more: str = "",
) -> str:
    return DISK.format(kind, device, driver, source, target, bus, more)


REFUSED = {
    "mode of cpu": ("<cpu mode='host-pass'/>", "", 67),
    "policy": ("<cpu mode='custom'><model>qemu64</model><feature name='a' policy='b'/></cpu>", "", 67),
    "match": ("<cpu match='most'><model>qemu64</model></cpu>", "", 27),
    "fallback": ("<cpu mode='custom'><model fallback='x'>qemu64</model></cpu>", "", 67),
    "migratable model": ("<cpu mode='custom' migratable='on'><model>qemu64</model></cpu>", "", 67),
    "vendor without model": ("<cpu mode='custom'><vendor>Intel</vendor></cpu>", "", 27),
    "short vendor_id": ("<cpu mode='custom'><model vendor_id='x'>qemu64</model></cpu>", "", 27),
    "feature twice": ("<cpu mode='maximum'><feature name='a'/><feature name='a'/></cpu>", "", 27),
    "topology without threads": ("<cpu><topology sockets='2' cores='2'/></cpu>", "", 27),
    "no sockets": ("<cpu><topology sockets='0' cores='2' threads='2'/></cpu>", "", 27),
    "cache level": ("<cpu mode='host-passthrough'><cache level='4' mode='emulate'/></cpu>", "", 27),
    "emulated cache 2": ("<cpu mode='host-passthrough'><cache level='2' mode='emulate'/></cpu>", "", 67),
    "cache of a model": ("<cpu mode='custom'><model>qemu64</model><cache mode='passthrough'/></cpu>", "", 67),
    "cells overlap": (
        "<cpu><numa><cell cpus='0-2' memory='512'/><cell cpus='2-3' memory='512'/></numa></cpu>",
        "",
        67,
    ),
    "vcpus": ("<vcpu current='8'>4</vcpu>", "", 67),
    "memnode without cells": ("<numatune><memnode cellid='0' nodeset='0'/></numatune>", "", 27),
    "numatune mode": ("<numatune><memory mode='hard' nodeset='0'/></numatune>", "", 67),
    "static without nodes": ("<numatune><memory mode='strict' placement='static'/></numatune>", "", 67),
    "nodeset": ("<numatune><memory mode='strict' nodeset='x'/></numatune>", "", 8),
    "huge anonymous": ("<memoryBacking><hugepages/><source type='anonymous'/></memoryBacking>", "", 67),
    "huge on demand": ("<memoryBacking><hugepages/><allocation mode='ondemand'/></memoryBacking>", "", 67),
    "page for no node": (
        "<memoryBacking><hugepages><page size='2' unit='MiB' nodeset='1'/></hugepages></memoryBacking>",
        "",
        35,
    ),
    "period": ("<cputune><period>10</period></cputune>", "", 67),
    "pin twice": ("<cputune><vcpupin vcpu='0' cpuset='0'/><vcpupin vcpu='0' cpuset='1'/></cputune>", "", 1),
    "pin of no thread": ("<cputune><iothreadpin iothread='1' cpuset='0'/></cputune>", "", 67),
    "unknown feature": ("<features><warp/></features>", "", 67),
    "unknown enlightenment": ("<features><hyperv><warp state='on'/></hyperv></features>", "", 67),
    "unknown of kvm": ("<features><kvm><warp state='on'/></kvm></features>", "", 67),
    "spinlocks": ("<features><hyperv><spinlocks state='on' retries='5'/></hyperv></features>", "", 27),
    "ring": ("<features><kvm><dirty-ring state='on' size='5'/></kvm></features>", "", 27),
    "timezone": ("<clock offset='timezone'/>", "", 1),
    "adjustment": ("<clock offset='utc' adjustment='soon'/>", "", 27),
    "policy of rtc": ("<clock><timer name='rtc' tickpolicy='merge'/></clock>", "", 67),
    "policy of pit": ("<clock><timer name='pit' tickpolicy='merge'/></clock>", "", 67),
    "sev": ("<launchSecurity type='sev'><policy>3</policy></launchSecurity>", "", 67),
    "disk bus": ("", disk(bus="firewire"), 27),
    "disk format": ("", disk(driver="type='zip'"), 67),
    "lun of a file": ("", disk(device="lun", target="sda", bus="scsi"), 67),
    "native io": ("", disk(driver="io='native'"), 67),
    "wwn": ("", disk(target="sda", bus="scsi", more="<wwn>12345</wwn>"), 1),
    "wwn of virtio": ("", disk(more="<wwn>5000c50015ea71ad</wwn>"), 67),
    "iothread": ("", disk(driver="iothread='3'"), 67),
    "iothread of sata": ("<iothreads>1</iothreads>", disk(driver="iothread='1'", target="sda", bus="sata"), 67),
    "serial": ("", disk(more="<serial>a/b</serial>"), 1),
    "partition": ("", disk(target="vda1"), 67),
    "iotune": (
        "",
        disk(more="<iotune><total_iops_sec>1</total_iops_sec><read_iops_sec>1</read_iops_sec></iotune>"),
        27,
    ),
    "host": ("", disk("network", source="protocol='nbd'").replace("<source protocol='nbd'/>", ""), 19),
    "protocol": ("", disk("network", source="protocol='gopher' name='a'"), 27),
    "video": ("", "<video><model type='xen'/></video>", 67),
    "second vga": ("", "<video><model type='qxl'/></video><video><model type='vga'/></video>", 67),
    "vnc password": ("", "<graphics type='vnc' passwd='123456789'/>", 67),
    "headless and dbus": ("", "<graphics type='egl-headless'/><graphics type='dbus' p2p='yes'/>", 67),
}


@pytest.mark.parametrize(("head", "devices", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_what_libvirt_refuses_has_its_number(head: str, devices: str, code: int) -> None:
    """Each kind of invalid value is refused when the domain is defined, with libvirt's error number."""
    with pytest.raises(ConfigError) as refusal:
        defined(head, devices)
    assert code == refusal.value.code_in(NEWEST)


def test_acceleration_of_other_cards_depends_on_the_release() -> None:
    """3D acceleration of a card without it was refused, and is accepted by newer releases."""
    video = "<graphics type='vnc'/><video><model type='cirrus'><acceleration accel3d='yes'/></model></video>"
    assert "accel3d" in defined(devices=video, release=NEWEST)
    with pytest.raises(ConfigError, match="3D"):
        defined(devices=video, release=OLDEST)


@pytest.mark.parametrize(
    ("head", "devices"),
    [
        ("<perf><event name='cmt' enabled='yes'/></perf><perf><event name='mbmt' enabled='yes'/></perf>", ""),
        ("<blkiotune><weight>100</weight></blkiotune><blkiotune><device><path>/a</path></device></blkiotune>", ""),
        (
            "",
            "<interface type='user'>"
            + "<bandwidth><!-- fast --><inbound average='1'/></bandwidth>" * 2
            + "</interface>",
        ),
    ],
    ids=["perf", "blkiotune", "bandwidth"],
)
def test_an_element_that_stands_twice_is_read(head: str, devices: str) -> None:
    """The rules check every element, and ignore comments."""
    assert "<name>vm</name>" in defined(head, devices)


def test_the_second_element_is_checked_too() -> None:
    """An event that is named in two <perf> is named twice."""
    event = "<perf><event name='cmt' enabled='yes'/></perf>"
    with pytest.raises(ConfigError, match="'cmt' is named twice"):
        defined(event * 2)
