"""What the drawn world says: stories, captions, questions and answers, each from a small grammar.

A story names the emotion of its scene, at one of many points of a sentence; a caption says only what can be seen; most
questions have nothing to do with feelings. Templates use the notation of `events`: `{a|b}` is a choice, `{name}` is a
slot.
"""

import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from emointerp.emotions import BASIC, NEUTRAL
from emointerp.world import face as faces
from emointerp.world import setting
from emointerp.world.events import SPLITS, capitalized, filled, loaded_events, neutral_events
from emointerp.world.expression import visible
from emointerp.world.scene import Scene, sample_scene

T = TypeVar("T")

STORY = "{event} Tell my story."
NON_EMOTIONAL = ("who", "where", "weather", "colour", "how many", "thing", "glasses")
FILLED_STYLES = ("flat", "textured", "soft")  # the styles that show colours
MOST_THINGS = 5  # a scene draws no more
MOST_WORDS = 40  # of a caption
MILD = 0.4  # below this intensity a story may say "a little"

ADJECTIVES: dict[str, tuple[str, ...]] = {
    "joy": ("happy", "glad", "cheerful", "delighted", "joyful", "thrilled", "overjoyed", "elated"),
    "sadness": ("sad", "unhappy", "gloomy", "miserable", "heartbroken", "sorrowful", "dejected", "downhearted"),
    "anger": ("angry", "annoyed", "irritated", "furious", "mad", "enraged", "outraged", "livid"),
    "fear": ("afraid", "anxious", "fearful", "scared", "terrified", "frightened", "panicked", "alarmed"),
    "disgust": ("disgusted", "repelled", "grossed out", "revolted", "sickened", "repulsed", "nauseated", "appalled"),
    "surprise": ("surprised", "startled", "amazed", "astonished", "stunned", "shocked", "astounded", "dumbfounded"),
}  # the first three of each can be mild
NOUNS: dict[str, tuple[str, ...]] = {
    "joy": ("joy", "delight", "happiness"),
    "sadness": ("sadness", "sorrow", "grief"),
    "anger": ("anger", "rage", "fury"),
    "fear": ("fear", "dread", "terror"),
    "disgust": ("disgust", "revulsion", "repulsion"),
    "surprise": ("surprise", "amazement", "astonishment"),
}

