"""Emotion words, wheels and scores against examples worked by hand, scikit-learn, and properties of any text."""

import json
import pickle
import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_recall_fscore_support

from emointerp import emotions
from emointerp.emotions import BASIC, Concept, extract, hit_rate, wheels
from emointerp.errors import InputError

WORLD_WORDS = {
    "joy": "happy glad delighted cheerful joyful thrilled overjoyed elated",
    "sadness": "sad miserable heartbroken sorrowful gloomy unhappy grief tearful",
    "anger": "angry furious mad enraged irritated annoyed outraged rage",
    "fear": "afraid scared terrified frightened fearful anxious panic dread",
    "disgust": "disgusted revolted sickened repulsed nauseated grossed-out loathing repelled",
    "surprise": "surprised astonished amazed stunned startled shocked astounded speechless taken-aback",
}
WORLD_PAIRS = [(word.replace("-", " "), emotion) for emotion, words in WORLD_WORDS.items() for word in words.split()]


def found(text, **kwargs):
    return [word.text for word in extract(text, **kwargs)]


# the lexicon and the wheels


def test_lexicon_is_large_enough_for_every_basic_emotion():
    words = {emotion: emotions.words_for(emotion) for emotion in BASIC}
    assert all(len(entries) >= 25 for entries in words.values()), {e: len(w) for e, w in words.items()}
    assert len(set().union(*words.values())) >= 200
    assert sum(map(len, words.values())) == len(set().union(*words.values())), "a word names two emotions"


def test_no_entry_stands_in_two_groups():
    groups = json.loads(files("emointerp.emotions").joinpath("data/lexicon.json").read_text())["groups"]
    owner = {}
    for head, body in groups.items():
        assert body.get("broader", head) in groups
        assert ("valence" in body) != ("broader" in body), f"{head}: a top group has a valence, another one a broader group"
        entries = [e for part in ("nouns", "adjectives", "verbs", "fixed") for e in body.get(part, "").split()]
        for entry in set(entries) | set(body.get("phrases", ())):
            assert owner.setdefault(entry, head) == head, f"{entry} is in {owner[entry]} and {head}"


@pytest.mark.parametrize("name", ["plutchik", "parrott", "ekman", "geneva", "willcox"])
def test_wheel_data_names_its_source_and_has_one_cluster_an_emotion(name):
    (wheel,) = wheels([name])
    assert any(year in wheel.source for year in ("1980", "2001", "1992", "2005", "1982"))
    stands_for = [emotion for emotion in wheel.emotions.values() if emotion]
    assert len(stands_for) == len(set(stands_for)) and set(stands_for) <= set(BASIC)
    for cluster, levels in wheel.tree.items():
        assert all(isinstance(words, list) and words for words in levels.values())
        listed = {wheel.cluster(word) for words in levels.values() for word in words}
        assert listed == {cluster}


@pytest.mark.parametrize(("word", "emotion"), WORLD_PAIRS)
def test_words_of_the_worlds_stories_name_their_emotion_in_every_wheel_that_knows_it(word, emotion):
    assert hit_rate(f"I was {word}.", emotion) == 1.0
    assert emotions.named(f"It was {word} that I felt") == (emotion,)


def test_wheels_differ_where_their_sources_do():
    by_name = {wheel.name: wheel for wheel in wheels()}
    assert by_name["parrott"].cluster("disgusted") == "anger"  # Parrott: disgust is a kind of anger
    assert by_name["plutchik"].cluster("disgusted") == "disgust"
    assert by_name["willcox"].cluster("disgusted") is None and by_name["willcox"].cluster("surprised") is None
    assert by_name["geneva"].cluster("scared") == "anxiety" and by_name["willcox"].cluster("afraid") == "scared"
    assert by_name["ekman"].cluster("ashamed") is None


@pytest.mark.parametrize(
    ("form", "lemma"),
    [
        ("Furiously", "furious"),
        ("angriest", "angry"),
        ("wept", "weep"),
        ("saddest", "sad"),
        ("panicking", "panic"),
        ("miserably", "miserable"),
        ("ecstatically", "ecstatic"),
        ("worries", "worry"),
        ("terrifies", "terrify"),
        ("loathed", "loathe"),
        ("happiness", "happiness"),
        ("tearfully", "tearful"),
    ],
)
def test_inflected_forms_find_their_lemma(form, lemma):
    (word,) = extract(f"then {form} it was")
    assert (word.text, word.lemma) == (form, lemma)


