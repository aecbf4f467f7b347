"""Why ONNX Runtime refuses a model, as one short line; pnnx reads files with it and prints the same complaints."""

from __future__ import annotations

import re


def refusal(text: str, runtime: str, reader: str) -> str | None:
    """The reason that stands in a complaint, its white space folded; None where it is none of these.

    ``runtime`` is what lacks an operator, ``reader`` what is too old for the file.
    """
    if found := re.search(r"No Op registered for (\S+) with domain_version of (\d+)", text):
        return f"operator {found.group(1)} (opset {found.group(2)}) is not supported by {runtime}"
    if found := re.search(r"Fatal error: (\S+?)\(-?\d+\) is not a registered function/op", text):
        return f"operator {found.group(1)} is not supported by {runtime}"
    if found := re.search(r"Opset (\d+) is under development.*till opset (\d+)", text):
        return f"opset {found.group(1)} is too new, the installed {reader} knows up to {found.group(2)}"
    if found := re.search(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)", text):
        return f"IR version {found.group(1)} is too new, the installed {reader} knows up to {found.group(2)}"
    return None
