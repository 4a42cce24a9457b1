"""The drawn world: scenes whose emotional content is known exactly, with exact neutral twins.

>>> from emointerp.world import sample
>>> scene = sample("test", 1)[0].scene
>>> scene.emotion, scene.image().size
('anger', (128, 128))
>>> scene.neutral().emotion
'neutral'

A scene is a value (`scene.py`); an expression moves its face (`expression.py`, `face.py`) in a place with things
(`setting.py`); `splits.py` says which scenes and events go together; `language.py` tells what a model should say.
"""

from emointerp.world.events import SPLITS, loaded_events, neutral_events
from emointerp.world.expression import Expression
from emointerp.world.language import caption, questions, story, story_prompt
from emointerp.world.scene import Scene, sample_scene
from emointerp.world.sheet import contact_sheet
from emointerp.world.splits import HARD_TESTS, Example, face_scenes, identity, sample, training_example

__all__ = [
    "HARD_TESTS",
    "SPLITS",
    "Example",
    "Expression",
    "Scene",
    "caption",
    "contact_sheet",
    "face_scenes",
    "identity",
    "loaded_events",
    "neutral_events",
    "questions",
    "sample",
    "sample_scene",
    "story",
    "story_prompt",
    "training_example",
]