def test_unlike_words_are_no_forms_of_emotion_words():
    assert found("fearless joyless unafraid unsurprised scarecrow happen Madrid contents start started gladiolus") == []


@pytest.mark.parametrize("word", ["ordinary", "calm", "usual", "nothing special", "normal", "table", "proud", "trust"])
def test_neutral_and_other_words_name_no_basic_emotion(word):
    assert emotions.named(f"It was {word} to me.") == ()
    assert emotions.emotion_of(word) is None


def test_stop_words_are_skipped_in_text_only():
    assert found("A bad face; the door was left open, the person could see a blue light.") == []
    (willcox,) = wheels(["willcox"])
    assert willcox.cluster("hurt") == "mad"  # a label list may still say "hurt"
    assert found("My knee hurts.", wheels=willcox) == []


def test_unknown_wheel_name():
    with pytest.raises(InputError, match="unknown wheel 'ekmann'; expected some of plutchik, parrott"):
        wheels(["ekmann"])
    with pytest.raises(InputError, match="each with its own name"):
        extract("x", wheels=wheels(["ekman", "ekman"]))


# extraction


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I was scared to death of it", ["scared to death"]),
        ("my heart sank", ["heart sank"]),
        ("Her blood was boiling; his blood boils", ["Her blood was boiling", "his blood boils"]),
        ("We were over the moon", ["over the moon"]),
        ("in tears, fed up, sick to his stomach", ["in tears", "fed up", "sick to his stomach"]),
        ("I couldn\u2019t believe my eyes", ["couldn\u2019t believe my eyes"]),
        ("She could not believe her eyes", ["could not believe her eyes"]),
        ("He jumps for joy", ["jumps for joy"]),
        ("They took him by surprise", ["took him by surprise"]),
        ("tears of joy", ["tears of joy"]),
        ("light-hearted, then terror-stricken", ["light-hearted", "terror-stricken"]),
        ("TAKEN  ABACK", ["TAKEN  ABACK"]),
        ("My heart. Sank", []),
        ("**Sad** and _angry_", ["Sad", "angry"]),
        ("", []),
    ],
)
def test_phrases_and_forms_in_text(text, expected):
    assert found(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I was not happy", []),
        ("I was not only happy but excited", ["happy", "excited"]),
        ("I never felt so happy", ["happy"]),
        ("I had never been happier", ["happier"]),
        ("I couldn't be more thrilled", ["thrilled"]),
        ("I was not so happy", []),
        ("There was no fear", []),
        ("I wasn't afraid", []),
        ("I wasn\u2019t afraid", []),
        ("I left without any anger", []),
        ("neither sad nor angry", []),
        ("I am not sad but happy", ["happy"]),
        ("not sad, angry or afraid", []),
        ("not angry, just surprised", ["surprised"]),
        ("not fear but rage", ["rage"]),
        ("I was happy, not sad", ["happy"]),
        ("No, I was happy", ["happy"]),
        ("I'm not mad. I'm just sad.", ["sad"]),
        ("I don't think I was afraid", []),
        ("I didn't know I was so sad", ["sad"]),
        ("I was no longer afraid", []),
        ("far from happy", []),
        ("anything but happy", []),
        ("nothing but joy", ["joy"]),
        ("I could not help feeling sad", ["sad"]),
        ("I couldn't hide my joy", ["joy"]),
        ("no doubt I was happy", ["happy"]),
        ("No one in the room was scared", []),
        ("Nor was I afraid", []),
        ("instead of being sad I was glad", ["glad"]),
        ("I did not cry and I was happy", ["happy"]),
        ("There was no sound and fear gripped me", ["fear"]),
        ("I could not move with fear", ["fear"]),
        ("not without fear", ["fear"]),
        ("I was not there because I was afraid", ["afraid"]),
        ("Don't worry, be happy", ["happy"]),
    ],
)
def test_negation_scope(text, expected):
    assert found(text) == expected