# Shapes of a story. Slots: adj, bare (adj without "a little"), noun, where, and the clauses detail and cue.
EARLY = (
    "{adj} is what I was as I {stood|waited} {where}. {detail}, and {cue}.",
    "{adj} {as I was|and without a word}, I {stood|stayed|looked around} {where}. {detail}, and {cue}.",
    "I was {adj}. {detail} {where}, {and|while} {cue}.",
    "I felt {adj} {at once|right away|from the start}. {cue}, and {detail} as I {stood|stayed} {where}.",
    "{noun} {filled me|ran through me|came over me} {where}. {detail}, and {cue}.",
    "how {bare} I was {where}! {detail}, {and|while} {cue}.",
    "with {noun} in my {heart|chest} I {stood|looked around} {where}. {detail}, and {cue}.",
    "it left me {adj}. {cue} as I {stood|waited} {where}, and {detail}.",
)
MIDDLE = (
    "{detail}. I was {adj}, and {cue} as I {stood|stayed} {where}.",
    "I {stood|waited|stayed} {where} and felt {adj} while {detail}. {cue}.",
    "as I {stood|looked around} {where}, {noun} {ran through me|came over me|took hold of me}. {detail}, and {cue}.",
    "{detail}. {cue}, for I {was|felt} {adj} {where}.",
    "{cue}. {yes|oh yes|indeed}, I {was|felt} {adj} {where}, and {detail}.",
    "I {stood|waited} {where}. {detail}, I {grew|got|became} {adj}, and {cue}.",
    "{detail}. there was {noun} in {me|my heart|every part of me} {where}, and {cue}.",
    "nobody {spoke|moved} {where}. I {was|grew} {adj}, {detail}, and {cue}.",
)
LATE = (
    "I {stood|stayed} {where} and {detail}. {cue}, because I was {adj}.",
    "{detail} {where}. {cue}, and {all I felt was|what I felt was|my heart was full of} {noun}.",
    "I {stood|waited} {where}. {detail}, and {cue}. I have never been so {bare}.",
    "I {waited|stood} {where} for a moment. {detail}, {cue}, and I {felt|was} {adj}.",
    "{detail}. {cue} as I {stood|stayed} {where}, and it {left|had left} me {adj}.",
    "as I {stood|waited} {where}, {cue}. {detail}, and I {became|grew|was} {adj}.",
    "I {stood|looked around} {where}, and {detail}. {cue}. {deep down|inside} I was {adj}.",
    "{detail}, and {cue}. {if you ask me|to tell the truth|in a word}, I was {adj} {where}.",
)
SHAPES = EARLY + MIDDLE + LATE
NEUTRAL_SHAPES = (
    "it was an {ordinary|everyday} moment. I {stood|was} {where}, {detail}, and I {carried|went} on with my day.",
    "nothing {special|unusual} happened. I {stood|waited} {where}, and {detail}.",
    "I {stood|stayed} {where} and {detail}. it was a day like any other.",
    "{detail}. I {stood|was} {where}, {cue}, and then I went on.",
    "as {usual|always|on any day}, I {stood|was} {where}. {detail}, and {cue}.",
    "I took note of it and {stood|stayed} {where}. {detail}.",
    "{detail}, and that was all. I {waited|stood} {where} and {cue}.",
    "so it went. I {stood|stayed} {where}, and {detail}.",
    "I {was|stood} {where} {this time|that day}. {detail}, {cue}, and the day went by.",
    "there is not much to tell. {detail} as I {stood|waited} {where}.",
    "{where} it was a day like the others. {detail}, and {cue}.",
    "it was a {normal|regular} day {where}. {detail}, and I {moved|went} on.",
    "{cue}. {detail} {where}, and it was time to {go on|move on} with my day.",
    "I {did|thought} nothing {more|else} about it. {detail}, and I {stood|stayed} {where}.",
)
CLOSINGS = (
    "I {stayed|stood} there for {a while|some time}.",
    "that is {how it was|how I tell it|my story}.",
    "I {remember|recall} it {well|exactly}.",
    "the {minutes|moment} {went by|passed}.",
    "then I {walked on|went home|sat down}.",
)
SHORT = 18  # a story with fewer words gets a closing sentence

_WHERE = {
    "plain": "{right there|where I was|in an empty place|on that spot}",
    "room": "in {my|the} room",
    "street": "{in|on} the street",
    "beach": "{on|at} the beach",
    "forest": "in the {forest|woods}",
    "night": "{out at night|under the night sky|outside at night}",
    "mood": "{among|between} {the shapes|the colors}",
}
_SCENERY = {
    "plain": ("there was nothing behind me", "the space around me was empty"),
    "room": ("the window was {behind|beside} me", "a picture hung on the wall"),
    "street": ("the houses stood {in a row|behind me}", "there were houses {around|behind} me"),
    "beach": ("the waves {rolled in|came and went}", "a sail {moved|passed} on the sea"),
    "forest": ("the trees stood {around|behind} me", "tall trees were all around me"),
    "night": ("the moon was {above|behind} me", "the stars were {out|above me}"),
}
_WEATHER = {
    "sunny": ("the sun {shone on me|was out|stood in the sky}",),
    "rain": ("the rain {fell|came down} {on|around} me", "it was raining {on me|hard}"),
    "snow": ("snow {fell|came down} {on|around} me", "it was snowing {on|around} me"),
}
_NEARBY = (
    "there {be} {thing} {beside|near|next to} me",
    "I saw {thing} {nearby|close to me}",
    "{thing} {be} {beside|close to} me",
)
_HAT = ("I {had|wore} {hat} on my head", "{hat} sat on my head")
_THOUGHT = (
    "I thought {of|about} {it} {again|once more}",
    "{it} came back to my mind",
    "I still had {it} in my {mind|head}",
)
_GENERAL = (
    "it went through my head {again|once more}",
    "I thought about it {again|once more}",
    "I went over it in my mind",
    "I {told|said} it to myself {once more|again}",
    "I heard it all {again|once more} in my head",
)
_NO_CUE = (
    "I {said nothing|said no word}",
    "I did not {move|say a word}",
    "I {kept|held} quite still",
    "I kept my place",
)
_MOOD_CUES = {
    "joy": ("{bright|round} dots {rose|floated} around me", "{yellow|colorful} dots {danced|floated} around me"),
    "sadness": ("long {gray|dark} drips ran down around me", "{blue|gray} drips {fell|ran down} around me"),
    "anger": ("{red|sharp} spikes {pointed at me|shot past me}", "red and black spikes {filled|crossed} the space"),
    "fear": ("dark {spikes|points} {leaned over me|rose around me}", "small eyes {looked|stared} at me from the dark"),
    "surprise": ("{bright|colorful} rays {burst out|shot out} around me", "rays of {pink|yellow} light shot past me"),
    "disgust": (
        "{green|brown} blobs {dripped|spread} around me",
        "{green and brown|olive} blobs {spread|hung} around me",
    ),
    NEUTRAL: ("pale bands {lay|were} around me", "{gray|pale} bands {crossed|filled} the space"),
}

