"""The main job: read pictures beside an event, measure how well the model reads, write one page that opens offline.

A chapter is a module with a `TITLE` and `chapter(vlm, job) -> Chapter`; later ones join the list `report.CHAPTERS`.
"""

from emointerp.tour.chapter import Chapter, Job
from emointerp.tour.report import CHAPTERS, run
from emointerp.tour.sizes import FULL, QUICK, Sizes

__all__ = ["CHAPTERS", "FULL", "QUICK", "Chapter", "Job", "Sizes", "run"]
