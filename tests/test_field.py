"""Problem files from the field: what other players show. Each kind, by a file of it and by others made here.

The files of tests/data/field come with their right values; frame i carries a patch of grey 20 + 10 i. What movq does with each
kind is in docs/video-files.md.
"""

import contextlib
import io
import struct
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from movq_cli import MovqError, Picture, Selection, encode_batch, encode_video, open_latents, read_frames
from movq_cli.cli import run
from movq_cli.video import count_frames, decoding, probe, raw, stills, survey, transport
from movq_cli.video.container import open_video

from .helpers import clips, surgery
from .helpers.surgery import insert_box, make_box, number, numbered

FIELD = Path(__file__).parent / "data" / "field"


def shown(path, selection=None, picture=None):
    with read_frames(path, selection, picture) as reader:
        frames = list(reader)
    return frames, reader.warnings


def numbers(frames):
    return [number(frame.image) % 23 for frame in frames]


def sizes(frames):
    return {frame.image.shape[1::-1] for frame in frames}


def seconds(*times):
    return [Fraction(str(time)) for time in times]


RIGHT = {
    "spatial.mov": ((64, 48), range(5), ""),
    "grid.heic": ((120, 100), [3], ""),
    "padded_size.heic": ((64, 48), [3], ""),
    "sequence.avif": ((64, 48), range(5), ""),
    "alpha_vp9.webm": ((64, 48), range(5), "transparent pixels"),
    "pixel_crop.mkv": ((64, 32), range(5), ""),
    "aspect_change.ts": ((64, 48), range(12), "changes the shape of its pixels"),
    "dolby_vision_5.mp4": ((64, 48), range(5), "Dolby Vision of profile 5"),
    "words_acTL.png": ((64, 48), [3], ""),
    "missing_key.mp4": ((64, 48), [*range(12, 23), 0], "its first 7 frames cannot be decoded"),
    "missing_key_hevc.mp4": ((64, 48), [*range(12, 23), 0], "its first 7 frames cannot be decoded"),
    "mid_gop_hevc.ts": ((64, 48), [*range(12, 23), 0], "its first 7 frames cannot be decoded"),
    "ultra_hdr.jpg": ((64, 48), [3], ""),
    "null_frames.avi": ((64, 48), [0, 1, 2, 3, *range(6, 12)], ""),
    "null_frame_last.avi": ((64, 48), range(11), ""),
    "recorder_wall_clock.webm": ((64, 48), range(6), ""),
    "open_gop_cut.mp4": ((64, 48), [*range(12, 23), *range(13)], ""),
    "bad_sei.mp4": ((64, 48), range(12), ""),
    "first_stream_empty.ts": ((64, 48), range(12), "stream 0 was not recognised: stream 1 was taken"),
    "count_900.ivf": ((64, 48), range(12), ""),
    "theora_duplicates.ogv": ((64, 48), range(9), ""),
    "trailer.png": ((64, 48), [3], ""),
    "concatenated.mjpeg": ((64, 48), range(5), "frames without times: taken as 25 frames per second"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_file_from_the_field_is_shown_as_others_show_it(name):
    size, right, warning = RIGHT[name]
    frames, warnings = shown(FIELD / name)
    assert sizes(frames) == {size}
    assert numbers(frames) == list(right)
    assert [warning in text for text in warnings] == ([True] if warning else [])
    assert count_frames(FIELD / name) == len(frames)
    info = probe(FIELD / name)
    assert info.frames_from_header in (None, len(frames), len(frames) + 7, 12, 27)
    assert (info.shown_width, info.shown_height) == size


REFUSED = {
    "encrypted.mp4": "is encrypted",
    "fragments_cut_between.mp4": "is cut off: its last fragment is not complete; allow_partial=True takes what comes before",
    "fragments_cut_in_moof.mp4": "is cut off: its last fragment is not complete; allow_partial=True takes what comes before",
    "theora_cut.ogv": "is cut off: it does not end as a ogg file does; allow_partial=True takes what comes before",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_had_is_refused_by_name(name):
    with pytest.raises(MovqError) as refused:
        shown(FIELD / name)
    assert refused.value.reason == REFUSED[name]


def test_repeats_without_bytes_keep_times_and_the_last_frame_lasts():
    avi, _ = shown(FIELD / "null_frames.avi")
    assert [f.time for f in avi] == seconds(0, 0.04, 0.08, 0.12, 0.24, 0.28, 0.32, 0.36, 0.4, 0.44)
    last, _ = shown(FIELD / "null_frame_last.avi")
    assert last[-1].end == Fraction(12, 25)
    theora, _ = shown(FIELD / "theora_duplicates.ogv")
    assert [f.time for f in theora] == seconds(0, 0.04, 0.08, 0.12, 0.24, 0.28, 0.32, 0.4, 0.44)


# -- pictures in tiles, clean aperture, cropping


def tiles(width=64, height=64, count=6):
    return [clips.picture(width, height, 40 * i) for i in range(count)]


@pytest.mark.parametrize("rotation", range(4))
@pytest.mark.parametrize("mirror", [None, 0, 1])
def test_tiles_are_put_together_cut_and_turned(tmp_path, rotation, mirror):
    """The judge puts the tiles together, cuts and turns them as ISO/IEC 23008-12 says: first turned, then mirrored."""
    pieces = tiles()
    properties = [make_box(b"irot", bytes([rotation]))] + (
        [] if mirror is None else [make_box(b"imir", bytes([mirror]))]
    )
    path = surgery.heif(tmp_path / "a.heic", pieces, 3, (180, 100), properties)
    right = np.concatenate([np.concatenate(pieces[:3], axis=1), np.concatenate(pieces[3:], axis=1)])[:100, :180]
    right = np.rot90(right, rotation)
    if mirror is not None:
        right = right[:, ::-1] if mirror else right[::-1]
    frames, warnings = shown(path)
    assert (len(frames), warnings) == (1, ())
    assert frames[0].image.shape == right.shape
    assert abs(frames[0].image.astype(float) - right).mean() < 6
    assert probe(path).is_picture


def test_tiles_that_are_missing_or_do_not_fit_are_refused(tmp_path):
    path = surgery.heif(tmp_path / "a.heic", tiles(), 3, (180, 100))
    data = path.read_bytes()
    broken = data.replace(struct.pack(">BBBBHH", 0, 0, 1, 2, 180, 100), struct.pack(">BBBBHH", 0, 0, 2, 2, 180, 100))
    (tmp_path / "b.heic").write_bytes(broken)
    with pytest.raises(MovqError, match=r"in tiles that do not fit together|is not a video"):
        shown(tmp_path / "b.heic")
    (tmp_path / "c.heic").write_bytes(data[:-40])
    with pytest.raises(MovqError):
        shown(tmp_path / "c.heic")


def test_the_clean_aperture_of_tiles_is_cut_out(tmp_path):
    """Its middle is 3 pixels left of the picture's and 5 above it."""
    pieces = tiles()
    clap = make_box(b"clap", struct.pack(">8i", 100, 1, 60, 1, -3, 1, -5, 1))
    frames, _ = shown(surgery.heif(tmp_path / "a.heic", pieces, 3, (180, 100), [clap]))
    whole = np.concatenate([np.concatenate(pieces[:3], axis=1), np.concatenate(pieces[3:], axis=1)])[:100, :180]
    assert sizes(frames) == {(100, 60)}
    assert abs(frames[0].image.astype(float) - whole[15:75, 37:137]).mean() < 6
    beyond = make_box(b"clap", struct.pack(">8i", 100, 1, 60, 1, 90, 1, 0, 1))
    with pytest.raises(MovqError, match="more is cut away than its picture has"):
        shown(surgery.heif(tmp_path / "b.heic", pieces, 3, (180, 100), [beyond]))


@pytest.mark.parametrize("kind", [b"iovl", b"iden"])
def test_pictures_made_from_others_in_other_ways_are_refused_by_name(tmp_path, kind):
    path = surgery.heif(tmp_path / "a.heic", tiles(), 3, (180, 100))
    path.write_bytes(path.read_bytes().replace(b"grid", kind))
    with pytest.raises(MovqError, match=rf"made from other pictures \({kind.decode()}\)"):
        shown(path)


def with_clap(folder, codec="libx264"):
    """A clip of 64x48 whose clean aperture is 60x40, 2 to the right of the middle and 1 above it."""
    path = clips.write(folder / "clap.mp4", numbered(5), codec=codec)
    clap = make_box(b"clap", struct.pack(">IIIIiIiI", 60, 1, 40, 1, 2, 1, -1, 1))
    return insert_box(path, b"avc1", clap)


def test_a_clean_aperture_is_cut_out_in_mp4_and_matroska(tmp_path):
    path = with_clap(tmp_path)
    whole, _ = shown(clips.write(tmp_path / "whole.mp4", numbered(5)))
    for video in (path, surgery.remux(path, tmp_path / "clap.mkv")):
        frames, warnings = shown(video)
        assert (sizes(frames), warnings) == ({(60, 40)}, ())
        for frame, before in zip(frames, whole, strict=True):
            assert (frame.image == before.image[3:43, 4:64]).all()
    scaled, _ = shown(path, picture=Picture(short_side=20))
    assert sizes(scaled) == {(30, 20)}


def test_a_clean_aperture_larger_or_smaller_than_can_be_is_refused(tmp_path):
    """Libav drops most of these itself; what is left must not become a picture without pixels."""
    data = with_clap(tmp_path).read_bytes()
    written = struct.pack(">IIIIiIiI", 60, 1, 40, 1, 2, 1, -1, 1)
    for values in (
        (0, 1, 40, 1, 0, 1, 0, 1),
        (1, 9, 1, 9, 0, 1, 0, 1),
        (64, 1, 48, 1, 64, 1, 48, 1),
        (900, 1, 900, 1, 0, 1, 0, 1),
    ):
        (tmp_path / "x.mp4").write_bytes(data.replace(written, struct.pack(">IIIIiIiI", *values)))
        try:
            frames, _ = shown(tmp_path / "x.mp4")
        except MovqError:
            continue
        assert all(1 <= side <= most for side, most in zip(*sizes(frames), (64, 48), strict=True))


def test_a_cropped_video_is_encoded_in_its_shown_size(tmp_path):
    result = encode_video(FIELD / "pixel_crop.mkv", tmp_path / "a.safetensors")
    assert (result.metadata.width, result.metadata.height) == (64, 32)


# -- colours


def test_dolby_vision_without_a_base_layer_is_warned_of_in_every_container(tmp_path):
    record = struct.pack(">BBHB", 1, 0, (5 << 9) | (1 << 3) | 5, 0) + bytes(19)
    path = clips.write(tmp_path / "a.mp4", numbered(5), codec="libx265", options={"x265-params": "log-level=none"})
    with_base = insert_box(path, b"hev1", make_box(b"dvcC", record[:4], b"\x10", record[5:]), tmp_path / "base.mp4")
    insert_box(path, b"hev1", make_box(b"dvcC", record))
    for video in (path, surgery.remux(path, tmp_path / "a.mkv")):
        assert "Dolby Vision of profile 5" in shown(video)[1][0]
    assert shown(with_base)[1] == ()


def test_transparency_of_vp8_is_laid_over_black(tmp_path):
    image = np.dstack([clips.picture(64, 48), np.full((48, 64), 255, np.uint8)])
    image[:, 32:, 3] = 0
    frames = [av.VideoFrame.from_ndarray(image, format="rgba").reformat(format="yuva420p") for _ in range(3)]
    path = clips.write(
        tmp_path / "a.webm", [], frames=frames, codec="libvpx", pix_fmt="yuva420p", options={"auto-alt-ref": "0"}
    )
    made, warnings = shown(path)
    assert warnings == ("has transparent pixels: laid over black",)
    assert made[0].image[:, 40:].max() < 12
    assert made[0].image[:, :24].mean() > 40


def test_pixels_that_change_their_shape_are_warned_of(tmp_path):
    images = numbered(6)
    parts = []
    for i, aspect in enumerate((Fraction(1), Fraction(4, 3))):
        path = clips.write(tmp_path / f"{i}.h264", images, aspect=aspect, format="h264")
        parts.append(path.read_bytes())
    (tmp_path / "a.h264").write_bytes(b"".join(parts))
    frames, warnings = shown(tmp_path / "a.h264")
    assert len(frames) == 12
    assert any("changes the shape of its pixels" in text for text in warnings)


# -- files that are cut


def fragmented(path, codec="libx264", flags="frag_keyframe+empty_moov+default_base_moof"):
    return clips.write(path, numbered(40), codec=codec, options={"g": "8"}, muxing={"movflags": flags})


def top_boxes(data):
    at = 0
    while at < len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        yield name, at, at + size
        at += size


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
def test_fragments_cut_inside_of_a_box_are_refused(tmp_path, codec):
    path = fragmented(tmp_path / "a.mp4", codec)
    data = path.read_bytes()
    frames, warnings = shown(path)
    assert (len(frames), warnings) == (40, ())
    assert probe(path).frames_from_header is None
    fragments = [(start, end) for name, start, end in top_boxes(data) if name in (b"moof", b"mdat")][2:]
    for start, end in fragments:
        for cut in {start + 3, start + 8, (start + end) // 2, end - 1}:
            (tmp_path / "cut.mp4").write_bytes(data[:cut])
            with pytest.raises(MovqError, match=r"cut off|damaged|ends early|is not a video"):
                shown(tmp_path / "cut.mp4")


@pytest.mark.parametrize("behind", [b"\n", b"\xff" * 3, b"hello", bytes(6), b"words behind the last box", bytes(500)])
def test_bytes_behind_the_last_box_of_fragments_do_not_count(tmp_path, behind):
    path = fragmented(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes() + behind)
    assert len(shown(path)[0]) == 40


@pytest.mark.parametrize("between", [b"\n", b"hello", bytes(4), bytes(500), b"\xff" * 12])
def test_bytes_between_fragments_are_refused(tmp_path, between):
    """Libav stops there, as at the end of the file."""
    path = fragmented(tmp_path / "a.mp4")
    data = path.read_bytes()
    moof = [start for name, start, _ in top_boxes(data) if name == b"moof"][3]
    path.write_bytes(data[:moof] + between + data[moof:])
    with pytest.raises(MovqError, match=r"cut off|damaged|cannot be decoded"):
        shown(path)


def test_fragments_cut_between_are_refused_if_the_file_states_its_length(tmp_path):
    data = fragmented(tmp_path / "a.mp4").read_bytes()
    whole = insert_box(tmp_path / "a.mp4", b"mvex", make_box(b"mehd", bytes(4), struct.pack(">I", 1600)))
    stated = whole.read_bytes()
    assert len(shown(whole)[0]) == 40
    ends = [end + len(stated) - len(data) for name, _, end in top_boxes(data) if name == b"mdat"]
    (tmp_path / "cut.mp4").write_bytes(stated[: ends[2]])
    with pytest.raises(MovqError, match=r"is cut off: it ends at 0:00\.96 of 0:01\.6"):
        shown(tmp_path / "cut.mp4")
    frames, _ = shown(tmp_path / "cut.mp4", Selection(allow_partial=True))
    assert len(frames) == 24


def test_header_counts_of_hybrid_fragments_are_not_relied_on(tmp_path):
    path = fragmented(tmp_path / "a.mp4", flags="frag_keyframe")
    assert (probe(path).frames_from_header, count_frames(path), len(shown(path)[0])) == (None, 40, 40)


def test_an_ogg_of_vp8_is_refused_wherever_it_is_cut(tmp_path):
    path = clips.write(tmp_path / "a.ogv", numbered(30), codec="libvpx", options={"g": "5"})
    data = path.read_bytes()
    assert len(shown(path)[0]) == 30
    for cut in range(len(data) // 2, len(data), 97):
        (tmp_path / "cut.ogv").write_bytes(data[:cut])
        with pytest.raises(MovqError, match=r"cut off|damaged|cannot be decoded"):
            shown(tmp_path / "cut.ogv")


def test_an_ogg_whose_sound_does_not_say_that_it_ends_is_whole(tmp_path):
    path = clips.write(tmp_path / "a.ogv", numbered(30), codec="libvpx", options={"g": "5"})
    data = path.read_bytes()
    serial, pages = data[14:18], data.split(b"OggS")[1:]
    sound = [b"OggS" + page[:10] + bytes(4) + page[14:] for page in pages]  # pages of a stream that libav cannot read
    sound = [page[:5] + bytes([page[5] & ~4]) + page[6:] for page in sound[:2]]
    assert serial != bytes(4)
    bare = sound[0].replace(b"OVP80", b"sound")
    (tmp_path / "b.ogv").write_bytes(b"OggS" + pages[0] + bare + b"".join(b"OggS" + page for page in pages[1:]))
    with open(tmp_path / "b.ogv", "rb") as file:
        assert raw.ogg_ends(raw.Bytes(file), 0)


def test_a_transport_stream_cut_inside_a_frame_gives_the_frames_before(tmp_path):
    """That format is routinely cut at any point: the last frame is left out, with a warning."""
    for codec in ("libx264", "mpeg2video"):
        path = clips.write(tmp_path / "a.ts", numbered(12), codec=codec, options={"g": "4", "bf": "0"})
        data = path.read_bytes()
        (tmp_path / "cut.ts").write_bytes(data[: len(data) - len(data) // 188 // 3 * 188])
        frames, _ = shown(tmp_path / "cut.ts")
        assert numbers(frames) == list(range(len(frames)))
        assert 4 <= len(frames) < 12


def test_a_transport_stream_cut_inside_a_frame_gives_all_frames_that_the_decoder_holds(tmp_path):
    """With B-frames, complete frames wait in the decoder when the last packet turns out to be cut."""
    images = [np.random.default_rng(i).integers(0, 256, (48, 64, 3), np.uint8) for i in range(24)]
    data = clips.write(tmp_path / "a.ts", images, options={"bf": "3", "g": "24", "qp": "10"}).read_bytes()
    with av.open(str(tmp_path / "a.ts")) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    for k in (12, 13, 14, 15):
        (tmp_path / "between.ts").write_bytes(data[: places[k]])
        (tmp_path / "inside.ts").write_bytes(data[: places[k] + (places[k + 1] - places[k]) // 2 // 188 * 188])
        between, _ = shown(tmp_path / "between.ts")
        inside, warnings = shown(tmp_path / "inside.ts")
        assert len(inside) >= len(between) == k
        assert len(inside) == k + 1 or "ends inside a frame, which is left out" in warnings


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
@pytest.mark.parametrize("m2ts", [False, True])
def test_lost_packets_of_a_transport_stream_are_warned_of(tmp_path, codec, m2ts):
    """The decoder often conceals them: a frame is missing, or frames are grey, without an error."""
    quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    muxing = {"mpegts_m2ts_mode": str(int(m2ts))}
    path = clips.write(tmp_path / "a.ts", numbered(24), codec=codec, options=quiet, audio=True, muxing=muxing)
    data, size = path.read_bytes(), 192 if m2ts else 188
    assert shown(path)[1] == ()
    with av.open(str(path)) as container:
        pid = container.streams.video[0].id.to_bytes(2)
    heads = {place: data[place + size - 188 :] for place in range(0, len(data), size)}
    video = [place for place, head in heads.items() if bytes([head[1] & 0x1F, head[2]]) == pid]
    told = 0
    for place in video[1 : -len(video) // 8]:
        (tmp_path / "lost.ts").write_bytes(data[:place] + data[place + size :])
        try:
            warnings = shown(tmp_path / "lost.ts")[1]
        except MovqError:
            continue
        assert any("lost or damaged packets" in text for text in warnings), place // size
        told += 1
    assert told > 5


def packets_of(data, pid=0x100):
    """Return the places of the packets of a PID in a transport stream."""
    return [at for at in range(0, len(data), 188) if int.from_bytes(data[at + 1 : at + 3]) & 0x1FFF == pid]


def warned_of_loss(path, frames):
    found, warnings = shown(path)
    assert len(found) == frames
    return any("lost or damaged packets" in text for text in warnings)


def test_a_loss_of_fifteen_packets_is_told_and_a_repeated_packet_is_none(tmp_path):
    """After fifteen, the counter is that of the packet before again, as in a packet that is sent twice."""
    path = clips.write(tmp_path / "a.ts", numbered(60), codec="mpeg2video", options={"g": "60", "bf": "0"})
    data = path.read_bytes()
    frames = packets_of(data)[-40:]
    lost = b"".join(data[at : at + 188] for at in range(0, len(data), 188) if at not in frames[5:20])
    (tmp_path / "lost.ts").write_bytes(lost)
    assert warned_of_loss(tmp_path / "lost.ts", 45)
    twice = data[: frames[5] + 188] + data[frames[5] : frames[5] + 188] + data[frames[5] + 188 :]
    (tmp_path / "twice.ts").write_bytes(twice)
    assert not any("lost" in text for text in shown(tmp_path / "twice.ts")[1])


def test_transport_streams_that_are_joined_padded_or_announce_a_jump_have_lost_nothing(tmp_path):
    path = clips.write(tmp_path / "a.ts", numbered(25), audio=True)
    data = path.read_bytes()
    for name, changed in {"padded": data + bytes(5000), "in front": bytes(100) + data}.items():
        (tmp_path / "b.ts").write_bytes(changed)
        assert not warned_of_loss(tmp_path / "b.ts", 25), name
    (tmp_path / "b.ts").write_bytes(data + data)
    assert not warned_of_loss(tmp_path / "b.ts", 50)
    # A packet without a payload announces that counters jump.
    at = packets_of(data)[-8]
    packet = b"\x47\x01\x00\x20\xb7\x80" + b"\xff" * 182
    later = bytearray(data[at:])
    for place in packets_of(later):
        later[place + 3] = later[place + 3] & 0xF0 | (later[place + 3] + 5) & 15
    (tmp_path / "b.ts").write_bytes(data[:at] + packet + later)
    assert not warned_of_loss(tmp_path / "b.ts", 25)
    (tmp_path / "b.ts").write_bytes(data[:at] + later)
    assert warned_of_loss(tmp_path / "b.ts", 25)


def test_a_noisy_transport_stream_takes_few_reads():
    noise = np.zeros((20000, 188), np.uint8)
    noise[:, 0], noise[:, 1:3], noise[:, 3] = 0x47, (0x1F, 0xFF), 0x10
    noise[::10, 0] = 0x46
    file = Counted(noise.tobytes())
    assert transport.TransportPackets(raw.Bytes(file), 0x100).lost_until(len(noise) * 188)
    assert file.bytes < 10 * noise.size


def test_a_transport_stream_of_hevc_that_is_cut_inside_a_frame_is_warned_of(tmp_path):
    """The decoder gives the frame, half of it grey, without an error."""
    images = [np.random.default_rng(i).integers(0, 256, (48, 64, 3), np.uint8) for i in range(12)]
    options = {"x265-params": "log-level=none:bframes=0"}
    data = clips.write(tmp_path / "a.ts", images, codec="libx265", options=options).read_bytes()
    assert shown(tmp_path / "a.ts")[1] == ()
    with av.open(str(tmp_path / "a.ts")) as container:
        *_, place, end = [packet.pos for packet in container.demux(video=0) if packet.size]
    assert end - place > 5 * 188
    for cut in range(place + 188, end - 188, 188):
        (tmp_path / "cut.ts").write_bytes(data[: cut + 1])
        frames, warnings = shown(tmp_path / "cut.ts")
        assert len(frames) == 10 or any("end inside" in text for text in warnings)


# -- files without a key frame in front


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("mpeg4", "mp4"),
        ("mpeg4", "avi"),
        ("libvpx-vp9", "webm"),
        ("libx264", "mkv"),
        ("mpeg2video", "ts"),
        ("flv1", "flv"),
    ],
)
def test_frames_in_front_of_the_first_key_frame_are_left_out_and_counted(tmp_path, codec, suffix):
    options = (
        {"g": "6", "bf": "0", "x264-params": "scenecut=0"}
        if codec != "libvpx-vp9"
        else {"g": "6", "lag-in-frames": "0"}
    )
    whole = clips.write(tmp_path / f"whole.{suffix}", numbered(18), codec=codec, options=options)
    path = surgery.without_packets(whole, tmp_path / f"a.{suffix}", range(2))
    frames, warnings = shown(path)
    assert numbers(frames) == list(range(6, 18))
    assert warnings == ("begins without a key frame: its first 4 frames cannot be decoded and are left out",)
    assert count_frames(path) == 12


def test_an_avi_without_a_key_frame_in_front_keeps_its_times(tmp_path):
    whole = clips.write(tmp_path / "whole.avi", numbered(18), codec="mpeg4", options={"g": "6", "bf": "0"})
    path = surgery.without_packets(whole, tmp_path / "a.avi", range(2))
    frames, _ = shown(path)
    assert [b.time - a.time for a, b in pairwise(frames)] == [Fraction(1, 25)] * 11
    assert len(shown(path, Selection(fps=25))[0]) == count_frames(path, Selection(fps=25)) == 12


# -- repeats, counts, durations


def test_an_avi_whose_times_jump_keeps_them(tmp_path):
    """Writers of AVI fill a gap in time with empty chunks."""
    for codec in ("mpeg4", "mjpeg", "libx264"):
        times = [i / 25 for i in (0, 1, 2, 6, 7, 11)]
        path = tmp_path / f"{codec}.avi"
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25, options={"bf": "0"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.time_base = Fraction(1, 25)
            for image, time in zip(numbered(6), times, strict=True):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = round(time * 25), Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        frames, warnings = shown(path)
        assert (numbers(frames), warnings) == (list(range(6)), ())
        assert [float(frame.time) for frame in frames] == pytest.approx(times)


def test_a_live_recording_in_matroska_is_whole_if_its_last_element_is(tmp_path):
    path = clips.write(tmp_path / "a.webm", numbered(12), codec="libvpx", options={"g": "4"}, muxing={"live": "1"})
    assert len(shown(path)[0]) == 12


def test_a_matroska_that_is_complete_but_damaged_is_refused(tmp_path):
    data = (FIELD / "recorder_wall_clock.webm").read_bytes()
    for start in range(500, len(data) - 60, 40):
        (tmp_path / "a.webm").write_bytes(data[:start] + b"\xff" * 40 + data[start + 40 :])
        try:
            frames, _ = shown(tmp_path / "a.webm")
        except MovqError:
            continue
        assert len(frames) == 6, start


def test_a_count_that_an_ivf_does_not_keep_is_not_relied_on(tmp_path):
    for codec in ("libvpx", "libsvtav1"):
        path = clips.write(tmp_path / "a.ivf", numbered(6), codec=codec)
        data = bytearray(path.read_bytes())
        data[24:28] = struct.pack("<I", 500)
        path.write_bytes(data)
        assert len(shown(path)[0]) == count_frames(path) == 6
        path.write_bytes(data[:-7])
        with pytest.raises(MovqError, match=r"cut off|damaged"):
            shown(path)


def test_an_ogg_of_an_ntsc_rate_is_taken_frame_by_frame(tmp_path):
    """Libav knows its rate by another name."""
    path = clips.write(tmp_path / "a.ogv", numbered(700, 32, 16), codec="libvpx", rate=Fraction(24000, 1001))
    assert len(shown(path, Selection(fps=24))[0]) == count_frames(path, Selection(fps=24)) == 700
    assert probe(path).fps == Fraction(24000, 1001)


@pytest.mark.parametrize(
    ("rate", "asked"),
    [
        ("24000/1001", "24"),
        ("24000/1001", "23.98"),
        ("24", "23.976"),
        ("30000/1001", "30"),
        ("60000/1001", "59.94"),
        ("60", "60"),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_rates_of_an_ntsc_pair_are_the_same_rate(tmp_path, rate, asked, suffix):
    rate, asked = Fraction(rate), Fraction(asked)
    path = clips.write(tmp_path / f"a.{suffix}", numbered(40), rate=rate, times=[float(i / rate) for i in range(40)])
    frames, warnings = shown(path, Selection(fps=asked))
    assert numbers(frames) == [i % 23 for i in range(40)]
    said = [text for text in warnings if "frames per second, taken as" in text]
    assert len(said) == (rate != asked)
    result = encode_video(path, tmp_path / "a.safetensors", fps=asked, frames=5, short_side=16)
    assert float(result.metadata.fps) == pytest.approx(float(rate), rel=1e-5)


def test_a_variable_rate_that_is_an_ntsc_rate_on_average_is_resampled(tmp_path):
    """60 frames at 60 per second, a freeze, and 60 more: 30 per second on average."""
    times = [i / 60 for i in range(60)] + [2.98 + i / 60 for i in range(60)]
    path = clips.write(tmp_path / "a.mp4", numbered(120), times=times)
    with pytest.raises(MovqError, match="is slower than 30 frames per second"):
        shown(path, Selection(fps=30))
    frames, _ = shown(path, Selection(fps=30, fps_repeat=True))
    assert len(frames) == count_frames(path, Selection(fps=30, fps_repeat=True))
    assert numbers(frames)[:30] == [i % 23 for i in range(0, 60, 2)]
    assert set(numbers(frames)[30:59]) == {59 % 23}  # repeated: nearer than the next frame
    assert set(numbers(frames)[61:90]) == {60 % 23}
    assert numbers(frames)[90:] in ([i % 23 for i in range(60, 120, 2)], [i % 23 for i in range(61, 120, 2)])
    frames, _ = shown(path, Selection(fps=30, duration=1))
    assert len(frames) == 30


def test_other_rates_are_resampled_as_before(tmp_path):
    path = clips.write(tmp_path / "a.mp4", numbered(20), rate=25)
    frames, _ = shown(path, Selection(fps=24))
    assert len(frames) == 19  # of 0.8 seconds
    frames, _ = shown(path, Selection(fps=Fraction(25, 2)))
    assert numbers(frames) == list(range(0, 20, 2))
    with pytest.raises(MovqError, match="is slower than 30 frames per second"):
        shown(path, Selection(fps=30))


def test_a_gap_behind_the_frames_that_a_batch_takes_is_no_failure(tmp_path):
    times = [*(i / 25 for i in range(30)), 3.0, 3.04]
    path = clips.write(tmp_path / "a.mp4", numbered(32), times=times)
    result = encode_batch(path, tmp_path / "out", buckets="9x16x16", fps=25, workers=0)
    assert [line["status"] for line in result.lines] == ["done"]
    assert open_latents(tmp_path / "out" / "a.mp4.safetensors").frame_indices.tolist() == list(range(9))


# -- damage that costs no shown frame, and damage that does


def test_damaged_ffv1_is_refused(tmp_path):
    """Libav conceals it, and only reports that a checksum is wrong."""
    path = clips.write(
        tmp_path / "a.mkv", numbered(6), codec="ffv1", pix_fmt="bgr0", options={"slicecrc": "1", "level": "3"}
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(MovqError, match=r"is damaged after \d frames \(slice crc mismatch"):
        shown(path)


def test_damage_that_costs_a_frame_stays_refused(tmp_path):
    data = bytearray((FIELD / "bad_sei.mp4").read_bytes())
    frames, _ = shown(FIELD / "bad_sei.mp4")
    with av.open(str(FIELD / "bad_sei.mp4")) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    position, size = places[8]
    data[position + size // 2 : position + size] = bytes(size - size // 2)
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(MovqError, match=r"damaged|cannot be decoded"):
        shown(tmp_path / "a.mp4")
    assert len(frames) == 12


@pytest.mark.parametrize(
    ("codec", "suffix", "seeds"), [("libx265", "mp4", range(50, 70)), ("mpeg2video", "mkv", (11, 25, 32, 36, 94, 102))]
)
def test_damage_in_the_head_of_a_packet_is_refused_or_costs_no_frame(tmp_path, codec, suffix, seeds):
    """The decoder conceals such damage if it is not told to raise, and only its log, or a missing frame, gives it away."""
    whole = clips.write(tmp_path / f"a.{suffix}", numbered(12), codec=codec)
    with av.open(str(whole)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    refused = 0
    for seed in seeds:
        random = np.random.default_rng(seed)
        data = bytearray(whole.read_bytes())
        position, size = places[random.integers(1, len(places))]
        data[position + int(random.integers(0, min(size, 40)))] ^= int(random.integers(1, 256))
        (tmp_path / f"b.{suffix}").write_bytes(data)
        try:
            frames, _ = shown(tmp_path / f"b.{suffix}")
        except MovqError:
            refused += 1
            continue
        assert len(frames) == 12
    assert refused == len(seeds) if codec == "mpeg2video" else refused > len(seeds) // 2


# -- streams


def test_a_refusal_names_the_other_streams(tmp_path):
    with pytest.raises(MovqError, match=r"has no frame that can be shown; stream=1 takes another"):
        shown(FIELD / "first_stream_empty.ts", Selection(stream=0))


def test_encryption_is_named(tmp_path):
    muxing = {
        "encryption_scheme": "cenc-aes-ctr",
        "encryption_key": "00112233445566778899aabbccddeeff",
        "encryption_kid": "00112233445566778899aabbccddeeff",
    }
    path = clips.write(tmp_path / "a.mp4", numbered(3), muxing=muxing)
    for ask in (shown, probe, count_frames):
        with pytest.raises(MovqError, match="is encrypted"):
            ask(path)


def test_encryption_behind_a_clear_start_is_named():
    """Such a file plays for a few seconds and then asks for a key."""
    with open_video(str(FIELD / "encrypted.mp4")) as source:
        packet = next(source.container.demux(source.stream))
        timeline = decoding.Timeline(source, print)
        timeline.index = 5
        with pytest.raises(MovqError, match="is encrypted after 5 frames"):
            timeline.count(packet)


# -- still pictures


def jpeg(path, width, height):
    return clips.still(path, clips.picture(width, height), "mjpeg", "yuvj420p")


def test_what_is_behind_a_picture_does_not_count(tmp_path):
    first, small = jpeg(tmp_path / "a.jpg", 64, 48), jpeg(tmp_path / "b.jpg", 32, 24)
    png = clips.still(tmp_path / "a.png", clips.picture(64, 48), "png")
    webp = clips.still(tmp_path / "a.webp", clips.picture(64, 48), "libwebp", "yuv420p", "webp")
    for path, behind in ((first, small.read_bytes()), (png, bytes(3000)), (webp, bytes(3000)), (first, b"words")):
        before, _ = shown(path)
        (tmp_path / "x").write_bytes(path.read_bytes() + behind)
        frames, warnings = shown(tmp_path / "x")
        assert (len(frames), warnings) == (1, ())
        assert (frames[0].image == before[0].image).all()


def test_jpegs_of_one_size_behind_another_are_a_video(tmp_path):
    path = tmp_path / "a.mjpg"
    path.write_bytes(b"".join(jpeg(tmp_path / f"{i}.jpg", 64, 48).read_bytes() for i in range(3)))
    frames, warnings = shown(path)
    assert len(frames) == count_frames(path) == 3
    assert warnings == ("has frames without times: taken as 25 frames per second",)


@pytest.mark.parametrize(
    "between", [bytes(7), b"\xff\xff\0", b"\r\n--frame\r\nContent-Type: image/jpeg\r\nContent-Length: 900\r\n\r\n"]
)
def test_jpegs_with_padding_or_words_of_http_between_are_a_video(tmp_path, between):
    pictures = [jpeg(tmp_path / f"{i}.jpg", 64, 48).read_bytes() for i in range(3)]
    (tmp_path / "a.mjpg").write_bytes(between.join(pictures))
    assert len(shown(tmp_path / "a.mjpg")[0]) == count_frames(tmp_path / "a.mjpg") == 3


def test_a_picture_above_the_limit_of_videos_is_taken_and_a_bomb_is_not(tmp_path, capsys):
    large = clips.still(tmp_path / "large.jpg", np.zeros((4400, 8400, 3), np.uint8), "mjpeg", "yuvj420p")
    frames, _ = shown(large, picture=Picture(short_side=44))
    assert sizes(frames) == {(84, 44)}
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(clips.still(tmp_path / "a.png", clips.picture(64, 48), "png").read_bytes())
    data = bytearray(bomb.read_bytes())
    data[16:24] = struct.pack(">II", 16000, 12000)
    bomb.write_bytes(data)
    with pytest.raises(MovqError, match=r"has 16000x12000 pixels in .*max_pixels=192000000 allows it"):
        shown(bomb)
    assert run(["encode", str(bomb), "-o", str(tmp_path / "x.safetensors")]) == 1
    assert "--max-pixels 192000000 allows it" in capsys.readouterr().err
    with pytest.raises(MovqError, match=r"cannot be decoded|damaged|is not a video"):
        shown(bomb, Selection(max_pixels=192000000))
    assert run(["info", str(bomb)]) == 1
    assert "--max-pixels 192000000 allows it" in capsys.readouterr().err
    assert run(["info", str(bomb), "--max-pixels", "192000000"]) == 1
    assert "as a file made to fill memory" not in capsys.readouterr().err
    data[16:24] = struct.pack(">II", 30000, 20000)
    bomb.write_bytes(data)
    with pytest.raises(MovqError, match=r"has 30000x20000 pixels: it is too large for any decoder"):
        shown(bomb)


def test_a_picture_near_the_limit_and_one_that_is_allowed_are_taken(tmp_path):
    """Libav counts the pixels of pictures that are a little larger."""
    near = clips.still(tmp_path / "near.jpg", np.zeros((5948, 5949, 3), np.uint8), "mjpeg", "yuvj420p")
    assert sizes(shown(near, picture=Picture(short_side=16))[0]) == {(16, 16)}
    flat = tmp_path / "flat.webp"
    Image.new("RGB", (8204, 4400)).save(flat, lossless=True)
    with pytest.raises(MovqError, match="max_pixels=36097600 allows it"):
        shown(flat)
    allowed = Selection(max_pixels=36097600)
    assert sizes(shown(flat, allowed, Picture(short_side=44))[0]) == {(82, 44)}
    assert next(survey([(str(flat), allowed)])).facts(allowed) == (1, 8204, 4400)


def test_a_video_above_the_limit_is_taken_and_a_bomb_is_not(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (44, 90, 3), np.uint8).repeat(100, 0).repeat(100, 1)
    large = clips.write(tmp_path / "large.mov", [noise] * 2, codec="mjpeg", pix_fmt="yuvj420p")
    assert sizes(shown(large, picture=Picture(short_side=44))[0]) == {(90, 44)}
    assert next(survey([(str(large), Selection())])).facts(Selection()) == (2, 9000, 4400)
    bomb = clips.gif_bomb(tmp_path / "bomb.gif", 9000, 4400)
    with pytest.raises(
        MovqError, match=r"more than 8192x4320 pixels in a file .* made to fill memory, which max_pixels"
    ):
        shown(bomb)
    black = np.zeros((4400, 9000, 3), np.uint8)
    flat = clips.write(tmp_path / "flat.mp4", [black], codec="libsvtav1", options={"preset": "13"})
    with pytest.raises(MovqError, match="made to fill memory, which max_pixels allows"):
        shown(flat)
    allowed = Selection(max_pixels=9000 * 4400)
    assert sizes(shown(flat, allowed, Picture(short_side=44))[0]) == {(90, 44)}


def test_a_webp_that_ends_in_its_head_is_refused(tmp_path):
    for length in range(12, 30):
        (tmp_path / "a.webp").write_bytes((b"RIFF\x08\0\0\0WEBPVP8X" + bytes(14))[:length])
        with pytest.raises(MovqError):
            shown(tmp_path / "a.webp")


def test_an_animated_avif_is_a_video(tmp_path):
    path = clips.write(tmp_path / "a.avif", numbered(4), codec="libsvtav1", options={"preset": "10"})
    frames, _ = shown(path)
    assert numbers(frames) == list(range(4))


# -- bytes that PyAV does not tell about


class Counted(io.BytesIO):
    """A file that counts the reads, which nothing hostile may multiply."""

    reads = bytes = 0

    def read(self, *arguments):
        data = super().read(*arguments)
        self.reads, self.bytes = self.reads + 1, self.bytes + len(data)
        return data


def test_clusters_inside_of_clusters_are_not_sound():
    data = b""
    for _ in range(3000):
        data = bytes.fromhex("1f43b675") + struct.pack(">Q", len(data) | 1 << 56) + data
    segment = bytes.fromhex("18538067") + struct.pack(">Q", len(data) | 1 << 56) + data
    assert not raw.matroska_ends(raw.Bytes(io.BytesIO(segment)))


def test_readers_of_bytes_end_whatever_the_bytes_are():
    random = np.random.default_rng(0)
    originals = [path.read_bytes() for path in sorted(FIELD.iterdir())]
    for turn in range(3000):
        data = bytearray(originals[turn % len(originals)])
        for _ in range(random.integers(1, 6)):
            place = int(random.integers(0, min(len(data), 4000)))
            data[place : place + 4] = random.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\1", random.bytes(4)])
        file = Counted(bytes(data[: random.integers(1, len(data) + 1)]))
        read = raw.Bytes(file)
        raw.is_fragmented(read), raw.fragments_end(read), raw.fragments_duration(read)
        raw.matroska_ends(read), raw.avi_repeats(read, 0)
        for ends in raw.ENDS.values():
            assert ends(read, 100) in (True, False)
        carriers = transport.TransportPackets(read, 0x100)
        assert carriers.lost_until(len(data)) in (True, False)
        assert carriers.open_ended in (True, False)
        heif = stills.HeifItems(read)
        assert all(side < 1 << 32 for side in heif.size())
        with contextlib.suppress(MovqError):
            heif.grid()
        with contextlib.suppress(MovqError):
            stills.read_still(read)
        assert file.reads < 30000, turn
