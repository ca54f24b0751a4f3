"""The packets of an MPEG transport stream: whether some are missing (ISO/IEC 13818-1, 2.4.3). No PyAV.

libav conceals a gap: a frame is missing, or frames are grey, without an error.
"""

from __future__ import annotations

import numpy as np

from .raw import BLOCK, Bytes

_SYNC = 0x47
_PACKETS = {188: 0, 192: 4, 204: 0}
"""The sizes of packets in bytes: plain, with a time in front (M2TS), with check bytes behind; and where the head is."""
_TABLES = 0  # the PID of the programme association table


class TransportPackets:
    """The packets of a transport stream that carry one elementary stream, read in the order of the file."""

    def __init__(self, data: Bytes, pid: int) -> None:
        self._data, self._pid = data, pid
        self._count = self._table_count = 0  # the last continuity counters
        self._last = b""  # the last packet
        self._size = 0  # of a packet
        self._at = self._synchronised(0)

    def lost_until(self, stop: int) -> bool:
        """Return True if packets between the last call's `stop` and this one are missing or marked as damaged."""
        lost = False
        stop = min(stop, self._data.size)
        while self._size and self._at + self._size <= stop:
            block = np.frombuffer(self._data.at(self._at, stop - self._at), np.uint8)
            rows = block[: len(block) // self._size * self._size].reshape(-1, self._size)
            packets = rows[:, _PACKETS[self._size] :]
            stray = np.flatnonzero(packets[:, 0] != _SYNC)
            if len(stray):
                packets = packets[: stray[0]]
            lost |= self._breaks(packets)
            self._at += len(packets) * self._size
            if len(stray):
                lost, self._at = True, self._synchronised(self._at + 1)
        return lost

    def _breaks(self, packets: np.ndarray) -> bool:
        """Return True if, in these packets (N, 188), one of the stream is marked as damaged, or its counter skips a number.

        A counter may skip where that is announced, or where another recording begins, whose counters begin at 0.
        """
        pids = (packets[:, 1] & 0x1F).astype(int) << 8 | packets[:, 2]
        counts = (packets[:, 3] & 15).astype(int)
        places = np.flatnonzero((pids == self._pid) & (packets[:, 3] & 0x10 > 0))  # those with a payload
        tables = np.flatnonzero(pids == _TABLES)
        own = counts[places]
        before = np.roll(own, 1)
        before[:1] = self._count if self._last else own[:1]
        lost, steps = False, (own - before) % 16
        for i in places[(steps > 1) | (packets[places, 1] & 0x80 > 0)]:
            _, flags, _, control, length, adaptation = packets[i, :6].tolist()
            earlier = tables[tables < i]
            table_count = counts[earlier[-1]] if len(earlier) else self._table_count
            announced = control & 0x20 and length and adaptation & 0x80
            begins = flags & 0x40 and counts[i] == table_count == 0
            lost |= bool(flags & 0x80 or not (announced or begins))
        if len(places):
            self._count, self._last = int(counts[places[-1]]), packets[places[-1]].tobytes()
        if len(tables):
            self._table_count = int(counts[tables[-1]])
        return lost

    @property
    def open_ended(self) -> bool:
        """True if the last packet has no bytes to spare.

        A frame fills its last packet exactly only once in 184 times: the file was probably cut inside a frame.
        """
        packet = self._last
        if not packet:
            return False
        if not packet[3] & 0x20:
            return True
        needed = 1 if packet[4] else 0  # flags, and the fields that they announce
        for flag, length in ((0x10, 6), (0x08, 6), (0x04, 1)):
            needed += length if needed and packet[5] & flag else 0
        if needed and packet[5] & 0x02:
            needed += 1 + packet[5 + needed]
        return packet[4] == needed

    def _synchronised(self, start: int) -> int:
        """Return where packets follow each other, at or after `start`, and note their size; the file's end if nowhere."""
        is_sync = np.frombuffer(self._data.at(start, BLOCK), np.uint8) == _SYNC
        found = []
        for size, head in _PACKETS.items():
            three = is_sync[head : -2 * size] & is_sync[head + size : -size] & is_sync[head + 2 * size :]
            found += [(int(place), size) for place in np.flatnonzero(three)[:1]]
        at, self._size = min(found, default=(self._data.size - start, self._size))
        return start + at
