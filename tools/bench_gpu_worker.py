"""A process that measures cells of the benchmark on a GPU: it reads requests from its input, one JSON object a line.

It loads everything before it reads the first request, so that one worker can get ready while another measures.
"""

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from bench_gpu_device import Device
from bench_gpu_measure import Bench
from bench_gpu_plan import CELLS
from bench_work import quiet


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Return a cell's results; or the error that ended it, with what it had measured until then."""
    unfinished = Path(request["file"]).with_suffix(".unfinished")

    def keep(result: dict[str, Any]) -> None:
        _write({"result": result}, unfinished)

    bench = Bench(Device(request["accelerator"]), Path(request["models"]), request["matmul"], keep)
    cell = CELLS[request["cell"]]
    try:
        with tempfile.TemporaryDirectory(dir=request["models"]) as folder:
            measured = cell if bench.device.is_gpu else cell.small()
            return {"result": cell.measure(measured, bench, Path(folder))}
    except BaseException as error:
        kept = json.loads(unfinished.read_text()) if unfinished.exists() else {}
        return kept | {"error": f"{type(error).__name__}: {error}"[:1000], "traceback": traceback.format_exc()[-4000:]}


def _write(outcome: dict[str, Any], file: Path) -> None:
    """Write JSON, whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(outcome))
    part.rename(file)


def main() -> None:
    quiet()
    (Path(sys.argv[1]) / f"ready-{os.getpid()}").touch()
    for line in sys.stdin:
        request = json.loads(line)
        _write(measure(request), Path(request["file"]))
        print(f"done {request['cell']}", flush=True)
    sys.stdout.flush()
    os._exit(0)  # trainings that rest in threads do not end by themselves


if __name__ == "__main__":
    main()
