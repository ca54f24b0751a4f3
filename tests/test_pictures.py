"""Still pictures turned as their Exif says, and side data that PyAV has no name for. Pillow is the judge."""

import io
import os
import random
import struct
import warnings
import zlib

import av
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from movq_cli import Selection, probe, read_frames
from movq_cli.video import VideoFacts, container, exif, frames, geometry, survey

from .helpers import clips

FIELD = os.path.join(os.path.dirname(__file__), "data", "field")
PICTURE = clips.picture(64, 48)
SUFFIXES = ["jpg", "png", "webp"]
SHORT, LONG, ORIENTATION, EXIF_IFD = 3, 4, 0x112, 0x8769


def ifd(*entries, order="<", following=0):
    """Return one directory of Exif. An entry is (tag, type, count, value or four bytes)."""
    data = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        if isinstance(value, int):
            value = struct.pack(order + ("H" if kind == SHORT else "I"), value)
        data += struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
    return data + struct.pack(order + "I", following)


def tiff(*entries, order="<", following=0):
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(order + "I", 8) + ifd(*entries, order=order, following=following)


def oriented(value, order="<"):
    return tiff((ORIENTATION, SHORT, 1, value), order=order)


def encoded(suffix):
    """Return the picture as a file without Exif. JPEG keeps full colour resolution, so that decoders hardly differ."""
    file = io.BytesIO()
    more = {"jpg": {"quality": 100, "subsampling": 0}, "png": {}, "webp": {"lossless": True}}[suffix]
    Image.fromarray(PICTURE).save(file, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[suffix], **more)
    return file.getvalue()


PLAIN = {suffix: encoded(suffix) for suffix in SUFFIXES}


def jpeg_segment(body, marker=0xE1):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def webp_chunk(kind, body):
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) & 1)


def with_exif(suffix, block, prefix=None, last=False):
    """Return a file with this Exif, byte for byte; Pillow would rewrite it. `last` puts it behind the pixels."""
    plain = PLAIN[suffix]
    if suffix == "jpg":
        return plain[:2] + jpeg_segment((b"Exif\0\0" if prefix is None else prefix) + block) + plain[2:]
    block = (prefix or b"") + block
    if suffix == "png":
        at = len(plain) - 12 if last else 33
        return plain[:at] + png_chunk(b"eXIf", block) + plain[at:]
    pixels, part = plain[12:], webp_chunk(b"EXIF", block)
    size = (63).to_bytes(3, "little") + (47).to_bytes(3, "little")
    body = b"WEBP" + webp_chunk(b"VP8X", struct.pack("<I", 8) + size) + (pixels + part if last else part + pixels)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def judged(data):
    """Return the picture that Pillow shows, (H, W, 3)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def shown(path):
    """Return the first frame as movq shows it, in this process: `read_frames` would start another for each file."""
    with container.open_video(str(path)) as opened:
        decoder = frames.Decoder(opened)
        plan = decoder.geometry(geometry.Picture(), 1)
        out = np.empty((plan.height, plan.width, 3), np.uint8)
        plan.place(decoder.rgb(decoder._first.payload, plan.scaled), out)
    return out


def agrees(data, path, tolerance):
    path.write_bytes(data)
    image, judge = shown(path), judged(data)
    return image.shape == judge.shape and abs(image.astype(int) - judge).max() <= tolerance


# -- files from the field


@pytest.mark.parametrize("name", ["exif_1.jpg", "exif_3.jpg", "exif_5.jpg", "exif_6.jpg", "exif_6.png"])
def test_a_photo_with_exif_is_shown_as_pillow_shows_it(name):
    path = os.path.join(FIELD, name)
    with open(path, "rb") as file:
        judge = judged(file.read())
    image = shown(path)
    assert image.shape == judge.shape == ((64, 48, 3) if name[5] in "56" else (48, 64, 3))
    assert abs(image.astype(int) - judge).mean() < (2 if name.endswith("jpg") else 0.01)  # enlarged chroma differs


def test_a_photo_with_exif_goes_all_the_way():
    path = os.path.join(FIELD, "exif_6.jpg")
    info = probe(path)
    assert (info.width, info.height, info.shown_width, info.shown_height) == (64, 48, 48, 64)
    assert (info.rotation, info.mirrored, info.is_picture, info.warnings) == (90, False, True, ())
    with read_frames(path) as reader:
        assert [frame.image.shape for frame in reader] == [(64, 48, 3)]


def test_frames_that_carry_a_view_id_are_read():
    with read_frames(os.path.join(FIELD, "spatial.mov")) as reader:
        frames = [frame.image for frame in reader]
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 5
    assert [round((frame[2:6, 2:6].mean() - 20) / 10) for frame in frames] == [0, 1, 2, 3, 4]


# -- every orientation, in every format


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pictures_are_turned_as_their_exif_says(tmp_path, suffix, order):
    """Values outside 1..8 do not turn the picture. Pillow's JPEG decoder rounds differently."""
    for value in range(10):
        data = with_exif(suffix, oriented(value, order))
        assert agrees(data, tmp_path / "a", 3 if suffix == "jpg" else 0), value


