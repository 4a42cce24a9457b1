"""On what a figure was measured, with what and of what code: every file in `results/` says so."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ("emointerp", "tests/benchmarks", "tests/saelens_check.py", ":!tests/benchmarks/results", ":!tests/benchmarks/*.jinja")
PACKAGES = ("torch", "transformers", "nnsight", "transformer-lens", "captum", "duckdb", "numpy")


def machine() -> dict[str, Any]:
    """The processor, what of it this process may use, memory, accelerator, and how busy the machine was just before."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "bfloat16": bool({"avx512_bf16", "amx_bf16"} & set(_cpuinfo("flags").split())),
        "cores": len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory GiB": round(psutil.virtual_memory().total / 2**30),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": round(psutil.getloadavg()[0], 1),
    }


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str:
    """What Linux tells of the first core; elsewhere nothing."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")


def versions() -> dict[str, str]:
    """Python and what is measured, or measured against; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in ("emointerp", *PACKAGES):
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The last commit that changed what is measured, with a plus where files differ from it; None outside of a checkout."""
    asked = ["git", "-C", str(ROOT)]
    last = subprocess.run([*asked, "log", "-1", "--format=%h", "--", *MEASURED], capture_output=True, text=True)
    if last.returncode or not last.stdout.strip():
        return None
    changed = subprocess.run([*asked, "status", "--porcelain", "--", *MEASURED], capture_output=True, text=True).stdout
    return last.stdout.strip() + ("+" if changed.strip() else "")


def stamp(command: str) -> dict[str, Any]:
    """What stands above the rows of a result, beside its date."""
    return {"command": command, "commit": commit(), "machine": machine(), "versions": versions()}