# phrase of `expression.visible` -> the same from inside; an empty tuple where there is nothing to tell
CUES: dict[str, tuple[str, ...]] = {
    "brows pulled down in the middle": ("my brows {pulled|drew} together", "I {pulled|drew} my brows down"),
    "brows raised high": ("my brows {went|shot} up", "I {raised|lifted} my brows"),
    "brows slanted up in the middle": ("my brows {slanted|tilted} up", "the middle of my brows went up"),
    "brows level": ("my brows stayed level",),
    "eyes screwed shut": ("I {squeezed|screwed} my eyes shut", "my eyes were squeezed shut"),
    "eyes like crescents": ("my eyes {became|turned into} crescents", "my eyes were two crescents"),
    "one eye winking": ("I winked with one eye", "I closed one eye"),
    "eyes closed": ("I {closed|shut} my eyes", "my eyes were closed"),
    "eyes wide open": ("my eyes {went|opened|were} wide", "I opened my eyes wide"),
    "eyes looking down": ("I looked down {at the ground|at my feet}", "my eyes looked down"),
    "eyes narrowed": ("my eyes narrowed", "I narrowed my eyes"),
    "eyes open": ("my eyes were open",),
    "tongue sticking out of a curved up mouth": ("I stuck out my tongue", "my tongue stuck out"),
    "tongue sticking out of a curved down mouth": ("I stuck out my tongue", "my tongue {hung|stuck} out"),
    "lips pressed between puffed cheeks": ("my cheeks puffed up", "I pressed my lips together"),
    "teeth showing in a wide smile": ("I {showed|bared} all my teeth", "all of my teeth showed"),
    "teeth showing in a clenched mouth": ("I clenched my teeth", "my teeth were clenched"),
    "mouth open and curved up": ("the corners of my open mouth went up", "my mouth opened and curved up"),
    "mouth open and curved down": ("the corners of my open mouth dropped", "my mouth opened and curved down"),
    "mouth open and round": ("my mouth {fell|stood|was} open", "my mouth made an O"),
    "mouth wavy": ("my lips {went wavy|quivered}",),
    "mouth pulled to one side": ("my mouth pulled to one side", "one corner of my mouth went up"),
    "mouth curved up": ("the corners of my mouth went up", "my mouth curved up"),
    "mouth curved down": ("the corners of my mouth {dropped|went down}", "my mouth curved down"),
    "mouth straight": ("my mouth stayed straight",),
    "tears streaming": ("drops {ran|streamed} down my cheeks", "my cheeks were wet"),
    "teardrops": ("there were drops on my cheeks", "a drop ran down my cheek"),
    "a drop of sweat": ("sweat ran down my temple", "a drop of sweat was on my temple"),
    "red cheeks": ("my cheeks {turned|were} red",),
    "a wrinkled nose": ("I wrinkled my nose", "my nose wrinkled"),
    "green cheeks": ("my cheeks {turned|went} green",),
    "green vomit": ("I threw up", "I spat out what I had eaten"),
    "a shaded forehead": ("my forehead {turned|went} gray", "the color left my forehead"),
    "puffs of steam": ("steam {came|shot} out of my ears", "I let off steam"),
    "hands on the cheeks": ("I put {my|both} hands on my cheeks", "my hands were on my cheeks"),
    "a hand at the mouth": ("I put a hand {to|over} my mouth", "my hand was at my mouth"),
}
_REST = {"brows level", "eyes open", "mouth straight"}  # told of a face at rest only

