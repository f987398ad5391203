"""``python -m harness`` is ``pacbench``."""

from harness.cli import main

if __name__ == "__main__":
    main()
