"""The store of chunks between two stages, and the spill file, which leaves nothing behind."""

import os
import signal
import time

import numpy as np
import pytest
import torch

from movq_cli.model.store import SpillFile, Store

from .helpers import clips


def test_a_file_gives_back_what_it_was_given_and_uses_its_gaps_again(tmp_path):
    generator = np.random.default_rng(0)
    given, most = {}, 0
    with SpillFile(str(tmp_path)) as spill:
        for _ in range(400):
            if given and generator.random() < 0.5:
                start = list(given)[generator.integers(len(given))]
                expected = given.pop(start)
                back = np.empty_like(expected)
                spill.read(start, back.data)
                assert np.array_equal(back, expected)
                spill.free(start, len(back))
            item = generator.integers(0, 256, generator.integers(1, 400), np.uint8)
            start = spill.write(item.data)
            assert start not in given
            given[start] = item
            most = max(most, sum(map(len, given.values())))
            assert os.listdir(tmp_path) == []
        assert spill.end < 1.5 * most
        for start, item in given.items():
            spill.free(start, len(item))
        assert spill._gaps == [(0, spill.end)]
        assert spill.write(bytes(spill.end)) == 0  # all of it is one gap again


def test_a_store_keeps_what_it_may_and_spills_the_rest(tmp_path):
    def strip(i, dtype=torch.bfloat16):
        x = torch.randn(1, 32, 4, 6, 5, generator=torch.Generator().manual_seed(i), dtype=torch.float32)
        return x.to(dtype).contiguous(memory_format=torch.channels_last_3d)

    size = strip(0).numel() * 2
    with SpillFile(str(tmp_path)) as spill:
        store = Store(2 * size, 0, spill)
        held = [store.put(strip(i)) for i in range(4)]
        assert spill.end == 2 * size
        for _ in range(2):  # each can be had again until it is freed
            for i, kept in enumerate(held):
                assert torch.equal(kept.get(), strip(i))
        held[0].free()
        held[2].free()
        store.put(strip(0))
        assert spill.end == 2 * size  # there is room again in memory
        view = strip(5, torch.float64)[:, :8, :, 1:3]
        assert torch.equal(store.put(view).get(), view)  # a part of a tensor


def _spilled(pid, folder):
    """Return True if a process holds a file of the folder that is not empty."""
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            link = f"/proc/{pid}/fd/{fd}"
            if os.readlink(link).startswith(folder) and os.stat(link).st_size:
                return True
    except OSError:
        pass
    return False


@pytest.mark.parametrize("options", [["--semantics", "whole", "--chunk-frames", "4"], ["--strip-rows", "32"]])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_of_a_spill_file(zygote, tmp_path, vae, number, options):
    """The spill file has no name even while it is written."""
    clip = clips.lossless(tmp_path / "clip.mkv", clips.pictures(197, 48, 64))
    spill = tmp_path / "spill"
    spill.mkdir()
    command = ["encode", clip, "-o", tmp_path / "a.safetensors", "--weights", vae.folder]
    command += [*options, "--memory-budget", "1MB", "--spill-dir", spill]
    process = zygote.start(*command, cwd=tmp_path)
    until = time.monotonic() + 60
    while not _spilled(process.pid, str(spill)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    assert os.listdir(spill) == []
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert os.listdir(spill) == []
    assert not (tmp_path / "a.safetensors").exists()
