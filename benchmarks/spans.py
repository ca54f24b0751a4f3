"""The time to decode a span of frames, by how far into the video it begins.

    python benchmarks/spans.py [--frames 1800] [--size 640x360] [--runs 3] [--json FILE]

The same packets are read from an .mp4, where decoding begins at the key frame in front of the span, and from a .ts,
where it begins with the file. Each span is 17 frames, decoded in a process of its own, as for the encoder. Prints a
Markdown table.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import Table, options, ratio, synthetic

SPAN = 17


def main():
    from movq_cli import Selection, read_frames
    from tests.helpers.clips import copy_packets

    parser = options(__doc__)
    parser.add_argument("--frames", type=int, default=1800)
    parser.add_argument("--size", default="640x360", metavar="WxH")
    args = parser.parse_args()
    print(f"{args.frames} frames of {args.size}, medians of {args.runs} runs in turn\n")
    table = Table(
        {"span begins at": "", "from a key frame s": ".2f", "from the beginning s": ".2f", "times faster": ".2f"},
        args.json,
    )
    with tempfile.TemporaryDirectory() as folder:
        ways = [f"{folder}/a.mp4", f"{folder}/a.ts"]
        synthetic(ways[0], args.frames, *map(int, args.size.split("x")))
        copy_packets(*ways)
        for quarter in range(5):
            begin = quarter * (args.frames - SPAN) // 4
            runs = {way: [] for way in ways}
            for _ in range(args.runs):
                for way in ways:
                    started = time.perf_counter()
                    with read_frames(way, Selection(skip=begin, frames=SPAN)) as reader:
                        assert len(list(reader)) == SPAN
                    runs[way].append(time.perf_counter() - started)
            late, whole = runs.values()
            table.add(begin, statistics.median(late), statistics.median(whole), ratio(whole, late))


if __name__ == "__main__":
    main()
