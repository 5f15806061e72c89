# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev argv``: the QEMU command line of a domain."""

from __future__ import annotations

import argparse

from pyhostdev.tools import arguments, output, releases, streams
from pyhostdev.tools.main import tell_notes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_file(parser)
    arguments.add_root(parser)
    arguments.add_keep_together(parser)
    releases.add_release(parser)
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Define the domain and print QEMU's command line; report on stderr what the command line leaves out."""
    from pyhostdev.conf.newer_words import dropped_word_notes
    from pyhostdev.qemu import qemu_driver
    from pyhostdev.qemu.qemu_command.ignored import start_findings
    from pyhostdev.qemu.qemu_driver.refusals import root_notes
    from pyhostdev.qemu.qemu_hostdev import unfound_usb

    host = arguments.host_of(args)
    definition = arguments.definition_of(args)
    capabilities = releases.capabilities_of(args, definition, host)
    release = releases.release_of(args, host)
    dropped = dropped_word_notes(definition, release)
    argv = qemu_driver.domain_to_native(
        definition,
        host,
        keep_together=args.keep_together,
        capabilities=capabilities,
        release=release,
        usb_may_be_absent=True,
    )
    lacking = [*root_notes(definition, host), *unfound_usb(definition, host)]
    tell_notes([*dropped, *start_findings(definition), *lacking])
    if args.json:
        output.print_json(argv)
    else:
        streams.write(f"{_lines(argv)}\n")
    return 0


def _lines(argv: list[str]) -> str:
    """Return the command in shell syntax, an option and its value on one line."""
    lines = [output.shell_word(argv[0])]
    for word in argv[1:]:
        if word.startswith("-"):
            lines.append(output.shell_word(word))
        else:
            lines[-1] += f" {output.shell_word(word)}"
    return " \\\n".join(lines)
