# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory devices, memory attributes and threads of devices, printed as libvirt does."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from pyhostdev import DomainDef
from pyhostdev.conf.libvirt_release import LibvirtRelease
from pyhostdev.errors import ConfigError
from pyhostdev.qemu.qemu_command import build_command_line

NEWEST = LibvirtRelease.parse("12.8")
DOMAIN = (Path(__file__).parent.parent.parent / "testdata/later/memory.xml").read_text()


def built(text: str = DOMAIN) -> list[str]:
    return build_command_line(DomainDef.parse(text), release=NEWEST)


def objects(argv: list[str], option: str, key: str) -> dict[str, dict[str, object]]:
    """Return the JSON values of an option by their ids."""
    values = [json.loads(text) for word, text in pairwise(argv) if word == option and text[0] == "{"]
    return {str(value[key]): value for value in values if key in value}


def numa(argv: list[str]) -> list[str]:
    return [text for word, text in pairwise(argv) if word == "-numa"]


def test_modules_have_their_backends() -> None:
    """Each model has the backend for its source; a module's size is rounded up to 2 MiB."""
    found = objects(built(), "-object", "id")
    assert {
        "qom-type": "memory-backend-file",
        "id": "memdimm0",
        "mem-path": "/dev/hugepages/libvirt/qemu/-1-memory",
        "discard-data": True,
        "prealloc": True,
        "size": 1 << 30,
        "host-nodes": [0],
        "policy": "bind",
        "prealloc-context": "tc-memdimm0",
    } == found["memdimm0"]
    assert (True, True, 2 << 20) == tuple(found["memnvdimm1"][word] for word in ("share", "pmem", "align"))
    assert "prealloc" not in found["memnvdimm1"]
    assert (True, "/var/lib/pmem") == tuple(found["memvirtiopmem2"][word] for word in ("share", "mem-path"))
    assert ("memory-backend-ram", False) == tuple(found["memvirtiomem3"][word] for word in ("qom-type", "reserve"))


def test_modules_are_devices() -> None:
    """A device refers to its memory, with the guest's access to it."""
    found = objects(built(), "-device", "id")
    assert (0, 131072, True) == tuple(found["nvdimm1"][word] for word in ("node", "label-size", "unarmed"))
    growing = found["virtiomem3"]
    assert {"node": 1, "block-size": 2 << 20, "requested-size": 512 << 20, "dynamic-memslots": True} == {
        word: growing[word] for word in ("node", "block-size", "requested-size", "dynamic-memslots")
    }
    assert (0x150000000, True) == tuple(found["virtiopmem2"][word] for word in ("memaddr", "iommu_platform"))


def test_persistent_memory_needs_its_file() -> None:
    """Persistent memory needs a named file."""
    with pytest.raises(ConfigError, match="needs the <path>"):
        built(DOMAIN.replace("<path>/var/lib/pmem</path>", ""))


def test_memory_can_grow_without_slots() -> None:
    """virtio-mem needs an upper limit, and no slot."""
    head, _, tail = DOMAIN.partition("<memory model='dimm'")
    growing = "<memory model='virtio-mem'" + tail.rpartition("<memory model='virtio-mem'")[2]
    argv = built(head.replace(" slots='4'", "") + growing)
    assert "size=5242880k,maxmem=33554432k" == argv[argv.index("-m") + 1]


def test_memory_attributes_are_printed() -> None:
    """Latencies, bandwidths and caches are in the guest's HMAT; a cell without processors has an initiator."""
    argv = built()
    assert "hmat=on" in argv[argv.index("-machine") + 1].split(",")
    assert [
        "node,nodeid=0,cpus=0-3,initiator=0,memdev=ram-node0",
        "node,nodeid=1,initiator=0,memdev=ram-node1",
        "hmat-lb,initiator=0,target=0,hierarchy=memory,data-type=access-latency,latency=5",
        "hmat-lb,initiator=0,target=0,hierarchy=first-level,data-type=access-latency,latency=2",
        "hmat-lb,initiator=0,target=1,hierarchy=memory,data-type=access-latency,latency=30",
        "hmat-lb,initiator=0,target=0,hierarchy=memory,data-type=access-bandwidth,bandwidth=209715200K",
        "hmat-lb,initiator=0,target=1,hierarchy=memory,data-type=read-bandwidth,bandwidth=52428800K",
        "hmat-lb,initiator=0,target=1,hierarchy=memory,data-type=write-bandwidth,bandwidth=20971520K",
        "hmat-cache,node-id=0,size=8192K,level=1,associativity=complex,policy=write-back,line=64",
    ] == numa(argv)


def test_the_quickest_cell_is_the_initiator() -> None:
    """Without a bandwidth to a cell, the lowest latency decides; without both, the first cell with processors."""
    text = DOMAIN.replace("<bandwidth initiator='0' target='1' type='read' value='50' unit='GiB'/>", "")
    text = text.replace("<bandwidth initiator='0' target='1' type='write' value='20' unit='GiB'/>", "")
    assert "node,nodeid=1,initiator=0,memdev=ram-node1" == numa(built(text))[1]
    text = text.replace("<latency initiator='0' target='1' type='access' value='30'/>", "")
    assert "node,nodeid=1,initiator=0,memdev=ram-node1" == numa(built(text))[1]


def test_queues_have_threads() -> None:
    """The named threads serve a device's queues; the main loop has its own worker pool."""
    argv = built()
    devices = objects(argv, "-device", "id")
    assert [{"iothread": "iothread1", "vqs": [0, 2]}, {"iothread": "iothread2", "vqs": [1, 3]}] == devices[
        "virtio-disk0"
    ]["iothread-vq-mapping"]
    assert [{"iothread": "iothread2"}, {"iothread": "iothread3"}] == devices["scsi0"]["iothread-vq-mapping"]
    loop = objects(argv, "-object", "id")["main-loop"]
    assert {"qom-type": "main-loop", "id": "main-loop", "thread-pool-min": 2, "thread-pool-max": 16} == loop


@pytest.mark.parametrize(
    ("was", "now", "why"),
    [
        ("<iothread id='3'/>", "<iothread id='9'/>", "no I/O thread 9"),
        ("<iothread id='3'/>", "<iothread id='2'/>", "named twice"),
        ("<queue id='3'/>", "", "each of the device's queues once"),
        ("<iothread id='2'><queue id='1'/><queue id='3'/></iothread>", "<iothread id='2'/>", "must have queues"),
        ("queues='4'", "queues='4' iothread='1'", "either an iothread or"),
        ("<target dev='vda' bus='virtio'/>", "<target dev='sda' bus='sata'/>", "on bus sata cannot have an I/O thread"),
    ],
)
def test_threads_of_queues_are_complete(was: str, now: str, why: str) -> None:
    """The threads must exist, each is named once, and either all queues are named or none."""
    with pytest.raises(ConfigError) as caught:
        built(DOMAIN.replace(was, now))
    assert why in " ".join(str(error) for error in (caught.value, *caught.value.others))


def test_a_guest_without_ps2_has_no_ps2_devices() -> None:
    """The machine option disables PS/2, and no mouse or keyboard is added."""
    argv = built()
    assert "i8042=off" in argv[argv.index("-machine") + 1].split(",")


def test_a_qcow2_image_has_its_cache_of_tables() -> None:
    """The size is in bytes, whatever the unit in the XML."""
    nodes = objects(built(), "-blockdev", "node-name")
    assert 4 << 20 == nodes["libvirt-1-format"]["cache-size"]
