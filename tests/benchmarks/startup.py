"""How soon commands that use PyTorch are done: `python tests/benchmarks/startup.py [--turns N]`.

Each runs on little work, in turns as it is and with large packages imported as Python imports them
by itself. Told are medians, and that of the ratios of neighbors.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

AS_IT_IS = "from memtool.cli import main; main()"
WITHOUT = f"""
import sys
from memtool.cli import startup
sys.meta_path = [one for one in sys.meta_path if not isinstance(one, startup._Hastened)]
{AS_IT_IS}
"""
TRAIN = "train --model digits-cnn --data digits --epochs 1 -q"
COMMANDS = {
    "train, 1 epoch": f"{TRAIN} --table rows.csv -o run.safetensors",
    "info --layers": "info --layers one.safetensors",
    "cka": "cka one.safetensors one.safetensors -q",
    "stitch, 1 epoch": "stitch one.safetensors one.safetensors --at block3 --epochs 1 -q",
}


def seconds(code: str, command: str, folder: str) -> float:
    Path(folder, "run.safetensors").unlink(missing_ok=True)  # nothing finished is trained anew
    start = time.perf_counter()
    arguments = [sys.executable, "-c", code, *command.split()]
    subprocess.run(arguments, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    with tempfile.TemporaryDirectory() as folder:
        seconds(AS_IT_IS, f"{TRAIN} -o one.safetensors", folder)
        for name, command in COMMANDS.items():
            pairs = [
                (seconds(AS_IT_IS, command, folder), seconds(WITHOUT, command, folder))
                for _ in range(turns)
            ]
            ours, plain = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(one / other for one, other in pairs)
            print(f"{name:16} {ours:5.1f} s, without {plain:5.1f} s: {ratio:.2f} x", flush=True)


if __name__ == "__main__":
    main()
