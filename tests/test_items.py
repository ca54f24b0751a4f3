"""Items: what is found in folders and lists, what is passed over, and that no two items share an output."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import unicodedata
from fnmatch import fnmatchcase
from fractions import Fraction

import pytest

from movq_cli import MovqError
from movq_cli.batch.discover import find_items

TAKEN_FILE = "a link to a file that is taken already"
TAKEN_FOLDER = "a folder that is taken already"
NO_VIDEO = "not a video or picture by its name"
MARK = "~" + "?" * 10
BOM = b"\xef\xbb\xbf"


def make(folder, *names):
    """Create empty files, with the folders they are in; names are text or bytes."""
    for name in names:
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "xb").close()
    return folder


def link(path, target):
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(target)
    return str(path)


def find(*sources, lists=(), output="no/such/folder"):
    return find_items(list(map(str, sources)), list(map(str, lists)), str(output))


def listed(folder, data, name="list.csv"):
    """Return the items found by a list that holds `data`."""
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return find(lists=[folder / name])


def ids(found):
    return [item.id for item in found.items]


def outputs(found):
    return {item.id: item.output for item in found.items}


def assert_places(found, count):
    """Check that `count` items have ids and outputs of their own, even if case and composition are ignored."""
    made = {unicodedata.normalize("NFC", item.output).casefold() for item in found.items}
    assert len(found.items) == len(set(ids(found))) == len(made) == count
    assert [(a, b) for a in made for b in made if b.startswith(a + "/")] == []
    assert [part for item in found.items for part in item.output.split("/") if len(part.encode()) > 255] == []


def brief(value):
    return repr(value)[:40]


def test_folders_are_taken_whole_and_in_order(tmp_path):
    make(tmp_path, "b.mp4", "Z.MOV", "a/z.webm", "a/b/c.MkV", "pictures/0001.png", "a b.jpeg", "old~/a.mp4/b.gif")
    found = find(tmp_path)
    names = ["Z.MOV", "a b.jpeg", "a/b/c.MkV", "a/z.webm", "b.mp4", "old~/a.mp4/b.gif", "pictures/0001.png"]
    assert [(item.id, item.source_path) for item in found.items] == [(name, f"{tmp_path}/{name}") for name in names]
    assert [item.output for item in found.items] == [f"{name}.safetensors" for name in names]
    assert found.ignored == []
    item = found.items[0]
    assert (item.start, item.duration, item.caption, item.extra, item.refusal) == (None, None, None, {}, None)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *((name, "hidden") for name in (".clip.mp4", ".git/clip.mp4", ".part")),
        *((f"clip.mp4{end}", "temporary") for end in ("~", ".part", ".tmp", ".temp", ".partial", ".crdownload")),
        *((f"clip.mp4{end}", "temporary") for end in (".download", ".aria2", ".ytdl", ".swp", ".PART")),
        *((name, NO_VIDEO) for name in ("notes.txt", "mp4", "clip.mp4.safetensors", "clip.mp4.", "clip.mp4 ")),
    ],
)
def test_names_that_are_passed_over(tmp_path, name, why):
    found = find(make(tmp_path, "sub/good.mp4", f"sub/{name}"))
    assert ids(found) == ["sub/good.mp4"]
    assert found.ignored == [(f"{tmp_path}/sub/{name.split('/')[0]}", why)]


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK], ids=["fifo", "socket"])
def test_what_is_no_regular_file_is_passed_over(tmp_path, kind):
    os.mknod(make(tmp_path, "good.mp4") / "odd.mp4", kind | 0o600)
    link(tmp_path / "to-odd.mp4", "odd.mp4")
    found = find(tmp_path)
    assert ids(found) == ["good.mp4"]
    assert found.ignored == [(f"{tmp_path}/{name}.mp4", "not a regular file") for name in ("odd", "to-odd")]


def test_the_output_folder_is_left_out_silently(tmp_path):
    make(tmp_path, "a.mp4", "sub/out/old.mp4", "out/kept.mp4")
    link(tmp_path / "to-output", "sub/out")
    found = find(tmp_path, output=tmp_path / "sub" / "out")
    assert (ids(found), found.ignored) == (["a.mp4", "out/kept.mp4"], [])


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["d"], ["e/y.mp4", "x.mp4"]),
        (["d/e/y.mp4", "d/x.mp4"], ["x.mp4", "y.mp4"]),
        (["d/e", "f"], ["y.mp4", "z.mp4"]),
        (["d/e", "d"], ["x.mp4", "y.mp4"]),
        (["d", "d/e/y.mp4", "d/"], ["e/y.mp4", "x.mp4"]),
        (["d/e/y.mp4", "d"], ["x.mp4", "y.mp4"]),
        (["d/notes.txt", "d/e"], ["notes.txt", "y.mp4"]),
        (["*/x.mp4", "f/../f"], ["d/x.mp4", "z.mp4"]),
        (["f", "d", "g"], ["e/y.mp4", "g/z.mp4", "x.mp4", "z.mp4"]),
        (["g/z.mp4", "f/z.mp4", "d"], ["e/y.mp4", "f/z.mp4", "x.mp4", "z.mp4"]),
        (["h/f", "f", "g"], ["f/z.mp4", "g/z.mp4", "z.mp4"]),
        (["[df]/**/*.mp4"], ["d/e/y.mp4", "d/x.mp4", "f/z.mp4"]),
        (["d/**/[y]*.mp?"], ["e/y.mp4"]),
    ],
    ids=brief,
)
def test_items_are_called_by_their_path_below_the_folder_that_was_named_first(tmp_path, monkeypatch, sources, expected):
    make(tmp_path, "d/x.mp4", "d/e/y.mp4", "d/notes.txt", "f/z.mp4", "g/z.mp4", "h/f/z.mp4")
    monkeypatch.chdir(tmp_path)
    found = find(*sources)
    assert [(item.id, item.output) for item in found.items] == [(name, f"{name}.safetensors") for name in expected]
    assert all(os.path.isabs(item.source_path) and os.path.isfile(item.source_path) for item in found.items)


@pytest.mark.parametrize("name", ["a[1].mp4", "*.mp4", "what?.mp4", "[a]/**/b.mp4", "-a.mp4"])
def test_a_name_that_looks_like_a_glob_is_that_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(make(tmp_path, name, "a1.mp4", "whatx.mp4", "a/x/b.mp4"))
    assert [item.source_path for item in find(name).items] == [f"{tmp_path}/{name}"]


@pytest.mark.parametrize(
    ("sources", "lists", "why"),
    [
        *((["a.mp4", name], [], "no such file or folder") for name in ("gone.mp4", "gone/", "")),
        (["a.mp4", "*.mov"], [], "matches no file"),
        (["a.mp4"], ["gone.csv"], "no such file or folder"),
        ([], ["/"], "directory|folder"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path, monkeypatch, sources, lists, why):
    monkeypatch.chdir(make(tmp_path, "a.mp4"))
    with pytest.raises(MovqError, match=why) as caught:
        find(*sources, lists=lists)
    assert caught.value.about == [*sources, *lists][-1]


@pytest.mark.parametrize("by_list", [False, True], ids=["source", "list"])
def test_a_path_through_a_link_is_the_file_that_it_opens(tmp_path, by_list):
    """`link/..` is the folder above the link's target, not the folder that the link is in."""
    make(tmp_path, "other/clip.mp4", "other/deep/x.mp4", "here/clip.mp4")
    link(tmp_path / "here/link", "../other/deep")
    found = listed(tmp_path, "here/link/../clip.mp4", "l.txt") if by_list else find(f"{tmp_path}/here/link/../clip.mp4")
    assert os.path.samefile(found.items[0].source_path, tmp_path / "other/clip.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "z.mp4", "a/l.mp4", "z/l.mp4"])
@pytest.mark.parametrize(("target", "why"), [("m/m.mp4", TAKEN_FILE), ("m", TAKEN_FOLDER)])
def test_a_link_to_what_is_there_anyway(tmp_path, name, target, why):
    make(tmp_path, "m/m.mp4")
    there = link(tmp_path / name, tmp_path / target)
    found = find(tmp_path)
    assert ids(found) == ["m/m.mp4"]
    assert found.ignored == [(there, why)]


def test_links_to_outside_are_items_and_folders_are_taken_once(tmp_path):
    """Two names of one file, as in the Hugging Face cache, may have two captions."""
    make(tmp_path, "out/one.mov", "out/two/deep/b.mp4", "d/own.mp4")
    d = tmp_path / "d"
    for name, target in (("1.mp4", "one.mov"), ("2.mp4", "one.mov"), ("more", "two"), ("again", "two/../two")):
        link(d / name, f"{tmp_path}/out/{target}")
    found = find(d)
    names = ["1.mp4", "2.mp4", "again/deep/b.mp4", "own.mp4"]
    assert [(item.id, item.source_path) for item in found.items] == [(name, f"{d}/{name}") for name in names]
    assert found.ignored == [(f"{d}/more", TAKEN_FOLDER)]


@pytest.mark.parametrize(("file", "folder"), [("a.mp4", "b"), ("b.mp4", "a")])
def test_links_to_a_file_and_to_the_folder_it_is_in(tmp_path, file, folder):
    make(tmp_path, "out/clip.mp4", "d/own.mp4")
    link(tmp_path / "d" / file, "../out/clip.mp4")
    link(tmp_path / "d" / folder, "../out")
    found = find(tmp_path / "d")
    assert ids(found) in ([file, "own.mp4"], [f"{folder}/clip.mp4", "own.mp4"])
    assert len(found.ignored) == 1


def test_loops_end(tmp_path):
    make(tmp_path, "top/d/clip.mp4", "top/beside.mp4", "top/d/p/p.mp4", "top/d/q/q.mp4")
    d = tmp_path / "top" / "d"
    loops = {"up": "..", "here": ".", "self": "self", "self.mp4": "self.mp4", "x.mp4": "y.mp4", "y.mp4": "x.mp4"}
    for name, target in (loops | {"p/to-q": "../q", "q/to-p": "../p"}).items():
        link(d / name, target)
    found = find(d)
    assert ids(found) == ["clip.mp4", "p/p.mp4", "q/q.mp4", "self.mp4", "up/beside.mp4", "x.mp4", "y.mp4"]
    folders = [(f"{d}/{name}", TAKEN_FOLDER) for name in ("here", "p/to-q", "q/to-p", "up/d")]
    assert sorted(found.ignored) == sorted([*folders, (f"{d}/self", NO_VIDEO)])


def test_dangling_links_and_hard_links_are_items(tmp_path):
    os.link(make(tmp_path, "b.mp4") / "b.mp4", tmp_path / "a.mp4")
    there = link(tmp_path / "gone.mp4", "nothing")
    assert [item.source_path for item in find(tmp_path).items] == [f"{tmp_path}/a.mp4", f"{tmp_path}/b.mp4", there]
    assert ids(find(there)) == ["gone.mp4"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["clip.mp4", "clip.mkv"], ["clip.mkv", "clip.mp4"]),
        (["clip2.mp4", "Clip2.mp4"], ["Clip2.mp4", "clip2.mp4~dd790658f7"]),
        (["a/clip.mp4", "A/clip.mp4"], ["A/clip.mp4", "a/clip.mp4~33b5d47cf2"]),
        (["A/x.mp4", "a/y.mp4"], ["A/x.mp4", "a/y.mp4"]),
        (["e\u0301.mp4", "\u00e9.mp4"], ["e\u0301.mp4", f"\u00e9.mp4{MARK}"]),
        (["STRASSE.mp4", "straße.mp4"], ["STRASSE.mp4", f"straße.mp4{MARK}"]),
        (["n" * 240 + ".ts"], ["n" * 240 + ".ts"]),
        (["n" * 241 + ".ts"], ["n" * 232 + MARK]),
        (["x" * 251 + ".mp4"], ["x" * 232 + "~dc168cf7f1"]),
        (["é" * 125 + "e.mp4"], ["é" * 116 + MARK]),
        (["語" * 83 + "ab.mp4"], ["語" * 77 + MARK]),
        (["a" + "😀" * 62 + "bc.mp4"], ["a" + "😀" * 57 + MARK]),
        ([b"a\xff.mp4"], [r"a\xff.mp4"]),
        ([b"\xe9t\xe9/\xe0.mp4"], [r"\xe9t\xe9/\xe0.mp4"]),
        *(([n], [n]) for n in ("two\nlines.mp4", "-dash.mp4", "--force.mp4", "http:/clip.mp4", "a:b.mp4", "a\\b.mp4")),
    ],
    ids=brief,
)
def test_outputs(tmp_path, names, expected):
    found = find(make(tmp_path, *names))
    assert_places(found, len(names))
    for item, output in zip(found.items, expected, strict=True):
        assert fnmatchcase(item.output, f"{output}.safetensors")
        assert item.id == output or item.id in names
        assert os.path.isfile(item.source_path)


