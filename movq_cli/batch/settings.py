"""`Settings`: the values that all outputs of a batch share, and the part of a line that follows from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..files import text_of
from ..metadata import CODED_VERSION, FORMAT_VERSION
from ..options import EncodeOptions
from .item import Item
from .manifest import DESCRIBED, Line


@dataclass(frozen=True)
class Settings:
    """The model, options and precision of a batch. `threads` and `device` are only recorded.

    `precision` is "" until it is known, which means that no output has been made with it. `cut` is how items are cut
    out of videos. `coded` is True if latents are stored as whole numbers.
    """

    options: EncodeOptions
    model: str
    weights_digest: str
    semantics: str
    precision: str
    threads: int
    device: str = ""
    cut: dict[str, Any] = field(default_factory=dict)
    coded: bool = False

    def line(self, item: Item) -> Line:
        """Return the part of an item's line that is known before encoding."""
        return self.described(item) | Line(
            weights_digest=self.weights_digest,
            semantics=self.semantics,
            precision=self.precision,
            options=item.encode_options(self.options).choices,
            format_version=CODED_VERSION if self.coded else FORMAT_VERSION,
            threads=self.threads,
            device=self.device,
        )

    def described(self, item: Item) -> Line:
        """Return the part of a line that describes the item."""
        line = Line(id=item.id, path=text_of(item.source_path))
        for name in DESCRIBED:
            if (value := getattr(item, name)) not in (None, {}):
                line[name] = value  # type: ignore[literal-required]
        if item.of:
            line["of"] = item.of
        if item.facts is not None:
            line["seen"] = item.facts
        if self.cut:
            line["cut"] = self.cut
        return line

    def refreshed(self, item: Item, line: Line) -> Line:
        """Return the line of an item that is up to date, with the item's present description."""
        fresh = line.copy()
        for name in (*DESCRIBED, "of", "cut", "seen", "orphan"):
            fresh.pop(name, None)  # type: ignore[misc]
        return fresh | self.described(item)
