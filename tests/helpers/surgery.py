"""Change the bytes of video files as other programs leave them: boxes put in, packets left out, pictures in tiles."""

import struct

import av

from . import clips


def numbered(count, width=64, height=48, first=0):
    """Return pictures whose upper left patch has the grey 20 + 10 i for frame i."""
    images = []
    for i in range(first, first + count):
        image = clips.picture(width, height, 3 * i)
        image[:16, :16] = 20 + 10 * (i % 23)
        images.append(image)
    return images


def number(image):
    """Return the number that the patch of a picture shows."""
    return round((float(image[2:6, 2:6].mean()) - 20) / 10)


def make_box(name, *parts):
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + name + body


_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"mvex")
_SAMPLE_ENTRY = 78  # bytes of a visual sample entry before its boxes


def insert_box(path, into, box, target=None):
    """Append a box to the first box called `into`, whose parents grow with it. The index must be at the file's end."""
    data = bytearray(path.read_bytes())
    grown = []

    def find(start, end):
        while start < end:
            size, name = struct.unpack_from(">I4s", data, start)
            if name == into:
                grown.append(start)
                return start + size
            inner = start + 8 + (8 if name == b"stsd" else 0)
            if name in _CONTAINERS and (place := find(inner, start + size)):
                grown.append(start)
                return place
            start += size
        return None

    place = find(0, len(data))
    assert place, into
    for start in grown:
        data[start : start + 4] = struct.pack(">I", struct.unpack_from(">I", data, start)[0] + len(box))
    data[place:place] = box
    (target or path).write_bytes(data)
    return target or path


def without_packets(source, target, unwanted):
    """Copy a video without the packets at these places in the file."""
    with av.open(str(source)) as a, av.open(str(target), "w") as b:
        stream = b.add_stream_from_template(a.streams.video[0])
        place = 0
        for packet in a.demux(a.streams.video[0]):
            if packet.size:
                if place not in unwanted:
                    packet.stream = stream
                    b.mux(packet)
                place += 1
    return target


def heif(path, tiles, columns, size, properties=()):
    """Write a HEIC of tiles, RGB images of one size, with an item that puts them together to `size` (width, height).

    `properties` are the boxes that this item has besides its size, in order.
    """
    coded, config = [], b""
    for i, tile in enumerate(tiles):
        video = clips.write(
            path.with_name(f"tile{i}.mp4"),
            [tile],
            codec="libx265",
            options={"x265-params": "log-level=none:info=0:bframes=0"},
        )
        with av.open(str(video)) as container:
            coded.append(next(bytes(packet) for packet in container.demux(video=0) if packet.size))
        data = video.read_bytes()
        at = data.index(b"hvcC") - 4
        config = data[at : at + struct.unpack_from(">I", data, at)[0]]
    height, width, _ = tiles[0].shape
    count, last = len(tiles), len(tiles) + 1
    grid = struct.pack(">BBBBHH", 0, 0, count // columns - 1, columns - 1, *size)
    kinds = [b"hvc1"] * count + [b"grid"]
    entries = [make_box(b"infe", b"\2\0\0\0", struct.pack(">HH", i, 0), kind, b"\0") for i, kind in enumerate(kinds, 1)]
    known = [
        config,
        make_box(b"ispe", bytes(4), struct.pack(">II", width, height)),
        make_box(b"ispe", bytes(4), struct.pack(">II", *size)),
        *properties,
    ]
    ours = [3, *range(4, 4 + len(properties))]
    uses = b"".join(struct.pack(">HBBB", i, 2, 1, 2) for i in range(1, last))
    uses += struct.pack(">HB", last, len(ours)) + bytes(ours)

    def meta(start):
        places, at = [], start
        for one in coded:
            places.append(struct.pack(">HHHHII", len(places) + 1, 0, 0, 1, at, len(one)))
            at += len(one)
        places.append(struct.pack(">HHHHII", last, 1, 0, 1, 0, len(grid)))
        return make_box(
            b"meta",
            bytes(4),
            make_box(b"hdlr", bytes(8), b"pict", bytes(13)),
            make_box(b"pitm", bytes(4), struct.pack(">H", last)),
            make_box(b"iloc", b"\1\0\0\0\x44\x00", struct.pack(">H", last), *places),
            make_box(b"iinf", bytes(4), struct.pack(">H", last), *entries),
            make_box(
                b"iref",
                bytes(4),
                make_box(b"dimg", struct.pack(">HH", last, count), *(struct.pack(">H", i) for i in range(1, last))),
            ),
            make_box(b"iprp", make_box(b"ipco", *known), make_box(b"ipma", bytes(4), struct.pack(">I", last), uses)),
            make_box(b"idat", grid),
        )

    start = make_box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    head = start + meta(len(start) + len(meta(0)) + 8)
    path.write_bytes(head + make_box(b"mdat", *coded))
    return path


def remux(source, target):
    """Copy a stream to another container, with the side data that PyAV has no names for."""
    with av.open(str(source)) as a, av.open(str(target), "w", options={"strict": "unofficial"}) as b:
        stream = b.add_stream_from_template(a.streams.video[0], opaque=True)
        for packet in a.demux(a.streams.video[0]):
            if packet.size:
                packet.stream = stream
                b.mux(packet)
    return target
