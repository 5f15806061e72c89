# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A pytest plugin that writes docs/reliability.md from a run of the tests: fault, promise, tests, result.

    make reliability

The mark @pytest.mark.fault("F1") assigns a test to a row; rows name further tests.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pytest

LAB = "real kernel: "


class Row(NamedTuple):
    """
    One fault, and the promise for it.

    ``tests`` are names of test functions without a mark; ``elsewhere`` lists evidence outside of this run: steps of
    ``make lab``, or what is not shown at all.
    """

    fault: str
    what: str
    promise: str
    tests: tuple[str, ...] = ()
    elsewhere: str = ""


ROWS = (
    Row(
        "F1",
        "Killed between two writes",
        "recover restores driver, override and lists; killed itself, it can be repeated",
        (
            "test_recover.py::test_prepare_killed_anywhere_is_undone",
            "test_recover.py::test_recover_twice_writes_nothing",
            "test_recover.py::test_recover_killed_anywhere_converges",
        ),
        LAB + "killed_anywhere, start_killed_anywhere",
    ),
    Row(
        "F2",
        "Killed while a write is blocked",
        "locks are free at once; the device is in doubt until the write lands",
        ("test_recover.py::test_write_in_flight_is_in_doubt_until_it_lands",),
        LAB + "stuck_unbind",
    ),
    Row(
        "F3",
        "QEMU killed or crashed",
        "devices are reattached when QEMU has ended and released them, 10 s later at most",
        ("test_qemu_process.py::TestEnd::test_killed_qemu_is_a_failure",),
        LAB + "killed_guest, held_group, released_at_the_end",
    ),
    Row("F4", "Program restarted while guests run", "active and inactive lists are the same"),
    Row(
        "F5",
        "Host rebooted with old state",
        "nothing is replayed; records are reported as expired",
        ("test_recover.py::test_records_of_an_earlier_boot_are_not_replayed",),
    ),
    Row("F6", "Two managers race", "never two owners; the loser's error names the owner", (), LAB + "two_managers"),
    Row("F7", "Clock set, suspend", "deadlines are on the monotonic clock", (), "not shown by a suspended host"),
    Row("F8", "Fork and exec by the program", "a manager refuses after a fork; nothing leaks into programs"),
    Row(
        "F9",
        "Host driver hangs in unbind",
        "an error at the deadline; other devices stay usable",
        ("test_sysfs_writer.py::",),
        LAB + "stuck_unbind",
    ),
    Row("F10", "vfio-pci missing or prohibited", "reported before the first write", (), LAB + "missing_module"),
    Row(
        "F11",
        "drivers_probe lies",
        "explicit bind, verified; the plan refuses what vfio-pci would refuse",
        ("test_pcidriver.py::",),
        LAB + "functions_with_vfs",
    ),
    Row(
        "F12",
        "Probe fails after the host driver is gone",
        "restored in the same call; if not, both errors and a record",
    ),
    Row(
        "F13",
        "Device vanishes",
        "no scan aborts; the others are restored; its record is closed",
        (
            "test_pciscan.py::test_function_that_went_away_is_counted",
            "test_pciscan.py::test_scan_while_functions_come_and_go",
        ),
        LAB + "vanished",
    ),
    Row("F14", "Another device at the same address", "refused, or left alone", (), LAB + "plugged_in_again"),
    Row(
        "F15",
        "Part of a group detached",
        "all or nothing, past errors",
        ("test_virhostdev.py::test_every_failing_write_is_rolled_back",),
    ),
    Row(
        "F16",
        "Foreign change between two of our steps",
        "found by verification, reported, not fought",
        (
            "test_virhostdev.py::test_foreign_change_is_reported_and_not_undone",
            "test_virhostdev.py::test_foreign_change_of_a_moved_device_is_a_failure",
        ),
        LAB + "hostile_writer, rebound_in_the_middle",
    ),
    Row(
        "F17",
        "Stub unloaded under a guest",
        "release still binds the recorded driver",
        (),
        LAB + "stub_unloaded",
    ),
    Row("F18", "Dynamic id steals the device", "explicit bind to the recorded driver", (), LAB + "dynamic_id"),
    Row(
        "F19",
        "No reset, or it fails",
        "logged, the others are reset; never a bus shared with other devices",
        ("test_virhostdev.py::test_devices_are_reset_before_the_first_goes_back",),
        "the plan reports what is not reset; no policy keeps such a device from the next guest",
    ),
    Row(
        "F20",
        "All ones or loops in config space",
        "that device only; walks end",
        ("test_pciconfig.py::test_any_bytes_have_an_answer", "test_pciconfig.py::test_every_two_node_loop_ends"),
    ),
    Row(
        "F21",
        "Short config read",
        "unknown, neither yes nor no",
        (
            "test_pciconfig.py::test_short_read_is_unknown",
            "test_pciscan.py::test_config_is_short_for_an_unprivileged_reader",
        ),
    ),
    Row(
        "F22",
        "Wide domains, ARI, many functions",
        "correct, or an error; nothing is cut off",
        ("test_pciscan_equal.py::",),
    ),
    Row(
        "F23",
        "Late or lost uevents",
        "no list depends on names; an overflow causes a rescan",
        ("test_events.py::test_lost_events_mean_a_rescan", "test_events.py::test_storm_means_a_rescan"),
    ),
    Row(
        "F24",
        "Record torn, corrupt, of another version",
        "set aside, reported, its device left alone",
        (
            "test_journal.py::test_torn_record_is_reported_and_not_used",
            "test_journal.py::test_foreign_record_is_reported",
            "test_recover.py::test_bad_record_is_set_aside_and_its_device_left_alone",
        ),
    ),
    Row(
        "F25",
        "State directory full, failing, gone",
        "a prepare is refused untouched; a release continues",
        ("test_journal.py::test_failed_write_leaves_the_earlier_record",),
        LAB + "full_disk",
    ),
    Row(
        "F26",
        "Power loss around a rename",
        "file, fsync, rename, fsync; files of a dead writer are swept",
        (),
        "no power was cut: records of an earlier boot always expire (F5)",
    ),
    Row(
        "F27",
        "Links, pipes planted in the state directory",
        "refused; opened once, never through a link",
        (
            "test_journal.py::test_planted_entry_is_not_followed",
            "test_journal.py::test_state_directory_must_be_ours",
            "test_journal.py::test_state_directory_may_not_be_a_link",
        ),
    ),
    Row(
        "F28",
        "Permission denied, read-only sysfs",
        "an error with the errno, nothing half done",
        (),
        LAB + "without_rights",
    ),
    Row(
        "F39",
        "A reading verb changes something",
        "reading verbs change no byte",
        (
            "test_verbs.py::test_reading_verbs_change_no_byte",
            "test_journal.py::test_reading_creates_nothing",
            "test_pciscan.py::test_scan_never_opens_what_can_wait",
        ),
    ),
    Row(
        "F40",
        "Reattached with a guest's state in it",
        "reset before it is reattached, if it can be reset",
        ("test_virhostdev.py::test_devices_are_reset_before_the_first_goes_back",),
        "the state of a real device after a reset is not checked",
    ),
    Row(
        "F41",
        "A guest's VFIO node keeps the guest's user",
        "its owner is recorded first; restored like a driver; another node in its place is left alone",
        ("test_devnode.py::",),
    ),
    Row(
        "F42",
        "Terminal closed, or a signal that ends a program",
        "the rollback is finished first",
        (
            "test_virhostdev.py::test_signal_in_the_middle_finishes_the_undo",
            "test_virhostdev.py::test_signal_in_the_middle_of_release_arrives_when_all_is_back",
        ),
    ),
    Row(
        "F43",
        "A file named like a node is open",
        "holders are found by device number, and by the function in fdinfo",
        ("test_vfioholders.py::",),
    ),
    Row(
        "F44",
        "A node of iommufd is open while its device is given back",
        "the nodes are closed before the first unbind, also when QEMU does not start",
        (),
        "not run on a real kernel yet: tests/lab/in_guest/iommufd.py",
    ),
    Row(
        "F45",
        "Killed while a device is plugged or unplugged",
        "the guest has the whole unit or none of it, or it is pending; the next verb finishes",
        ("test_hotplug_crash.py::", "test_hotplug_owner.py::", "test_hotplug_state_machine.py::"),
        "make fuzz: every write, file operation and command",
    ),
    Row(
        "F46",
        "Killed while a guest's network is set up",
        "a macvtap, and the MAC and VLAN of a function, are recorded first; recover removes and restores them",
        (
            "test_qemu_interface.py::test_macvtap_of_",
            "test_qemu_interface.py::test_failure_leaves_no_tap_behind",
            "test_qemu_interface.py::test_a_call_that_does_not_return_has_a_deadline",
            "test_vf_network.py::test_identity_is_restored_after_a_crash",
            "test_vf_network.py::test_restoring_that_fails_keeps_the_record",
            "test_vf_network.py::test_the_next_guest_does_not_take_a_dead_ones_identity_for_the_former",
        ),
    ),
    Row(
        "F47",
        "A program beside QEMU does not start, or does not end",
        "it ends with its guest; if one fails, none is left, and no device stays detached",
        (
            "test_qemu_daemons.py::test_a_program_",
            "test_qemu_daemons.py::test_swtpm_serves_and_ends_with_its_connection",
            "test_qemu_daemons.py::test_recover_",
        ),
        LAB + "killed_programs",
    ),
    Row(
        "F48",
        "A definition or an archive names files of root",
        "root creates and copies only what QEMU's user could; an archive changes no record outside of it",
        (
            "test_qemu_daemons.py::test_root_makes_",
            "test_snapshotfile.py::test_records_outside_are_not_changed",
            "test_snapshotfile.py::test_hostile_members_are_refused",
            "test_snapshotfile.py::test_headers_are_bounded",
        ),
    ),
    Row(
        "F49",
        "A directory in the place of / names processes, sockets, guests or hooks of the live host",
        "recover, the verbs of hot-plug and hook reach none of them",
        (
            "test_odd_records.py::test_records_of_another_root_reach_no_process_and_no_file",
            "test_odd_records.py::test_guests_of_another_root_are_not_those_of_the_live_host",
            "test_simulated_writes.py::test_hook_is_not_written_or_removed_outside",
        ),
    ),
    Row(
        "F50",
        "One record of a program, an interface or a function is odd",
        "it is set aside or reported; the others are recovered",
        ("test_odd_records.py::test_odd_record", "test_odd_records.py::test_record_that_is_not_a_file"),
    ),
    Row(
        "F51",
        "Killed beside its guest, or with it",
        "after the guest's end its sockets, directory and key are removed, and USB interfaces bound to their drivers",
        ("test_guest_journal.py::", "test_usb_journal.py::"),
        LAB + "killed_emulator, killed_starter",
    ),
)

