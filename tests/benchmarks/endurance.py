"""Memory over many calls: `python tests/benchmarks/endurance.py --sweeps 10000`, by hand; some minutes.

Each verb is called over and over with new edits on a tiny random model, and the process's memory, the objects that Python's garbage
collector knows and the time of a call are told every tenth of the way. What grows with the calls would show as a slope.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_families  # noqa: E402
from tiny_models import picture  # noqa: E402

from emointerp.tracing import AddVector, collect, generate, run, sweep  # noqa: E402


def main() -> None:
    """Tell the memory of each verb; exit code 1 where one grows by more than `--bytes` a call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=10_000)
    parser.add_argument("--others", type=int, default=1_000)
    parser.add_argument("--bytes", type=float, default=300, help="growth a call that is let pass as the allocator's own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    given = parser.parse_args()
    vlm = tiny_families.vlm("llava_clip")
    prompt = vlm.prompt(picture(0), "The phone rang.")
    verbs: dict[str, tuple[Callable[[int], object], int]] = {
        "sweep": (lambda i: sweep(vlm, prompt, [_edits(i)], lambda logits: logits[:, 0], progress=False), given.sweeps),
        "run": (lambda i: run(vlm, prompt, _edits(i)), given.others),
        "collect": (lambda i: collect(vlm, prompt, ["residual"], _edits(i)), given.others),
        "generate": (lambda i: generate(vlm, prompt, _edits(i), max_new_tokens=2), given.others),
    }
    rows = [_row(name, act, n) for name, (act, n) in verbs.items()]
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(any(row["bytes a call"] > given.bytes for row in rows))


def _edits(i: int) -> list[AddVector]:
    return [AddVector(i % 4, torch.randn(32, generator=torch.Generator().manual_seed(i)), 0.1)]


def _row(name: str, act: Callable[[int], object], n: int) -> dict[str, object]:
    """Memory and its growth, by the line through the points of the second half; in the first the allocator finds its size."""
    points, start = [], time.perf_counter()
    for i in range(n):
        act(i)
        if (i + 1) % (n // 10) == 0:
            gc.collect()
            points.append((i + 1, psutil.Process().memory_info().rss))
            each = 1000 * (time.perf_counter() - start) / (i + 1)
            taken = f"{points[-1][1] / 1e6:8.2f} MB  {len(gc.get_objects()):8} objects"
            print(f"{name:10} {i + 1:6} calls  {taken}  {each:6.2f} ms each", flush=True)
    calls, held = np.array(points[len(points) // 2 :]).T
    slope = float(np.polyfit(calls, held, 1)[0])
    print(f"{name:10} {slope:+.0f} bytes a call\n", flush=True)
    return {
        "verb": name,
        "calls": n,
        "MB": round(points[-1][1] / 1e6, 1),
        "bytes a call": round(slope, 1),
        "ms each": round(each, 2),
    }


if __name__ == "__main__":
    main()
