"""Trains one contender alone in a process, then prints the peak memory of the process in MiB."""

import json
import sys
from pathlib import Path

from bench_steps import Loop, status
from bench_work import Work, quiet


def main() -> None:
    told, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    # Neither side imports the other.
    if told["side"] == "Ours":
        from bench_ours import Ours as Side
    else:
        from bench_trl import Trl as Side
    quiet()
    Side(**told["contender"]).train(Work(**told["work"]), folder, Loop())
    print(status("VmHWM"))  # ru_maxrss would begin with what the parent had


if __name__ == "__main__":
    main()