NASTY = [
    *("clip.mp4", "clip.mkv", "clip2.mp4", "Clip2.mp4", "CLIP2.MP4", "A/clip.mp4", "a/clip.mp4", "a/CLIP.mp4"),
    *("\u00e9.mp4", "e\u0301.mp4", "\u00c9.mp4", "E\u0301.mp4", "\u00e9/a.mp4", "e\u0301/a.mp4", "ß.mp4", "ss.mp4"),
    *("ﬁ.mp4", "fi.mp4", "ς.mp4", "σ.mp4", "\u212a.mp4", "k.mp4", "K.mp4", "İ.mp4", "i\u0307.mp4"),
    *("x" * 251 + ".mp4", "x" * 250 + "y.mp4", "X" * 251 + ".mp4", "é" * 125 + "a.mp4", "語" * 83 + "ab.mp4"),
    *(b"\xff.mp4", rb"\xff.mp4", b"\xe9.mp4", b"\xff/\xff.mp4", "two\nlines.mp4", "tab\t.mp4", "\x1b[31m.mp4"),
    *("-dash.mp4", "http:/clip.mp4", "a:b.mp4", "C:\\x.mp4", "a[1].mp4", "*.mp4", "%s.mp4", "$(x) '\".mp4", "~.mp4"),
    *(" .mp4", "a .mp4", " a.mp4", "clip.mp4.mp4", "clip2.mp4~dd790658f7.mp4", "con.mp4", "manifest.jsonl.mp4"),
]
ESCAPED = [first + second + b".mp4" for first in (b"\xff", rb"\xff") for second in (b"\xfe", rb"\xfe")]
CRAMPED = [b"\xff" * 100 + b"/clip.mp4", "X" * 250 + "1.mp4", "x" * 250 + "1.mp4", "x" * 250 + "2.mp4"]
IN_THE_WAY = ["clip.mp4", "clip.mp4.safetensors/clip.mp4"]


