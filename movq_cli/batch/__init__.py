"""Many videos to a folder of latents with a manifest: items, resuming, workers. One item in, one line out."""

from .items import Found, Item, find_items
from .manifest import NAME, Line, read_lines
from .report import Summary, compare_outputs, summarise
from .run import BatchResult, BatchState, encode_batch
from .survey import BatchPlan, PlannedItem, plan_batch

__all__ = [
    "NAME",
    "BatchPlan",
    "BatchResult",
    "BatchState",
    "Found",
    "Item",
    "Line",
    "PlannedItem",
    "Summary",
    "compare_outputs",
    "encode_batch",
    "find_items",
    "plan_batch",
    "read_lines",
    "summarise",
]