_KIN = "mom dad mother father brother sister uncle aunt cousin boss neighbor teacher doctor grandmother grandfather"
_KIN += " friend wife husband son daughter roommate colleague landlord dentist niece nephew"
_OBJECTS = """
phone doorbell letter parcel message table bed piano drawer box bag bridge soup fish note card film match picture
video dish tea cheese speech lesson meeting train bus tram ferry stone shell coin class team list answer driver
waiter dog cat gate window coat suitcase house shop mirror ticket contract form lid smoke photo screen basket key
ring watch scarf music engine room tunnel valley exam interview lamp plane ship tooth napkin tree hedge jacket
newspaper drawing tenant map album shed taxi glove umbrella coffee tower passport jar bench elevator plate journey
contest puppy kitten wedding cup holiday cake grave coffin chair bicycle car mud lunch drums money pay alley bear
wolf brakes snake cliff knife ice shark cellar visitor door parrot monkey rabbit snow coins worms apple mold rat
mouse milk hair sandwich pizza toilet maggots bandage lights
"""
KNOWN_NOUNS: dict[str, str] = {n: f"my {n}" for n in _KIN.split()} | {n: f"the {n}" for n in _OBJECTS.split()}


def _pick(options: Sequence[T], rng: np.random.Generator) -> T:
    return options[int(rng.integers(len(options)))]


def _fill(template: str, rng: np.random.Generator, **slots: str) -> str:
    """Fill the named slots of a template and choose at random for the rest."""
    return re.sub(r"\{([^{}]*)\}", lambda m: slots[m[1]] if m[1] in slots else _pick(m[1].split("|"), rng), template)


def _sentences(text: str) -> str:
    """The text with a capital at the start of each sentence."""
    return re.sub(r"(^|[.!?] )([a-z])", lambda m: m[1] + m[2].upper(), text)


def with_article(noun: str) -> str:
    """The noun with its indefinite article; plurals and stuff stay bare.

    >>> with_article("alien"), with_article("balloons")
    ('an alien', 'balloons')
    """
    if noun in ("balloons", "confetti"):
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def present_things(scene: Scene) -> list[str]:
    """The things that are drawn, at most five; a mood draws none, and an empty name is a thing taken away."""
    return [thing for thing in scene.things[:MOST_THINGS] if thing] if scene.has_face else []


def seen_parts(scene: Scene) -> dict[str, str]:
    """`visible` for what this artist draws: without brows where the look leaves them out; nothing for a mood."""
    if not scene.has_face:
        return {}
    face, parts = scene.expression, visible(scene.expression)
    still = abs(face.brow_inner) + abs(face.brow_outer) < 0.12
    if scene.look.brow == "never" or (scene.look.brow == "moved" and still):
        parts.pop("brows", None)
    return parts


# --- stories -------------------------------------------------------------------------------------------------------


def story_prompt(event: str) -> str:
    """The request for a story about an event.

    >>> story_prompt("The phone rang twice while I was cooking.")
    'The phone rang twice while I was cooking. Tell my story.'
    """
    return STORY.format(event=event.strip())


