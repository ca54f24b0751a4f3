"""Files from strangers, with what movq must make of each: good ones, bad ones, and ones that lie.

inputs.py runs them.
"""

import dataclasses
import json
import os
import pickle
import socket
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, partial
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from ..helpers import clips

ENCODE, INFO, DECODE = "encode -q -o out.safetensors --", "info --", "decode -q -o back.mkv --"
WEIGHTS, CONVERT = "encode -q -o out.safetensors clip.mp4 --weights", "weights convert -o out.safetensors"
CUT = "cut off|damaged|cannot be decoded"
REFUSED = f"{CUT}|not a video|no video stream|no frame"
LISTENER = socket.create_server(("127.0.0.1", 0))
URL = f"http://127.0.0.1:{LISTENER.getsockname()[1]}/"


@dataclass(frozen=True)
class Case:
    """An input: `make` writes it to the path that it is given, `decoys` are written to the same folder.

    `says` are searched on stdout, or in the one line of a refusal, which begins with `about` (default: the name).
    `warns` is searched on stderr, which must be empty if there is none. `also` are further files that may be opened.
    """

    kind: str
    name: str
    make: Callable[[Path], object]
    says: tuple[str, ...] = ()
    code: int = 0
    command: str = ENCODE
    warns: str = ""
    about: str | None = None
    also: tuple[str, ...] = ()
    decoys: dict[str, Callable[[Path], object]] = field(default_factory=dict)


# -- making files


def nothing(path):
    pass


def contents(data):
    return lambda path: path.write_bytes(data() if callable(data) else data.encode() if isinstance(data, str) else data)


def video(count=5, width=64, height=48, **more):
    """Return a maker of a video under any name; libav takes the format from the name."""
    return lambda path: clips.write(
        path.with_name(f"made{path.suffix or '.mp4'}"), clips.pictures(count, width, height), **more
    ).rename(path)


@cache
def _bytes(suffix, how, more):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{suffix}"
        video(*how, **{key: dict(value) if isinstance(value, tuple) else value for key, value in more})(path)
        if suffix == "mp4":  # the index in front, so that a cut keeps it
            clips.faststart(path, path := path.with_name("b.mp4"))
        return path.read_bytes()


def made(suffix, *how, **more):
    """Return the bytes of a video; an mp4 has its index in front, so that it opens when it is cut."""
    return _bytes(suffix, how, tuple((k, tuple(v.items()) if isinstance(v, dict) else v) for k, v in more.items()))


def still(codec, pix_fmt, format="image2pipe", depth=3):
    image = np.dstack([clips.picture(64, 48), np.full((48, 64), 99, np.uint8)])[..., :depth]
    return lambda path: clips.still(path, np.ascontiguousarray(image), codec, pix_fmt, format)


