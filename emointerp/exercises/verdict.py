"""What a check answers: right or not, and why."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """`right` and a sentence for the learner, which is what a notebook shows."""

    right: bool
    message: str

    def __repr__(self) -> str:
        return self.message

    def __bool__(self) -> bool:
        return self.right


def not_yet(why: str) -> Verdict:
    """A wrong or missing answer, with the reason."""
    return Verdict(False, f"Not yet: {why}")


def right(why: str) -> Verdict:
    """A right answer, with what it shows."""
    return Verdict(True, f"Right. {why}")