def story(scene: Scene, event: str, rng: np.random.Generator) -> str:
    """What the one in the picture tells of the event: 2 or 3 sentences, about 18 to 28 words.

    It names the scene's emotion once and no other; a neutral scene gets a neutral reading.
    """
    neutral = scene.emotion == NEUTRAL
    feeling = {} if neutral else _feeling(scene, rng)
    shape = _pick(NEUTRAL_SHAPES if neutral else SHAPES, rng)
    place = scene.place if scene.has_face else "mood"
    slots = {"where": _fill(_WHERE[place], rng), "detail": _detail(scene, event, rng), "cue": _cue(scene, rng)}
    text = _fill(shape, rng, **slots, **feeling)
    if len(text.split()) < SHORT:
        text = f"{text} {_fill(_pick(CLOSINGS, rng), rng)}"
    return _sentences(text)


def _feeling(scene: Scene, rng: np.random.Generator) -> dict[str, str]:
    words, little = ADJECTIVES[scene.emotion], scene.intensity < MILD and rng.random() < 0.5
    bare = _pick(words[:3] if little else words, rng)
    return {"bare": bare, "adj": f"a little {bare}" if little else bare, "noun": _pick(NOUNS[scene.emotion], rng)}


def _detail(scene: Scene, event: str, rng: np.random.Generator) -> str:
    """A clause about the event (half of the time) or about something around me."""
    around = _around(scene, rng)
    if rng.random() < 0.5 or not around:
        nouns = [KNOWN_NOUNS[w] for w in re.findall(r"[a-z]+", event.lower()) if w in KNOWN_NOUNS]
        return _fill(_pick(_THOUGHT, rng), rng, it=_pick(nouns, rng)) if nouns else _fill(_pick(_GENERAL, rng), rng)
    return _pick(around, rng)


def _around(scene: Scene, rng: np.random.Generator) -> list[str]:
    if not scene.has_face:
        return []
    templates = [*_SCENERY[scene.place], *_WEATHER.get(scene.weather, ())]
    clauses = [_fill(_pick(templates, rng), rng)]
    for thing in present_things(scene):
        be = "were" if thing == "balloons" else "was"
        clauses.append(_fill(_pick(_NEARBY, rng), rng, thing=with_article(thing), be=be))
    if scene.hat != "none":
        clauses.append(_fill(_pick(_HAT, rng), rng, hat=with_article(_hat(scene))))
    return clauses


def _cue(scene: Scene, rng: np.random.Generator) -> str:
    """A clause about my face, or about the shapes around me; three times in ten one that shows nothing."""
    told = _told(scene)
    return _fill(_pick(_NO_CUE if rng.random() < 0.3 or not told else _pick(told, rng), rng), rng)


def _told(scene: Scene) -> list[tuple[str, ...]]:
    if not scene.has_face:
        return [_MOOD_CUES[scene.emotion]]
    phrases = [p for words in seen_parts(scene).values() for p in words.split(", ")]
    return [CUES[p] for p in phrases if scene.emotion == NEUTRAL or p not in _REST]


# --- captions ------------------------------------------------------------------------------------------------------

_PLACES = {
    "room": ("in a room", "inside a room"),
    "street": ("in a street", "in front of houses"),
    "beach": ("on a beach", "at the beach"),
    "forest": ("in a forest", "among trees"),
    "night": ("outside at night", "under the moon and stars"),
}
_SKIES = {"sunny": ("a bright sun", "the sun in the sky"), "rain": ("rain falling",), "snow": ("snow falling",)}
_STYLE_HEADS = {
    "flat": "a {cartoon|flat cartoon|picture} of ",
    "line": "a {line drawing|drawing in lines} of ",
    "textured": "a {drawing|picture} on rough paper of ",
    "soft": "a {soft|softly shaded} {drawing|picture} of ",
    "chalk": "a chalk drawing of ",
}
_MOOD_SIGHTS = {
    "joy": ("{round|colorful} dots in {bright|warm} colors", "many bright dots"),
    "sadness": ("long {gray|blue gray} drips running down", "dark drips running down"),
    "anger": ("{sharp|long} spikes in red and black", "{red|sharp} spikes in all directions"),
    "fear": ("dark {points|spikes} leaning in and small pale eyes", "tall dark {points|spikes} and pale eyes"),
    "surprise": ("{bright|colorful} rays bursting from the middle", "a burst of {bright|colorful} rays"),
    "disgust": ("{green|olive} and brown blobs with speckles", "dripping {green|olive} blobs and specks"),
    NEUTRAL: ("{pale|calm gray} {bands|stripes}", "{light|pale} gray {bands|stripes}"),
}


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """What is visible, never the feeling: the subject, at least two parts of a face, and some of what is around.

    A random choice of parts in a random order, at most 40 words.
    """
    if not scene.has_face:
        manner = _pick(("{sights}", "an abstract picture of {sights}", "{sights} and no face"), rng)
        return capitalized(_fill(manner, rng, sights=_fill(_pick(_MOOD_SIGHTS[scene.emotion], rng), rng)) + ".")
    face = list(seen_parts(scene).values())
    keep = rng.permutation(len(face))[: int(rng.integers(2, len(face) + 1))]
    around = [part for part in _surroundings(scene, rng) if rng.random() < 0.7]
    head = _fill(_STYLE_HEADS[scene.style], rng) if rng.random() < 0.3 else ""
    return _listed(head + _subject(scene, rng), [face[i] for i in keep], around, rng)


