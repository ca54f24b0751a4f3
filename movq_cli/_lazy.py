"""Names of a package that are imported when they are first used, so that importing the package imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a package: by module, `names` lists what comes from it, words apart."""
    homes = {name: module for module, listed in names.items() for name in listed.split()}

    def getattr_(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{homes[name]}", package), name)

    return getattr_, lambda: sorted(sys.modules[package].__all__)