@pytest.mark.parametrize("names", [NASTY, ESCAPED, CRAMPED, IN_THE_WAY], ids=["nasty", "escaped", "long", "in the way"])
def test_each_has_its_place_and_names_alone_decide_which(tmp_path, names):
    folder = make(tmp_path / "d", *names)
    found = find(folder)
    assert_places(found, len(names))
    paths = [os.path.relpath(item.source_path, folder) for item in found.items]
    assert sorted(map(os.fsencode, paths)) == sorted(map(os.fsencode, names))
    assert find(folder) == found
    shutil.rmtree(folder)
    assert find(make(folder, *reversed(names))) == found
    make(folder, "0 new.mp4", "new/clip.mp4", "zz new.mp4")
    assert outputs(found).items() < outputs(find(folder)).items()


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("l.txt", b"a.mp4\r\nb, c.mp4 \r\n\r\n", ["a.mp4", "b, c.mp4 "]),
        ("l.txt", BOM + b"sub/b.mp4\n\n  \na.mp4", ["a.mp4", "sub/b.mp4"]),
        ("l.txt", b"{a}.mp4\n[b].mp4\n", ["[b].mp4", "{a}.mp4"]),
        ("l.txt", b"video\na.mp4", ["a.mp4", "video"]),
        ("l.txt", b"x,y.mp4\na.mp4", ["a.mp4", "x,y.mp4"]),
        ("l.txt", b"\xff.mp4\n", [r"\xff.mp4"]),
        ("l", b"./two\nlines.mp4\0./a\r.mp4\0\xff\0", [r"\xff", "a\r.mp4", "two\nlines.mp4"]),
        ("l.lst", BOM + b"a.mp4\n", ["a.mp4"]),
    ],
)
def test_text(tmp_path, monkeypatch, name, data, expected):
    monkeypatch.chdir("/")
    found = listed(tmp_path, data, name)
    assert ids(found) == expected
    assert [item.source_path for item in found.items] == [
        f"{tmp_path}/{e}".replace(r"\xff", "\udcff") for e in expected
    ]


