"""Settings of every test run: offline, one thread a process, and types and shapes checked at run time.

They stand in the environment, not in fixtures, so that they also hold in the subprocesses that tests start, and are
set before anything imports torch.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # torch and numpy read these when first imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "agg"

import beartype  # noqa: E402, F401 - before nnsight, after which it cannot be imported
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("emointerp", "type_checks.checked")


def pytest_addoption(parser) -> None:
    """What the command line of the tests takes beside pytest's own."""
    parser.addoption("--every-notebook", action="store_true", help="test_browser.py: run all notebooks in JupyterLab, not only two")