@pytest.mark.parametrize("value", range(1, 9))
def test_turning_moves_pixels_and_changes_none(tmp_path, value):
    """A JPEG has both Exif and the display matrix that libav makes of it, and is turned once."""
    path = tmp_path / "a"
    path.write_bytes(PLAIN["jpg"])
    stored = shown(path)
    path.write_bytes(with_exif("jpg", oriented(value)))
    tagged = Image.fromarray(stored)
    tagged.getexif()[ORIENTATION] = value
    assert np.array_equal(shown(path), np.asarray(ImageOps.exif_transpose(tagged)))


# -- Exif as it occurs


MET = {
    "a longer number": tiff((ORIENTATION, LONG, 1, 6)),
    "a second directory, of the thumbnail, turned otherwise": tiff((ORIENTATION, SHORT, 1, 6), following=26)
    + ifd((ORIENTATION, SHORT, 1, 3)),
    "an orientation in another directory": tiff((EXIF_IFD, LONG, 1, 26)) + ifd((ORIENTATION, SHORT, 1, 6)),
    "a text that lies outside": tiff((0x10F, 2, 100, 9999), (ORIENTATION, SHORT, 1, 6)),
    "a tag of an unknown type": tiff((0x10F, 99, 1, 1), (ORIENTATION, SHORT, 1, 6)),
    "a directory that lies outside": tiff((ORIENTATION, SHORT, 1, 6), (EXIF_IFD, LONG, 1, 9999)),
    "a directory that holds itself": tiff((ORIENTATION, SHORT, 1, 6), (EXIF_IFD, LONG, 1, 8)),
    "a maker's note that is cut": tiff((ORIENTATION, SHORT, 1, 6), (EXIF_IFD, LONG, 1, 38))
    + ifd((0x927C, 7, 4000, 56))
    + b"Nikon",
    "the tag twice": tiff((ORIENTATION, SHORT, 1, 3), (ORIENTATION, SHORT, 1, 6)),
    "a text in place of the number": tiff((ORIENTATION, 2, 1, b"6")),
    "two values": tiff((ORIENTATION, SHORT, 2, struct.pack("<2H", 6, 3))),
    "more values than fit": tiff((ORIENTATION, SHORT, 0xFFFFFFFF, 6)),
    "no value": tiff((ORIENTATION, SHORT, 0, 6)),
    "the end inside the tag": oriented(6)[:-6],
    "no bytes for the last pointer": oriented(6)[:-4],
    "nothing": b"",
    "another byte order than it says": b"MM\0*" + oriented(6)[4:],
    "a first directory outside": b"II*\0\xff\xff\xff\x7f" + oriented(6)[8:],
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damage_elsewhere_in_exif_costs_neither_the_turn_nor_the_picture(tmp_path, suffix):
    """libav gives up all of Exif for one tag that it cannot read, and refuses the PNG."""
    for name, block in MET.items():
        assert agrees(with_exif(suffix, block), tmp_path / "a", 3 if suffix == "jpg" else 0), name


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("last", [False, True], ids=["in front", "behind"])
@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"], ids=["bare", "prefixed"])
def test_exif_is_found_on_either_side_of_the_pixels_and_with_a_prefix(tmp_path, suffix, last, prefix):
    """Some writers put JPEG's prefix in front of Exif in other formats too."""
    assert agrees(with_exif(suffix, oriented(7), prefix, last), tmp_path / "a", 0)


def test_exif_in_a_text_of_a_png_is_followed(tmp_path):
    """Older programs write Exif so. movq leaves it to libav's display matrix."""
    block = b"Exif\0\0" + oriented(8)
    text = b"Raw profile type exif\0\nexif\n%8d\n%s\n" % (len(block), block.hex().encode())
    plain = PLAIN["png"]
    assert agrees(plain[:33] + png_chunk(b"tEXt", text) + plain[33:], tmp_path / "a", 0)


def test_exif_of_a_jpeg_in_two_parts_and_between_others(tmp_path):
    block = oriented(6)[:8] + bytes(60_000)
    block = block[:4] + struct.pack("<I", 60_000) + block[8:60_000] + oriented(6)[8:]
    cut = 59_990
    plain = PLAIN["jpg"]
    parts = jpeg_segment(b"Exif\0\0" + block[:cut]) + jpeg_segment(b"Exif\0\0" + block[cut:])
    note = jpeg_segment(b"Exif\0\0" + oriented(3), 0xFE) + jpeg_segment(b"http://ns.adobe.com/xap/1.0/\0<x/>")
    assert agrees(plain[:2] + note + b"\xff\xff" + parts[1:] + plain[2:], tmp_path / "a", 3)


def test_hostile_bytes_are_no_orientation_and_no_error():
    """The reader finds one of eight orientations or none, whatever is cut, flipped or given a false length."""
    rng = random.Random(7)
    for suffix in SUFFIXES:
        whole = with_exif(suffix, tiff((EXIF_IFD, LONG, 1, 8), (ORIENTATION, SHORT, 1, 6)), last=suffix == "webp")
        assert exif.read_orientation(whole) == exif.ORIENTATIONS[6]
        for end in range(0, len(whole), 7):
            assert exif.read_orientation(whole[:end]) in (None, exif.ORIENTATIONS[6])
        for _ in range(500):
            data = bytearray(whole)
            for _ in range(rng.randint(1, 6)):
                data[rng.randrange(120)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            assert exif.read_orientation(bytes(data)) in (None, *exif.ORIENTATIONS.values())
            exif.without_exif(bytes(data))
    assert exif.read_orientation(b"") is None
    assert exif.read_orientation(b"GIF89a") is None


def test_of_two_the_one_that_counts_is_read():
    """The last Exif of a PNG counts, as in Pillow and libav; an odd chunk of WebP is followed by a byte of padding."""
    first = with_exif("png", oriented(6))
    assert exif.read_orientation(first[:33] + png_chunk(b"eXIf", oriented(3)) + first[33:]) == exif.ORIENTATIONS[6]
    webp = with_exif("webp", oriented(8))
    assert exif.read_orientation(webp[:30] + webp_chunk(b"XMP ", b"odd") + webp[30:]) == exif.ORIENTATIONS[8]


def test_a_long_row_of_empty_parts_is_soon_given_up():
    plain, empty = with_exif("jpg", oriented(6)), jpeg_segment(b"")
    assert exif.read_orientation(plain[:2] + 60_000 * empty + plain[2:]) == exif.ORIENTATIONS[6]
    assert exif.read_orientation(plain[:2] + 70_000 * empty + plain[2:]) is None
    assert exif.read_orientation(b"\xff\xd8" + b"\xff" * 5_000_000) is None
    assert exif.read_orientation(PLAIN["png"][:8] + bytes(12_000_000)) is None
    assert exif.read_orientation(b"RIFF\0\0\0\0WEBP" + bytes(8_000_000)) is None


# -- side data without a name


@pytest.mark.parametrize(("turn", "mirror"), [(90, False), (0, True), (270, True)])
def test_a_display_matrix_is_found_among_side_data_without_a_name(tmp_path, turn, mirror):
    """The view id is in front of the matrix, and would end the list of side data."""
    spatial, path = os.path.join(FIELD, "spatial.mov"), tmp_path / "a.mov"
    with av.open(spatial) as a, av.open(str(path), "w") as b:
        stream = b.add_stream_from_template(a.streams.video[0])
        stream.set_display_rotation(turn, hflip=mirror)
        for packet in a.demux(video=0):
            if packet.size:
                packet.stream = stream
                b.mux(packet)
    stored = np.rot90(shown(spatial), turn // 90)[:, :: -1 if mirror else 1]
    assert np.array_equal(shown(path), stored)


def test_pictures_with_a_colour_profile_do_not_crash_a_long_survey(tmp_path):
    """Reading its list of side data makes PyAV free the names in it a second time; a colour profile has such a name."""
    path = tmp_path / "a.png"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(PICTURE).save(path, icc_profile=profile)
    assert [
        found for found in survey([(str(path), Selection())] * 60) if found.facts(Selection()) != VideoFacts(1, 64, 48)
    ] == []