CSV = b'path,caption,score\r\nsub/a.mp4,"two, ""three""\r\nfour",0.5\r\n\r\n'
JSON = b'{"path": "sub/a.mp4", "caption": "two, \\"three\\"\\r\\nfour", "score": 0.5}'


@pytest.mark.parametrize(
    ("name", "data", "score"),
    [
        *((name, CSV, "0.5") for name in ("l.csv", "l.CSV", "l", "l.lst")),
        *((name, BOM + CSV, "0.5") for name in ("l.csv", "l.lst")),
        ("l.lst", b'caption, "path", score\n"two, ""three""\r\nfour", sub/a.mp4, 0.5', "0.5"),
        ("l.TSV", b'path\tcaption\tscore\nsub/a.mp4\t"two, ""three""\r\nfour"\t0.5', "0.5"),
        *((name, b"\n" + JSON + b"\r\n\r\n", 0.5) for name in ("l.jsonl", "l.ndjson", "l.json", "l", "l.lst")),
        *((name, b" [\n" + JSON + b"\n]\n", 0.5) for name in ("l.jsonl", "l.json", "l", "l.lst")),
        *((name, BOM + JSON, 0.5) for name in ("l.jsonl", "l.lst")),
        *((name, BOM + b"[" + JSON + b"]", 0.5) for name in ("l.json", "l.lst")),
    ],
    ids=brief,
)
def test_tables(tmp_path, monkeypatch, name, data, score):
    monkeypatch.chdir("/")
    (item,) = listed(tmp_path, data, name).items
    assert (item.id, item.output) == ("sub/a.mp4", "sub/a.mp4.safetensors")
    assert item.source_path == f"{tmp_path}/sub/a.mp4"
    assert (item.caption, item.extra) == ('two, "three"\r\nfour', {"score": score})


