"""The files a command reads and writes, by what was typed: names that are left out, and habits that lead elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..errors import MovqError, MovqUsageError
from ..headers import looks_like_safetensors
from .show import plural

LATENTS = ".safetensors"
_OTHER_FORMATS = {
    *(".pt", ".pth", ".ckpt", ".bin", ".npy", ".npz", ".pkl", ".h5", ".hdf5", ".tar", ".zip", ".json", ".txt", ".csv"),
    *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".png", ".jpg", ".jpeg", ".webp"),
}


def video_input(paths: Sequence[str]) -> str:
    """Return the one video to encode. Raises MovqError and MovqUsageError that name the command that was meant."""
    path = _one(paths, "IN", "`movq batch-encode FILES... -o DIR` encodes several")
    if os.path.isdir(path):
        raise MovqError("is a folder; `movq batch-encode FOLDER -o DIR` encodes all videos in it", path)
    if os.path.isfile(path) and looks_like_safetensors(path):
        raise MovqError("is a safetensors file, not a video; `movq decode` makes a video of latents", path)
    return path


def video_inputs(paths: Sequence[str]) -> list[str]:
    """Return the videos named, and those below the folders named. Raises MovqError if a folder has none."""
    found: list[str] = []
    for path in paths:
        if not os.path.isdir(path):
            found.append(_readable(path))
            continue
        from ..batch import find_items

        below = [os.path.relpath(item.source_path, path) for item in find_items([path], [], "").items]
        if not below:
            raise MovqError("has no videos in it", path)
        found += (os.path.join(path, name) for name in below)
    return found


def latents_input(paths: Sequence[str], of_movq: bool = True) -> str:
    """Return the one latents file to decode, of movq or of a trainer.

    Raises MovqError and MovqUsageError that name the command that was meant.
    """
    path = _one(paths, "LATENTS", "run it once for each")
    if of_movq and os.path.isfile(path) and not looks_like_safetensors(path):
        raise MovqError("is not a latents file; `movq encode` makes one of a video", path)
    return path


def latents_output(source: str, output: str | None) -> str:
    """Return where the latents of a video go: to `output`, into that folder, or to the current one under its name."""
    name = os.path.splitext(os.path.basename(source))[0] + LATENTS
    if output is None:
        return name
    if os.path.isdir(output):
        return os.path.join(output, name)
    if output.endswith(os.sep):
        raise MovqError("does not exist; create the folder first, or name a file", output)
    suffix = _suffix(output)
    if not suffix and not os.path.lexists(output):
        return output + LATENTS
    if suffix in _OTHER_FORMATS and os.path.realpath(output) != os.path.realpath(source):  # which has its own refusal
        raise MovqUsageError(f"latents are written as {LATENTS}, not {suffix}", option="output")
    return output


def video_output(latents: str, output: str | None) -> str:
    """Return where a decoded video goes: to `output`, or to NAME.decoded.mp4, which is never the name of a source."""
    if output is None:
        return os.path.splitext(os.path.basename(latents))[0] + ".decoded.mp4"
    _suffix(output)
    return output


def picture_output(output: str) -> str:
    """Return the path of a PNG file. Raises MovqUsageError for another suffix."""
    if _suffix(output) != ".png":
        raise MovqUsageError(f"draws a PNG file: name it NAME.png, got {output!r}", option="picture")
    return output


def _one(paths: Sequence[str], argument: str, several: str) -> str:
    if len(paths) != 1:
        raise MovqUsageError(f"takes one file, got {plural(len(paths), 'name')}; {several}", argument)
    return _readable(paths[0])


def _readable(path: str) -> str:
    """Return a path. Raises MovqError if it is standard input or an address."""
    if path == "-":
        raise MovqError("is standard input; movq reads files, so save it to one first", path)
    if "://" in path and not os.path.lexists(path):
        raise MovqError("is an address; movq reads files, so download it first", path)
    return path


def _suffix(output: str) -> str:
    if output == "-":
        raise MovqUsageError("movq writes files, not standard output; name a file", option="output")
    return os.path.splitext(output)[1].lower()
