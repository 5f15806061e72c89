# SPDX-License-Identifier: LGPL-2.1-or-later
"""
JSON from files and programs: whatever the text is, the answer is a value or a ValueError.

Python's parser is loaded with the first text: a host without records has none.

Mirrors: src/util/virjson.c
"""

from __future__ import annotations

from pyhostdev.util.typed import Any


def parse_json(text: bytes | str) -> Any:
    """
    Return the value in a JSON text.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or has a number that is not finite.

    Mirrors: virJSONValueFromString
    """
    import json

    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def format_json(value: Any) -> str:
    """Return a value as one line of JSON with sorted keys."""
    import json

    return json.dumps(value, sort_keys=True)


def _finite(text: str) -> float:
    """Return a number; Python's parser also accepts NaN and Infinity, which no int can hold."""
    import math  # few texts have fractions

    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number
