"""movq: video files to latents, by CogVideo's causal MoVQ encoder.

    from movq_cli import encode_video, open_latents

    result = encode_video("clip.mp4", "clip.safetensors")
    latents = open_latents("clip.safetensors")

Importing this package imports no torch; using it does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .batch import BatchPlan, BatchResult, encode_batch, merge_shards, plan_batch
    from .dataset import BucketBatchSampler, LatentDataset, collate
    from .decode import DecodeResult, decode_video
    from .describe import VideoDescription, describe_video
    from .encode import EncodeResult, encode_video
    from .errors import MovqError, MovqUsageError, MovqWarning
    from .evaluate import Evaluation, evaluate_video
    from .latents import Latents, open_latents
    from .options import BatchOptions, DecodeOptions, EncodeOptions, Picture, Selection
    from .plan import Plan, plan_encode
    from .video import VideoInfo, probe, read_frames

_HOMES = {
    "BatchOptions": "options",
    "BatchPlan": "batch",
    "BatchResult": "batch",
    "encode_batch": "batch",
    "merge_shards": "batch",
    "plan_batch": "batch",
    "BucketBatchSampler": "dataset",
    "LatentDataset": "dataset",
    "collate": "dataset",
    "DecodeOptions": "options",
    "DecodeResult": "decode",
    "decode_video": "decode",
    "VideoDescription": "describe",
    "describe_video": "describe",
    "Evaluation": "evaluate",
    "evaluate_video": "evaluate",
    "EncodeOptions": "options",
    "EncodeResult": "encode",
    "Plan": "plan",
    "encode_video": "encode",
    "plan_encode": "plan",
    "MovqError": "errors",
    "MovqUsageError": "errors",
    "MovqWarning": "errors",
    "Latents": "latents",
    "open_latents": "latents",
    "Picture": "options",
    "Selection": "options",
    "VideoInfo": "video",
    "probe": "video",
    "read_frames": "video",
}

__all__ = [
    "BatchOptions",
    "BatchPlan",
    "BatchResult",
    "BucketBatchSampler",
    "DecodeOptions",
    "DecodeResult",
    "EncodeOptions",
    "EncodeResult",
    "Evaluation",
    "LatentDataset",
    "Latents",
    "MovqError",
    "MovqUsageError",
    "MovqWarning",
    "Picture",
    "Plan",
    "Selection",
    "VideoDescription",
    "VideoInfo",
    "collate",
    "decode_video",
    "describe_video",
    "encode_batch",
    "encode_video",
    "evaluate_video",
    "merge_shards",
    "open_latents",
    "plan_batch",
    "plan_encode",
    "probe",
    "read_frames",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
