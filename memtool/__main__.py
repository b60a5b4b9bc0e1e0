"""`memtool`, `python -m memtool` and `torchrun -m memtool` are one command."""


def main() -> None:
    """The console script. Ctrl-C ends it without a word also while the command line is imported."""
    try:
        from memtool.cli import main as command
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    command()


if __name__ == "__main__":
    main()