SCRIPT = """
import json, resource, sys; resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
from movq_cli import MovqError
from movq_cli.batch.discover import find_items
try: print(json.dumps([(item.id, item.source_path) for item in find_items(*json.loads(sys.argv[1]), "out").items]))
except MovqError as error: print(json.dumps(str(error)))
"""


@pytest.mark.parametrize(
    ("sources", "lists", "data", "expected"),
    [
        (["-"], [], b"a.mp4\n../b.mp4\n", [["a.mp4", "{}/d/a.mp4"], ["b.mp4", "{}/b.mp4"]]),
        (["own.mp4"], ["-"], b"path,id\na.mp4,first\n", [["first", "{}/d/a.mp4"], ["own.mp4", "{}/d/own.mp4"]]),
        ([], ["-"], b'{"path": "a.mp4"}\n{}', "standard input: line 2 has no path"),
        ([], ["-"], b'{"path": "a.mp4", "start": "1e999999999"}', "standard input: line 1.*start"),
    ],
    ids=["as a source", "as a list", "refused", "a number that fills the memory"],
)
def test_standard_input(tmp_path, sources, lists, data, expected):
    make(tmp_path / "d", "own.mp4")
    command = [sys.executable, "-c", SCRIPT, json.dumps([sources, lists])]
    result = subprocess.run(command, input=data, capture_output=True, cwd=tmp_path / "d", check=True)
    if isinstance(expected, str):
        assert re.match(expected, json.loads(result.stdout))
    else:
        assert json.loads(result.stdout) == [[name, path.format(tmp_path)] for name, path in expected]


