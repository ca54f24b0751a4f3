"""Values that are parsed from text: sizes in bytes, shards, buckets, picks."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from .errors import MovqUsageError
from .files import text_of

_LEAST_BYTES = 10**5
"""A size below this without a unit is taken for a slip."""

_WIDEST = Fraction(5, 2)
"""The widest of a bucket's siblings, and turned the tallest: films are up to 2.39 times as wide as high."""
_NEAREST = Fraction(21, 20)
"""Aspects of two siblings differ at least by this factor: nearer ones would divide clips that can share a bucket."""


def parse_bytes(text: str) -> int:
    """Return the bytes of '64MB', '2.5 GB', '512MiB' or a number. Raises MovqUsageError."""
    units = {"": 1, "B": 1}
    for i, letter in enumerate("KMGT", 1):
        units |= {letter: 1000**i, f"{letter}B": 1000**i, f"{letter}IB": 1024**i}
    upper = text.strip().upper()
    number = upper.rstrip("BIKMGT ")
    try:
        value = float(number) * units[upper[len(number) :].strip()]
    except (KeyError, ValueError):
        raise MovqUsageError(f"is not a size like 64MB or 2GiB: {text!r}") from None
    if not 0 < value < float("inf"):
        raise MovqUsageError(f"must be above 0, got {text!r}")
    if value < _LEAST_BYTES and not upper[len(number) :].strip():
        raise MovqUsageError(f"{text.strip()} is a number of bytes: did you mean {text.strip()}GB?")
    return int(value)


def parse_seconds(text: str) -> Fraction:
    """Return the seconds of '90.5', '1:30.5' or '00:01:30.5', exactly. Raises MovqUsageError."""
    *larger, seconds = text.split(":")
    try:
        if len(larger) > 2 or not all(part.isdecimal() for part in larger):
            raise ValueError
        total = Fraction(seconds)
        for power, part in enumerate(reversed(larger), 1):
            total += int(part) * 60**power
    except (ValueError, ZeroDivisionError):
        raise MovqUsageError(f"is not a time like 90.5, 1:30.5 or 00:01:30.5: {text!r}") from None
    return total


def format_time(seconds: float) -> str:
    """Return a place in a video as `parse_seconds` reads it, to a thousandth: 0:01.5, 1:02:03.25."""
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(abs(thousandths), 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:06.3f}".rstrip("0")
    text = f"{text}0" if text.endswith(".") else text
    sign = "-" if thousandths < 0 else ""
    return f"{sign}{hours}:{minutes:02d}:{text}" if hours else f"{sign}{minutes}:{text}"


def format_fraction(value: Fraction) -> str:
    """Return a number exactly: as a decimal if it is one, like 0.2, or else as 30000/1001."""
    decimal = f"{float(value):.9f}".rstrip("0").rstrip(".")
    return decimal if Fraction(decimal) == value else str(value)


def format_bytes(count: float) -> str:
    """Return a number of bytes as people read it: 912 kB, 7.1 MB."""
    *units, largest = "B", "kB", "MB", "GB", "TB"
    for unit in units:
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} {largest}"


_SETS = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"),
    ("SLURM_PROCID", "SLURM_NTASKS", "", ""),
    ("RANK", "WORLD_SIZE", "", ""),
)
"""Environment variables that `auto` reads, by launcher: index, count, first index and step ("" if it has none)."""


