"""Models in hand: `load` one, make a `prompt` of a picture and an event, let it `generate`.

>>> vlm = load()
>>> from emointerp.world import sample
>>> prompt = vlm.prompt(sample("test", 1)[0].scene, "The phone rang twice while I was cooking.")
>>> len(prompt.visual), prompt.last - prompt.query[-1]
(64, 1)
"""

from emointerp.models.bridge import Bridge, activation_cache, bridge
from emointerp.models.budget import Budget, expect
from emointerp.models.familiarity import Familiarity, embeddings, familiarity
from emointerp.models.images import to_image
from emointerp.models.loading import BUNDLED, WEIGHTS, load
from emointerp.models.machines import Machine, machine
from emointerp.models.plan import Forecast, planned
from emointerp.models.prompts import Prompt
from emointerp.models.towers import Tower, load_tower
from emointerp.models.vlm import VLM

__all__ = [
    "BUNDLED", "VLM", "WEIGHTS", "Bridge", "Budget", "Familiarity", "Forecast", "Machine", "Prompt", "Tower", "activation_cache",
    "bridge", "embeddings", "expect", "familiarity", "load", "load_tower", "machine", "planned", "to_image",
]  # fmt: skip
