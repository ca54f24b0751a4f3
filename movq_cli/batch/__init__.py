"""Encode many videos into a folder of latents with a manifest: items, resuming, workers. One line per item."""

from .discover import Found, find_items
from .dry_run import BatchPlan, plan_batch
from .item import Item
from .manifest import NAME, Line, read_batch, read_folder, read_lines
from .merge import merge_shards
from .orphans import compare_outputs, note_places
from .prune import prune_batch
from .record import Record, read_record
from .run import BatchResult, encode_batch
from .state import BatchState, Watch
from .summary import Summary, summarise

__all__ = [
    "NAME",
    "BatchPlan",
    "BatchResult",
    "BatchState",
    "Found",
    "Item",
    "Line",
    "Record",
    "Summary",
    "Watch",
    "compare_outputs",
    "encode_batch",
    "find_items",
    "merge_shards",
    "note_places",
    "plan_batch",
    "prune_batch",
    "read_batch",
    "read_folder",
    "read_lines",
    "read_record",
    "summarise",
]
