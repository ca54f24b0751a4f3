"""Many videos: items, the manifest, resuming, workers."""