def test_word_carries_offsets_lemma_emotion_and_clusters():
    text = "\u201cI\u2019m terrified!\u201d"
    (word,) = extract(text)
    assert (word.text, word.start, word.end) == ("terrified", 5, 14) and text[5:14] == "terrified"
    assert (word.lemma, word.emotion) == ("terrified", "fear")
    assert word.clusters == {
        "plutchik": "fear",
        "parrott": "fear",
        "ekman": "fear",
        "geneva": "anxiety",
        "willcox": "scared",
    }
    with pytest.raises(AttributeError):
        word.start = 0


def test_long_text_is_read_whole():
    sentence = "I was not happy, but over the moon; and her heart sank. "
    text = sentence * (100_000 // len(sentence))
    assert len(extract(text)) == 2 * (100_000 // len(sentence))


# The test run checks type hints, so these are tried in a Python without that, as users have it.
@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("extract(None)", "text must be a str, got NoneType: None; pass the answer itself"),
        ("hit_rate('x', 3)", "emotion must be a str such as 'joy', got int: 3"),
        ("extract('x', wheels=['ekman'])", "wheels= takes Wheel or Concept values, got 'ekman'"),
        (
            "weighted_average_f(['good'], [1])",
            "a valence must be a number, got 'good'; texts are allowed as predictions",
        ),
        ("f_s(['glad, sad'], [['glad']])", "must be a list of words, got the string 'glad, sad'"),
        ("Concept('c', ('a',), {'a': 'xyz'})", "label 'a' of concept 'c' needs a list of words"),
    ],
)
def test_values_of_the_wrong_type_get_an_error_that_says_so(call, message):
    code = f"from emointerp.emotions import *\ntry:\n    {call}\nexcept Exception as e:\n    print(type(e).__name__, e)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("InputError") and message in out


_PIECES = st.sampled_from(
    [
        "not",
        "no",
        "n't",
        "never so",
        "happy",
        "heart sank",
        "without",
        "\u2019",
        ",",
        ".",
        "and",
        "fear",
        "could",
        "\n\n",
    ]
)
_TEXTS = st.one_of(st.text(), st.lists(_PIECES | st.text(max_size=3), max_size=30).map(" ".join))


@settings(deadline=None, max_examples=150)
@given(_TEXTS)
def test_extract_takes_any_text_and_offsets_slice_to_it(text):
    words = extract(text)
    assert all(text[word.start : word.end] == word.text and word.text for word in words)
    ends = [0, *(word.end for word in words)]
    assert all(word.start >= end for word, end in zip(words, ends, strict=False)), "words overlap or are out of order"


@settings(deadline=None, max_examples=60)
@given(_TEXTS, st.sampled_from(emotions.ALL))
def test_scores_lie_between_0_and_1_and_agree_with_each_other(text, emotion):
    row = emotions.score([text], emotion).iloc[0]
    for name in ("hit", "exact", "precision", "f"):
        assert 0.0 <= row[name] <= 1.0
    assert row["false_emotion"] == (len(row["named"]) > 0) and row["n_words"] >= len(row["named"])
    assert min(row["precision"], row["hit"]) - 1e-12 <= row["f"] <= max(row["precision"], row["hit"]) + 1e-12
    assert 0.0 <= emotions.token_hit_rate(text, emotion) <= 1.0


# scores of one text, by hand


def test_hit_rate_is_the_share_of_wheels():
    # "disgusted" is in the cluster of anger in Parrott alone, and all five wheels know anger: 1/5
    assert hit_rate("I was disgusted", "anger") == pytest.approx(1 / 5)
    # four wheels know disgust (not Willcox); "furious" is in its cluster in Parrott alone: 1/4
    assert hit_rate("I was furious", "disgust") == pytest.approx(1 / 4)
    assert hit_rate("I was nauseated", "disgust") == 1.0
    # "proud": under joy in Parrott; pride or nothing elsewhere: 1/5
    assert hit_rate("I was proud", "joy") == pytest.approx(1 / 5)
    assert hit_rate("I was nauseated", "disgust", wheels=wheels(["ekman"])) == 1.0
    assert hit_rate("", "joy") == 0.0


def test_an_emotion_may_be_given_as_any_known_word():
    assert hit_rate("I was glad", "Happy") == 1.0
    assert hit_rate("I was glad", "trust") == 0.0 and hit_rate("I trusted her", "trust") == 1.0
    assert emotions.exact_rate("I trusted her", "trust") == 1.0 and emotions.exact_rate("I was glad", "trust") == 0.0


