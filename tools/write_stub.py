"""Writes lit_pref/__init__.pyi, which tells type checkers and editors what the package exports."""

import sys
from pathlib import Path

import lit_pref

STUB = Path(__file__).parents[1] / "lit_pref" / "__init__.pyi"


def stub() -> str:
    """Return an import for every name that `lit_pref` imports on demand."""
    names = [name for name in dir(lit_pref) if not name.startswith("_")]
    lines = sorted(f"from {getattr(lit_pref, name).__module__} import {name} as {name}" for name in names)
    return "\n".join(["# Written by `make docs`.", *lines]) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        text = STUB.read_text(encoding="utf-8")
        sys.exit(0 if text == stub() else "lit_pref/__init__.pyi is out of date: run `make docs`")
    STUB.write_text(stub(), encoding="utf-8")
