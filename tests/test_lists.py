"""Lists as trainers' documentation writes them, and metadata files in folders: what is taken for what."""

import json
import warnings
from fractions import Fraction

import pytest

from movq_cli import MovqError, MovqUsageError, MovqWarning
from movq_cli.batch.discover import find_items

CAPTION = "A group of young men in suits and sunglasses are walking down a city street."

# Each: the list's name and text, the remark, and of its first row the path below the list's folder, caption and other columns.
TRAINERS = {
    "datasets, VideoFolder, CSV": (
        "metadata.csv",
        f'file_name,text\nx/a.mp4,"{CAPTION}"\nx/b.mp4,other\n',
        "takes file_name as path and text as caption",
        ("x/a.mp4", CAPTION, {}),
    ),
    "datasets, VideoFolder, JSON lines": (
        "metadata.jsonl",
        json.dumps({"file_name": "x/a.mp4", "text": CAPTION})
        + "\n"
        + json.dumps({"file_name": "x/b.mp4", "text": "b"}),
        "takes file_name as path and text as caption",
        ("x/a.mp4", CAPTION, {}),
    ),
    "VideoX-Fun": (
        "json_of_internal_datasets.json",
        json.dumps(
            [{"file_path": "x/a.mp4", "text": CAPTION, "type": "video"}, {"file_path": "x/b.mp4", "text": "b"}],
            indent=4,
        ),
        "takes file_path as path and text as caption",
        ("x/a.mp4", CAPTION, {"type": "video"}),
    ),
    "musubi-tuner": (
        "metadata.jsonl",
        json.dumps({"video_path": "x/a.mp4", "caption": CAPTION})
        + "\n"
        + json.dumps({"video_path": "x/b.mp4", "caption": "b"}),
        "takes video_path as path",
        ("x/a.mp4", CAPTION, {}),
    ),
    "LTX-Video-Trainer, JSON": (
        "dataset.json",
        json.dumps([{"caption": CAPTION, "media_path": "x/a.mp4"}, {"caption": "b", "media_path": "x/b.mp4"}]),
        "takes media_path as path",
        ("x/a.mp4", CAPTION, {}),
    ),
    "LTX-Video-Trainer, CSV": (
        "dataset.csv",
        f'caption,video_path\n"{CAPTION}",x/a.mp4\nb,x/b.mp4\n',
        "takes video_path as path",
        ("x/a.mp4", CAPTION, {}),
    ),
    "DiffSynth-Studio": (
        "metadata.csv",
        f'video,prompt\nx/a.mp4,"{CAPTION}"\nx/b.mp4,b\n',
        "takes video as path and prompt as caption",
        ("x/a.mp4", CAPTION, {}),
    ),
    "finetrainers": (
        "metadata.jsonl",
        json.dumps({"video": "x/a.mp4", "caption": CAPTION}) + "\n" + json.dumps({"video": "x/b.mp4", "caption": "b"}),
        "takes video as path",
        ("x/a.mp4", CAPTION, {}),
    ),
    "FastVideo": (
        "videos2caption.json",
        json.dumps(
            [
                {
                    "path": "a.mp4",
                    "resolution": {"width": 848, "height": 480},
                    "fps": 30.0,
                    "duration": 6.03,
                    "cap": [CAPTION],
                },
                {"path": "b.mp4", "cap": ["one", "two"]},
            ]
        ),
        "takes cap as caption; finds its videos in videos; has no column start, so that its column duration cuts nothing",
        ("videos/a.mp4", CAPTION, {"resolution": {"width": 848, "height": 480}, "fps": 30.0, "duration": 6.03}),
    ),
    "Open-Sora": (
        "meta.csv",
        f'path,text,num_frames,height,width,aspect_ratio,fps\nx/a.mp4,"{CAPTION}",49,480,720,0.66,24.0\nx/b.mp4,b,9,1,1,1,1\n',
        "takes text as caption",
        (
            "x/a.mp4",
            CAPTION,
            {"num_frames": "49", "height": "480", "width": "720", "aspect_ratio": "0.66", "fps": "24.0"},
        ),
    ),
}


def find(*sources, lists=(), **options):
    return find_items(list(map(str, sources)), list(map(str, lists)), "no/such/folder", **options)


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def listed(folder, data, name="list.csv", **options):
    (folder / name).write_text(data)
    return find(lists=[folder / name], **options)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_lists_of_trainers(tmp_path, trainer):
    name, data, remark, (path, caption, extra) = TRAINERS[trainer]
    found = listed(make(tmp_path, path), data, name)
    first, second = found.items
    assert (first.source_path, first.caption, first.extra) == (f"{tmp_path}/{path}", caption, extra)
    assert second.caption in ("other", "b", "one")
    assert (first.start, first.duration, second.duration) == (None, None, None)
    assert found.remarks == [(str(tmp_path / name), remark)]


