"""Run `movq` as `python -m movq_cli`."""

from .cli import main

if __name__ == "__main__":
    main()
