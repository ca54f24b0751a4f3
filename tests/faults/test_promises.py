"""The breaks in promises.py match the source: a line that changes there must change here, too.

`python -m tests.faults.promises` runs them.
"""

import ast

from .promises import PROMISES, ROOT


def test_every_break_finds_its_line_and_its_test():
    for words, breaks in PROMISES.values():
        for broken in breaks:
            assert broken.old in (ROOT / "movq_cli" / broken.file).read_text(), (words, broken.words)
            file, _, name = broken.tests.partition("::")
            tree = ast.parse((ROOT / "tests" / file).read_text())
            there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert not name or name.partition("[")[0] in there, broken.tests
