"""A worker for tests/test_gallery_ray.py, in a module of its own so that Ray's processes can import it."""

import os
import time
from pathlib import Path
from typing import Any

from emointerp.gallery import extraction

MARKS = "EMOINTERP_TEST_MARKS"  # the folder of the marks


class Marked(extraction._Worker):
    """Says which process is at which batch, and takes its time."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        mark = Path(os.environ[MARKS], f"{os.getpid()} {row['path'][0].replace('/', ' ')}")
        mark.write_text("at it")
        time.sleep(0.5)
        found = super().__call__(row)
        mark.write_text("done")
        return found
