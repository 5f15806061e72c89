# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The lab's own rules, as far as they need no boot: what is fetched, what is retried, what a host is made of.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import boot
import fetch
import initramfs
import run
import topology


def test_what_cannot_be_fetched_is_named_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Without apt the lab is skipped with exit status 0, and each missing package is named.
    """
    monkeypatch.setenv("PATH", str(tmp_path))
    assert 0 == run.main([])
    said = capsys.readouterr().out
    assert (
        "skipped, it cannot be had here: cannot install busybox-static, cpio, kmod, pciutils, qemu-system-x86" in said
    )


@pytest.mark.parametrize(
    ("statuses", "attempts", "expected", "boots"),
    [
        ([0], 2, 0, 1),
        ([boot.EXIT_NOT_BOOTED, 0], 2, 0, 2),
        ([boot.EXIT_NOT_BOOTED, boot.EXIT_NOT_BOOTED], 2, boot.EXIT_NOT_BOOTED, 2),
        ([boot.EXIT_NOT_BOOTED], 1, boot.EXIT_NOT_BOOTED, 1),
        ([1], 2, 1, 1),
        ([boot.EXIT_UNFINISHED], 2, boot.EXIT_UNFINISHED, 1),
    ],
)
def test_only_a_boot_is_tried_again(
    statuses: list[int], attempts: int, expected: int, boots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A host that does not boot gets one more try where machines are slow; a step that fails never does.
    """
    left = list(statuses)
    monkeypatch.setattr(run, "BOOT_ATTEMPTS", attempts)
    monkeypatch.setattr(subprocess, "run", lambda words: subprocess.CompletedProcess(words, left.pop(0)))
    assert expected == run.run_in(run.HOSTS[0], [])
    assert boots == len(statuses) - len(left)


def test_modules_are_inserted_after_what_they_need(tmp_path: Path) -> None:
    """
    Dependencies come first, each once, and what is built in is left out.
    """
    (tmp_path / "modules.dep").write_text(
        "fs/9p.ko: net/9pnet.ko fs/netfs.ko\nnet/9pnet.ko:\nfs/netfs.ko:\na/b-c.ko:\n"
    )
    (tmp_path / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    order = initramfs.module_order(tmp_path, ["9pnet", "9p", "ext4", "b_c"])
    assert ["net/9pnet.ko", "fs/netfs.ko", "fs/9p.ko", "a/b-c.ko"] == order


def test_an_earlier_card_takes_the_bus_number() -> None:
    """
    Firmware numbers buses in the order of slots; the other card differs in its MAC addresses only.
    """
    port, *functions = topology.earlier("e1000e")
    assert 0 < int(port.rpartition("addr=")[2], 16) < topology.NIC_SLOT
    macs = {word for words in functions + topology.onegroup("e1000e") for word in words.split(",") if "mac=" in word}
    assert 2 * topology.NIC_FUNCTIONS == len(macs)


@pytest.mark.parametrize("shape", ["pcie", "conv", "mixed"])
def test_farm_has_as_many_functions_as_asked_for(shape: str) -> None:
    """
    A farm is complete whatever its shape; each bus holds what it can.
    """
    devices = topology.farm(700, "pvpanic-pci", shape)
    assert 700 == sum(words.startswith("pvpanic-pci") for words in devices)


def test_farm_that_does_not_fit_is_refused() -> None:
    """
    More functions than root ports can carry are an error before anything boots.
    """
    with pytest.raises(topology.TooManyFunctionsError, match="1473 functions of shape pcie"):
        topology.farm(1473, "pvpanic-pci", "pcie")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], boot.EXIT_NOT_BOOTED),
        ([b"LAB-BOOT 1.0\n", b"LAB-READY 2.0\n"], boot.EXIT_NOT_BOOTED),
        ([b"LAB-BEGIN\n", b"words\n"], boot.EXIT_UNFINISHED),
        ([b"LAB-BEGIN\n", b"LAB-END 3 9.0\n"], 3),
    ],
)
def test_exit_status_tells_how_far_the_host_came(lines: list[bytes], expected: int) -> None:
    """
    The command's exit status is the boot's; without one it tells a failed boot from a command that hung.
    """
    report = boot.Report()
    report.follow(iter(lines))  # type: ignore[arg-type]
    assert expected == report.exit_status


def test_kernel_image_without_xz_is_kept_as_it_is() -> None:
    """
    An image whose kernel is compressed otherwise is not an error: it boots, only slower.
    """
    assert fetch.unpacked(bytes(4096)) is None