def test_lists_of_cogvideo_are_two_files(tmp_path):
    """Both end in empty lines, as an editor leaves them."""
    (tmp_path / "prompt.txt").write_text(f"{CAPTION}\nb\n\n")
    found = listed(
        make(tmp_path, "videos/1.mp4"),
        "videos/1.mp4\nvideos/2.mp4\n\n",
        "videos.txt",
        captions=str(tmp_path / "prompt.txt"),
    )
    assert [(item.id, item.caption) for item in found.items] == [("videos/1.mp4", CAPTION), ("videos/2.mp4", "b")]
    assert found.remarks == []


def test_videos_in_a_folder_are_found_though_the_first_is_missing(tmp_path):
    make(tmp_path, "videos/b.mp4")
    found = listed(tmp_path, "a.mp4\nb.mp4\n", "l.txt").items
    assert [item.source_path for item in found] == [f"{tmp_path}/videos/a.mp4", f"{tmp_path}/videos/b.mp4"]


def test_all_of_several_captions_are_kept(tmp_path):
    (item,) = listed(tmp_path, '[{"path": "a.mp4", "cap": ["one", "two"]}]', "l.json").items
    assert (item.caption, item.extra) == ("one", {"cap": ["one", "two"]})


def test_columns_that_are_named(tmp_path):
    data = "clip,summary,text,from,to\na.mp4,mine,other,1.5,9\n"
    found = listed(tmp_path, data, columns={"path": "clip", "caption": "summary", "start": "from"})
    (item,) = found.items
    assert (item.source_path, item.caption, item.start) == (f"{tmp_path}/a.mp4", "mine", Fraction("1.5"))
    assert item.extra == {"text": "other", "to": "9"}
    with pytest.raises(MovqError, match="has no column headline; it has clip, summary, text, from, to"):
        listed(tmp_path, data, columns={"path": "clip", "caption": "headline"})
    with pytest.raises(MovqError, match=r"has no column path; it has clip, .*: columns=path=NAME names another"):
        listed(tmp_path, data)
    with pytest.raises(MovqUsageError, match="columns: goes with lists, or with metadata in a folder"):
        find(make(tmp_path / "in", "a.mp4"), columns={"path": "clip"})


def test_texts_that_are_not_taken_for_captions_are_told(tmp_path):
    with pytest.warns(
        MovqWarning, match=r"list.csv: has no captions, but texts in summary: --column caption=summary takes"
    ):
        listed(tmp_path, f'path,title,summary\na.mp4,one two,"{CAPTION}"\n')
    with pytest.warns(MovqWarning, match=r"texts in words"):
        listed(tmp_path, f'path,title,words\na.mp4,one two,"{CAPTION}"\n')
    with pytest.warns(MovqWarning, match=r"texts in long_caption"):
        listed(tmp_path, "path,long_caption\na.mp4,cat\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        listed(tmp_path, f'path,summary,caption\na.mp4,"{CAPTION}",mine\n')
        listed(tmp_path, "path,title\na.mp4,one two\n")


@pytest.mark.parametrize(
    ("data", "start", "duration", "extra"),
    [
        ("path,duration\na.mp4,2.5\n", None, None, {"duration": "2.5"}),
        ("path,duration\na.mp4,PT6.03S\n", None, None, {"duration": "PT6.03S"}),
        ("path,duration\na.mp4,long\n", None, None, {"duration": "long"}),
        ("path,start,duration\na.mp4,,2.5\n", None, Fraction(5, 2), {}),
        ("path,start,duration\na.mp4,0,2.5\n", None, Fraction(5, 2), {}),
        ("path,start,duration\na.mp4,0:01.5,PT1M0.5S\n", Fraction(3, 2), Fraction(121, 2), {}),
        ("path,start,duration\na.mp4,00:01:02.25,PT1H\n", Fraction(249, 4), Fraction(3600), {}),
    ],
)
def test_a_duration_cuts_only_with_a_start(tmp_path, data, start, duration, extra):
    found = listed(tmp_path, data)
    (item,) = found.items
    assert (item.start, item.duration, item.extra) == (start, duration, extra)
    assert any("cuts nothing" in text for _, text in found.remarks) == bool(extra)
    (named,) = listed(tmp_path, "path,seconds\na.mp4,2\n", columns={"duration": "seconds"}).items
    assert named.duration == 2


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("l.csv", "path;caption\na.mp4;mine\n"),
        ("l.csv", "path\tcaption\na.mp4\tmine\n"),
        ("l.csv", "Path , Caption\r\na.mp4, mine\r\n"),
        ("l.csv", ",Video,Prompt,\n0,a.mp4,mine,\n"),
        ("l.csv", "path,caption\na.mp4,mine,,\n"),
        ("l.tsv", "path,caption\na.mp4,mine\n"),
        ("l.txt", "path,caption\na.mp4,mine\n"),
        ("l", "FILE_NAME;TEXT\na.mp4;mine\n"),
        ("l.json", '[{"Path": "a.mp4", "Text": "mine"}]'),
    ],
)
def test_tables_as_programs_write_them(tmp_path, name, data):
    (item,) = listed(tmp_path, data, name).items
    assert (item.source_path, item.caption, item.start, item.duration) == (f"{tmp_path}/a.mp4", "mine", None, None)


