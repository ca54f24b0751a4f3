"""Threads for work that waits: one in the background, or several over the parts of a long list."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_PART = 64
"""The most things that a thread gets at a time."""
_PARTS = 10
"""The least parts that each thread gets, so that all have work until the end."""


def in_background(work: Callable[[], str]) -> Future[str]:
    """Run `work` in a thread. The process does not wait for it when it exits: digests of large files take a while."""
    future: Future[str] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def in_threads(work: Callable[[Sequence[T]], list[R]], things: Sequence[T], threads: int) -> Iterator[R]:
    """Yield the results of `work` on parts of `things`, in order. The threads work a few parts ahead.

    An interrupt does not wait for the parts that are running.
    """
    pool = ThreadPoolExecutor(threads)
    ahead = deque[Future[list[R]]]()
    size = max(1, min(_PART, len(things) // (threads * _PARTS)))
    try:
        for start in range(0, len(things), size):
            ahead.append(pool.submit(work, things[start : start + size]))
            if len(ahead) > 2 * threads:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
