"""Make docs/cli.md from the commands' own help: `make docs` writes it, a test checks that it is current."""

import html

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from movq_cli.cli import app


def cli_page():
    command = get_command(app)
    text = html.unescape(get_docs_for_click(obj=command, ctx=typer.Context(command), name="movq"))
    text = text.replace("[bold]", "`").replace("[/bold]", "`")
    return text.replace("# `movq`\n", "# Commands\n", 1).strip() + "\n"


if __name__ == "__main__":
    print(cli_page(), end="")
