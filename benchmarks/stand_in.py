"""A stand-in for a device, to see how busy a batch keeps one on a machine without any: pipeline.py --device-seconds.

Its `main` is that of a worker whose network takes a fixed time for each frame, none of the CPU, and gives zeros. As
with a CUDA device, the worker goes on meanwhile: it waits for the previous result when it hands over a chunk, and for
the last result at the end of a clip. The file that MOVQ_STAND_IN_FILE names has the device's busy time, as "busy begun
ended" in seconds.
"""

import os
import time
from pathlib import Path
from types import SimpleNamespace


class Device:
    """A network that takes `MOVQ_STAND_IN_SECONDS` for each frame."""

    def __init__(self, config):
        self.config = config
        self._seconds = float(os.environ["MOVQ_STAND_IN_SECONDS"])
        self._file = os.open(os.environ["MOVQ_STAND_IN_FILE"], os.O_WRONLY | os.O_CREAT)
        self._busy = self._begun = self._free = 0.0

    def encode_window(self, chunks, cache, worked=lambda frames: None, check=False, prepare=None):
        import torch

        for x in chunks:
            x.clone()  # as pinned memory is filled
            _, _, frames, height, width = x.shape
            latents = cache.take(frames, factor=self.config.temporal_factor)
            now, before = time.monotonic(), self._free
            self._begun = self._begun or now
            self._free = max(now, before) + frames * self._seconds
            self._busy += frames * self._seconds
            os.pwrite(self._file, f"{self._busy:.6f} {self._begun:.6f} {self._free:.6f}\n".encode(), 0)
            time.sleep(max(0.0, (self._free if cache.ends else before) - time.monotonic()))
            worked(frames)
            s = self.config.spatial_factor
            yield torch.zeros(1, self.config.moment_channels, latents, height // s, width // s, dtype=torch.bfloat16)


def main():
    import torch

    from movq_cli.batch import worker
    from movq_cli.batch.engines import Ready
    from movq_cli.encode import VideoEncoder

    torch.set_num_threads(1)
    VideoEncoder.network = property(
        lambda self: self.__dict__.setdefault("device in its place", Device(self.checkpoint.config))
    )
    worker.describe = lambda encoder: Ready(
        precision=encoder.precision,
        device="cpu",
        devices=0,
        memory=8 << 30,
        cores=1,
        weights_digest=encoder.weights_digest.result(),
    )
    worker.main()


def busy(folder, clips, seconds_of_frame):
    """Encode clips with one worker, and return (busy share, seconds of a clip) from the first chunk to the last."""
    from movq_cli import encode_batch
    from movq_cli.batch import engines

    file = f"{folder}/busy"
    os.environ |= {"MOVQ_STAND_IN_FILE": file, "MOVQ_STAND_IN_SECONDS": str(seconds_of_frame)}
    engines.WORKER = __name__
    result = encode_batch(clips, f"{folder}/out", workers=1, force=True, precision="bf16", chunk_frames=8)
    assert [line["status"] for line in result.made] == ["done"] * len(clips), result.made
    said, begun, ended = map(float, Path(file).read_text().split())
    os.unlink(file)
    return SimpleNamespace(share=said / (ended - begun), seconds=(ended - begun) / len(clips))