def test_spans_are_exact_and_items_of_their_own(tmp_path):
    rows = "a.mp4,,,\na.mp4,,0.1,\na.mp4,,,2\na.mp4,,1.5,0.250\na.mp4,mine,1/3,\na.mp4,,1/3,10\n"
    found = listed(tmp_path, "path,id,start,duration\n" + rows)
    assert [(item.id, item.start, item.duration) for item in found.items] == [
        ("a.mp4", None, None),
        ("a.mp4_0-2", None, 2),
        ("a.mp4_0.1-", Fraction(1, 10), None),
        ("a.mp4_0.333333-10", Fraction(1, 3), 10),
        ("a.mp4_1.5-0.25", Fraction(3, 2), Fraction(1, 4)),
        ("mine", Fraction(1, 3), None),
    ]
    assert_places(found, 6)


def test_spans_that_differ_little(tmp_path):
    rows = [json.dumps({"path": "a.mp4", "start": start}) for start in (0.1, 0.10000001, 0.10000002)]
    found = listed(tmp_path, "\n".join(rows), "l.jsonl")
    assert [item.start for item in found.items] == [Fraction(n, 10**8) for n in (10000000, 10000001, 10000002)]
    assert_places(found, 3)


def test_ids_name_the_outputs(tmp_path):
    found = listed(tmp_path, "path,id\n/v/a.mp4,x/1\nb.mp4,Clip\nc.mp4,clip\nd,\n")
    assert ids(found) == ["Clip", "clip", "d", "x/1"]
    assert [item.output for item in found.items][::2] == ["Clip.safetensors", "d.safetensors"]
    assert_places(found, 4)
    (tmp_path / "other.csv").write_text("path,id\ne.mp4,x/1\n")
    assert_places(find(lists=[tmp_path / "list.csv", tmp_path / "other.csv"]), 5)


def test_ids_that_are_long(tmp_path):
    assert_places(listed(tmp_path, f"path,id\na.mp4,{'n' * 256}/{'m' * 256}\n"), 1)


@pytest.mark.parametrize(
    ("written", "path", "name"),
    [
        ("/v//a.mp4", "/v/a.mp4", "v/a.mp4"),
        ("../../a.mp4", "{}/a.mp4", "a.mp4"),
        ("x/../../../a.mp4", "{}/a.mp4", "x/a.mp4"),
        ("./x/./a.mp4", "{}/d/e/x/a.mp4", "x/a.mp4"),
        ("../" * 99 + "a.mp4", "/a.mp4", "a.mp4"),
        ("..a/...mp4", "{}/d/e/..a/...mp4", "..a/...mp4"),
    ],
)
def test_paths_in_lists_stay_in_the_output_folder(tmp_path, written, path, name):
    (item,) = listed(make(tmp_path, "d/e/here") / "d" / "e", written + "\n", "l.txt").items
    assert (item.id, item.output) == (name, f"{name}.safetensors")
    assert os.path.normpath(item.source_path) == path.format(tmp_path)


def test_a_row_that_is_there_twice_is_taken_once(tmp_path):
    found = listed(tmp_path, "path,start,caption\na.mp4,1,x\nb.mp4,,\n./a.mp4,1.0,x\n")
    assert ids(found) == ["a.mp4_1-", "b.mp4"]
    assert found.ignored == [(f"{tmp_path}/a.mp4", "named twice")]


