"""What benchmarks share: clips, weights, and the peak memory of a command."""

import dataclasses
import multiprocessing
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def synthetic(path, frames, width, height):
    import av
    import numpy as np

    from tests.clips import picture

    wide = picture(width + 64, height)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            at = 3 * i % 64
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(wide[:, at : at + width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def peak(command):
    """ru_maxrss in bytes of a command's own process, which begins at what this process holds: little."""
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, 1, 0)])
    _, status, usage = os.wait4(pid, 0)
    assert status == 0
    return usage.ru_maxrss * 1024


def published_weights(path):
    """Random weights of the published size, made in a process of its own, whose memory would count as what is measured."""
    maker = multiprocessing.get_context("spawn").Process(target=_make_weights, args=(path,))
    maker.start()
    maker.join()
    return path


def _make_weights(path):
    import torch
    from safetensors.torch import save_file

    from movq_cli.model import AutoencoderConfig, Encoder3D

    config = AutoencoderConfig(
        ch=128,
        ch_mult=(1, 2, 2, 4),
        num_res_blocks=3,
        out_ch=3,
        in_channels=3,
        attn_resolutions=(),
        resolution=256,
        z_channels=16,
    )
    torch.manual_seed(0)
    tensors = {f"encoder.{k}": v for k, v in Encoder3D(**dataclasses.asdict(config)).state_dict().items()}
    said = {"format": "movq-weights", "format_version": "1", "config": config.to_json(), "name": "random"}
    save_file(tensors, path, metadata=said)
