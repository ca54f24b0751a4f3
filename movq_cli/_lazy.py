"""Lazy imports: names of a package are imported on first use, so that importing the package does not import torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package. `names` maps modules to their names, separated by spaces."""
    homes = {name: module for module, listed in names.items() for name in listed.split()}

    def getattr_(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{homes[name]}", package), name)

    return getattr_, lambda: sorted(sys.modules[package].__all__)
