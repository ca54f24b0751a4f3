"""Many videos to a folder of latents with a manifest: items, resuming, workers. One item in, one line out."""

from .discover import Found, Item, find_items, part_kept
from .dry_run import BatchPlan, plan_batch
from .manifest import NAME, Line, read_batch, read_folder, read_lines
from .merge import merge_shards
from .run import BatchResult, BatchState, encode_batch
from .summary import Summary, compare_outputs, note_places, summarise

__all__ = [
    "NAME",
    "BatchPlan",
    "BatchResult",
    "BatchState",
    "Found",
    "Item",
    "Line",
    "Summary",
    "compare_outputs",
    "encode_batch",
    "find_items",
    "merge_shards",
    "note_places",
    "part_kept",
    "plan_batch",
    "read_batch",
    "read_folder",
    "read_lines",
    "summarise",
]
