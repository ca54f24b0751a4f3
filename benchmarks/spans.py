"""Spans of a video: the time to decode a late one, and what many spans of one film cost.

    python benchmarks/spans.py late [--frames 1800] [--size 640x360] [--runs 3] [--json FILE]
    python benchmarks/spans.py many [--megabytes 345] [--spans 30] [--workers 1] [--every 50] [--json FILE]
    python benchmarks/spans.py rows [--rows 300000] [--videos 100]

`late`: the same packets are read from an .mp4, where decoding begins at the key frame in front of the span, and from a .ts,
where it begins with the file. Each span is 17 frames, decoded in a process of its own, as for the encoder.

`many`: a film of --megabytes, made of the packets of one clip, is cut into --spans rows one after the other, which a
batch encodes at a height of 32. Only one frame in --every is encoded, so that decoding takes most of the time. Bytes
read are those of all system calls of all processes (rchar in /proc), as a multiple of the film. CPU outside encoding is
that of all processes but for the workers' main threads, as a multiple of reading the same frames once.

`rows`: a dry run of a list of --rows spans of --videos videos. Prints Markdown tables.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import Table, descendants, options, ratio, synthetic  # noqa: E402

SPAN = 17
LOOP = 300
HEIGHT = 32
TICK = os.sysconf("SC_CLK_TCK")


def late(folder, args):
    from movq_cli import Selection, read_frames
    from tests.helpers.clips import copy_packets

    print(f"{args.frames} frames of {args.size}, medians of {args.runs} runs in turn\n")
    table = Table(
        {"span begins at": "", "from a key frame s": ".2f", "from the beginning s": ".2f", "times faster": ".2f"},
        args.json,
    )
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


def film(path, size, width, height):
    """Write a film of `size` bytes: a clip of LOOP frames with much detail, again and again. Return its seconds."""
    import av
    import numpy as np

    from tests.helpers.clips import picture

    clip, grain = f"{path}.clip.mp4", np.random.default_rng(0)
    with av.open(clip, "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(LOOP):
            noise = grain.integers(0, 24, (height, width, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture(width, height, 3 * i) // 2 + noise, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(clip) as source, av.open(path, "w") as container:
        made = container.add_stream_from_template(source.streams.video[0])
        base = source.streams.video[0].time_base
        packets = [packet for packet in source.demux(video=0) if packet.size]
        written = loops = 0
        while written < size:
            for packet in packets:
                copy = av.Packet(bytes(packet))
                shift = round(loops * LOOP / 25 / base)
                copy.pts, copy.dts, copy.duration = packet.pts + shift, packet.dts + shift, packet.duration
                copy.time_base, copy.stream, copy.is_keyframe = base, made, packet.is_keyframe
                container.mux(copy)
                written += packet.size
            loops += 1
    os.unlink(clip)
    return loops * LOOP / 25


def many(folder, args):
    path = f"{folder}/film.mp4"
    seconds = film(path, args.megabytes * 10**6, *map(int, args.size.split("x")))
    size = os.path.getsize(path)
    print(f"{size / 1e6:.0f} MB, {seconds:.0f} s of {args.size}, {args.spans} spans of {seconds / args.spans:.1f} s\n")
    with open(f"{folder}/list.jsonl", "w") as file:
        for i in range(args.spans):
            start = round(seconds * i / args.spans, 3)
            length = round(seconds * (i + 1) / args.spans, 3) - start
            file.write(json.dumps({"path": path, "start": start, "duration": round(length, 3)}) + "\n")
    once = (
        "import sys; from movq_cli import *\n"
        f"for _ in read_frames(sys.argv[1], Selection(every={args.every}), Picture(height={HEIGHT})): pass\n"
        "input()"
    )
    single = watch([sys.executable, "-c", once, path], folder)
    every = ["--height", HEIGHT, "--every", args.every, "--threads", 1, "--precision", "fp32"]
    batch = [sys.executable, "-m", "movq_cli", "batch-encode", "--list", "list.jsonl", "-o", "out", *every]
    batch += ["--workers", args.workers, "-q"]
    taken = watch(list(map(str, batch)), folder)
    lines = list(map(json.loads, Path(f"{folder}/out/manifest.jsonl").read_text().splitlines()))
    assert [line["status"] for line in lines] == ["done"] * args.spans
    columns = {"spans": "d", "workers": "d", "s": ".0f", "bytes read, of the film": ".2f", "CPU s in all": ".1f"}
    columns |= {"CPU s outside encoding": ".1f", "of reading once": ".2f"}
    table = Table(columns, args.json)
    outside = taken["cpu"] - taken["main threads"]
    table.add(
        args.spans, args.workers, taken["s"], taken["read"] / size, taken["cpu"], outside, outside / single["cpu"]
    )


def watch(command, folder):
    """Run a command and return its seconds, and the CPU seconds and bytes read of all its processes, every 50 ms.

    Processes that have ended and were waited for count with those that waited. The "main threads" are the workers'.
    """
    most, started = {"cpu": 0.0, "read": 0, "main threads": 0.0}, time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    while process.poll() is None:
        now = [used(pid) for pid in (process.pid, *descendants(process.pid))]
        sums = {name: sum(one[name] for one in now) for name in most}
        if sums["cpu"] > 0 and sums["cpu"] == most["cpu"] and "-c" in command:
            time.sleep(1)  # it waits at its end, so that what it has used can be read
            if sum(used(pid)["cpu"] for pid in (process.pid, *descendants(process.pid))) == most["cpu"]:
                process.communicate(b"\n")
        most = {name: max(most[name], sums[name]) for name in most}
        time.sleep(0.05)
    assert process.returncode == 0
    return most | {"s": time.perf_counter() - started}


def used(pid):
    """Return the CPU seconds and bytes read of a process and those that it has waited for."""
    found = {"cpu": 0.0, "read": 0, "main threads": 0.0}
    try:
        found["cpu"] = sum(ticks(f"/proc/{pid}/stat", 4)) / TICK
        found["read"] = int(Path(f"/proc/{pid}/io").read_text().split()[1])
        if b"movq_cli.batch.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
            found["main threads"] = sum(ticks(f"/proc/{pid}/task/{pid}/stat", 2)) / TICK
    except (OSError, IndexError, ValueError):
        pass  # it has ended
    return found


def ticks(path, count):
    """Return the first of utime, stime, cutime and cstime."""
    return list(map(int, Path(path).read_text().rpartition(")")[2].split()[11 : 11 + count]))


def rows(folder, args):
    (Path(folder) / "in").mkdir()
    for i in range(args.videos):
        if i:
            shutil.copy(f"{folder}/in/000.mp4", f"{folder}/in/{i:03d}.mp4")
            with open(f"{folder}/in/{i:03d}.mp4", "ab") as file:  # another video, by its contents
                file.write((8 + i).to_bytes(4, "big") + b"free" + bytes(i))
        else:
            synthetic(f"{folder}/in/000.mp4", 600, 160, 96)
    each = args.rows // args.videos
    with open(f"{folder}/list.jsonl", "w") as file:
        for i in range(args.videos):
            for k in range(each):
                row = {"path": f"in/{i:03d}.mp4", "start": round(50 * k / each, 4), "duration": 2 + k % 7}
                file.write(json.dumps(row) + "\n")
    started = time.perf_counter()
    command = [sys.executable, "-m", "movq_cli", "batch-encode", "--list", "list.jsonl", "-o", "out", "--dry-run"]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout  # 1 if the disk is too small
    assert f"to encode    {each * args.videos:,}" in said, said[-500:]
    columns = {"rows": ",d", "videos": "d", "s": ".1f", "ms of a row": ".3f"}
    seconds = time.perf_counter() - started
    Table(columns, args.json).add(each * args.videos, args.videos, seconds, 1000 * seconds / args.rows)


def main():
    parser = options(__doc__)
    parser.add_argument("what", choices=["late", "many", "rows"])
    parser.add_argument("--frames", type=int, default=1800)
    parser.add_argument("--size", default="640x360", metavar="WxH")
    parser.add_argument("--megabytes", type=int, default=345)
    parser.add_argument("--spans", type=int, default=30)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--videos", type=int, default=100)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        globals()[args.what](folder, args)


if __name__ == "__main__":
    main()