@dataclass(frozen=True)
class Shard:
    """Shard `index` of `count`, from 0: the part of a batch that one of several machines makes.

    A whole video belongs to one shard, by its id: all its spans are made on the same machine.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> Shard:
        """Read I/N, counted from 0 or from 1 (N/N is the same as 0/N), or auto. Raises MovqUsageError."""
        if text == "auto":
            return cls._found(environment)
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if match is None or not (count := int(match[2])) or int(match[1]) > count:
            raise MovqUsageError(f"must be I/N, like 0/8 to 7/8 or 1/8 to 8/8, or auto; got {text!r}")
        return cls(int(match[1]) % count, count)

    @classmethod
    def _found(cls, environment: Mapping[str, str]) -> Shard:
        for number, count, first, step in _SETS:
            if number in environment and count in environment:
                texts = [
                    environment[number],
                    environment[count],
                    environment.get(first, "0"),
                    environment.get(step, "1"),
                ]
                if not all(re.fullmatch(r"\d{1,9}", text) for text in texts):
                    raise MovqUsageError(f"auto finds {number}={texts[0]!r} and {count}={texts[1]!r}")
                i, n, least, by = map(int, texts)
                return cls.parse(f"{(i - least) // max(by, 1)}/{n}", {})
        names = "; ".join(f"{number} and {count}" for number, count, _, _ in _SETS)
        raise MovqUsageError(f"auto finds neither {names} in the environment")

    def __contains__(self, name: str) -> bool:
        """Return True if the video of this id belongs to the shard."""
        digest = hashlib.sha256(text_of(name).encode()).digest()
        return int.from_bytes(digest, "big") % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"


def _sides(text: str, count: int, words: str) -> list[int]:
    """Read numbers with an x between them. Raises MovqUsageError, which says in `words` how they are written."""
    parts = text.lower().split("x")
    if len(parts) != count or not all(re.fullmatch(r"[1-9]\d{0,6}", part) for part in parts):
        raise MovqUsageError(f"must be {words}, got {text!r}")
    return [int(part) for part in parts]


@dataclass(frozen=True)
class Bucket:
    """A shape that items may have: frames, and height and width in pixels."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> Bucket:
        """Read FxHxW. Raises MovqUsageError."""
        return cls(*_sides(text, 3, "FRAMESxHEIGHTxWIDTH like 49x480x720"))

    def siblings(self, multiple: int) -> tuple[Bucket, ...]:
        """Return buckets of about this area, from _WIDEST to that turned, whose sides are multiples of `multiple`.

        Each short side goes with the longest side that keeps the area at or below this bucket's, and the largest square is
        one of them. This bucket and itself turned are always among them, even if they are wider or not on the multiple.
        """
        area = self.height * self.width
        square = math.isqrt(area) // multiple * multiple
        found = [(min(self.height, self.width), max(self.height, self.width))]
        for short in range(square, 0, -multiple):
            long = short if short == square else area // (short * multiple) * multiple
            aspect = Fraction(long, short)
            if aspect > _WIDEST:
                break
            known = [Fraction(other[1], other[0]) for other in found]
            if all(max(aspect / other, other / aspect) >= _NEAREST for other in known):
                found.append((short, long))
        sizes = {*found, *((long, short) for short, long in found)}
        wide_first = sorted(sizes, key=lambda size: Fraction(*size))
        return tuple(Bucket(self.frames, height, width) for height, width in wide_first)

    def enlarges(self, width: int, height: int) -> bool:
        """Return True if a picture of this size must be enlarged to cover the bucket."""
        return self.width > width or self.height > height


@dataclass(frozen=True)
class Column:
    """A column of a list, and the field that it is taken for. Without a name, the field is not taken from the list."""

    field: str
    name: str

    def __str__(self) -> str:
        return f"{self.field}={self.name}"

    @classmethod
    def parse(cls, text: str) -> Column:
        """Read FIELD=NAME. Raises MovqUsageError."""
        field, equals, name = text.partition("=")
        if field not in ("path", "caption", "id", "start", "duration", "end") or not equals or text == "path=":
            raise MovqUsageError(
                f"must be path, caption, id, start, duration or end, = and the name of a column, got {text!r}"
            )
        return cls(field, name)


@dataclass(frozen=True)
class Size:
    """The size of a picture in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> Size:
        """Read HxW. Raises MovqUsageError."""
        return cls(*_sides(text, 2, "HxW like 480x720"))


@dataclass(frozen=True)
class Pick:
    """The rule by which spans are placed in a video.

    `kind` is head (at the first frame), uniform (`number` spans, evenly spaced), slide (one every `number` frames) or
    random (`number` spans, drawn).
    """

    kind: str
    number: int = 1

    def __str__(self) -> str:
        return self.kind if self.kind == "head" else f"{self.kind}:{self.number}"

    @classmethod
    def parse(cls, text: str) -> Pick:
        """Read head, uniform:K, slide:S or random:K. Raises MovqUsageError."""
        kind, colon, number = text.partition(":")
        if text == "head":
            return cls("head")
        if kind in ("uniform", "slide", "random") and colon and re.fullmatch(r"[1-9]\d{0,6}", number):
            return cls(kind, int(number))
        raise MovqUsageError(f"must be head, uniform:K, slide:S or random:K, got {text!r}")

    def starts(self, frames: int, length: int, key: str) -> list[int]:
        """Return the first frames of spans of `length` in a video of `frames`, sorted and without duplicates.

        `key` is the seed of random spans.
        """
        last = max(0, frames - length)
        if self.kind == "head":
            return [0]
        if self.kind == "slide":
            return list(range(0, last + 1, self.number))
        if self.kind == "uniform":
            if self.number == 1:
                return [last // 2]
            return sorted({round(Fraction(i * last, self.number - 1)) for i in range(self.number)})
        if self.number > last:
            return list(range(last + 1))
        drawn = set[int]()
        tries = 0
        while len(drawn) < self.number:
            digest = hashlib.sha256(f"{key} {tries}".encode("utf-8", "surrogateescape")).digest()
            drawn.add(int.from_bytes(digest, "big") % (last + 1))
            tries += 1
        return sorted(drawn)


def is_numbers(value: object) -> bool:
    """Return True for a list of finite numbers."""
    return isinstance(value, list) and all(type(n) in (int, float) and -math.inf < n < math.inf for n in value)
