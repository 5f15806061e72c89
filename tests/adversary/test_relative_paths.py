# SPDX-License-Identifier: LGPL-2.1-or-later
"""A path in a definition is absolute, or start refuses it: neither the caller's directory nor QEMU's own decides."""

from __future__ import annotations

import pytest
from hostile_xml import corpus
from lxml import etree
from relativepaths import RELATIVE, accepted, changed

from pyhostdev.conf.domain_conf import DomainDef
from pyhostdev.qemu.qemu_command import build_command_line

EACH = 6  # of the corpus; all of it in tests/fuzz/fuzz_options.py
DOMAIN = """<domain type='kvm'><name>vm</name><uuid>6cb9df67-db89-5919-bb3e-efaeef4a35b1</uuid><memory>1024</memory>
<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
<os><type arch='x86_64' machine='q35'>hvm</type>{os}</os><features><acpi/></features>{more}
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}</devices></domain>"""
WORDS = [
    ("devices", "<tpm model='tpm-crb'><backend type='emulator'><source type='dir' path='/p'/></backend></tpm>"),
    ("devices", "<pstore backend='acpi-erst'><path>/p</path><size unit='KiB'>64</size></pstore>"),
    ("devices", "<interface type='ethernet'><backend tap='/p'/><model type='virtio'/></interface>"),
    ("devices", "<interface type='ethernet'><backend vhost='/p'/><model type='virtio'/></interface>"),
    ("devices", "<interface type='user'><backend type='passt' logFile='/p'/></interface>"),
    ("devices", "<audio id='1' type='file' path='/p'/>"),
    ("devices", "<audio id='1' type='oss'><input dev='/p'/></audio>"),
    ("devices", "<graphics type='vnc' socket='/p'/>"),
    ("devices", "<graphics type='spice'><gl enable='yes' rendernode='/p'/></graphics>"),
    (
        "devices",
        "<rng model='virtio'><backend model='egd' type='unix'><source mode='connect' path='/p'/></backend></rng>",
    ),
    ("devices", "<disk type='vhostuser'><source type='unix' path='/p'/><target dev='vda' bus='virtio'/></disk>"),
    ("devices", "<shmem name='a'><model type='ivshmem-doorbell'/><server path='/p'/></shmem>"),
    ("os", "<loader readonly='yes' type='pflash'>/a</loader><nvram template='/a'>/p</nvram>"),
    ("os", "<loader readonly='yes' type='pflash'>/a</loader><nvram template='/p'>/a</nvram>"),
    ("os", "<kernel>/a</kernel><initrd>/p</initrd>"),
    ("os", "<kernel>/a</kernel><dtb>/p</dtb>"),
    ("os", "<acpi><table type='slic'>/p</table></acpi>"),
    ("more", "<sysinfo type='fwcfg'><entry name='opt/x' file='/p'/></sysinfo>"),
]


@pytest.mark.parametrize(("place", "words"), WORDS, ids=range(len(WORDS)))
def test_a_relative_path_is_refused(place: str, words: str) -> None:
    """The definition is valid with an absolute path, and start names the relative one."""
    parts = {"os": "", "more": "", "devices": ""}
    build_command_line(DomainDef.parse(DOMAIN.format(**{**parts, place: words})))
    assert [] == accepted(DOMAIN.format(**{**parts, place: words.replace("/p", RELATIVE)}).encode())


@pytest.mark.parametrize("part", range(4))
def test_no_relative_path_reaches_a_program(part: int) -> None:
    """Every path of real definitions, one at a time."""
    paths = [path for path in corpus()[part :: 4 * EACH] if etree.fromstring(path.read_bytes()).tag == "domain"]
    assert paths
    assert [] == [(path.name, what) for path in paths for what, text in changed(path) if accepted(text)]