def _listed(subject: str, face: list[str], around: list[str], rng: np.random.Generator) -> str:
    """One sentence of all parts in a random order; things around are dropped where it would get too long."""
    parts = [*face, *around]
    while len(parts) > len(face) and len(" ".join([subject, *parts]).split()) > MOST_WORDS:
        parts.pop()
    return capitalized(", ".join([subject, *(parts[i] for i in rng.permutation(len(parts)))])) + "."


def _surroundings(scene: Scene, rng: np.random.Generator) -> list[str]:
    things = [f"{with_article(thing)} {_pick(('nearby', 'beside'), rng)}" for thing in present_things(scene)]
    return [*things, _fill(_pick(_SKIES[scene.weather], rng), rng)] if scene.weather in _SKIES else things


def _subject(scene: Scene, rng: np.random.Generator) -> str:
    color = _own_color(scene)
    words = [with_article(f"{color} {scene.subject}" if color and rng.random() < 0.5 else scene.subject)]
    for preposition, traits in (("with", _looks(scene)), ("in", _worn(scene))):
        told = [trait for trait in traits if rng.random() < 0.5]
        words += [preposition, " and ".join(told)] if told else []
    if scene.place in _PLACES and rng.random() < 0.7:
        words.append(_pick(_PLACES[scene.place], rng))
    return " ".join(words)


def _looks(scene: Scene) -> list[str]:
    """Hair and glasses of a person; colours where the style shows them."""
    if scene.subject not in faces.PEOPLE:
        return []
    hair = [_hair(scene)] if scene.hat == "none" or scene.haircut == "long" else []  # a hat hides short hair
    return [*hair, "glasses"] if scene.glasses else hair


def _worn(scene: Scene) -> list[str]:
    if scene.subject not in faces.PEOPLE:
        return []
    clothes = [f"{scene.clothes} clothes"] if scene.style in FILLED_STYLES else []
    return [with_article(_hat(scene)), *clothes] if scene.hat != "none" else clothes


def _hair(scene: Scene) -> str:
    if scene.haircut == "bald":
        return "a bald head"
    color = f"{scene.hair} " if scene.style in FILLED_STYLES else ""
    return f"{color}hair in a bun" if scene.haircut == "bun" else f"{scene.haircut} {color}hair"


def _hat(scene: Scene) -> str:
    return f"{scene.hat_color} {scene.hat}" if scene.style in FILLED_STYLES else scene.hat


def _own_color(scene: Scene) -> str:
    """Colour of an animal's fur, a robot or a smiley; empty for people and where no colours are drawn."""
    return scene.skin if scene.style in FILLED_STYLES and scene.subject not in faces.PEOPLE else ""


# --- questions -----------------------------------------------------------------------------------------------------

