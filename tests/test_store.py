"""The store of chunks between two stages, and the spill file, which leaves nothing behind."""

import os
import signal
import time

import numpy as np
import pytest
import torch

from movq_cli.model.store import SpillFile, Store

from .helpers import clips


def test_a_ring_gives_back_what_it_was_given(tmp_path):
    ring = SpillFile(str(tmp_path), 1000)
    given = [np.random.default_rng(i).integers(0, 256, 37 * i % 400 + 1, np.uint8) for i in range(60)]
    waiting = []
    with ring:
        for item in given:
            while waiting and sum(map(len, waiting)) + len(item) > 1000:
                back = np.empty_like(waiting[0])
                ring.pop(back.data)
                assert np.array_equal(back, waiting.pop(0))
            ring.push(item.data)
            waiting.append(item)
            assert os.listdir(tmp_path) == []
        with pytest.raises(RuntimeError, match="planned for 1000"):
            ring.push(np.zeros(1000, np.uint8).data)


def test_a_store_keeps_what_it_may_and_spills_the_rest(tmp_path):
    def chunk(i):
        x = torch.randn(1, 32, 4, 6, 5, generator=torch.Generator().manual_seed(i), dtype=torch.float32)
        return [x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last_3d), x[:, :8].double()]

    size = sum(t.numel() * t.element_size() for t in chunk(0))
    with SpillFile(str(tmp_path), 4 * size) as spill:
        store = Store(2 * size, 0, spill)
        claims = [store.put(chunk(i)) for i in range(4)]
        assert spill._held == 2 * size
        for i, claim in enumerate(claims):
            for got, expected in zip(claim(), chunk(i), strict=True):
                assert torch.equal(got, expected)
        assert spill._held == 0
        store.put(chunk(0))
        assert spill._held == 0  # there is room again


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_of_a_spill_file(zygote, tmp_path, vae, number):
    """The spill file has no name even while it is written."""
    clip = clips.lossless(tmp_path / "clip.mkv", clips.pictures(197, 48, 32))
    spill = tmp_path / "spill"
    spill.mkdir()
    command = ["encode", clip, "-o", tmp_path / "a.safetensors", "--weights", vae.folder]
    command += ["--semantics", "whole", "--chunk-frames", "4", "--memory-budget", "1MB", "--spill-dir", spill]
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
