"""The log of a run as a picture: loss of every step, smoothed, and PSNR of the watched clips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_WIDTH, _HEIGHT, _MARGIN = 720, 240, 48
_SMOOTHED = 50
"""Number of points, roughly, of a smoothed curve."""


def svg(lines: Iterable[dict]) -> str:
    """Return the SVG of a log's lines: those with a "loss", and those with "watched"."""
    lines = list(lines)
    steps = [(line["step"], line["loss"]) for line in lines if "loss" in line and line["frames"] > 1]
    watched = [line for line in lines if "watched" in line]
    panels = [("loss, clips", [("", _smoothed(steps))])]
    panels.append(
        (
            "PSNR, dB",
            [
                (kind, [(line["step"], line["watched"][kind]) for line in watched])
                for kind in ("clip", "picture", "sample")
            ],
        )
    )
    height = _HEIGHT * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="12">'
    ]
    parts.append(f'<rect width="{_WIDTH}" height="{height}" fill="white"/>')
    for number, (title, curves) in enumerate(panels):
        parts += _panel(title, curves, number * _HEIGHT)
    return "\n".join([*parts, "</svg>\n"])


def _smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    size = max(1, len(points) // _SMOOTHED)
    parts = [points[at : at + size] for at in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _panel(title: str, curves: Sequence[tuple[str, Sequence[tuple[float, float]]]], top: int) -> Iterable[str]:
    points = [point for _, curve in curves for point in curve]
    yield f'<text x="{_MARGIN}" y="{top + 16}">{title}</text>'
    if not points:
        return
    xs, ys = zip(*points, strict=True)
    left, right, low, high = min(xs), max(max(xs), min(xs) + 1), min(ys), max(max(ys), min(ys) + 1e-6)
    bottom, room = top + _HEIGHT - 24, _HEIGHT - 48

    def place(x: float, y: float) -> str:
        across = _MARGIN + (x - left) / (right - left) * (_WIDTH - 2 * _MARGIN)
        return f"{across:.1f},{bottom - (y - low) / (high - low) * room:.1f}"

    for y in (low, high):
        at = place(left, y).split(",")[1]
        yield f'<text x="{_MARGIN - 4}" y="{at}" text-anchor="end">{y:.2f}</text>'
        yield f'<path d="M{_MARGIN},{at} H{_WIDTH - _MARGIN}" stroke="#ddd"/>'
    yield f'<text x="{_WIDTH - _MARGIN}" y="{bottom + 16}" text-anchor="end">step {right:.0f}</text>'
    for (name, curve), colour in zip(curves, ("#1f77b4", "#d62728", "#2ca02c"), strict=False):
        if curve:
            yield f'<polyline fill="none" stroke="{colour}" points="{" ".join(place(*point) for point in curve)}"/>'
            across, up = place(*curve[-1]).split(",")
            yield f'<text x="{float(across) + 4}" y="{up}" fill="{colour}">{name}</text>'