def test_recall_alone_is_fooled_and_the_others_are_not():
    text = "Happy, sad, angry, afraid, disgusted and surprised"
    assert hit_rate(text, "joy") == 1.0
    assert emotions.exact_rate(text, "joy") == 0.0
    # clusters named: Plutchik, Ekman, Geneva 6; Parrott 5 (disgust is anger); Willcox 4 -> mean (3/6 + 1/5 + 1/4) / 5
    assert emotions.precision(text, "joy") == pytest.approx((3 / 6 + 1 / 5 + 1 / 4) / 5)
    # F of P = 1/n and R = 1 is 2/(n + 1)
    assert emotions.f_score(text, "joy") == pytest.approx((3 * 2 / 7 + 2 / 6 + 2 / 5) / 5)
    assert emotions.emotion_words(text) == 6


def test_exact_rate_names_the_gold_and_no_other():
    assert emotions.exact_rate("Glad, so glad, and proud", "joy") == 1.0
    assert emotions.exact_rate("Glad but scared", "joy") == 0.0
    assert emotions.exact_rate("I was disgusted", "anger") == 0.0  # one wheel of five is no majority
    assert emotions.exact_rate("nothing at all", "joy") == 0.0


def test_neutral_is_hit_where_no_emotion_is_named():
    assert hit_rate("An ordinary, calm day.", "neutral") == 1.0
    assert hit_rate("I trusted them.", "neutral") == 1.0
    assert hit_rate("I was glad.", "Neutral") == 0.0
    assert emotions.exact_rate("I was not sad.", "neutral") == emotions.precision("x", "neutral") == 1.0
    assert (emotions.false_emotion("An ordinary day."), emotions.false_emotion("A scary day.")) == (0, 1)


def test_token_hit_rate_counts_words():
    # 6 words, of which 1 names joy in all five wheels
    assert emotions.token_hit_rate("I was happy and then sad", "joy") == pytest.approx(1 / 6)
    # "disgusted" counts for anger in one wheel of five: (1/3) / 5
    assert emotions.token_hit_rate("I was disgusted", "anger") == pytest.approx(1 / 15)
    assert emotions.token_hit_rate("I was over the moon", "neutral") == pytest.approx(2 / 5)
    assert emotions.token_hit_rate("", "joy") == 0.0


@pytest.mark.parametrize(("given_word", "nearest"), [("hapy", "happy"), ("angr", "anger"), ("supprise", "surprise")])
def test_unknown_emotion_names_the_nearest(given_word, nearest):
    with pytest.raises(InputError, match=f"unknown emotion '{given_word}'.*nearest known: .*{nearest}.*Use one of anger"):
        hit_rate("I was glad", given_word)


def test_score_table_and_scikit_learn():
    texts = ["I was glad", "Glad and scared", "Sad, angry, mad", "A usual day", "Not sad but surprised", "Disgusted"]
    gold = ["joy", "joy", "anger", "fear", "surprise", "disgust"]
    (ekman,) = wheels(["ekman"])
    frame = emotions.score(texts, gold, wheels=ekman)
    assert list(frame.columns) == ["emotion", "named", "hit", "exact", "precision", "f", "n_words", "false_emotion"]
    assert frame["named"].tolist()[1] == ("fear", "joy") and frame["n_words"].tolist() == [1, 2, 3, 0, 1, 1]
    truth = np.array([[label == g for label in BASIC] for g in gold])
    guess = np.array([[label in row for label in BASIC] for row in frame["named"]])
    p, r, f, _ = precision_recall_fscore_support(truth, guess, average="samples", zero_division=0)
    assert frame[["precision", "hit", "f"]].mean().tolist() == pytest.approx([p, r, f])
    assert frame["exact"].tolist() == [float(np.array_equal(t, g)) for t, g in zip(truth, guess, strict=True)]


def test_score_takes_one_emotion_for_all_and_checks_lengths():
    assert emotions.score(["I was glad", "x"], "joy")["hit"].tolist() == [1.0, 0.0]
    assert emotions.score([], "joy").empty
    with pytest.raises(InputError, match="got 2 texts but 1 emotions"):
        emotions.score(["a", "b"], ["joy"])


def test_another_extractor_can_take_its_place():
    def model(text, wheels):
        return ["livid", "grossed out"]

    assert hit_rate("whatever", "anger", extractor=model) == 1.0
    assert emotions.named("whatever", extractor=model) == ("anger", "disgust")
    with pytest.raises(InputError, match="an extractor must return EmotionWord values or strings; got 7"):
        hit_rate("x", "joy", extractor=lambda text, wheels: [7])


