"""`python -m movq_cli` is `movq`."""

from .cli import main

if __name__ == "__main__":
    main()
