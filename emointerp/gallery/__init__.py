"""A collection of pictures by the features that fire on them: read once by a tower and an SAE, then asked as often as one likes.

- `index`: a folder of pictures into a folder of Parquet tables. It goes on where it was killed, takes in what is new, and keeps a
  list of what could not be read; `engine="ray"` reads on many machines.
- `Gallery`: what is asked of the tables, through DuckDB: the pictures that fire a feature most, those like a picture, those along
  a direction in feature space (an emotion's), the features of a picture.
- `Found`: pictures in order, as a frame or as a sheet.

| table | a row | sorted by |
|---|---|---|
| `images.parquet` | a picture, with its whole code | path, which also numbers them |
| `features.parquet` | a feature on a picture | feature, then value: one feature is read without the others |
| `counts.parquet` | a feature | feature |
| `failures.parquet` | a file that could not be read, and why | path |

The tables hang on the pictures and on the batches in which they were read: neither the order of these, nor kills, nor engines show.
Other batches (another `batch`, or pictures that came later) change values in their last bits, and nothing else.
"""

from emointerp.gallery.found import Found
from emointerp.gallery.indexing import Indexed, index
from emointerp.gallery.value import Gallery

__all__ = ["Found", "Gallery", "Indexed", "index"]
