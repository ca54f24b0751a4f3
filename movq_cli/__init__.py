"""movq: video files to latents, by CogVideo's causal MoVQ encoder.

    from movq_cli import encode_video, open_latents

    result = encode_video("clip.mp4", "clip.safetensors")
    latents = open_latents("clip.safetensors")

Importing this package does not import torch; calls that need it do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import lazily
from ._version import __version__

if TYPE_CHECKING:
    from .batch import BatchPlan, BatchResult, encode_batch, merge_shards, plan_batch, prune_batch
    from .dataset import LatentDataset
    from .decode import DecodeResult, decode_video
    from .describe import VideoDescription, describe_video
    from .encode import EncodeResult, encode_video
    from .errors import MovqError, MovqUsageError, MovqWarning
    from .evaluate import Evaluation, evaluate_video
    from .export import ExportResult, export_latents
    from .latents import Latents, open_latents
    from .options import BatchOptions, DecodeOptions, EncodeOptions, ExportOptions, Picture, Selection
    from .plan import Plan, plan_encode
    from .sampling import BucketBatchSampler, collate
    from .video import VideoInfo, probe, read_frames

__getattr__, __dir__ = lazily(
    __name__,
    {
        "batch": "BatchPlan BatchResult encode_batch merge_shards plan_batch prune_batch",
        "dataset": "LatentDataset",
        "decode": "DecodeResult decode_video",
        "describe": "VideoDescription describe_video",
        "encode": "EncodeResult encode_video",
        "errors": "MovqError MovqUsageError MovqWarning",
        "evaluate": "Evaluation evaluate_video",
        "export": "ExportResult export_latents",
        "latents": "Latents open_latents",
        "options": "BatchOptions DecodeOptions EncodeOptions ExportOptions Picture Selection",
        "plan": "Plan plan_encode",
        "sampling": "BucketBatchSampler collate",
        "video": "VideoInfo probe read_frames",
    },
)

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
    "ExportOptions",
    "ExportResult",
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
    "__version__",
    "collate",
    "decode_video",
    "describe_video",
    "encode_batch",
    "encode_video",
    "evaluate_video",
    "export_latents",
    "merge_shards",
    "open_latents",
    "plan_batch",
    "plan_encode",
    "probe",
    "prune_batch",
    "read_frames",
]
