"""Shards: one of n processes of movq, on as many machines, that share a batch."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import MovqUsageError
from ..files import text_of

_SETS = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"),
    ("SLURM_PROCID", "SLURM_NTASKS", "", ""),
    ("RANK", "WORLD_SIZE", "", ""),
)
"""Where `auto` looks: number, count, the number that counting begins with and its step, of those that have them."""


@dataclass(frozen=True)
class Shard:
    """Shard `index` of `count`, from 0. Whole videos belong to one, by their ids: all spans of a video to the same."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> Shard:
        """i/n, counted from 0 or from 1 (n/n is the same as 0/n), or auto. Raises MovqUsageError."""
        if text == "auto":
            return cls._found(environment)
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if match is None or not (count := int(match[2])) or int(match[1]) > count:
            raise MovqUsageError(f"must be I/N, like 0/8 to 7/8 or 1/8 to 8/8, or auto; got {text!r}", "--shard")
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
                    raise MovqUsageError(f"auto finds {number}={texts[0]!r} and {count}={texts[1]!r}", "--shard")
                i, n, least, by = map(int, texts)
                return cls.parse(f"{(i - least) // max(by, 1)}/{n}", {})
        names = "; ".join(f"{number} and {count}" for number, count, _, _ in _SETS)
        raise MovqUsageError(f"auto finds neither {names} in the environment", "--shard")

    def __contains__(self, name: str) -> bool:
        """Whether the video of this id is of the shard."""
        digest = hashlib.sha256(text_of(name).encode()).digest()
        return int.from_bytes(digest, "big") % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"
