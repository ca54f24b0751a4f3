"""Clips made with PyAV for the tests: real files of every kind, and the pictures they show."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

DATA = Path(__file__).parents[1] / "data"
CITY = DATA / "city.mp4"


def picture(width, height, shift=0):
    """Return a smooth RGB picture, different in every corner, moved by `shift` pixels."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    x = x + shift
    r = 128 + 90 * np.sin(x / 17) * np.cos(y / 23)
    g = 40 + 150 * y / height + 20 * np.sin(x / 9)
    b = 200 - 150 * x / (width + 64)
    return np.clip(np.stack([r, g, b], -1), 0, 255).astype(np.uint8)


def pictures(count, width=64, height=48):
    return [picture(width, height, 3 * i) for i in range(count)]


def write(
    path,
    images,
    *,
    codec="libx264",
    pix_fmt="yuv420p",
    rate=25,
    times=None,
    options=None,
    rotation=None,
    mirror=False,
    aspect=None,
    tags=None,
    audio=False,
    cover=False,
    frames=None,
    format=None,
    muxing=None,
):
    """Write RGB images (or ready `frames`) as a video. `times` in seconds replace the constant rate.

    `options` are those of the encoder, `muxing` those of the container.
    """
    with av.open(str(path), "w", format=format, options=muxing) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        first = frames[0] if frames else images[0]
        stream.width, stream.height = (first.width, first.height) if frames else (first.shape[1], first.shape[0])
        stream.pix_fmt = pix_fmt
        base = Fraction(1, 90000) if times else Fraction(1, rate)
        stream.codec_context.time_base = base
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        if rotation is not None or mirror:
            stream.set_display_rotation(rotation or 0, hflip=mirror)
        sound = container.add_stream("aac", rate=48000, layout="mono") if audio else None
        for i, image in enumerate(frames or images):
            frame = image if frames else av.VideoFrame.from_ndarray(image, format="rgb24")
            if not frames:
                frame = frame.reformat(format=pix_fmt)
            frame.pts = round(times[i] / base) if times else i
            frame.time_base = base
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
        if sound:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 48000
            for packet in [*sound.encode(silence), *sound.encode()]:
                container.mux(packet)
    return Path(path)


def lossless(path, images, **more):
    """Write RGB images as a video that keeps them bit for bit: PNG in MOV, FFV1 in Matroska."""
    if Path(path).suffix == ".mov":
        return write(path, images, codec="png", pix_fmt="rgb24", **more)
    return write(path, images, codec="ffv1", pix_fmt="bgr0", **more)


def sound_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 48000
        for packet in [*stream.encode(silence), *stream.encode()]:
            container.mux(packet)
    return Path(path)


def still(path, image, codec, pix_fmt="rgb24", format="image2"):
    """Write an image as a PNG, JPEG or WebP file."""
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=1)
        stream.width, stream.height, stream.pix_fmt = image.shape[1], image.shape[0], pix_fmt
        source = "rgba" if image.shape[2] == 4 else "rgb24"
        frame = av.VideoFrame.from_ndarray(image, format=source).reformat(format=pix_fmt)
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    return Path(path)


def gif_bomb(path, width=30000, height=20000):
    """Write a GIF of a hundred bytes whose picture would take 2 GB."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    image = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\0;"
    Path(path).write_bytes(head + image)
    return Path(path)


def yuv(width, height, y, u, v, *, pix_fmt="yuv444p", colorspace=None, color_range=None):
    """Return a frame of one colour made without swscale, to judge colour conversion by."""
    frame = av.VideoFrame(width, height, pix_fmt)
    for plane, value in zip(frame.planes, (y, u, v), strict=True):
        if "10" in pix_fmt:
            plane.update(np.full(plane.buffer_size // 2, value, "<u2").tobytes())
        else:
            plane.update(bytes([value]) * plane.buffer_size)
    if colorspace is not None:
        frame.colorspace = colorspace
    if color_range is not None:
        frame.color_range = color_range
    return frame


def faststart(source, target):
    """Copy a video with its index in front, so that a cut file still opens."""
    copy_packets(source, target, {"movflags": "faststart"})


def copy_packets(source, target, options=None):
    """Copy the packets of a video to another file, which may be another container."""
    with av.open(str(source)) as a, av.open(str(target), "w", options=options) as b:
        stream = b.add_stream_from_template(a.streams.video[0])
        for packet in a.demux(a.streams.video[0]):
            if packet.size:
                packet.stream = stream
                b.mux(packet)