ASKED: dict[str, tuple[str, ...]] = {
    "who": ("Who is in the picture?", "Who is this?", "Who can be seen here?", "Whose picture is this?"),
    "where": ("Where is the {subject}?", "What place is this?", "Where is this?"),
    "weather": ("What is the weather like?", "How is the weather?", "What weather is it in the picture?"),
    "colour": ("What color {is} the {part}?", "Which color {has} the {part}?", "Name the color of the {part}."),
    "how many": ("How many things are there?", "How many things are around the {subject}?", "Count the things."),
    "thing": ("Is there {thing}?", "Can {thing} be seen?", "Does the picture show {thing}?"),
    "glasses": (
        "Does the {subject} wear glasses?",
        "Are there glasses on the face?",
        "Is the {subject} wearing glasses?",
    ),
    "style": ("In what style is this drawn?", "What kind of drawing is this?", "How is the picture drawn?"),
    "brows": ("What are the brows like?", "How are the brows?", "Describe the brows."),
    "eyes": ("What are the eyes like?", "How are the eyes?", "Describe the eyes."),
    "mouth": ("What is the mouth like?", "How is the mouth?", "Describe the mouth."),
    "extras": ("What else is on the face?", "Is there anything else on the face?", "Describe the rest of the face."),
    "feeling": ("How does the {subject} feel?", "What does the {subject} feel?", "Name the feeling of the {subject}."),
    "caption": ("Describe the picture.", "What is in the picture?", "What does the picture show?"),
}
MOOD_FEELING = ("What is the mood of the picture?", "What mood is this?", "Name the mood of the picture.")
WHERE = {
    "plain": "Against a plain background.",
    "room": "In a room.",
    "street": "In a street.",
    "beach": "On a beach.",
    "forest": "In a forest.",
    "night": "Outside at night.",
}
WEATHER = {"clear": "It is dry.", "sunny": "It is sunny.", "rain": "It is raining.", "snow": "It is snowing."}
STYLE = {
    "flat": "A flat cartoon.",
    "line": "A line drawing.",
    "textured": "A drawing on rough paper.",
    "soft": "A softly shaded drawing.",
    "mood": "An abstract picture.",
    "chalk": "A chalk drawing.",
}
COUNTS = ("No things.", "One thing.", "Two things.", "Three things.", "Four things.", "Five things.")
NO_EXTRAS = "nothing else"
NO_FEELING = "nothing special"
_EMPTY_ASKED = 0.2  # how often an empty scene is asked for a thing: "no" stays about as frequent as "yes"

Question = tuple[str, str, str]


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """All questions that make sense for a scene, each as (kind, question, answer); answers have 1 to 15 words.

    Only the answer to "caption" may be longer, and only "feeling" names an emotion.
    """
    facts = [*_facts(scene), *_thing_facts(scene, rng), ("feeling", {}, _feels(scene, rng))]
    facts.append(("caption", {}, caption(scene, rng)))
    return [(kind, _ask(scene, kind, slots, rng), answer) for kind, slots, answer in facts]


Fact = tuple[str, dict[str, str], str]


def _ask(scene: Scene, kind: str, slots: dict[str, str], rng: np.random.Generator) -> str:
    asked = MOOD_FEELING if kind == "feeling" and not scene.has_face else ASKED[kind]
    subject = scene.subject if scene.has_face else "picture"
    return _fill(_pick(asked, rng), rng, subject=subject, **slots)


def _facts(scene: Scene) -> list[Fact]:
    count = ("how many", {}, COUNTS[len(present_things(scene))])
    if not scene.has_face:
        return [("who", {}, "Nobody, only shapes."), ("style", {}, STYLE["mood"]), count]
    facts = [("who", {}, capitalized(with_article(scene.subject)) + "."), ("where", {}, WHERE[scene.place])]
    facts += [("weather", {}, WEATHER[scene.weather]), ("style", {}, STYLE[scene.style]), count]
    if scene.subject in faces.PEOPLE:
        facts.append(("glasses", {}, "Yes." if scene.glasses else "No."))
    parts = {"extras": NO_EXTRAS, **seen_parts(scene)}
    told = [(part, {}, capitalized(words) + ".") for part, words in parts.items()]
    return [*facts, *_color_facts(scene), *told]


