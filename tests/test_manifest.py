"""The manifest as a file: damaged lines, and reading it from either end."""

import json

import pytest

from movq_cli import (
    MovqWarning,
)
from movq_cli.batch import read_batch, read_folder, read_lines
from movq_cli.batch.manifest import parse_line

from .helpers.batches import tree

EDITS = [
    {"threads": "many"},
    {"caption": "\ud800"},
    {"caption": 7},
    {"source": []},
    {"source": ["a", 1, 2]},
    {"source": [10**400, 1, 2]},
    {"seconds": 10**400},
    {"frames": None},
    {"output": ["a"]},
    {"status": "fine"},
    {"status": ["done"]},
    {"warnings": [1]},
    {"id": "\ud800"},
    {"duration": float("nan")},
]


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_a_line_that_cannot_be_is_left_out_with_a_warning(finished, tmp_path, edit):
    lines = [json.loads(text) for text in (finished / "out" / "manifest.jsonl").open()]
    lines[1] |= edit
    path = tmp_path / "manifest.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    with pytest.warns(MovqWarning, match="line 2 is damaged and left out"):
        assert [line["id"] for line in read_lines(path)] == ["a.mp4", "bad.mp4", "c.mp4"]


def test_read_from_its_end_a_manifest_is_the_same(finished, tmp_path):
    """The later of two lines of an item counts, damaged and torn lines are ignored, and shards' lines are included."""
    text = (finished / "out" / "manifest.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    again = [json.dumps(line | {"seconds": 2.5}) for line in lines[:2]]
    damaged = json.dumps(lines[2] | {"frames": "many"})
    (tmp_path / "manifest.jsonl").write_text(text + "\n".join([again[0], damaged, again[1], text[:50]]))
    shard = json.dumps(lines[3] | {"seconds": 3.5}) + "\n"
    (tmp_path / "manifest.0-of-1.jsonl").write_text(shard)
    with pytest.warns(MovqWarning, match=f"line {len(lines) + 2} is damaged"):
        expected = read_folder(tmp_path)
    with pytest.warns(MovqWarning, match=f"line {len(lines) + 2} is damaged"):
        read = list(read_batch(tmp_path))
    assert len(read) == len(lines)
    assert {line["id"]: line for line in read} == expected
    assert [expected[line["id"]].get("seconds") for line in lines] == [2.5, 2.5, lines[2].get("seconds"), 3.5]


def test_what_a_later_movq_adds_to_a_line_is_kept(small):
    folder, run = small
    path = folder / "out" / "manifest.jsonl"
    lines = [json.loads(line) | {"later": {"n": [1, None]}} for line in path.open()]
    path.write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    assert run() == set()
    assert [json.loads(line) for line in path.open()] == lines


def test_the_item_of_a_damaged_line_is_made_again(small, movq):
    folder, run = small
    path = folder / "out" / "manifest.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"frames": 5', b'"frames": "five"'))
    result = movq("info", folder / "out")
    assert result.returncode == 0
    assert "line 1 is damaged and left out" in result.stderr
    with pytest.warns(MovqWarning, match="line 1 is damaged"):
        assert run() == {"a.mp4"}


def test_a_torn_line_and_a_lost_manifest_lose_nothing(small):
    folder, run = small
    path = folder / "out" / "manifest.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert run() == {"c.mp4"}
    clean = tree(folder / "out")
    path.unlink()
    assert run() == {"a.mp4", "b.mp4", "c.mp4", "bad.mp4"}
    assert tree(folder / "out") == clean


def test_short_of_earlier_movqs_is_skipped():
    line = parse_line(b'{"id": "a", "path": "a.mp4", "status": "short", "reason": "has 3 of the 9 frames asked for"}')
    assert (line["status"], line["cause"]) == ("skipped", "short")
