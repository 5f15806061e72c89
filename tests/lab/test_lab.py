# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The rules of the lab that can be tested without a boot: downloads, retries, the devices of a host.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import boot
import emulators
import fetch
import initramfs
import kernel_2026
import programs
import run
import run_2026
import suites
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


@pytest.mark.parametrize(
    ("steps", "scripts"),
    [
        (["q35_acpi"], ["hotplug.py"]),
        (["same_answers", "killed_anywhere"], ["onegroup.py", "soak.py"]),
        (["seen_from_inside"], ["whole.py"]),
        (["no_such_step"], []),
        ([], [*(host.script for host in run.HOSTS), "whole.py"]),
    ],
)
def test_a_host_without_a_named_step_is_not_booted(steps: list[str], scripts: list[str]) -> None:
    """
    A step belongs to the script that has or lists it.
    """
    assert scripts == [host.script for host in run.hosts_with(steps, [*run.HOSTS, run.WHOLE])]


def test_a_host_whose_programs_are_missing_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Without apt the guest with everything is left out, and each missing package is named; other hosts need none of them.
    """
    monkeypatch.setattr(programs, "FIRMWARE", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (run.HOSTS[0], None) == (run.with_programs(run.HOSTS[0]), run.with_programs(run.WHOLE))
    said = capsys.readouterr().out
    assert "without a guest that has everything: cannot install iproute2, ovmf, qemu-guest-agent, swtpm" in said


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


def test_the_lab_of_2026_names_what_it_cannot_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Without apt it is skipped with exit status 0, as the other lab is.
    """
    monkeypatch.setenv("PATH", str(tmp_path))
    assert 0 == run_2026.main([])
    assert "skipped, it cannot be had here: cannot install" in capsys.readouterr().out


def test_a_part_that_fails_to_build_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    A kernel that does not compile is a part that cannot be had: exit status 0, with the last words of the step.
    """

    def fail() -> None:
        raise suites.UnavailableError("'make bzImage' failed: no space left")

    monkeypatch.setattr(fetch, "fetch", lambda: None)
    monkeypatch.setattr(emulators, "fetch", lambda version, cache: cache)
    monkeypatch.setattr(kernel_2026, "build", fail)
    assert 0 == run_2026.main([])
    assert "'make bzImage' failed: no space left" in capsys.readouterr().out


def test_a_kernel_is_built_once_for_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The result says what it was made from; another configuration is another kernel.
    """
    assert False is kernel_2026.is_built(tmp_path)
    (tmp_path / kernel_2026.RECIPE).write_text(kernel_2026.recipe())
    assert True is kernel_2026.is_built(tmp_path)
    fragment = tmp_path / "fragment"
    fragment.write_text(kernel_2026.FRAGMENT.read_text() + "CONFIG_MLX5_CORE=m\n")
    monkeypatch.setattr(kernel_2026, "FRAGMENT", fragment)
    assert False is kernel_2026.is_built(tmp_path)


@pytest.mark.parametrize(
    ("line", "made", "expected"),
    [
        ("CONFIG_IOMMUFD=m", {"CONFIG_IOMMUFD=m"}, True),
        ("CONFIG_IOMMUFD=m", {"CONFIG_IOMMUFD=y"}, False),
        ("CONFIG_KSM=n", {"# CONFIG_KSM is not set"}, True),
        ("CONFIG_KSM=n", {"CONFIG_KSM=y"}, False),
    ],
)
def test_a_line_of_the_configuration_that_is_lost_is_noticed(line: str, made: set[str], expected: bool) -> None:
    """
    Kconfig drops a line whose dependencies are missing without a message.
    """
    assert expected is kernel_2026._honoured(line, made)


def test_a_qemu_of_another_root_runs_with_that_roots_files(tmp_path: Path) -> None:
    """
    Its loader, libraries and modules, and the caller's arguments; QEMU's user may run the script.
    """
    script = tmp_path / "qemu"
    loader = tmp_path / "root/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
    loader.parent.mkdir(parents=True)
    loader.write_text('#!/bin/sh\necho "$QEMU_MODULE_DIR" "$@"\n')
    loader.chmod(0o755)
    emulators.write_script(tmp_path / "root", script)
    said = subprocess.run([script, "-M", "none"], capture_output=True, text=True, check=True).stdout.split()
    assert f"{tmp_path}/root/usr/lib/x86_64-linux-gnu/qemu" == said[0]
    assert f"{tmp_path}/root/usr/bin/qemu-system-x86_64" == said[3]
    assert ["-M", "none"] == said[-2:]
    assert 0o755 == script.stat().st_mode & 0o777


@pytest.mark.parametrize(("version", "has_variants"), [("11.1", True), ("10.0", False)])
def test_a_qemu_without_virtio_vfs_runs_the_rest(version: str, has_variants: bool) -> None:
    """
    QEMU 10.0 has no virtio card with VFs; the igb card is there with both.
    """
    options = run_2026.hosts_of(version)[-1].options
    assert (has_variants, True) == ("--virtio-sriov" in options, "--igb" in options)


def test_vfs_of_a_virtio_card_come_before_their_pf() -> None:
    """
    QEMU looks for the PF's functions when it makes the PF.
    """
    names = [word for device in topology.virtio_sriov(2) for word in device.split(",") if word.startswith("id=vio")]
    assert ["id=vio2", "id=vio1", "id=vio0"] == names