def y4m(count, width=64, height=48):
    frame = b"FRAME\n" + bytes(width * height * 3 // 2)
    return b"YUV4MPEG2 W%d H%d F25:1 Ip A1:1 C420jpeg\n" % (width, height) + frame * count


def cut(data, part):
    return contents(data[: int(len(data) * part)])


def overwritten(data, start, length, byte=0):
    at = int(len(data) * start)
    return contents(data[:at] + bytes([byte]) * length + data[at + length :])


def streams(*kinds):
    """Return a maker of a file of several streams.

    "art" is cover art, a picture that is a video stream to libav; "sound" is sound; (width, height) is a video of that
    size.
    """

    def make(path):
        with av.open(str(path), "w") as container:
            made = []
            for kind in kinds:
                codec = {"art": "mjpeg", "sound": "aac"}.get(kind, "libx264")
                stream = container.add_stream(codec, rate=48000 if kind == "sound" else 25)
                if kind == "sound":
                    frames = [av.AudioFrame.from_ndarray(np.zeros((1, 1024), "f4"), format="fltp", layout="mono")]
                    frames[0].sample_rate = 48000
                else:
                    stream.width, stream.height = (32, 32) if kind == "art" else kind
                    stream.pix_fmt = "yuvj420p" if kind == "art" else "yuv420p"
                    images = clips.pictures(1 if kind == "art" else 5, stream.width, stream.height)
                    frames = [
                        av.VideoFrame.from_ndarray(i, format="rgb24").reformat(format=stream.pix_fmt) for i in images
                    ]
                if kind == "art":
                    stream.disposition = Disposition.attached_pic
                made.append((stream, frames))
            for stream, frames in made:
                container.mux([packet for frame in (*frames, None) for packet in stream.encode(frame)])

    return make


def hdr(transfer):
    frame = clips.yuv(64, 48, 500, 512, 512, pix_fmt="yuv420p10le")
    tags = {"colorspace": 9, "color_trc": transfer, "color_range": 1}
    return lambda path: clips.write(path, None, frames=[frame], codec="ffv1", pix_fmt="yuv420p10le", tags=tags)


def png(width, height):
    """Return a PNG that claims this size, of almost no data."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", head), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b"")
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def png_in_mov(width, height):
    data = made("mov", 1, codec="png", pix_fmt="rgb24")
    at = data.index(b"IHDR")
    head = b"IHDR" + struct.pack(">II", width, height) + data[at + 12 : at + 17]
    return data[:at] + head + struct.pack(">I", zlib.crc32(head)) + data[at + 21 :]


def jpeg(width, height):
    """Return a JPEG that claims this size and has another."""
    data = made("jpg", 1, codec="mjpeg", pix_fmt="yuvj420p", format="image2pipe")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def webp(flags, width, height, *chunks):
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<IB3x", 10, flags) + size + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def boxed(kind, body):
    return struct.pack(">I4s", 8 + len(body), kind) + body


def rebuilt(data, edits):
    """Return an mp4 in which boxes of these kinds have other bodies; a body of None removes the box."""
    parts, at = [], 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + size]
        if kind in edits:
            body = edits[kind](body)
        elif kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"stbl", b"edts"):
            body = rebuilt(body, edits)
        parts += [] if body is None else [boxed(kind, body)]
        at += size
    return b"".join(parts)


def mov(**edits):
    """Return a maker of a QuickTime movie of 12 frames with edited boxes."""
    edits = {kind.encode(): (edit if callable(edit) else lambda body, edit=edit: edit) for kind, edit in edits.items()}
    return contents(rebuilt(made("mov", 12, options={"bf": "0", "g": "6"}), edits))


def edit_list(gop, start, stop, frames=12):
    """Return a maker of 12 frames or more, a key frame each `gop`, of which those from `start` to `stop` are shown."""
    data = made("mov", frames, options={"bf": "0", "g": gop})
    (scale,) = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)
    elst = struct.pack(">IIIiI", 0, 1, (stop - start) * 40, start * scale // 25, 1 << 16)
    return contents(rebuilt(data, {b"elst": lambda body: elst}))


def turned_by_45(body):
    c = round(0.5**0.5 * 65536)
    return body[:40] + struct.pack(">9i", c, c, 0, -c, c, 0, 0, 0, 1 << 30) + body[76:]


def reference(entry):
    """Return a maker of a QuickTime movie whose pictures are in another file, by this entry of its dref."""
    return mov(dref=struct.pack(">II", 0, 1) + entry, mdat=lambda body: None)


def alias(name):
    """Return an alias as old Macs wrote it: a file by its name, its folder and its path."""
    record = bytes(10) + b"\4" + b"disk".ljust(27, b"\0") + bytes(12) + bytes([len(name)]) + name.ljust(63, b"\0")
    record += bytes(16) + struct.pack(">HH", 1, 1) + bytes(16)
    for kind, text in ((2, b"disk:" + name), (0, b"decoys"), (18, name), (-1, b"")):
        record += struct.pack(">hH", kind, len(text)) + text + b"\0" * (len(text) % 2)
    return boxed(b"alis", bytes(4) + record)


def huge_element(ident):
    """Return a maker of a Matroska file whose first element of this id claims to be huge."""
    data, ident = made("mkv", 12), bytes.fromhex(ident)
    at = data.index(ident) + len(ident)
    return contents(data[:at] + b"\x01" + b"\xff" * 6 + b"\xfe" + data[at + 9 - data[at].bit_length() :])


# -- safetensors, taken apart and put together


def parts(data):
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    metadata = header.pop("__metadata__")
    at = {name: entry["data_offsets"] for name, entry in header.items()}
    return {n: [e["dtype"], e["shape"], data[end + at[n][0] : end + at[n][1]]] for n, e in header.items()}, metadata


def whole(tensors, metadata, edit=lambda header: None):
    """Return a safetensors file of the tensors, after an edit of its header."""
    header, at = {"__metadata__": metadata}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    edit(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(data for *_, data in tensors.values())


def lie(of, change=lambda tensors: None, header=lambda header: None, **said):
    """Return a maker of a file with the tensors and metadata of `of`, changed; None removes metadata."""

    def make(path):
        tensors, metadata = parts(of())
        metadata = {key: value for key, value in (metadata | said).items() if value is not None}
        change(tensors)
        path.write_bytes(whole(tensors, metadata, header))

    return make


def tensor(name, index, value):
    """Return a lie: one of a tensor's (dtype, shape, data) is replaced by a value, or by a function of itself."""

    def change(tensors):
        tensors[name][index] = value(tensors[name][index]) if callable(value) else value

    return change


def number(name, kind, value, at=0):
    """Return a lie: one number in a tensor is replaced."""
    put = struct.pack(kind, value)
    return tensor(name, 2, lambda data: data[: at * len(put)] + put + data[(at + 1) * len(put) :])


def without(name):
    return lambda tensors: tensors.pop(name)


def offsets(name, at, by):
    def edit(header):
        header[name]["data_offsets"][at] += by

    return edit


def sized(of, size):
    """Return a maker of the same file with another length of the header."""
    return lambda path: path.write_bytes(size + of()[8:])


@cache
def latents():
    from movq_cli import encode_video

    with tempfile.TemporaryDirectory() as folder:
        clip, out = Path(folder) / "clip.mp4", Path(folder) / "out"
        video()(clip)
        encode_video(clip, out)
        return out.read_bytes()


@cache
def weights():
    """Return the weights of a small encoder with random numbers."""
    import torch

    from movq_cli.model import AutoencoderConfig, Encoder3D

    from ..helpers.models import SMALL

    config = AutoencoderConfig(**SMALL)
    state = Encoder3D(**dataclasses.asdict(config)).state_dict()
    tensors = {f"encoder.{k}": ["F32", list(v.shape), v.contiguous().numpy().tobytes()] for k, v in state.items()}
    assert all(value.dtype == torch.float32 for value in state.values())
    said = {"format": "movq-weights", "format_version": "1", "config": config.to_json(), "name": "small"}
    return whole(tensors, said)


def config(**changes):
    return {"config": json.dumps(json.loads(parts(weights())[1]["config"]) | changes)}


def folder_of_weights(config_json=None, index=None):
    """Return a maker of a diffusers folder: the embedded weights under diffusers' names."""
    from movq_cli.checkpoints.checkpoint import embedded_weights
    from movq_cli.checkpoints.configs import diffusers_config
    from movq_cli.checkpoints.layouts import to_diffusers
    from movq_cli.model import AutoencoderConfig

    def make(path):
        path.mkdir()
        tensors, metadata = parts(Path(embedded_weights()).read_bytes())
        own = AutoencoderConfig.from_dict(json.loads(metadata["config"]) | {"norm_scope": "whole"})
        tensors = {to_diffusers(name, own): value for name, value in tensors.items()}
        (path / "diffusion_pytorch_model.safetensors").write_bytes(whole(tensors, {"format": "pt"}))
        said = json.dumps(diffusers_config(own)) if config_json is None else config_json
        (path / "config.json").write_text(said)
        if index:
            (path / "diffusion_pytorch_model.safetensors.index.json").write_text(index)
            (path.parent / "decoy.safetensors").write_bytes(weights())

    return make


class Marker:
    """An object that creates a file called `ran` if it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def torch_file(what):
    def make(path):
        import torch

        torch.save(what(), path)

    return make


def own_state():
    """Return a state under CogVideo's own names."""
    import torch

    tensors, _ = parts(weights())
    kept = {n: torch.frombuffer(bytearray(d), dtype=torch.float32).reshape(s) for n, (_, s, d) in tensors.items()}
    return {"state_dict": kept | {"loss.weight": torch.zeros(3)}}


# -- the cases


def seen(frames, width, height):
    """Return what movq prints of an encoding: 1 + 4n frames make 1 + n latents, sizes become multiples of 8."""
    latents, missing = 1 + -(-(frames - 1) // 4), -(frames - 1) % 4
    times = "once" if missing == 1 else f"{missing} times"
    repeated = rf" \(the last one repeated {times}\)" if missing else ""
    shape = f": 32 x {latents} x {-(-height // 8)} x {-(-width // 8)} "
    return shape, rf"\b{frames} frames?{repeated}, {width}x{height}, "


def encode(options):
    return ENCODE.replace(" --", f" {options} --")


FIVE, SOME = seen(5, 64, 48), (", 64x48, ",)
RGB8, WEBP = {"codec": "gif", "pix_fmt": "rgb8"}, {"codec": "libwebp", "pix_fmt": "bgra", "format": "webp"}
FORMATS = {
    "mp4": {"options": {"g": "8"}},
    "mkv": {"options": {"g": "8"}},
    "mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "webm": {"codec": "libvpx-vp9"},
    "avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "mxf": {"codec": "mpeg2video"},
    "wmv": {"codec": "wmv2"},
    "flv": {"codec": "flv"},
    "ivf": {"codec": "libvpx"},
    "gif": RGB8,
}
STREAMS = {"ts": {}, "mpg": {"codec": "mpeg2video"}}  # files of these are routinely cut
STILLS = {
    "png": {"codec": "png", "pix_fmt": "rgb24", "format": "image2pipe"},
    "jpg": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "format": "image2pipe"},
    "webp": WEBP,
}


def good_videos():
    plain = partial(Case, "good videos", says=FIVE)
    times = [0, 0.1, 0.15, 0.5, 0.52]
    for suffix, how in (FORMATS | STREAMS).items():
        yield plain(f"a.{suffix}", video(**how))
    for suffix, how in STREAMS.items():
        yield plain(f"cut.{suffix}", cut(made(suffix, 40, **how), 0.7), says=SOME, warns="(?s).*")
    for turn, mirror in [(turn, mirror) for turn in (0, 90, 180, 270) for mirror in (False, True)]:
        says = FIVE if turn % 180 == 0 else seen(5, 48, 64)
        yield plain(f"{turn}{' mirrored' * mirror}.mov", video(rotation=turn, mirror=mirror), says=says)
    for suffix, how in STILLS.items():
        yield plain(f"a.{suffix}", still(**how), says=seen(1, 64, 48))
    yield from (
        plain("alpha.png", still("png", "rgba", depth=4), says=seen(1, 64, 48), warns="transparent"),
        plain("png.mp4", still("png", "rgb24"), says=seen(1, 64, 48)),
        plain("a.y4m", contents(y4m(5))),
        plain("a.h264", video(format="h264"), warns="without times"),
        plain("hevc.mp4", video(codec="libx265", options={"x265-params": "log-level=none"})),
        plain("sound.mp4", video(audio=True)),
        plain("b-frames.mp4", video(13, options={"bf": "3"}), says=seen(13, 64, 48)),
        plain("b-frames.avi", video(6, options={"bf": "3"}), says=seen(6, 64, 48)),
        plain("one.mp4", video(1), says=seen(1, 64, 48)),
        plain("odd.mkv", video(5, 67, 45, pix_fmt="yuv444p"), says=seen(5, 67, 45)),
        plain("tiny.mkv", video(5, 1, 1, codec="ffv1", pix_fmt="bgr0"), says=seen(5, 1, 1)),
        plain("ten bit.mp4", video(pix_fmt="yuv420p10le")),
        plain("variable rate.mkv", video(times=times)),
        plain("variable rate.mp4", video(times=times)),
        plain("late.mkv", video(times=[100 + t for t in times])),
        plain("late.mp4", video(times=[7 + t for t in times])),
        plain("wraps.ts", video(times=[2**33 / 90000 - 1.5 + i / 25 for i in range(5)])),
        plain("edit list.mov", edit_list("12", 4, 10), says=seen(6, 64, 48)),
        plain("edit list, all key.mov", edit_list("1", 4, 10), says=seen(6, 64, 48)),
        plain("edit list, start.mov", edit_list("1", 4, 12), says=seen(8, 64, 48)),
        plain("cover.mp4", streams("art", (64, 48))),
        plain("two.mkv", streams((64, 48), (96, 64))),
        plain("second.mkv", streams((64, 48), (96, 64)), says=seen(5, 96, 64), command=encode("--stream 1")),
        plain("pixels.mkv", video(aspect=Fraction(4, 3)), says=seen(5, 85, 48)),
        plain("angle.mov", mov(tkhd=turned_by_45), says=seen(12, 64, 48), warns="quarter turn"),
        plain("pq.mkv", hdr(16), says=seen(1, 64, 48), warns="HDR"),
        plain("hlg.mkv", hdr(18), says=seen(1, 64, 48), warns="HDR"),
        plain("interlaced.mpg", video(codec="mpeg2video", options={"flags": "+ilme+ildct"}), warns="interlaced"),
        plain("modules.mp4", video(), decoys={f"{name}.py": contents("1 / 0") for name in ("av", "torch", "json")}),
    )


RAW_NAMES = [
    "two\nlines.mp4",
    "\x1b[31mred\x1b]0;x\x07.mp4",
    "a\r\t\x7f\x9b2J.mp4",
    "\u202egnp.mp4",
    "x" * 251 + ".mp4",
]
RAW_NAMES += [os.fsdecode(b"\xff\xfe.mp4")]
NAMES = "-o.mp4|--help|a:b.mp4|http:x.mp4|concat:a,b.mp4|file:x.mp4|pipe:0|subfile,,start,0,end,0,,:x.mp4|%s%n%d.mp4"
NAMES += "|*.mp4|[ab]?{1,2}.mp4|~|$(touch ran).mp4| |Straße 東京 🎬.mp4"


def names():
    plain = partial(Case, "names")
    for name in [*RAW_NAMES, *NAMES.split("|"), "concat:a|b.mp4"]:
        yield plain(name, video(), FIVE)
    for name in RAW_NAMES:
        yield plain(name, contents(b""), ("is empty",), 1)
        yield plain(name, video(), ("64x48",), command=INFO)
    neighbours = {f"a{i}.png": still("png", "rgb24") for i in range(3)}
    yield plain("a%d.png", still("png", "rgb24"), seen(1, 64, 48), decoys=neighbours)
    yield plain("a%d.mp4", contents("x"), ("not a video",), 1, decoys=neighbours)
    yield plain("http:/x.mp4", lambda path: (path.parent.mkdir(), video()(path)), FIVE)
    yield plain(f"{URL}x.mp4", nothing, ("is an address",), 1)
    yield plain("link.mp4", lambda path: (video()(path), path.rename(path.with_name("a")), path.symlink_to("a")), FIVE)


def cuts():
    bad = partial(Case, "cut", says=(REFUSED,), code=1)
    some = partial(Case, "cut, allowed", says=(r"\b[1-3]?\d frames?.*, 64x48, ",), warns=CUT)
    for suffix in ("mp4", "mkv"):
        data = made(suffix, 40, **FORMATS[suffix])
        for part in (0.01, 0.2, 0.4, 0.8, 0.95):
            yield bad(f"{part}.{suffix}", cut(data, part))
        for part in (0.6, 0.8, 0.95):
            yield some(f"{part}.{suffix}", cut(data, part), command=encode("--allow-partial"))
        yield bad(f"head.{suffix}", contents(data[:100]), command=encode("--allow-partial"))
        yield some(
            f"whole.{suffix}", contents(data), says=seen(40, 64, 48), command=encode("--allow-partial"), warns=""
        )
    for suffix, how in FORMATS.items():
        for part in (0.3, 0.6):
            yield bad(f"{part} of {suffix}.{suffix}", cut(made(suffix, 40, 96, 64, **how), part))
    for suffix, how in STILLS.items():
        yield bad(f"0.6.{suffix}", cut(made(suffix, 1, **how), 0.6))
    yield bad("0.613.y4m", cut(y4m(40), 0.613))
    yield bad("0.6.h264", cut(made("h264", 40, format="h264"), 0.6))


def damages():
    bad = partial(Case, "damaged", says=(REFUSED,), code=1)
    mp4, mkv = made("mp4", 40, **FORMATS["mp4"]), made("mkv", 40, **FORMATS["mkv"])
    changing = partial(bad, says=("changes its picture size from 64x48 to 96x64",))
    yield from (
        bad("zeros.mp4", overwritten(mp4, 0.6, 900)),
        bad("index.mp4", overwritten(mp4, 0.02, 300)),
        bad("tail.mp4", overwritten(mp4, 0.9, len(mp4) // 10)),
        bad("zeros.mkv", overwritten(mkv, 0.6, 900)),
        bad("ones.mkv", overwritten(mkv, 0.4, 500, 255)),
        bad("start.mkv", contents(bytes(64) + mkv[64:])),
        bad("zeros.avi", overwritten(made("avi", 40, **FORMATS["avi"]), 0.6, 3000)),
        bad("chunk.png", contents(made("png", 1, **STILLS["png"]).replace(b"IDAT", b"IDAU"))),
        changing(
            "size.h264", contents(b"".join(made("h264", 5, *size, format="h264") for size in ((64, 48), (96, 64))))
        ),
        changing("size.ts", contents(made("ts", 5) + made("ts", 5, 96, 64))),
    )


SEGMENT = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n{}#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
MPD = """<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet
mimeType="video/mp4"><Representation id="1"><BaseURL>{}clip.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>"""
IMF = '<AssetMap xmlns="http://www.smpte-ra.org/schemas/429-9/2007/AM"><Path>clip.mp4</Path></AssetMap>'
TEXTS = {  # FOLDER is the file's folder
    "text.mp4": "not a video\n" * 100,
    "ansi.mp4": "\x1b[31mred\x1b[0m\n" * 50,
    "page.mp4": "<!DOCTYPE html><html><video src='clip.mp4'></html>",
    "ffconcat.mp4": "ffconcat version 1.0\nfile clip.mp4\n",
    "ffconcat.mkv": "ffconcat version 1.0\nfile 'file:FOLDER/clip.mp4'\nduration 1\n",
    "relative.m3u8": SEGMENT.format("", "clip.ts"),
    "absolute.mp4": SEGMENT.format("", "FOLDER/clip.ts"),
    "file.mp4": SEGMENT.format("", "file://FOLDER/clip.ts"),
    "http.mp4": SEGMENT.format("", f"{URL}clip.ts"),
    "http.m3u8": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{URL}clip.m3u8\n",
    "key.ts": SEGMENT.format(f'#EXT-X-KEY:METHOD=AES-128,URI="{URL}k"\n', "clip.ts"),
    "a.m3u": f"#EXTM3U\n{URL}clip.mp4\nclip.mp4\n",
    "a.pls": f"[playlist]\nFile1={URL}clip.mp4\nFile2=clip.mp4\nNumberOfEntries=2\n",
    "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 33\n",
    "a.mpd": MPD.format(""),
    "http.mpd.mp4": MPD.format(URL),
    "asx.wmv": f"<asx version='3.0'><entry><ref href='{URL}clip.mp4'/></entry></asx>",
    "ref.asf": f"[Reference]\nRef1={URL}clip.mp4?MSWMExt=.asf\n",
    "rtsp.mov": f"RTSPtext{URL.replace('http', 'rtsp')}clip.mp4\n",
    "imf.mxf": f"<?xml version='1.0'?>{IMF}",
    "ffmetadata.mp4": ";FFMETADATA1\ntitle=x\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=9\n",
    "srt.mkv": "1\n00:00:01,000 --> 00:00:02,000\nhello\n\n",
    "ass.mkv": "[Script Info]\nScriptType: v4.00+\n\n[Events]\nDialogue: 0,0:00:01.00,0:00:02.00,,,0,0,0,,hi\n",
    "vtt.webm": "WEBVTT\n\n00:01.000 --> 00:02.000\nhello\n",
    "picture.svg": f"<svg xmlns='http://www.w3.org/2000/svg'><image href='{URL}a.png'/><image href='clip.mp4'/></svg>",
    "avs.avi": 'AviSource("clip.mp4")\n',
}


def texts():
    """Yield texts that name other files, or draw text, under the names of videos."""

    def made_of(text):
        return lambda path: path.write_text(text.replace("FOLDER", str(path.parent)))

    bad = partial(
        Case, "text, playlists", says=("not a video",), code=1, decoys={"clip.mp4": video(), "clip.ts": video()}
    )
    for name, text in TEXTS.items():
        yield bad(name, made_of(text))
    yield bad("info.mp4", made_of(TEXTS["ffconcat.mkv"]), command=INFO)
    rdrf = boxed(b"rdrf", bytes(4) + b"url \0\0\0\x09clip.mp4\0")
    movie = boxed(b"ftyp", b"qt  \0\0\0\0qt  ") + boxed(b"moov", boxed(b"rmra", boxed(b"rmda", rdrf)))
    for name, make in {
        "url.mov": reference(boxed(b"url ", bytes(4) + b"file:clip.mp4\0")),
        "http.mov": reference(boxed(b"url ", bytes(4) + f"{URL}clip.mp4\0".encode())),
        "alias.mov": reference(alias(b"clip.mp4")),
        "rmra.mov": contents(movie),
    }.items():
        yield Case("QuickTime references", name, make, (REFUSED,), 1, decoys={"clip.mp4": video(12)})


def bombs():
    bad = partial(Case, "bombs", says=(f"8192x4320|made to fill memory|too large for any decoder|{REFUSED}",), code=1)
    many = 0xFFFFFFF0
    pack = partial(struct.pack, ">" + "I" * 4)
    yield from (
        bad("a.gif", clips.gif_bomb, says=("8192x4320",)),
        bad("most.gif", partial(clips.gif_bomb, width=65535, height=65535)),
        bad("a.y4m", contents(b"YUV4MPEG2 W30000 H30000 F25:1 C420jpeg\nFRAME\n")),
        bad("a.png", contents(png(30000, 30000))),
        bad("most.png", contents(png(2**31 - 1, 2**31 - 1))),
        bad("of nothing.png", contents(png(8192, 4320))),
        bad("png.mov", contents(png_in_mov(30000, 30000))),
        bad("a.jpg", contents(jpeg(65500, 65500))),
        bad("a.webp", contents(webp(0, 1 << 24, 1 << 24, b"VP8 " + struct.pack("<I", 40) + bytes(40)))),
        bad("stsz, one size.mov", mov(stsz=pack(0, 1, many, 0)[:12])),
        bad("stsz.mov", mov(stsz=lambda body: body[:8] + pack(many, 0, 0, 0)[:4] + body[12:])),
        bad("stsz, sizes.mov", mov(stsz=lambda body: body[:12] + b"\x7f\xff\xff\xff" * 12)),
        bad("stts.mov", mov(stts=pack(0, 1, many, 1))),
        bad("stsc.mov", mov(stsc=pack(0, 1, 1, many) + pack(1, 0, 0, 0)[:4])),
        bad("stco.mov", mov(stco=pack(0, 1, many, 0)[:12])),
        *(bad(f"{ident}.mkv", huge_element(ident)) for ident in ("1a45dfa3", "18538067", "1f43b675", "63a2")),
        bad("nested.mp4", contents(boxed(b"ftyp", b"isom\0\0\0\0") + (bytes(4) + b"moov" + bytes(4) + b"trak") * 5000)),
    )


def not_videos():
    bad = partial(Case, "not videos", says=("not a video",), code=1)
    animation = b"ANIM" + struct.pack("<I", 6) + bytes(6) + b"ANMF" + struct.pack("<I", 24) + bytes(24)
    yield from (
        bad("noise.mp4", contents(np.random.default_rng(0).bytes(5000))),
        bad("one byte.mp4", contents(b"\0")),
        bad("zeros.mkv", contents(bytes(5000))),
        bad("empty.mp4", contents(b""), says=("is empty",)),
        bad("zip.mov", contents(b"PK\x03\x04" + bytes(500))),
        bad("program.mp4", contents(b"\x7fELF\x02\x01\x01" + bytes(500))),
        bad("latents.mp4", contents(latents)),
        bad("animated.webp", contents(webp(2, 64, 48, animation)), says=("animated WebP",)),
        bad("animated.png", video(codec="apng", pix_fmt="rgb24", format="apng"), says=("animated PNG",)),
        bad("broken.jpg", contents(b"\xff\xd8\xff\xe0" + bytes(40)), says=(REFUSED,)),
        bad("sound.mp4", clips.sound_only, says=("no video stream",)),
        bad("art.mp4", streams("art", "sound"), says=("no video stream",)),
        bad("stream.mkv", streams((64, 48), (96, 64)), says=("no video in stream 5",), command=encode("--stream 5")),
    )


def bound(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def not_files():
    for name, make, reason in (
        ("missing.mp4", nothing, "no such file"),
        ("dangling.mp4", lambda path: path.symlink_to("nothing.mp4"), "no such file"),
        ("loop.mp4", lambda path: path.symlink_to("loop.mp4"), "symbolic links"),
        ("folder.mp4", Path.mkdir, "is a folder"),
        ("pipe.mp4", os.mkfifo, "not a regular file"),
        ("socket.mp4", bound, "not a regular file"),
        ("zero.mp4", lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        ("/dev/zero", nothing, "not a regular file"),
        ("/dev/stdin", nothing, "not a regular file"),
        ("clip.mp4/x.mp4", lambda path: video()(path.parent), "not a folder"),
        ("x" * 300, nothing, "name too long"),
        ("/proc/self/mem", nothing, ""),
        *([("secret.mp4", lambda path: (video()(path), path.chmod(0)), "permission denied")] if os.geteuid() else []),
    ):
        yield Case("not files", name, make, (reason,), 1)
    yield Case("not files", "info.mp4", os.mkfifo, ("not a regular file",), 1, INFO)


def outputs():
    """Yield inputs that would be overwritten, and places where no output can be."""
    bad, old = partial(Case, "outputs", code=1, command="encode -q --force -o b --", about="b"), {"b": contents("x")}
    linked = ("same file|not a regular file",)
    itself, clip = "encode -q --force -o a.safetensors clip.mp4 --weights", {"clip.mp4": video()}
    yield from (
        bad("b", video(), linked),
        bad("a.mp4", lambda path: (video()(path), path.with_name("b").symlink_to(path)), linked),
        bad("a.mp4", lambda path: (video()(path), os.link(path, path.with_name("b"))), linked),
        bad("a.safetensors", contents(weights), linked, command=itself, about="a.safetensors", decoys=clip),
        bad("a.mp4", video(), ("exists",), command="encode -q -o b --", decoys=old),
        bad("a.mp4", video(), ("does not exist",), command="encode -q -o no/b --", about="no/b"),
        bad("a.mp4", video(), ("not a regular file",), command="encode -q -o /dev/null --", about="/dev/null"),
    )


def lying_weights():
    def bad(name, make, says, code=1, command=WEIGHTS, **more):
        return Case("weights", name, make, (says,), code, command, decoys={"clip.mp4": video()}, **more)

    bias, kernel, deep, of = "encoder.conv_in.conv.bias", "encoder.conv_in.conv.weight", '{"a":' * 100_000, weights
    for name, make, reason in (
        ("text", contents("hello"), "safetensors"),
        ("empty", contents(b""), "safetensors"),
        ("cut", lambda path: cut(of(), 0.5)(path), "safetensors"),
        ("cut head", lambda path: path.write_bytes(of()[:99]), "safetensors"),
        ("huge head", sized(of, b"\xff" * 8), "safetensors"),
        ("large head", sized(of, (2**40).to_bytes(8, "little")), "safetensors"),
        ("deep head", contents(len(deep).to_bytes(8, "little") + deep.encode()), "safetensors"),
        ("nan", lie(of, number(bias, "<f", float("nan"))), "not finite"),
        ("inf", lie(of, number(bias, "<f", float("-inf"), 3)), "not finite"),
        ("missing", lie(of, without(bias)), f"lacks {bias}"),
        ("extra", lie(of, lambda tensors: tensors.update({"encoder.x": ["F32", [1], bytes(4)]})), "encoder.x"),
        ("stranger", lie(of, lambda tensors: tensors.update({"lm_head": ["F32", [1], bytes(4)]})), "lm_head"),
        ("transposed", lie(of, tensor(kernel, 1, lambda s: [s[1], s[0], *s[2:]])), f"{kernel} has shape"),
        ("dtype", lie(of, tensor(bias, 0, "I32")), f"{bias} has dtype I32"),
        ("hole", lie(of, header=offsets(bias, 1, -4)), "safetensors"),
        ("overlap", lie(of, header=offsets(kernel, 0, -4)), "safetensors"),
        ("negative", lie(of, header=offsets(bias, 0, -(2**40))), "safetensors"),
        *(
            (f"config {i}", lie(of, config=text), "config")
            for i, text in enumerate(("hello", None, "[1]", '{"ch": NaN}'))
        ),
        ("deep config", lie(of, config=deep), "config"),
        ("huge config", lie(of, config='{"a": "' + "x" * (2 << 20) + '"}'), "config"),
        ("config twice", lie(of, config='{"ch": 32, "ch": 64}'), "'ch' twice"),
        ("wide", lie(of, **config(ch=2**40)), "config"),
        ("levels", lie(of, **config(ch_mult=[1] * 10**5)), "config"),
        ("blocks", lie(of, **config(num_res_blocks=10**9)), "config"),
        ("newer", lie(of, format_version="2"), "format_version"),
        ("semantics", lie(of, semantics="nonsense", **config(norm_scope="whole")), "semantics"),
        ("pickle", contents(pickle.dumps(Marker())), "PyTorch file|safetensors"),
    ):
        yield bad(f"{name}.safetensors", make, reason)
    in_folder, cog = "folder/diffusion_pytorch_model.safetensors", WEIGHTS.replace("clip", "--semantics whole clip")
    escaping, index = json.dumps({"weight_map": {bias: "../decoy.safetensors"}}), f"{in_folder}.index.json"
    yield from (
        bad("good.safetensors", lie(of), ": 8 x 2 x 6 x 8 ", 0),
        bad("old.pt", contents(pickle.dumps(Marker())), "PyTorch file"),
        bad("new.pt", torch_file(Marker), "PyTorch file"),
        bad("info.pt", torch_file(Marker), "PyTorch file", command=INFO),
        bad("convert old.pt", contents(pickle.dumps(Marker())), "not run|not a whole", command=CONVERT),
        bad("convert new.pt", torch_file(Marker), "not run", command=CONVERT),
        bad("convert inside.pt", torch_file(lambda: own_state() | {"x": Marker()}), "not run", command=CONVERT),
        bad(
            "convert cut.pt",
            lambda path: (torch_file(own_state)(path), os.truncate(path, 9999)),
            "not a whole",
            1,
            CONVERT,
        ),
        bad("convert.pt", torch_file(own_state), "safetensors: ", 0, CONVERT, warns="scaling factor"),
        bad("nobody/no-model", nothing, "no model of that id"),
        bad(f"{URL}w.safetensors", nothing, "no such file"),
        bad("clip.mp4", nothing, "safetensors"),
        bad("folder", folder_of_weights(), ": 32 x 2 x 6 x 8 ", 0, cog, also=(in_folder, "folder/config.json")),
        bad("folder", folder_of_weights(index=escaping), "not a file of the same folder", about=index, also=(index,)),
    )
    for text, reason in {deep: "deep", "x" * (2 << 20): "bytes long", '{"scaling_factor": NaN}': "NaN"}.items():
        file = "folder/config.json"
        yield bad("folder", folder_of_weights(text), reason, about=file, also=(in_folder, file))


SAID = {  # metadata of latents that cannot be true
    "frames": ("17", "-5", "0", "1" + "0" * 30, "five"),
    "frames_padded": ("-1", "4"),
    "fps": ("1/0", "0", "nan", "-25"),
    "windows": ("[[[[", "[" * 100_000),
    "pad_right": ("-8", "3"),
    "width": ("0", str(2**40)),
    "spatial_factor": ("0", "16"),
    "temporal_factor": ("0", "-4"),
    "duration": ("nan", "inf", "-1"),
    "crop": ("[1,2]", "{"),
    "config": ("{", "[" * 100_000),
    "preprocessing": ("[]", '{"warnings": 7}'),
    "representation": ("pixels", None),
    "semantics": ("nonsense", None),
    "format_version": ("2", None),
    "format": ("something", None),
    "source_sha256": (None,),
}


def lying_latents():
    def bad(name, make, says="", code=1, command=INFO, **more):
        return Case("latents", f"{name}.safetensors", make, (says,), code, command, **more)

    of, z, times, red = latents, "latents", "frame_times", "\x1b[31m\x07\n\u202e"
    for key, values in SAID.items():
        for value in values:
            yield bad(f"{key} {str(value)[:20].replace('/', ' by ')}", lie(of, **{key: value}))
    for output in ("back.mkv", "back.mp4", "back.npy", "back"):
        yield bad(f"to {output}", lie(of), "5 frames, 64x48", 0, f"decode -q -o {output} --")
    yield from (
        bad("good", lie(of), "1 x 32 x 2 x 6 x 8 F32", 0),
        bad("stats", lie(of), "32 x 2 x 6 x 8", 0, "info --stats --"),
        bad("escapes", lie(of, source_name=red, model=red, movq_version=red, precision=red), "x 6 x 8", 0),
        bad("cut", lambda path: path.write_bytes(of()[:-9]), "safetensors"),
        bad("longer", lambda path: path.write_bytes(of() + bytes(8)), "safetensors"),
        bad("only size", lambda path: path.write_bytes(of()[:8])),
        bad("huge head", sized(of, b"\xff" * 7 + b"\x7f"), "safetensors"),
        bad("big endian", lambda path: path.write_bytes(of()[:8][::-1] + of()[8:]), "safetensors"),
        bad("short head", sized(of, (8).to_bytes(8, "little")), "safetensors"),
        bad("list", contents((2).to_bytes(8, "little") + b"[]")),
        bad("overlap", lie(of, header=offsets(z, 0, -8)), "safetensors"),
        bad("hole", lie(of, header=offsets(z, 0, 8)), "safetensors"),
        bad("beyond", lie(of, header=offsets(z, 1, 2**40)), "safetensors"),
        bad("product", lie(of, tensor(z, 1, lambda s: [1, 2**40, *s[2:]])), "safetensors"),
        bad("overflow", lie(of, tensor(z, 1, [2**62] * 5)), "safetensors"),
        bad("swapped", lie(of, tensor(z, 1, lambda s: [*s[:3], s[4], s[3]]))),
        bad("dtype", lie(of, tensor(z, 0, "I16"))),
        bad("times dtype", lie(of, tensor(times, 0, "I64"))),
        bad("no times", lie(of, without(times)), times),
        bad("no latents", lie(of, without(z)), z),
        bad("metadata", lie(of, header=lambda header: header.update(__metadata__={"format": 7})), "safetensors"),
        bad("nan", lie(of, number(z, "<H", 0x7FC0, 7)), "not finite", command=DECODE),
        bad("inf", lie(of, number(z, "<H", 0xFF80, 9)), "not finite", command=DECODE),
        bad(
            "times nan", lie(of, number(times, "<d", float("nan"), 2)), "frame times", command=DECODE, about="back.mkv"
        ),
        bad("times huge", lie(of, number(times, "<d", 1e308, 4)), "frame times", command=DECODE, about="back.mkv"),
        bad("times back", lie(of, number(times, "<d", -5.0, 4)), "5 frames", 0, DECODE, warns="do not grow"),
        bad("other weights", lie(of, weights_digest="0" * 64), "was made with", command=DECODE),
        bad("decode frames", lie(of, frames="17"), command=DECODE),
        bad("decode cut", lambda path: path.write_bytes(of()[:-9]), "safetensors", command=DECODE),
    )


def usages():
    for command, says in {
        "encode -o x.pt --": "--output",
        "encode -o out --fps fast --": "--fps",
        "encode -o out --frames 0 --": "--frames",
        "encode -o out --chunk-frames 6 --": "--chunk-frames",
        "encode -o out --tail loop --": "--tail",
        "encode -o out --height 4 --short-side 4 --": "--short-side",
        "encode -o out --memory-budget much --": "--memory-budget",
        "encode -o out --no-such-option --": "no-such-option",
        "decode -o back.avi --": "back.avi",
        "frobnicate --": "frobnicate",
    }.items():
        yield Case("usage", "in", contents(latents) if "decode" in command else video(), (says,), 2, command)


KINDS = (good_videos, names, cuts, damages, texts, bombs, not_videos, not_files, outputs, lying_weights, lying_latents)
KINDS += (usages,)
