"""Faults: bad files of every kind, promises broken on purpose, and failing system calls."""
