"""`python -m memtool` and `torchrun -m memtool` are the `memtool` command."""

from memtool.cli import main

if __name__ == "__main__":
    main()
