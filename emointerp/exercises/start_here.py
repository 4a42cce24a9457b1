"""Exercises of notebook 00."""

from typing import Any

from emointerp.emotions import BASIC
from emointerp.exercises.verdict import Verdict, not_yet, right
from emointerp.models import VLM
from emointerp.start_here import SeeOrGuess, tell, tell_all
from emointerp.world import Scene
from emointerp.world.events import problems
from emointerp.world.scene import with_intensity


def swayed(answer: Any, guess: SeeOrGuess) -> Verdict:
    """Exercise 1: of the stories with a conflicting event, which share names the event's emotion?"""
    frame, row = guess.to_frame(), "conflicting event"
    if answer is None:
        return not_yet("the answer is still None. Look up the row 'conflicting event' of guess.to_frame().")
    if not isinstance(answer, int | float):
        return not_yet(f"a share is a number between 0 and 1, and this is a {type(answer).__name__}.")
    if not 0 <= answer <= 1:
        return not_yet(f"{answer} is not between 0 and 1: a share, please, not a percentage.")
    truth = frame.loc[row, "the event's emotion"]
    if abs(answer - truth) < 0.0051:
        return right(f"{truth:.0%} of the stories follow the words against the picture.")
    if abs(answer - frame.loc[row, "the picture's emotion"]) < 0.0051:
        return not_yet("that is the share that names the picture's emotion; asked is the event's, another column.")
    if abs(answer - (1 - frame.loc[row, "the picture's emotion"])) < 0.0051:
        return not_yet("that is every story that misses the picture; some of them name a third emotion, or none.")
    if abs(answer - frame.loc["gray picture", "the event's emotion"]) < 0.0051:
        return not_yet("that is the row of the gray picture, where there is nothing to see. Take 'conflicting event'.")
    return not_yet("look up the row 'conflicting event', column \"the event's emotion\".")


def persuasive(event: Any, vlm: VLM, picture: Any, emotion: str) -> Verdict:
    """Exercise 2: write an event without any word of feeling that makes the gray picture's story name `emotion`."""
    if event is None:
        return not_yet("the event is still None. Write a sentence about something that happened to you.")
    if emotion not in BASIC:
        return not_yet(f"{emotion!r} is none of the six emotions: {', '.join(BASIC)}.")
    if faults := problems(str(event)):
        return not_yet("; ".join(faults))
    named = tell(vlm, picture, str(event)).named
    if emotion in named:
        return right(f"There was nothing to see, and yet the story names {emotion}: the words did it.")
    return not_yet(f"the story names {', '.join(named) or 'no emotion'}. What usually happens to people who feel {emotion}?")


def faintest(answer: Any, vlm: VLM, scene: Scene, event: str, step: float = 0.05) -> Verdict:
    """Exercise 3: the faintest intensity, in steps of 0.05, from which on the story always names the scene's emotion."""
    if answer is None:
        return not_yet("the answer is still None. Tell the scene's story at with_intensity(scene, 0.05), 0.10, …")
    if not isinstance(answer, int | float) or not 0 <= answer <= 1 + step:  # a step beyond: where the strongest is misread
        return not_yet(f"an intensity lies between 0 and 1; this is {answer!r}.")
    levels = [round(step * i, 2) for i in range(1, 21)]
    told = tell_all(vlm, [(with_intensity(scene, level), event) for level in levels], progress=False)
    last_miss = max((level for level, one in zip(levels, told, strict=True) if scene.emotion not in one.named), default=0.0)
    truth = round(last_miss + step, 2)
    if truth > 1:
        return not_yet("this scene is misread even at full strength, so it has no such intensity; try another scene.")
    if abs(answer - truth) < 1e-6:
        return right(
            f"From {truth:.2f} on the face is enough. Below, the model says something else, and does not say that it is unsure."
        )
    if answer < truth:
        return not_yet(f"too faint: at {last_miss:.2f} the story still names something else.")
    return not_yet("the model reads fainter expressions than that one. Go down in steps of 0.05.")