# benchmark metrics, by hand and against scikit-learn


def test_weighted_average_f_by_hand():
    # gold + + + - (the 0 is dropped), predicted + 0 + - -> the neutral one counts as negative
    # positive: P = 2/2, R = 2/3, F = 0.8; negative: P = 1/2, R = 1, F = 2/3; weighted (3 * 0.8 + 1 * 2/3) / 4
    gold = [1.0, 0.4, 2.0, -1.0, 0.0]
    assert emotions.weighted_average_f(gold, [1, 0, 1, -1, 1]) == pytest.approx((3 * 0.8 + 2 / 3) / 4)
    texts = ["I was glad", "A usual day", "She felt proud", "He wept", "Joy!"]
    assert emotions.weighted_average_f(gold, texts) == pytest.approx((3 * 0.8 + 2 / 3) / 4)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from([-2.0, -0.5, 0.5, 3.0]), st.sampled_from([-1, 0, 1])), min_size=1))
def test_weighted_average_f_agrees_with_scikit_learn(pairs):
    gold, guess = zip(*pairs, strict=True)
    expected = f1_score(np.sign(gold), [1 if g > 0 else -1 for g in guess], average="weighted")
    assert emotions.weighted_average_f(gold, guess) == pytest.approx(expected)


def test_weighted_average_f_refuses_what_it_cannot_score():
    with pytest.raises(InputError, match="every gold valence is 0"):
        emotions.weighted_average_f([0.0], [1])
    with pytest.raises(InputError, match="got 1 gold valences but 2 predictions"):
        emotions.weighted_average_f([1.0], [1, 1])
    with pytest.raises(InputError, match="a valence must be a number, got nan"):
        emotions.weighted_average_f([float("nan")], [1])


def test_sentiment_sign_counts_words():
    assert emotions.sentiment_sign("Sad, then glad and thankful") == 1
    assert emotions.sentiment_sign("Ashamed and lonely, yet proud") == -1
    assert emotions.sentiment_sign("Surprised") == emotions.sentiment_sign("Not glad") == 0


def test_f_s_by_hand_with_its_edge_cases():
    ekman = wheels(["ekman"])
    gold = [["glad", "afraid"], ["sad"], ["angry"], ["table"]]
    predicted = [["joyful"], ["blue-ish", "nonsense"], ["livid", "annoyed", "scared"], ["glad"]]
    # sample 1: P 1/1, R 1/2; sample 2: nothing known is predicted: 0, 0; sample 3: {anger, fear}: P 1/2, R 1/1;
    # sample 4: no gold cluster: skipped -> P = R = (1.5)/3 = 1/2, F = 1/2
    assert emotions.f_s(predicted, gold, ekman) == emotions.SetScore(0.5, 0.5, 0.5)
    assert emotions.f_s([["glad"]], [["sad"]], ekman) == emotions.SetScore(0.0, 0.0, 0.0)


def test_f_s_is_the_mean_of_the_wheels_f():
    # Ekman: {disgust, joy} against {anger, joy}: P = R = F = 1/2. Parrott: disgust is anger, so all 1.
    both = emotions.f_s([["disgusted", "glad"]], [["angry", "happy"]], wheels(["ekman", "parrott"]))
    assert both == emotions.SetScore(0.75, 0.75, 0.75)
    # a wheel that knows no gold word at all is left out: Ekman does not know pride
    assert emotions.f_s([["proud"]], [["proud"]], wheels(["ekman", "geneva"])).f == 1.0


def test_f_s_refuses_strings_and_empty_gold():
    with pytest.raises(InputError, match="must be a list of words, got the string 'glad, sad'"):
        emotions.f_s(["glad, sad"], [["glad"]])
    with pytest.raises(InputError, match="no wheel knows any of the gold words"):
        emotions.f_s([["glad"]], [["table"]])
    with pytest.raises(InputError, match="got 1 predictions but 0 gold sets"):
        emotions.f_s([["glad"]], [])


# concepts


