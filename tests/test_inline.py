"""A batch in the calling process, `workers=0`: interrupted, resumed, and with a bug in the encoder.

test_batch.py compares its bytes with those of workers.
"""

import os

import pytest

from movq_cli import encode_batch
from movq_cli.encode import VideoEncoder

from .helpers import clips
from .helpers.batches import tree


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for name, count in (("a.mp4", 5), ("b.mp4", 40), ("c.mp4", 6)):
        clips.write(tmp_path / "in" / name, clips.pictures(count))
    return tmp_path


def batch(folder, out="out", **options):
    return [line["id"] for line in encode_batch([folder / "in"], folder / out, workers=0, **options).made]


def test_an_interrupt_leaves_nothing_half_written_and_the_same_command_goes_on(folder):
    def interrupt(state):
        if any(worker.task and worker.task.item.id == "b.mp4" and worker.done for worker in state.workers):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch(folder, chunk_frames=4, watch=interrupt)
    assert sorted(os.listdir(folder / "out")) == ["a.mp4.safetensors", "manifest.jsonl", "run.json"]
    assert sorted(batch(folder)) == ["b.mp4", "c.mp4"]
    batch(folder, "undisturbed")
    made, wanted = tree(folder / "out"), tree(folder / "undisturbed")
    for line in made["manifest"] + wanted["manifest"]:
        line.pop("chunk_frames")
    assert made == wanted


def test_a_video_from_before_1970_is_known_again(folder):
    os.utime(folder / "in" / "a.mp4", (-1.5, -1.5))
    assert sorted(batch(folder)) == ["a.mp4", "b.mp4", "c.mp4"]
    assert batch(folder) == []


def test_a_bug_in_the_encoder_is_raised_where_it_is(folder, monkeypatch):
    def divide(*arguments, **options):
        return 1 / 0

    monkeypatch.setattr(VideoEncoder, "begin", divide)
    with pytest.raises(ZeroDivisionError):
        batch(folder)
    monkeypatch.undo()
    assert os.listdir(folder / "out") == ["run.json"]
    assert sorted(batch(folder)) == ["a.mp4", "b.mp4", "c.mp4"]