def test_an_array_of_paths(tmp_path):
    assert [item.id for item in listed(tmp_path, '["a.mp4", "b/c.mp4"]', "l.json").items] == ["a.mp4", "b/c.mp4"]


def test_spans_by_their_ends(tmp_path):
    data = "path,start,end,duration\na.mp4,1.5,4,99\na.mp4,4,PT10S,99\n"
    assert [(item.start, item.duration) for item in listed(tmp_path, data).items] == [
        (Fraction(3, 2), Fraction(5, 2)),
        (Fraction(4), Fraction(6)),
    ]
    with pytest.raises(MovqError, match="line 2: the end, 1, is not after the start"):
        listed(tmp_path, "path,start,end\na.mp4,2,1\n")
    found = listed(tmp_path, "path,end\na.mp4,2\n")
    assert (found.items[0].duration, found.items[0].extra) == (None, {"end": "2"})
    assert "its column end cuts nothing" in found.remarks[0][1]


def test_ids_that_repeat_may_be_ignored(tmp_path):
    data = "path,id,start\na.mp4,x,1\na.mp4,x,2\n"
    with pytest.raises(MovqError, match="line 3 has the id 'x' of line 2; columns=id= ignores ids"):
        listed(tmp_path, data)
    found = listed(tmp_path, data, columns={"id": ""}).items
    assert [(item.id, item.extra) for item in found] == [("a.mp4_1-", {"id": "x"}), ("a.mp4_2-", {"id": "x"})]


def test_a_refusal_names_some_columns(tmp_path):
    with pytest.raises(MovqError, match=r"has no column path; it has 0\.mp4, .*11\.mp4, \.\.\.: "):
        listed(tmp_path, json.dumps({f"{n}.mp4": "x" for n in range(3000)}), "l.json")


def test_a_field_of_any_length(tmp_path):
    long = "word " * 40_000
    (item,) = listed(tmp_path, f'path,caption\na.mp4,"{long}"\n').items
    assert item.caption == long


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("l.csv", 'path,caption\na.mp4,x\nb.mp4,"x"y\nc.mp4,z\n', "line 3 is not CSV"),
        ("l.csv", 'path,caption\na.mp4,"two\nlines"\n\nb.mp4,"x\nc.mp4,z\n', "line 5 is not CSV"),
        ("l.csv", 'path,caption\na.mp4,"two\nlines"\nb.mp4,x,y\n', "line 4 has more columns"),
        ("l.json", '{"version": 1, "clips": "a.mp4"}', "has no column path; it has version, clips"),
        ("l.json", '{"train": [{"path": "a"}], "test": [{"path": "b"}]}', "has no column path; it has train, test"),
    ],
)
def test_the_line_that_is_wrong_is_named(tmp_path, name, data, why):
    with pytest.raises(MovqError, match=why):
        listed(tmp_path, data, name)


@pytest.mark.parametrize(
    "data",
    [
        '{"data": [{"path": "a.mp4", "caption": "x"}, {"path": "b.mp4"}]}',
        '{\n  "version": 3,\n  "classes": ["x"],\n  "clips": [{"path": "a.mp4", "caption": "x"}, {"path": "b.mp4"}]\n}',
    ],
)
def test_the_one_list_in_an_object_is_taken(tmp_path, data):
    assert [(item.id, item.caption) for item in listed(tmp_path, data, "l.json").items] == [
        ("a.mp4", "x"),
        ("b.mp4", None),
    ]