def _color_facts(scene: Scene) -> list[Fact]:
    """Colours of hat, clothes, or of an animal, robot or smiley itself, in styles that show colours."""
    if scene.style not in FILLED_STYLES:
        return []
    colors = {scene.hat: scene.hat_color} if scene.hat != "none" else {}
    own = scene.subject in faces.PEOPLE
    colors |= {"clothes": scene.clothes} if own else {scene.subject: scene.skin}
    return [_color_fact(part, color) for part, color in colors.items()]


def _color_fact(part: str, color: str) -> Fact:
    be, have = ("are", "have") if part == "clothes" else ("is", "has")
    return "colour", {"part": part, "is": be, "has": have}, f"The {part} {be} {color}."


def _thing_facts(scene: Scene, rng: np.random.Generator) -> list[Fact]:
    """One thing that is there and one that is not, so that yes and no are balanced."""
    here = present_things(scene)
    known = (*setting.PLAIN_THINGS, *setting.SIGNIFIERS)
    absent = [thing for thing in known if not any(thing in name for name in here)]  # a broken cup is a cup
    facts = [("thing", {"thing": with_article(_pick(here, rng))}, "Yes.")] if here else []
    if here or rng.random() < _EMPTY_ASKED:
        facts.append(("thing", {"thing": with_article(_pick(absent, rng))}, "No."))
    return facts


def _feels(scene: Scene, rng: np.random.Generator) -> str:
    neutral = scene.emotion == NEUTRAL
    if not scene.has_face:
        return f"The mood is {NO_FEELING if neutral else _pick(NOUNS[scene.emotion], rng)}."
    return f"The {scene.subject} feels {NO_FEELING if neutral else _pick(ADJECTIVES[scene.emotion], rng)}."


# --- for a tokenizer -----------------------------------------------------------------------------------------------


def vocabulary_sentences(scenes: int = 1000) -> Iterator[str]:
    """Texts that hold every word the world can say, to train a tokenizer on.

    All events, the grammar with its choices filled in, and what is told, asked and answered of `scenes` random scenes.
    Deterministic.
    """
    for split in SPLITS:
        yield from neutral_events(split)
        yield from (event for emotion in BASIC for event in loaded_events(emotion, split))
    yield from _grammar()
    rng = np.random.default_rng(0)
    for _ in range(scenes):
        yield from _texts(rng)


def _texts(rng: np.random.Generator) -> Iterator[str]:
    things = tuple(str(t) for t in rng.choice([*setting.PLAIN_THINGS, *setting.SIGNIFIERS], 2))
    emotion, weather = _pick((*BASIC, NEUTRAL), rng), _pick(setting.WEATHERS, rng)
    scene = sample_scene(rng, emotion, rng.random(), things=things, weather=weather)
    event = _pick(neutral_events("train"), rng)
    yield from (story_prompt(event), story(scene, event, rng))
    yield from (text for _, question, answer in questions(scene, rng) for text in (question, answer))


def _grammar() -> Iterator[str]:
    """Every template with its choices filled in (named slots drop out), and every name a scene can hold."""
    lists = [SHAPES, NEUTRAL_SHAPES, CLOSINGS, _NEARBY, _HAT, _THOUGHT, _GENERAL, _NO_CUE, _WHERE.values(), CUES]
    for table in (_SCENERY, _WEATHER, _MOOD_CUES, CUES, _PLACES, _SKIES, _MOOD_SIGHTS, ADJECTIVES, NOUNS, ASKED):
        lists += table.values()
    lists += [_STYLE_HEADS.values(), WHERE.values(), WEATHER.values(), STYLE.values(), COUNTS, MOOD_FEELING]
    lists += [KNOWN_NOUNS.values(), (NO_EXTRAS, NO_FEELING), setting.PLAIN_THINGS, setting.SIGNIFIERS, faces.HATS]
    lists += [faces.SUBJECTS, faces.UNSEEN_SUBJECTS, faces.HAIRCUTS, faces.HAIR, faces.CLOTHES, faces.FUR, faces.PAINT]
    for template in (template for texts in lists for template in texts):
        yield from (capitalized(text) for text in filled(re.sub(r" ?\{[a-z]+\}", "", template)) if text)
