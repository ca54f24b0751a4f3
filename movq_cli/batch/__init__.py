"""Many videos to a folder of latents with a manifest: items, resuming, workers. One item in, one line out."""

from .items import Found, Item, find_items, part_kept
from .manifest import NAME, Line, read_batch, read_folder, read_lines
from .merge import merge_shards
from .report import Summary, compare_outputs, note_places, summarise
from .run import BatchResult, BatchState, encode_batch
from .survey import BatchPlan, plan_batch

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