def test_one_object_over_several_lines_is_a_row(tmp_path):
    assert [item.id for item in listed(tmp_path, '{\n  "path": "a.mp4"\n}', "l.json").items] == ["a.mp4"]


def test_a_column_without_a_name_is_kept(tmp_path):
    """An index that pandas has written."""
    (item,) = listed(tmp_path, ",path\n0,a.mp4\n").items
    assert (item.id, item.extra) == ("a.mp4", {"": "0"})


def test_nulls_are_left_out(tmp_path):
    """A null in front of texts makes `datasets` fail on the tars of a batch."""
    rows = '{"path": "a.mp4", "note": null}\n{"path": "b.mp4", "note": "x"}\n'
    assert [item.extra for item in listed(tmp_path, rows, "l.jsonl").items] == [{}, {"note": "x"}]
    assert [item.extra for item in listed(tmp_path, "path,note\na.mp4\nb.mp4,x\n").items] == [{}, {"note": "x"}]


# Metadata in folders.


def test_metadata_in_a_folder_describes_its_videos(tmp_path):
    make(tmp_path, "a.mp4", "b.mp4", "c.mp4", "sub/d.mp4", "sub/e.mp4")
    (tmp_path / "c.txt").write_text("its own")
    rows = [("a.mp4", "A", 1, 2), ("c.mp4", "C", 3, None), ("sub/d.mp4", "far", 4, None), ("sub/e.mp4", "E", 5, None)]
    keys = ("file_name", "text", "score", "start")
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(dict(zip(keys, row, strict=True))) for row in rows))
    (tmp_path / "sub" / "metadata.csv").write_text("file_name,text\nd.mp4,near\ngone.mp4,x\n")
    found = find(tmp_path)
    assert [(item.id, item.caption, item.extra) for item in found.items] == [
        ("a.mp4", "A", {"score": 1, "start": 2}),
        ("b.mp4", None, {}),
        ("c.mp4", "its own", {"score": 3}),
        ("sub/d.mp4", "near", {}),
        ("sub/e.mp4", "E", {"score": 5}),
    ]
    assert all(item.start is None for item in found.items)
    takes = "takes file_name as path and text as caption"
    assert found.remarks == [
        (f"{tmp_path}/metadata.jsonl", f"{takes}; cuts no spans: named as a list it would"),
        (f"{tmp_path}/sub/metadata.csv", f"{takes}; 1 of its 2 rows name no video among the sources"),
    ]
    assert found.ignored == []


def test_columns_of_metadata_that_are_named(tmp_path):
    make(tmp_path, "a.mp4")
    (tmp_path / "metadata.csv").write_text("file_name,summary\na.mp4,mine\n")
    found = find(tmp_path)
    assert found.items[0].caption is None
    assert "has no captions, but texts in summary" in found.remarks[0][1]
    assert find(tmp_path, columns={"caption": "summary"}).items[0].caption == "mine"


def test_metadata_with_spans_describes_no_video(tmp_path):
    make(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "metadata.csv").write_text("file_name,start,text\na.mp4,0,one\na.mp4,5,two\nb.mp4,0,B\n")
    found = find(tmp_path)
    assert [(item.id, item.caption) for item in found.items] == [("a.mp4", None), ("b.mp4", "B")]
    assert "names 1 of the videos in several rows, and describes none of these" in found.remarks[0][1]
    assert [item.id for item in find(lists=[tmp_path / "metadata.csv"]).items] == ["a.mp4", "a.mp4_5-", "b.mp4"]


def test_metadata_that_cannot_be_read_is_told_and_the_batch_goes_on(tmp_path):
    make(tmp_path / "in", "a.mp4", "sub/b.mp4")
    (tmp_path / "in" / "metadata.csv").write_text("name,age\nx,1\n")
    (tmp_path / "secret.csv").write_text("file_name,text\nb.mp4,secret\n")
    (tmp_path / "in" / "sub" / "metadata.csv").symlink_to(tmp_path / "secret.csv")
    found = find(tmp_path / "in")
    assert [(item.id, item.caption) for item in found.items] == [("a.mp4", None), ("sub/b.mp4", None)]
    (_, first), (_, second) = found.ignored
    assert first.startswith("metadata that describes nothing: has no column path; it has name, age")
    assert second == "metadata that describes nothing: is a link to a file outside the source folders"