HEAD = """\
# What happens when things go wrong

Generated by `make reliability` from a run of the tests; do not edit. A test's name stands for all its cases. The
simulated kernel answers as measured on a real one (`tests/testing/test_measured.py`,
`tests/lab/test_kernel_scripts.py`). Steps of `make lab` and `make soak` (`docs/lab.md`) use a real kernel and are
**not** part of this run.

`make fuzz` runs longer forms of the sampled tests.

Records are in `/run/pyhostdev`, which does not survive a reboot; neither do the kernel's bindings. In a container with
its own `/run`, or under a service manager that removes a service's directory when it stops (`RuntimeDirectory=`
without `RuntimeDirectoryPreserve=`), the journal is younger than the bindings. `recover` then reports functions with an
override for vfio-pci as `unrecorded` and leaves them alone. Use `--state-dir` with a directory that lasts as long as
the boot.

| | Fault | Promise | Tests | Result | Shown elsewhere, or not |
|---|---|---|---|---|---|
"""


class _Writer:
    """Collects the results for each row."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.marked: dict[str, set[str]] = {}
        self.outcomes: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for mark in item.iter_markers("fault"):
                item.user_properties += [("fault", fault) for fault in mark.args]  # the report carries them to us

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        faults = {str(value) for name, value in report.user_properties if name == "fault"}
        self.marked.setdefault(report.nodeid, set()).update(faults)
        if report.when == "call" or report.outcome != "passed":
            worst = self.outcomes.get(report.nodeid)
            self.outcomes[report.nodeid] = worst if worst == "failed" else report.outcome

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):  # a process of pytest-xdist
            return
        with open(self.path, "w", encoding="utf-8") as stream:
            stream.write(HEAD + "".join(self._line(row) for row in ROWS))

    def _line(self, row: Row) -> str:
        cases = [n for n in self.outcomes if row.fault in self.marked.get(n, ()) or any(t in n for t in row.tests)]
        names = sorted({node.partition("[")[0].rpartition("/")[2] for node in cases})
        if len(names) > 6:
            names = sorted({_summary(names, name.partition("::")[0]) for name in names})
        shown = "<br>".join(f"`{name.replace('.py::', ': ')}`" for name in names) or "none"
        return f"| {row.fault} | {row.what} | {row.promise} | {shown} | {self._result(cases)} | {row.elsewhere} |\n"

    def _result(self, cases: list[str]) -> str:
        found = Counter(self.outcomes[case] for case in cases)
        words = ", ".join(f"**{n} {o}**" if o == "failed" else f"{n} {o}" for o, n in sorted(found.items()))
        return words or "not shown by this run"


def _summary(names: list[str], file: str) -> str:
    count = sum(name.startswith(f"{file}::") for name in names)
    return f"{file} ({count} {'test' if count == 1 else 'tests'})"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --write-reliability."""
    parser.addoption("--write-reliability", metavar="FILE", help="write the table of faults and results to FILE")


def pytest_configure(config: pytest.Config) -> None:
    """Collect results if requested."""
    path = config.getoption("--write-reliability")
    if path:
        config.pluginmanager.register(_Writer(path))