def test_a_concept_scores_like_a_wheel():
    light = Concept("light", ("day", "night"), {"day": ["sunny", "at noon"], "night": ["dark", "moonlit"]})
    assert [(w.text, w.emotion) for w in extract("A darker street, not sunny.", wheels=light)] == [("darker", "night")]
    assert hit_rate("It was sunny at noon", "day", wheels=light) == 1.0
    assert emotions.exact_rate("sunny, then dark", "day", wheels=light) == 0.0
    assert hit_rate("A grey street", "neutral", wheels=light) == 1.0
    assert light == Concept("light", ["day", "night"], dict(light.words)) and hash(light) == hash(pickle.loads(pickle.dumps(light)))
    with pytest.raises(InputError, match="unknown emotion 'joy': it is in none of the wheels light; .*Use one of day, night"):
        hit_rate("x", "joy", wheels=light)


@pytest.mark.parametrize(
    ("labels", "words", "message"),
    [
        (("a", "b"), {"a": ["x"]}, "give every label, and only those, a list of words"),
        ((), {}, "give every label"),
        (("a",), {"a": []}, "label 'a' of concept 'c' needs a list of words"),
        (("a", "b"), {"a": ["x"], "b": ["X"]}, "'x' belongs to both 'a' and 'b' of concept 'c'; give it one"),
    ],
)
def test_a_concept_checks_itself(labels, words, message):
    with pytest.raises(InputError, match=message):
        Concept("c", labels, words)


# the benchmark's wheel files

SHEET = [
    ("happy", "playful", "cheeky"),
    (None, None, "aroused"),
    (None, "proud", "confident"),
    ("mad", "hateful", "furious"),
    (None, None, None),
    ("scared", "anxious", "worried"),
]
FORMATS = "name,format\nhappy,\"happier,happily\"\njoyful,joyfully\nlivid,\"['livid', 'lividly']\"\nworried,\nboiling mad,\n"
SYNONYMS = {"happy": "joyful, glad", "mad": "livid", "furious": "livid, boiling mad", "worried": None}


@pytest.fixture
def sheets(tmp_path):
    pytest.importorskip("openpyxl")
    import pandas as pd

    for n in range(1, 6):
        pd.DataFrame(SHEET, columns=["level1", "level2", "level3"]).to_excel(tmp_path / f"wheel{n}.xlsx", index=False)
    columns = {}
    for n in range(1, 9):
        columns[f"word_run{n}"] = list(SYNONYMS)
        columns[f"synonym_run{n}"] = list(SYNONYMS.values()) if n == 1 else [None] * len(SYNONYMS)
    pd.DataFrame(columns).to_excel(tmp_path / "synonym.xlsx", index=False)
    (tmp_path / "format.csv").write_text(FORMATS, encoding="utf-8")
    return tmp_path


def save_mapping(path, **changes):
    level1 = {"happy": "happy", "furious": "mad", "worried": "scared"}
    data = {
        "format_mapping": {"happy": ["happy"], "joyfully": ["joyful"], "worried": ["worried"], "livid": ["livid"]},
        "raw_mapping": {"happy": ["happy"], "joyful": ["happy"], "worried": ["worried"], "livid": ["mad", "furious"]},
        "wheel_map_whole": {f"wheel{n}": {"level1": level1, "level2": level1} for n in range(1, 6)},
    }
    np.savez_compressed(path, **(data | changes))


def test_reads_the_benchmarks_sheets(sheets):
    read = emotions.read_mer_unibench_wheels(sheets)
    assert [wheel.name for wheel in read] == ["wheel1", "wheel2", "wheel3", "wheel4", "wheel5"]
    wheel = read[0]
    # blanks repeat the value above; the row of blanks repeats "furious", as in the benchmark's code
    assert wheel.tree["happy"] == {"playful": ["cheeky", "aroused"], "proud": ["confident"]}
    assert wheel.tree["mad"] == {"hateful": ["furious", "furious"]}
    assert wheel.cluster("Happily") == "happy"  # format: happily -> happy -> happy
    assert wheel.cluster("joyfully") == "happy"  # format -> joyful -> synonym of happy
    assert wheel.cluster("lividly") == "mad"  # livid -> furious (first in the alphabet) -> mad
    assert wheel.cluster("worried") == "scared"
    assert wheel.cluster("boiling mad") == "mad"
    assert wheel.cluster("glad") is None, "a synonym without a line in format.csv is unknown, as in the benchmark"
    assert wheel.emotions == {"happy": "joy", "mad": "anger", "scared": "fear"}


