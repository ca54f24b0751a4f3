"""Views of a running batch: a bar and a line per worker on a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .items import about_item
from .show import complain, duration, name_of, plural

if TYPE_CHECKING:
    from ..batch import BatchState, Watch

_REDRAW_SECONDS = 0.2
_LINE_SECONDS = 30.0


@contextmanager
def watching(quiet: bool) -> Iterator[Watch]:
    """Yield a Watch for encode_batch. If a signal interrupts encoding, print how many items are left."""
    view = _Quiet() if quiet else _Terminal() if sys.stderr.isatty() else _Log()
    try:
        yield view
    except Exception:
        view.close()
        raise
    except BaseException:  # a signal
        view.close()
        if view.state is not None and view.state.phase == "encoding":
            state = view.state
            ended = f"{state.todo - state.left:,} of {plural(state.todo, 'item')} ended"
            complain(f"{ended}, {state.left:,} left: the same command goes on with them")
        raise
    view.close()


class _Quiet:
    """Prints a line for each item that fails or is skipped, and nothing else."""

    def __init__(self) -> None:
        self.state: BatchState | None = None
        self._told = 0
        self._next = 0.0

    def __call__(self, state: BatchState) -> None:
        self.state = state
        self.failures([line for line in state.made[self._told :] if line["status"] != "done"])
        self._told = len(state.made)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self.show(state)

    def failures(self, lines: list[Any]) -> None:
        for line in lines:
            complain(line["reason"], about_item(line["path"], line["id"]))

    def show(self, state: BatchState) -> float:
        """Show the state. Return the seconds until it may be shown again."""
        return _LINE_SECONDS

    def close(self) -> None:
        pass


class _Log(_Quiet):
    """Prints, in addition, a line of progress every _LINE_SECONDS."""

    def __init__(self) -> None:
        super().__init__()
        self._next = time.monotonic() + _LINE_SECONDS

    def show(self, state: BatchState) -> float:
        if state.phase in ("looking", "checking"):
            complain(_beginning(state)[2])
        elif state.phase == "encoding":
            left = _left(state)
            complain(f"{_counts(state)}; {_speed(state)}" + ("" if left is None else f", {duration(left)} left"))
        return _LINE_SECONDS


class _Terminal(_Quiet):
    """Draws a bar, and below it a line for each worker. Failures are printed above."""

    def __init__(self) -> None:
        super().__init__()
        from tqdm import tqdm

        self._tqdm = tqdm
        bar = "{desc}|{bar}| {percentage:3.0f}%{postfix}"
        self._bar = tqdm(total=1, bar_format=bar, leave=False, dynamic_ncols=True, position=0)
        self._lines: list[Any] = []

    def failures(self, lines: list[Any]) -> None:
        for line in lines:
            with self._tqdm.external_write_mode(file=sys.stderr):
                complain(line["reason"], about_item(line["path"], line["id"]))

    def show(self, state: BatchState) -> float:
        bar = self._bar
        if state.phase in ("looking", "checking"):
            bar.total, bar.n, text = _beginning(state)
            bar.set_description_str(text + " ", refresh=False)
        elif state.phase == "encoding":
            left = _left(state)
            bar.total, bar.n = max(state.source_bytes, 1), min(_bytes_done(state), max(state.source_bytes, 1))
            bar.set_description_str(f"{_counts(state)} ", refresh=False)
            bar.set_postfix_str(_speed(state) + ("" if left is None else f", {duration(left)} left"), refresh=False)
        bar.refresh()
        self._show_workers(state)
        return _REDRAW_SECONDS

    def _show_workers(self, state: BatchState) -> None:
        while len(self._lines) < len(state.workers):
            position = 1 + len(self._lines)
            self._lines.append(self._tqdm(bar_format="{desc}", leave=False, dynamic_ncols=True, position=position))
        for line in self._lines[len(state.workers) :]:
            line.set_description_str("")
        for line, worker in zip(self._lines, state.workers, strict=False):
            text = "starts" if not worker.ready else "waits"
            if worker.task is not None:
                total = "" if worker.total is None else f" of {worker.total:,}"
                text = f"{name_of(os.path.basename(worker.task.item.source_path))}: {worker.done:,}{total} frames"
            line.set_description_str(f"  {worker.index + 1}: {text}")

    def close(self) -> None:
        for bar in (*reversed(self._lines), self._bar):
            bar.close()


def _beginning(state: BatchState) -> tuple[int, int, str]:
    """Return the total, the number done, and both in words, for the phases before encoding."""
    if state.phase == "looking":
        total, done, verb = len(state.found.items), state.looked, "videos looked at"
    else:
        total, done, verb = state.items, state.checked, "items checked"
    return total, done, f"{done:,} of {total:,} {verb}"


def _counts(state: BatchState) -> str:
    failed = f", {state.ended['failed']:,} failed" if state.ended["failed"] else ""
    return f"{state.todo - state.left:,} of {plural(state.todo, 'item')}{failed}"


def _speed(state: BatchState) -> str:
    seconds = max(time.monotonic() - state.started, 1e-3)
    frames = state.frames + sum(worker.done for worker in state.workers if worker.task is not None)
    return f"{duration(state.video_seconds)} of video, {frames / seconds:.1f} frames/s"


def _bytes_done(state: BatchState) -> float:
    """Return how many bytes of the videos are done. Those in work count by the part of their frames that is done."""
    working = 0.0
    for worker in state.workers:
        if worker.task is not None and worker.total:
            working += worker.task.source_bytes * min(1.0, worker.done / worker.total)
    return state.source_bytes_done + working


def _left(state: BatchState) -> float | None:
    """Return the estimated seconds left, by bytes; None until an item and a thousandth of all bytes are done."""
    done = _bytes_done(state)
    if done < state.source_bytes / 1000 or not state.frames:
        return None
    return (time.monotonic() - state.started) * max(0.0, state.source_bytes - done) / done
