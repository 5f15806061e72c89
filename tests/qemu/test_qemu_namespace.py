# SPDX-License-Identifier: LGPL-2.1-or-later
"""Elements in QEMU's namespace: printed as libvirt does, but they cannot bypass the plan."""

from __future__ import annotations

import json
import os

import pytest

from pyhostdev import DomainDef
from pyhostdev.errors import ConfigError
from pyhostdev.qemu import build_command_line, define
from pyhostdev.qemu.qemu_capabilities import load
from pyhostdev.qemu.qemu_command.ignored import start_findings
from pyhostdev.qemu.qemu_command.namespace import bypass_findings, environment_of

DOMAIN = """<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>vm</name><memory>65536</memory><os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}</devices>
{words}</domain>"""
SCSI = "<controller type='scsi' model='virtio-scsi'/>"


def domain(words: str, devices: str = "") -> DomainDef:
    return DomainDef.parse(DOMAIN.format(words=words, devices=devices))


def commandline(*args: str) -> DomainDef:
    escaped = (arg.replace("&", "&amp;").replace("'", "&apos;").replace("<", "&lt;") for arg in args)
    words = "".join(f"<qemu:arg value='{arg}'/>" for arg in escaped)
    return domain(f"<qemu:commandline>{words}</qemu:commandline>")


def test_arguments_stand_before_the_sandbox_as_they_were_written() -> None:
    """The user's arguments are passed to QEMU unchanged."""
    words = ["-device", "isa-applesmc,osk=words of 'a', & b", "-smbios", "type=2", ""]
    argv = build_command_line(commandline(*words))
    end = argv.index("-sandbox")
    assert words == argv[end - len(words) : end]


def test_properties_are_set_anew_at_the_end_or_left_out() -> None:
    """An override changes one device, by its alias; a property that was there moves to the end."""
    words = """<qemu:override><qemu:device alias='scsi0'><qemu:frontend>
      <qemu:property name='id' type='string' value='other'/><qemu:property name='num_queues' type='unsigned' value='7'/>
      <qemu:property name='hotplug' type='bool' value='false'/>
      <qemu:property name='cmd_per_lun' type='signed' value='-1'/>
      <qemu:property name='bus' type='remove'/></qemu:frontend></qemu:device></qemu:override>"""
    argv = build_command_line(domain(words, SCSI))
    (found,) = (word for word in argv if "virtio-scsi" in word)
    expected = {"driver": "virtio-scsi-pci", "addr": "0x0", "id": "other", "num_queues": 7, "hotplug": False}
    assert list({**expected, "cmd_per_lun": -1}.items()) == list(json.loads(found).items())


def test_without_json_devices_have_qemus_own_grammar() -> None:
    """<qemu:del capability='device.json'/> lets -set and old arguments find the devices."""
    words = "<qemu:capabilities><qemu:del capability='device.json'/></qemu:capabilities>"
    disk = "<disk type='file'><source file='/a'/><target dev='vda' bus='virtio'/><serial>a b</serial></disk>"
    argv = build_command_line(domain(words, disk))
    (found,) = (word for word in argv if word.startswith("virtio-blk-pci"))
    assert "virtio-blk-pci,bus=pci.2,addr=0x0,drive=libvirt-1-storage,id=virtio-disk0,bootindex=1,serial=a\\ b" in found
    assert [] == [word for word in argv if '"driver":"pcie-root-port"' in word]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("<qemu:commandline><qemu:arg/></qemu:commandline>", 1, "no value"),
        ("<qemu:commandline><qemu:env value='a'/></qemu:commandline>", 1, "no name"),
        ("<qemu:commandline><qemu:env name='1A' value='a'/></qemu:commandline>", 1, "'1A'"),
        ("<qemu:capabilities><qemu:add/></qemu:capabilities>", 1, "no capability"),
        ("<qemu:override><qemu:device><qemu:frontend/></qemu:device></qemu:override>", 27, "no alias"),
        (
            "<qemu:override><qemu:device alias='a'><qemu:frontend><qemu:property name='a' type='float' value='1'/>"
            "</qemu:frontend></qemu:device></qemu:override>",
            27,
            "'float'",
        ),
        (
            "<qemu:override><qemu:device alias='a'><qemu:frontend><qemu:property name='a' type='bool' value='1'/>"
            "</qemu:frontend></qemu:device></qemu:override>",
            27,
            "of type bool",
        ),
    ],
)
def test_wrong_words_are_refused_when_the_domain_is_defined(words: str, code: int, said: str) -> None:
    """libvirt's number, our sentence, and the line of the word."""
    with pytest.raises(ConfigError, match=said) as refusal:
        define(domain(words), load("x86_64"))
    assert (code, 4) == (refusal.value.libvirt_code, refusal.value.line)


