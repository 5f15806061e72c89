# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Verbs of the command line in forks of this process, which have the imports behind them.

A verb of its own process takes ten seconds here on a busy machine, and a fork one.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from labhost import check, say
from workers import Child

from pyhostdev.tools import (  # noqa: F401
    argv,
    attach_device,
    detach_device,
    list_selected,
    plan,
    recover,
    show,
    snapshot,
    status,
    xml,
)
from pyhostdev.tools.main import main

TIMEOUT_S = 180


def verb(*words: str | Path, expect: int = 0) -> bytes:
    """
    Run a verb, check its exit code, and return what it printed.

    Raises:
        AssertionError: it ended otherwise.
    """
    with tempfile.TemporaryFile() as output:

        def run() -> int:
            os.dup2(output.fileno(), 1)
            return main([str(word) for word in words])

        outcome = Child(run).result(TIMEOUT_S)
        output.seek(0)
        printed = output.read()
    say(f"  $ pyhostdev {' '.join(map(str, words))}  [fork: {outcome.value}, {outcome.seconds:.1f} s]")
    check((None, expect), (outcome.error, outcome.value), f"exit code of '{words[0]}' {outcome.text}".strip())
    return printed


def said(*words: str | Path, expect: int = 0) -> Any:
    """Run a verb with --json, and return what it printed."""
    return json.loads(verb(*words, "--json", expect=expect))