def test_scores_run_on_the_benchmarks_wheels(sheets):
    read = emotions.read_mer_unibench_wheels(sheets)
    assert hit_rate("They joyfully left, not worried.", "happy", wheels=read) == 1.0
    assert found("lividly and boiling mad", wheels=read) == ["lividly", "boiling mad"]
    # {happy, mad} against {happy}: P 1/2, R 1, F 2/3 in each of the five
    assert emotions.f_s([["joyfully", "livid"]], [["happy"]], read).f == pytest.approx(2 / 3)


def test_reads_the_benchmarks_npz(tmp_path):
    save_mapping(tmp_path / "wheel_mapping.npz")
    for path in (tmp_path, tmp_path / "wheel_mapping.npz"):
        read = emotions.read_mer_unibench_wheels(path)
        assert len(read) == 5 and read[4].cluster("joyfully") == "happy" and read[4].cluster("livid") == "mad"
        assert read[0].emotions == {"happy": "joy", "mad": "anger", "scared": "fear"}


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path):
    target = tmp_path / "written_by_the_pickle"
    save_mapping(tmp_path / "wheel_mapping.npz", format_mapping={"happy": [Malicious(target)]})
    with pytest.raises(InputError, match=r"wheel_mapping.npz is refused: its pickle asks for \w+.open, but only dict, list"):
        emotions.read_mer_unibench_wheels(tmp_path)
    assert not target.exists()
    np.load(tmp_path / "wheel_mapping.npz", allow_pickle=True)["format_mapping"]
    assert target.exists(), "the file would have done harm when opened the usual way"


def test_pickled_npz_gives_plain_values_back(tmp_path):
    corpus = {"a": {"emo": "happy", "val": 1.5, "score": np.float32(0.5)}, "b": {"words": ["x"], "x": np.arange(3)}}
    np.savez(tmp_path / "label.npz", test_corpus=corpus, plain=np.eye(2), objects=np.array(["x", None], dtype=object))
    data = emotions.read_pickled_npz(tmp_path / "label.npz")
    assert data["test_corpus"]["a"] == corpus["a"] and data["test_corpus"]["b"]["x"].tolist() == [0, 1, 2]
    assert data["plain"].tolist() == [[1, 0], [0, 1]] and data["objects"].tolist() == ["x", None]


def test_wheel_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="no file or folder at .*nowhere; give the benchmark's emotion_wheel folder"):
        emotions.read_mer_unibench_wheels(tmp_path / "nowhere")
    with pytest.raises(InputError, match="lacks wheel1.xlsx, .*synonym.xlsx, format.csv; expected these files"):
        emotions.read_mer_unibench_wheels(tmp_path)
    (tmp_path / "wheel_mapping.npz").write_bytes(b"not a zip")
    with pytest.raises(InputError, match="cannot be read as npz"):
        emotions.read_mer_unibench_wheels(tmp_path)
    np.savez(tmp_path / "wheel_mapping.npz", other={"a": 1})
    with pytest.raises(InputError, match="is not a wheel mapping .*expected the dicts format_mapping"):
        emotions.read_mer_unibench_wheels(tmp_path)
    with pytest.raises(InputError, match="no file at .*label.npz"):
        emotions.read_pickled_npz(tmp_path / "label.npz")


def test_sheets_with_wrong_columns_or_no_sheet(sheets):
    import pandas as pd

    pd.DataFrame({"level1": ["a"]}).to_excel(sheets / "wheel2.xlsx", index=False)
    with pytest.raises(InputError, match="wheel2.xlsx lacks the columns level2, level3; it has level1"):
        emotions.read_mer_unibench_wheels(sheets)
    (sheets / "wheel2.xlsx").write_bytes(b"not a workbook")
    with pytest.raises(InputError, match="wheel2.xlsx cannot be read as an Excel sheet"):
        emotions.read_mer_unibench_wheels(sheets)


def test_missing_openpyxl_names_the_extra(sheets, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(InputError, match=r"needs openpyxl; run: pip install 'emointerp\[mer\]'"):
        emotions.read_mer_unibench_wheels(sheets)


def test_import_brings_no_heavy_library():
    code = "import sys, emointerp.emotions; print({'torch', 'sklearn', 'pandas', 'scipy', 'openpyxl'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