@pytest.mark.parametrize(
    "argument",
    [
        "vfio-pci,host=01:00.0",
        "VFIO-PCI,id=a",
        '{"driver":"vfio\\u002dpci","id":"a"}',
        "{'driver':'vfio\\u002dpci','id':'a'}",
        '{"driver":"vfio\\u002dpci","a":' + "[" * 900 + "]" * 900 + "}",
        '{"driver":"vfio\\u002dpci","a":' + "1" * 5000 + "}",
        '{"driver":"vfio-p\\u0063i"',
        "device.hostdev0.host=1:0.0",
        "device.hostdev0.fd=3",
        "vfio-pci-nohotplug,sysfsdev=/sys/bus/mdev/devices/a",
        "iommufd,id=a",
        "device.hostdev0.host=0000:02:00.0",
        "device.hostdev0.sysfsdev=/a",
        "memory-backend-file,id=a,mem-path=/dev/vfio/1",
        "-readconfig",
        "--readconfig",
    ],
)
def test_an_argument_does_not_go_around_the_plan(argument: str) -> None:
    """An argument with a host function, VFIO or iommufd is an error of start; argv prints it, as libvirt does."""
    dom = commandline("-device", argument)
    assert [("around-plan", "error")] == [(f.reason, f.severity) for f in bypass_findings(dom)]
    assert argument in build_command_line(dom)


@pytest.mark.parametrize(
    "argument",
    [
        "isa-applesmc,osk=words",
        "device.hostdev0.x-pci-vendor-id=0x10de",
        "virtio-net-pci,mac=52:54:00:4a:00:01",
        "opt/ovmf/X-PciMmio64Mb,string=65536",
        "rtc,base=2020-01-01T10:20:30",
        "file=/opt/vfio/rom.bin",
    ],
)
def test_other_arguments_are_let_through(argument: str) -> None:
    """A MAC address, a time or a directory's name is not a host function."""
    assert [] == bypass_findings(commandline("-device", argument))


@pytest.mark.parametrize("name", ["host", "sysfsdev", "driver", "fd", "iommufd"])
def test_an_override_does_not_exchange_the_device(name: str) -> None:
    """A property that selects the host function cannot be overridden."""
    words = f"""<qemu:override><qemu:device alias='hostdev0'><qemu:frontend>
      <qemu:property name='{name}' type='string' value='a'/></qemu:frontend></qemu:device></qemu:override>"""
    assert ["around-plan"] == [finding.reason for finding in bypass_findings(domain(words))]


def test_environment_is_reported_and_loads_no_code_for_root() -> None:
    """The last value of a name counts; LD_PRELOAD is refused where root starts QEMU."""
    words = "".join(
        f"<qemu:env name='{name}' value='{value}'/>"
        for name, value in (("QEMU_AUDIO_DRV", "pa"), ("QEMU_AUDIO_DRV", "none"), ("LD_PRELOAD", "/a.so"))
    )
    dom = domain(f"<qemu:commandline>{words}</qemu:commandline>")
    assert {"QEMU_AUDIO_DRV": "none", "LD_PRELOAD": "/a.so"} == environment_of(dom)
    refused = [finding.message for finding in start_findings(dom) if finding.severity == "error"]
    assert (1 if os.geteuid() == 0 else 0) == len(refused)
