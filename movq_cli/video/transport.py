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
_CLOCK = 12  # bytes of a packet up to its clock reference, which a repeated packet need not repeat
_NEAR = 2048  # bytes to read at first, at the start and after a gap


class TransportPackets:
    """The packets of a transport stream that carry one elementary stream, read in the order of the file.

    Counters go up to 15: a loss of 16 packets, or of 32, does not show.
    """

    def __init__(self, data: Bytes, pid: int) -> None:
        self._data, self._pid = data, pid
        self._last = b""  # the stream's last packet with a payload
        self._announced = False  # True if the next one may have any counter
        self._restarted = False  # True if it may begin another recording
        self._size = 0  # of a packet
        self._at = self._synchronised(0)

    def lost_until(self, stop: int) -> bool:
        """Return True if packets between the last call's `stop` and this one are missing or marked as damaged.

        Padding behind the last packet does not count.
        """
        lost = False
        stop, reach = min(stop, self._data.size), _NEAR
        while self._size and self._at + self._size <= stop:
            block = np.frombuffer(self._data.at(self._at, min(reach, stop - self._at)), np.uint8)
            reach = min(4 * reach, BLOCK)
            rows = block[: len(block) // self._size * self._size].reshape(-1, self._size)
            packets = rows[:, _PACKETS[self._size] :]
            stray = np.flatnonzero(packets[:, 0] != _SYNC)
            if len(stray):
                packets = packets[: stray[0]]
            lost |= self._breaks(packets)
            self._at += len(packets) * self._size
            if len(stray):
                self._at, reach = self._synchronised(self._at + 1), _NEAR
                lost |= self._at < self._data.size
        return lost

    def _breaks(self, packets: np.ndarray) -> bool:
        """Return True if, in these packets (N, 188), one of the stream is marked as damaged, or its counter skips a number.

        It may be any where that is announced, and 0 where another recording begins: its tables' counters begin at 0.
        """
        pids = (packets[:, 1] & 0x1F).astype(int) << 8 | packets[:, 2]
        counts = (packets[:, 3] & 15).astype(int)
        ours = pids == self._pid
        jumps = np.flatnonzero(ours & (packets[:, 3] & 0x20 > 0) & (packets[:, 4] > 0) & (packets[:, 5] & 0x80 > 0))
        tables = np.flatnonzero((pids == _TABLES) & (counts == 0))
        places = np.flatnonzero(ours & (packets[:, 3] & 0x10 > 0))  # those with a payload
        own = counts[places]
        before = np.roll(own, 1)
        before[:1] = self._last[3] & 15 if self._last else own[:1] - 1
        lost = False
        for k in np.flatnonzero(((own - before) % 16 != 1) | (packets[places, 1] & 0x80 > 0)):
            earlier, place = places[k - 1] if k else -1, places[k]
            packet, previous = packets[place].tobytes(), packets[earlier].tobytes() if k else self._last
            announced = ((jumps > earlier) & (jumps <= place)).any() or (self._announced and not k)
            restarted = ((tables > earlier) & (tables < place)).any() or (self._restarted and not k)
            begins = restarted and packet[1] & 0x40 and not own[k]
            repeated = packet[_CLOCK:] == previous[_CLOCK:]
            lost |= bool(packet[1] & 0x80) or not (announced or begins or repeated)
        end = places[-1] if len(places) else -1
        self._announced = bool((jumps > end).any()) or (self._announced and end < 0)
        self._restarted = bool((tables > end).any()) or (self._restarted and end < 0)
        if len(places):
            self._last = packets[end].tobytes()
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
        """Return where packets follow each other, at or after `start`, and note their size; the file's end if nowhere near."""
        for length in (_NEAR, BLOCK):
            is_sync = np.frombuffer(self._data.at(start, length), np.uint8) == _SYNC
            found = []
            for size, head in _PACKETS.items():
                three = is_sync[head : -2 * size] & is_sync[head + size : -size] & is_sync[head + 2 * size :]
                found += [(int(place), size) for place in np.flatnonzero(three)[:1]]
            if found:
                at, self._size = min(found)
                return start + at
        return self._data.size
