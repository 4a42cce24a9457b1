"""From words to emotions: find the emotion words of a text and score which emotion it names.

Everything is offline and needs numpy and the data of this package only; nothing here knows of a model.

>>> from emointerp import emotions
>>> emotions.hit_rate("My heart sank and I wept.", "sadness")
1.0
>>> [word.lemma for word in emotions.extract("No fear, but he was grossed out.")]
['grossed out']

- **wheels**: five sortings of feelings into clusters (``wheels()``); ``Concept`` makes one for anything else;
  ``read_mer_unibench_wheels`` reads the benchmark's own.
- **words**: ``extract`` (longest match, inflections, idioms, negation), ``emotion_of``, ``words_for``.
- **scores** of a text against an emotion: ``hit_rate`` and, always beside it, ``exact_rate``, ``precision``,
  ``f_score``, ``emotion_words``, ``false_emotion``; ``score`` gives all for many texts.
- **benchmark metrics**: ``weighted_average_f`` (WAF) and ``f_s`` (open vocabulary).
"""

from emointerp.emotions.extraction import EmotionWord, Extractor, emotion_words, extract
from emointerp.emotions.lexicon import ALL, BASIC, NEUTRAL, valence
from emointerp.emotions.mer_unibench import read_mer_unibench_wheels
from emointerp.emotions.pickled import read_pickled_npz
from emointerp.emotions.scores import (
    SetScore,
    exact_rate,
    f_s,
    f_score,
    false_emotion,
    hit_rate,
    named,
    precision,
    same_answer,
    score,
    sentiment_sign,
    token_hit_rate,
    weighted_average_f,
)
from emointerp.emotions.wheels import Concept, Wheel, emotion_of, wheels, words_for

__all__ = [
    "ALL",
    "BASIC",
    "NEUTRAL",
    "Concept",
    "EmotionWord",
    "Extractor",
    "SetScore",
    "Wheel",
    "emotion_of",
    "emotion_words",
    "exact_rate",
    "extract",
    "f_s",
    "f_score",
    "false_emotion",
    "hit_rate",
    "named",
    "precision",
    "read_mer_unibench_wheels",
    "read_pickled_npz",
    "same_answer",
    "score",
    "sentiment_sign",
    "token_hit_rate",
    "valence",
    "weighted_average_f",
    "wheels",
    "words_for",
]
