"""The side data of a frame, of types that PyAV has no name for too. PyAV; runs in the decoding process.

PyAV 18.1 names the types 0 to 27 and raises ValueError for the whole list where one frame carries another (29 is a view id,
31 Exif). `Enum._missing_` is Python's own hook for such values. It is called only for values without a name, so a later PyAV
that names more of them, or installs a hook of its own, gives the same display matrix.
"""

from __future__ import annotations

from typing import Any, cast

import av
from av.buffer import Buffer
from av.sidedata.sidedata import Type


def display_matrix(frame: av.VideoFrame) -> bytes | None:
    """Return the nine numbers, four bytes each, by which libav says to turn and mirror the frame."""
    data = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else bytes(cast(Buffer, data))


def _unnamed(cls: type[Type], value: object) -> Type | None:
    """Return a member for a number without a name; like any member it is found under itself."""
    if not isinstance(value, int):
        return None
    member: Any = object.__new__(cls)
    member._name_, member._value_ = f"TYPE_{value}", value
    return cast(Type, member)


Type._missing_ = classmethod(_unnamed)  # type: ignore[method-assign, assignment]
