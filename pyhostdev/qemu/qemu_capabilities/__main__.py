# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Record what an emulator binary can do: python -m pyhostdev.qemu.qemu_capabilities BINARY -o FILE
"""

from __future__ import annotations

import argparse
import json

from pyhostdev.qemu.qemu_capabilities import probe_data


def main() -> None:
    """Ask the binary and write the answers."""
    parser = argparse.ArgumentParser(description="Record what an emulator binary can do.")
    parser.add_argument("binary")
    parser.add_argument("-o", "--output", required=True)
    options = parser.parse_args()
    with open(options.output, "w", encoding="utf-8") as file:
        json.dump(probe_data(options.binary), file, indent=0, sort_keys=True)
        file.write("\n")


if __name__ == "__main__":
    main()