A = '{"path": "a.mp4"}\n'
HALF = A + r'{"path": "b.mp4", "%s": "x\ud800"}'
NO_NUMBERS = ("soon", "1:30:00:00", "P1D", "PT", "1/0", "nan", "inf", "-0.1", "1e400", "9" * 5000)
NO_IDS = ("../x", "a/../x", "..", "/x", "x/", "a//x", ".")


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("l.csv", "file,caption\na.mp4,x\n", "no column path; it has file, caption"),
        ("l.csv", "path,caption\na.mp4,x\n,y\n", "line 3 .*no path"),
        ("l.jsonl", A + '\n{"caption": "x"}\n', "line 3 .*no path"),
        ("l.json", '[{"path": "a.mp4"}, {"path": null}]', "line 2 .*no path"),
        *(("l.json", f'[{{"path": {value}}}]', "line 1.*path") for value in ('["a.mp4"]', "true")),
        *(("l.csv", f"path,start\na.mp4,{number}\n", "line 2.*start") for number in NO_NUMBERS),
        *(
            ("l.csv", f"path,start,duration\na.mp4,,{number}\n", "line 2.*duration")
            for number in (*NO_NUMBERS, "0", "0.0")
        ),
        *(("l.jsonl", A + f'{{"path": "a.mp4", "start": {n}}}', "line 2.*start") for n in ("true", "[1]")),
        ("l.jsonl", A + '{"path": "a.mp4", "start": NaN}', "line 2.*NaN"),
        *(("l.csv", f"path,id\na.mp4,{name}\n", "line 2.*id") for name in NO_IDS),
        ("l.jsonl", r'{"path": "a.mp4", "id": "x\u0000"}', "line 1.*id"),
        ("l.csv", "path,id\na.mp4,x\nb.mp4,y\nc.mp4,x\n", "line 4 .*'x' of line 2"),
        ("l.jsonl", '{"path": "a.mp4", "id": "1"}\n{"path": "b.mp4", "id": 1}', "line 2 .*'1' of line 1"),
        ("l.jsonl", A + '{"path": }\n', "line 2 is not JSON"),
        ("l.json", '[{"path": "a.mp4"},\n{"path": }]\n', "is not JSON.*line 2"),
        *(("l.jsonl", f"{A}{row}\n", "line 2 .*object") for row in ('"a.mp4"', "1", "null", "[1]")),
        *(("l.json", f"[{A},{row}]", "line 2 .*object") for row in ("1", "null", r'"{\"path\": \"b.mp4\"}"')),
        ("l.json", "[" * 100_000, "is not JSON"),
        ("l.jsonl", A + '{"path": "b.mp4", "x": ' + "[" * 100_000, "line 2 is not JSON"),
        ("l.csv", b"path\na.mp4\n\xff.mp4\n", "line 3 is not UTF-8"),
        ("l.jsonl", A.encode() + b'{"path": "\xff.mp4"}\n', "line 2 is not UTF-8"),
        ("l.csv", "path,caption\na.mp4,x\nb.mp4,y,z\n", "line 3 .*more columns"),
        ("l.csv", 'path,caption\na.mp4,"x\n', "line . is not CSV"),
        ("l.csv", "path\na.mp4\nb\0.mp4\n", "line 3 .*zero byte"),
        ("l.jsonl", r'{"path": "a\u0000.mp4"}', "line 1 .*zero byte"),
        ("l.json", '[{"path": "a.mp4"}, {"path": "b.mp4", "note": 1e999}]', "line 2.*note.*too large"),
        ("l.jsonl", A + '{"path": "b.mp4", "note": [-1e999]}', "line 2.*note.*too large"),
        *(("l.jsonl", HALF % column, f"line 2.*{column}") for column in ("path", "id", "caption", "note")),
        ("l.jsonl", r'{"path": "a.mp4", "caption": "\udcff"}', "line 1.*caption"),
        ("l.csv", "path,caption\na.mp4,x\nb.mp4,x\na.mp4,y\n", "line 4 .*line 2 again"),
    ],
    ids=brief,
)
def test_lists_that_are_refused(tmp_path, name, data, why):
    with pytest.raises(MovqError) as caught:
        listed(tmp_path, data, name)
    assert caught.value.about == str(tmp_path / name)
    assert re.search(why, caught.value.reason)
