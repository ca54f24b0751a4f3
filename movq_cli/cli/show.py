"""Messages in one line, and sizes, durations and ratios in units for people."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..checkpoints.checkpoint import EMBEDDED
from ..checkpoints.configs import LISTS
from ..errors import MovqError, printable
from ..model.config import AutoencoderConfig
from ..options import CODES, CROP

LEAST_PART = 0.5
"""The part of a picture that a crop should keep; less is remarked on."""

if TYPE_CHECKING:
    from ..batch import Line
    from ..codec import Progress
    from ..metadata import Metadata
    from ..options import EncodeOptions
    from ..values import Bucket


def complain(what: MovqError | str, about: str = "") -> None:
    """Write one line to stderr, `movq: NAME: reason`. No file name can break out of the line."""
    text = what.with_flags if isinstance(what, MovqError) else what
    text = f"{about}: {text}" if about else text
    sys.stderr.write(f"movq: {printable(text)}\n")


def say_whose_weights(options: EncodeOptions) -> None:
    """Print a remark about the embedded weights if no weights are named."""
    if options.weights is None:
        complain(
            f"the embedded {EMBEDDED} weights are for trying, testing and archiving: no public diffusion model reads "
            "their latents; --weights takes others"
        )


def say_target(options: EncodeOptions, buckets: Iterable[Bucket] = ()) -> None:
    """Print what the diffusion model that latents are prepared for, and other options, set."""
    if options.target is None:
        return
    selection, picture = options.selection, options.picture
    sizes = [f"{bucket.height}x{bucket.width}" for bucket in buckets] or [str(size) for size in picture.sizes]
    lengths = sorted({bucket.frames for bucket in buckets}) or [selection.frames or 0]
    assert selection.fps is not None
    parts = [
        f"{' or '.join(map(str, lengths))} frames at {float(selection.fps):g} per second",
        " or ".join(sizes),
        f"multiples of {picture.multiple}{' by cropping' if picture.edge == CROP else ''}",
        f"stored in {options.store_dtype}",
        f"scaling factor {options.scaling_factor:.10g}",
        f"first frames ({', '.join(options.first_frames)})" if options.first_frames else "",
        f"weights {options.weights}",
    ]
    complain(f"for {options.target}: {', '.join(filter(None, parts))}")


def say_shapes(options: EncodeOptions, lines: Iterable[Line]) -> None:
    """Print that the clips that are done for a model have several shapes, where trainers stack them."""
    from ..video.geometry import round_up

    if options.target is None:
        return
    multiple = options.picture.multiple or 1
    sides = (
        (line["frames"] + line["padded"], round_up(line["height"], multiple), round_up(line["width"], multiple))
        for line in lines
    )
    counts = Counter("x".join(map(str, three)) for three in sides)
    if len(counts) > 1:
        found = ", ".join(f"{shape} ({plural(count, 'clip')})" for shape, count in counts.most_common())
        complain(f"{found}: CogVideo's finetuning takes clips of one shape; export --shape names it")


def odd_rows(sizes: Iterable[tuple[int, int]], semantics: str) -> str:
    """Return a remark about latents (height, width) of which a transformer would drop a row or column; "" if there are none.

    It is for weights of CogVideoX's family, whose norms span frames, and whose transformers take patches of 2x2.
    """
    odd = [size for size in sizes if semantics != "frame" and (size[0] % 2 or size[1] % 2)]
    if not odd:
        return ""
    height, width = odd[0]
    return (
        f"latents of {height}x{width}: CogVideoX's transformer takes patches of 2x2 and would leave the odd row or column "
        "out; --multiple 16 pads the picture, or crops it with --edge crop; --height and --width choose another"
    )


def name_of(path: str | os.PathLike[str]) -> str:
    """Return a path as text that is safe to print."""
    return printable(os.fspath(path))


def duration(seconds: float) -> str:
    """Return seconds as text: 4.8 s, 2 min 05 s, 1 h 02 min."""
    if seconds < 99.5:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def compared(size: float, to: float, what: str) -> str:
    """Return how a size compares to that of `what`: 11.6 times smaller than raw RGB, 7.8 times the size of the source."""
    if not size or not to:
        return f"{what} unknown"
    factor = to / size
    return f"{factor:.1f} times smaller than {what}" if factor >= 1 else f"{1 / factor:.1f} times the size of {what}"


def codes_of(m: Metadata) -> str:
    """Return how many codes there are, for latents that are codes: `: 1 of 8,192 at each place`."""
    if m.representation != CODES:
        return ""
    config = AutoencoderConfig.from_dict(m.config)
    return f": {config.codebooks:,} of {config.codes:,} at each place"


def tail(padded: int, dropped: int) -> str:
    """Return what happened to frames at the end of a clip: (the last one repeated 3 times)."""
    times = "once" if padded == 1 else f"{padded} times"
    repeated = f" (the last one repeated {times})" if padded else ""
    return repeated + (f" ({dropped} at the end dropped)" if dropped else "")


def shape(sizes: Sequence[int]) -> str:
    """Return sizes as `1 x 32 x 5`."""
    return " x ".join(str(n) for n in sizes)


def plural(count: int, word: str) -> str:
    """Return a count and its word: `1 item`, `1,200 items`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


@contextmanager
def progress_bar(quiet: bool, unit: str = "frames") -> Iterator[Progress]:
    """Yield a Progress that draws a bar of frames, or of another unit, on stderr.

    If `quiet` or without a terminal, nothing is drawn.
    """
    from tqdm import tqdm

    with tqdm(unit=f" {unit}", disable=True if quiet else None, leave=False, dynamic_ncols=True) as bar:

        def progress(done: int, total: int | None) -> None:
            bar.total = None if total is None else max(total, done)
            bar.update(done - bar.n)

        yield progress


@contextmanager
def warned_once() -> Iterator[None]:
    """Show each warning only once inside the `with`, as a command may open the same weights several times."""
    shown: set[str] = set()
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_new(message: Warning | str, *rest: Any, **more: Any) -> None:
            if str(message) not in shown:
                shown.add(str(message))
                show(message, *rest, **more)

        warnings.showwarning = show_new
        yield


def per_channel(values: Mapping[str, Any]) -> str:
    """Return which lists of a number for each channel are recorded, as text."""
    recorded = ", ".join(key for key in LISTS if values.get(key))
    return recorded and f"{recorded} (not applied)"
