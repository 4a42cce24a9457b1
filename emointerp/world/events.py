"""Events: what happened to the one in the picture, in a sentence of the first person and without a word of feeling.

A *neutral* event fits any emotion, so the picture alone decides. A *loaded* event (a funeral, a scratched car) goes
with one emotion in training, and is where the model's hallucinations come from. Sentences are written in a notation of
their own: `{a|b}` stands for a choice, and a template is all of its choices filled in.
"""

import itertools
import re
from functools import cache

from emointerp.emotions import BASIC
from emointerp.errors import InputError

SPLITS = ("train", "direction", "selection", "tuning", "test")
MAX_LENGTH = 2000  # characters of an event that a user may give
MIN_WORDS = 6

# split -> kernel sentences; no kernel stands in two splits
NEUTRAL_TEMPLATES: dict[str, tuple[str, ...]] = {
    "train": (
        "The {phone|doorbell|alarm clock} rang {twice|once|for a minute} while I was {cooking|reading|at work}.",
        "My {mom|dad|brother|sister} said that we will be away for {a few|two|ten} days.",
        "I {opened|read|looked at} the {letter|parcel|message} from my {aunt|teacher|neighbor} after lunch.",
        "My {uncle|cousin|boss} called me on a {Sunday|Tuesday} {morning|evening}.",
        "I saw my {neighbor|teacher|doctor} at the {bakery|library|station} on my way home.",
        "We took the {bus|train|ferry} to the {other side of town|old harbor|next village}.",
        "I heard {a knock|a voice|steps} at the door while I was {at my desk|on the sofa|in the kitchen}.",
        "My {brother|cousin|roommate} moved the {table|bed|piano} to {my room|the hall} this morning.",
        "I looked into the {drawer|box|bag} that I keep under my {bed|desk|stairs}.",
        "The {teacher|coach|doctor} called my name and {waved me over|asked me to come in|pointed at me}.",
        "I turned around on the {stairs|bridge|path} and looked {back|up|down} for a moment.",
        "My {grandmother|aunt|sister} put a {bowl of soup|plate of fish|glass of juice} in front of me.",
        "I {came home|got back|woke up} at {six|nine|ten} and the {lights|lamps} were on.",
        "The {mail carrier|porter|clerk} left {a note|a card|an envelope} for me at the {desk|door}.",
        "I watched the {film|match|show} with my {cousins|classmates|parents} until the end.",
        "My {phone|tablet|computer} showed me a {picture|video} from {last year|ten years ago}.",
        "I tried the {new dish|green tea|cheese} that my {brother|neighbor|grandfather} made.",
        "We will move to {another city|a smaller flat|the coast} and my {parents|sisters} are packing.",
        "I {sat|stood|waited} at the back of the room when the {speech|lesson|meeting} began.",
        "The {train|bus|tram} stopped {between two stations|at a bridge|for an hour} and I looked out.",
        "I {picked up|held|turned over} the {stone|shell|coin} that I found on the path.",
        "My {class|team|group} got the {results|list|answer} and I read {it all|the last line} twice.",
        "I {counted|checked|sorted} the {coins|papers|keys} in my {pocket|bag} before I left.",
        "The {baker|driver|waiter} looked at me and said my {name|number} out loud.",
        "My {dog|cat} came into the kitchen and put something {at my feet|on my shoes}.",
        "I {pushed|pulled|opened} the {gate|window|curtain} and the {garden|street|yard} lay before me.",
        "I got a {call|text|card} from {someone I met|a man I knew|a woman I met} in {spring|school}.",
        "My {father|mother|son|daughter} drove me to the {harbor|airport|market} before noon.",
        "There was {a coat|a suitcase|a paper bag} on my chair when I came {in|back}.",
        "I walked past the {school|house|shop} where I {used to live|worked|spent my summers}.",
        "My {sister|friend} cut my hair {in the kitchen|on the porch} and I looked in the mirror.",
        "We {sat down|met|talked} at the table and I told my {parents|sisters|friends} the news.",
        "I {signed|folded|printed} the {form|contract|ticket} and put it on my desk.",
        "I pulled back the {curtain|sheet|blanket} and saw what {was there|lay under it}.",
        "I {smelled|noticed|saw} the {smoke of a grill|bread in the oven|paint on the wall} from my window.",
        "My {name|photo|seat number} was on the {board|screen|door} when I {arrived|looked up}.",
        "I {carried|brought|took} the {basket|jar|bucket} up from the cellar for my {aunt|uncle}.",
        "We {waited|stood} in line for {an hour|a long time} and then it was my turn.",
        "I {heard|learned|read} that my {cousin|old teacher|neighbor} is coming {on Friday|tonight}.",
        "The {nurse|guard|coach} gave me {a form|a key|a small bag} and closed the door.",
        "I {typed|wrote|spelled} my name and the {screen|page} {turned white|changed|moved on}.",
        "My {bicycle|car|boat} stood in {the sun|the yard|the shade} when I came out.",
        "I {found|kept|wore} the {ring|scarf|watch} that belonged to my {grandfather|grandmother}.",
        "The {music|engine|rain} stopped and I {could hear my watch|looked at my sister|put down my cup}.",
        "My {roommate|sister|brother} and I {painted the wall|changed the locks|moved the sofa} last weekend.",
        "I {asked a question|said one word|raised my hand} and the whole {room|class|table} looked at me.",
        "We {drove|walked|rode} through the {tunnel|valley|old town} and I sat by the window.",
        "I {tasted|poured|stirred} the {soup|sauce|tea} that stood on my stove {since noon|all day}.",
        "Someone {sat down|stood|stopped} next to me on the {bench|bus|platform} and {spoke|pointed ahead}.",
        "My {exam|interview|visit} was {moved to Monday|over at noon|on the first floor}, so I {went home|left}.",
        "I {lifted|touched|opened} the {lid of the pot|old trunk|piano} in the house of my {aunt|uncle}.",
        "The {plane|ship|bus} left at {noon|eight} and I was {on board|at the gate}.",
        "My {shoe|button|collar} came off while I was {eating|walking|on the stairs}.",
        "I {dialed|saved|found} the number that my {boss|cousin} wrote on the {napkin|wall}.",
        "We {planted|cut|moved} the {tree|hedge} behind my {house|school} {yesterday|in April}.",
        "I {switched on|carried|turned off} the lamp and looked at the {bed|floor|ceiling}.",
    ),
    "direction": (
        "I {put on|took off|hung up} my {coat|jacket|scarf} and looked at the {clock|mirror}.",
        "My {boss|landlord|coach} asked me to come to the office {at three|after work|on Monday}.",
        "The elevator stopped on the {second|fifth|top} floor and I stepped out.",
        "I {turned|unfolded|put down} the newspaper and looked at the {last|first} page.",
        "My {niece|nephew|godson} gave me a drawing {at the table|on the stairs}.",
        "We crossed the river by {bridge|boat} and I sat {in front|at the back}.",
        "I {met|passed|saw} the new tenant in the hall {this morning|after dinner}.",
        "The {waiter|cook} brought my plate and {lifted the cover|put it before me}.",
        "My suitcase was {the last|the first} one on the belt {at the airport|in the hall}.",
        "I woke up because the {window|radio|dog} {made a sound|was right next to me}.",
    ),
    "selection": (
        "I {watered|counted|moved} the {flowers|pots} on the balcony of my {aunt|flat}.",
        "My {grandfather|uncle} told me {how it began|what was in the attic|about the old map}.",
        "The {gate|shop|pool} was {open|closed} when I got there at {five|seven}.",
        "I {bought|chose|ordered} the {blue|small|second} one from the man at the {market|fair}.",
        "My {laptop|printer} made a {short|long} sound while I was on the phone.",
        "We {changed seats|got off|stopped} halfway and I {held the map|took the wheel}.",
        "I {looked through|closed|turned} the {album|notebook} that my parents keep on the shelf.",
        "A {child|man|woman} in a {red|gray} coat waved at me {from a balcony|across the square}.",
        "My {order|package} came {a day early|on Wednesday} and I opened it {at once|after supper}.",
    ),
    "tuning": (
        "I {washed|dried|stacked} the {plates|glasses} while my {sister|mother} was speaking.",
        "My {neighbor|cousin} knocked {on the wall|at the window} and called me {twice|by my first name}.",
        "The {lesson|concert|flight} {began|ended} an hour {early|late} and I was there.",
        "I {swam|rowed|floated} to the {island|other shore} and looked back at my {tent|towel}.",
        "My {score|turn|number} came up on the {board|screen} after the {second|last} round.",
        "We {lit|put out} the fire and I sat down {on a log|beside my tent}.",
        "I {unlocked|locked|painted} the shed that my {father|grandfather} built.",
        "A {taxi|truck|van} stopped beside me and the {window|door} opened.",
        "My {glove|hat|umbrella} lay on the {counter|bench|step} where I had been.",
    ),
    "test": (
        "I {drank|spilled|made} a cup of coffee while my {brother|boss} was talking to me.",
        "My {grandmother|neighbor} handed me {a folded paper|a small box|an old photo} at the gate.",
        "The {bell|phone} of the {school|church} next door rang while I was {asleep|at lunch}.",
        "I {climbed|went up} the {tower|hill} and saw my {street|village} from above.",
        "My {doctor|dentist} wrote me {a short letter|two lines} about {the next visit|my last visit}.",
        "We {had dinner|ate|stayed} at the house of my {boss|sister} {last night|on Friday}.",
        "I {came around|reached} the corner and saw {a crowd|two men|a bus} in front of my house.",
        "The {clerk|guide} {looked at|stamped|took} my passport and said {one word|nothing}.",
        "My {son|daughter|student} asked me {the same thing|a question} three times {today|in a row}.",
        "I {shook|opened|weighed} the {jar|tin|bag} that came with my {groceries|breakfast}.",
    ),
}

# emotion -> situation -> what happened, as a clause that can follow "Yesterday" or "I wrote down that"
SITUATIONS: dict[str, dict[str, str]] = {
    "joy": {
        "prize won": "I won first prize in the {drawing|cooking} contest",
        "exam passed": "I passed my {driving test|last exam} with the top mark",
        "puppy": "I brought a {playful puppy|small kitten} home as my new pet",
        "birthday": "my friends sang to me over a {birthday cake|cake with candles}",
        "new baby": "I held my {newborn daughter|newborn son} in my arms for the first time",
        "dream job": "I got the {job|place at the school} that I had wanted for years",
        "wedding": "I danced {until dawn|all night} at the wedding of my oldest friend",
        "team wins": "my team won the cup and we {sang|danced} on the field",
        "reunion": "my {brother|sister} came home from abroad and ran into my arms",
        "healthy": "the doctor told me that I am healthy {again|and can go home}",
        "holiday": "my summer holiday began and I ran into the {sea|waves} with my friends",
        "first steps": "my {baby boy|baby girl} took a first step towards me and giggled",
    },
    "sadness": {
        "funeral": "I stood at the {grave|coffin} of my grandmother",
        "pet dies": "my old {dog|cat} died in my arms",
        "friend moves away": "my {only|oldest} friend moved to another country for good",
        "late father": "I packed the {shirts|books} of my dead father into boxes",
        "empty party": "nobody came to my {birthday party|farewell dinner}",
        "last goodbye": "I said my last goodbye to my {grandfather|mother} at the hospital",
        "childhood home": "my parents sold the home that I {grew up in|was born in}",
        "break-up": "my {wife|husband} packed a suitcase and left me for good",
        "empty chair": "I ate dinner beside the empty chair of my {dead husband|dead wife}",
        "old tree": "the tree that I planted with my {late father|late sister} was cut down",
        "last letter": "the rain washed away the last letter from my {dead mother|dead brother}",
        "buried": "we buried my little {rabbit|bird} in the garden",
    },
    "anger": {
        "scratched car": "someone scratched my new car with a {key|nail} on purpose",
        "queue": "a man pushed me aside and {cut the line|took my place in the line}",
        "noise": "my neighbor played {drums|loud music} all night again and would not stop",
        "stolen credit": "my colleague {sold|showed} my work to the boss and kept my name off it",
        "stolen bicycle": "someone stole my bicycle for the {third|fourth} time",
        "mud": "a driver splashed mud on me {on purpose|twice} and drove on",
        "lunch": "my roommate ate my {lunch|cake} again and lied to me about it",
        "tires": "someone slashed {the tires|all four tires} of my car",
        "homework": "my brother tore up my {homework|drawings} on purpose",
        "kicked dog": "a stranger kicked my {dog|cat} for no reason",
        "landlord": "my landlord lied to me and kept all of my {money|deposit}",
        "pay": "my boss cut my pay {for the mistakes of others|and took the bonus}",
    },
    "fear": {
        "footsteps": "I heard footsteps {behind|close behind} me in a dark alley",
        "door at night": "someone tried to {open|break} my door in the middle of the night",
        "wild animal": "a {bear|wolf} with bared teeth came towards me on the forest path",
        "brakes": "the brakes of my car stopped working on a {steep|winding} road",
        "plane": "my plane dropped through the clouds with one {engine|wing} on fire",
        "snake": "a {hissing snake|long snake} slid across the floor towards my bare feet",
        "cliff": "I hung from the edge of a {cliff|roof} by one hand",
        "knife": "a masked man with a {knife|gun} stood in my kitchen",
        "ice": "the ice cracked under my feet {in the middle of|far out on} the lake",
        "fire": "smoke came under the door and I could not open my {window|door}",
        "shark": "a shark swam in circles around my {small boat|legs}",
        "cellar": "the lights went out and something breathed behind me in the {cellar|attic}",
    },
    "surprise": {
        "visitor": "a visitor from {Australia|another continent} stood at my door out of nowhere",
        "parcel": "a parcel as big as a car was in my {hall|yard} out of nowhere",
        "old letter": "a letter that I wrote as a child {came back in the mail|fell out of a library book}",
        "secret door": "I found a secret door behind my {wardrobe|bookcase}",
        "parrot": "a {parrot|monkey} jumped on my shoulder in the middle of the city",
        "rabbit": "I opened my {lunch box|desk drawer} and a rabbit jumped out",
        "double": "a woman on the bus had {exactly my face|my face and my name}",
        "front page": "my own face was on the front page of the {newspaper|magazine}",
        "snow": "it began to snow on me in the middle of {July|August}",
        "party": "the lights came on and all my friends jumped out from behind my {sofa|curtains}",
        "coins": "a bundle of gold coins fell out of my old {piano|clock}",
        "talking cat": "my {cat|goldfish} looked up and said my name",
    },
    "disgust": {
        "wormy apple": "I found worms in {the apple that I was eating|my half eaten apple}",
        "moldy bread": "I bit into a sandwich and there was green mold {on|under} the cheese",
        "rat": "a dead {rat|mouse} floated in my soup",
        "dog dirt": "I stepped {barefoot|with my bare foot} into warm dog poop",
        "sour milk": "lumpy sour milk ran {down my throat|out of the carton into my mouth}",
        "vomit": "a man on the bus vomited on my {shoes|lap}",
        "drain": "I pulled a clump of slimy hair out of my {drain|sink}",
        "cockroach": "a cockroach crawled out of my {sandwich|salad}",
        "rotten fish": "the trash bag burst and rotten {fish|meat} slid over my feet",
        "bandage": "I found a used bandage {in my pizza|under the cheese of my pizza}",
        "toilet": "the toilet overflowed onto my {bare feet|socks}",
        "maggots": "maggots crawled over the {meat|rice} on my plate",
    },
}

# split -> when, or how it was told; no frame stands in two splits
FRAMES: dict[str, tuple[str, ...]] = {
    "train": (
        "This morning {clause}.",
        "Yesterday {clause}.",
        "Last week {clause}.",
        "On Monday {clause}.",
        "I told my sister that {clause}.",
        "I wrote in my diary that {clause}.",
        "In my first week in this town {clause}.",
        "{clause}, and it was not even noon.",
    ),
    "direction": (
        "Two days ago {clause}.",
        "Last Tuesday {clause}.",
        "I told my uncle that {clause}.",
        "{clause}, just as the church bell rang.",
    ),
    "selection": (
        "Last month {clause}.",
        "On Thursday {clause}.",
        "I told my teacher that {clause}.",
        "During my trip to the north {clause}.",
    ),
    "tuning": (
        "The other day {clause}.",
        "On Saturday {clause}.",
        "I called my cousin and said that {clause}.",
        "{clause}, and the clock showed half past two.",
    ),
    "test": (
        "A few hours ago {clause}.",
        "On Sunday {clause}.",
        "I told my aunt that {clause}.",
        "At the end of my journey {clause}.",
    ),
}

_OTHERS = "you your yours yourself yourselves he him his himself she her hers herself they them their theirs themselves"
_SECOND_THIRD = frozenset(_OTHERS.split())
_FIRST = frozenset("i me my mine myself we us our ours ourselves".split())
# words that no wheel lists, though they tell how an event went
_VERDICTS = frozenset("finally unfortunately luckily fortunately thankfully great disaster success failure".split())


def filled(template: str) -> tuple[str, ...]:
    """All sentences that a template stands for, in order.

    >>> filled("I {saw|met} my {aunt|uncle}.")
    ('I saw my aunt.', 'I saw my uncle.', 'I met my aunt.', 'I met my uncle.')
    """
    parts = re.split(r"\{([^{}]*)\}", template)  # every second part is a choice
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return tuple("".join(words) for words in itertools.product(*choices))


def capitalized(text: str) -> str:
    """The text with its first letter as a capital, the rest as it was."""
    return text[:1].upper() + text[1:]


@cache
def neutral_events(split: str) -> tuple[str, ...]:
    """Affect-free events of a split that fit any emotion.

    >>> neutral_events("train")[0]
    'The phone rang twice while I was cooking.'
    """
    _check(split, SPLITS, "split")
    return tuple(event for template in NEUTRAL_TEMPLATES[split] for event in filled(template))


@cache
def loaded_events(emotion: str, split: str) -> tuple[str, ...]:
    """Events that suggest one basic emotion without naming it: every situation in each of the split's frames.

    >>> loaded_events("anger", "test")[0]
    'A few hours ago someone scratched my new car with a key on purpose.'
    """
    _check(emotion, BASIC, "emotion")
    _check(split, SPLITS, "split")
    clauses = (clause for template in SITUATIONS[emotion].values() for clause in filled(template))
    return tuple(capitalized(frame.format(clause=clause)) for clause, frame in itertools.product(clauses, FRAMES[split]))


def problems(event: str) -> list[str]:
    """What keeps a sentence from being a proper event, each in words; an empty list for a proper one.

    >>> problems("The phone rang twice while I was cooking.")
    []
    >>> problems("She saw me.")
    ['it has 3 words: write at least 6', 'it speaks of others or to a reader (she): write in the first person']
    """
    if not event.strip():
        return ["it is empty: write what happened, in a sentence such as 'The phone rang twice while I was cooking.'"]
    if len(event) > MAX_LENGTH:
        return [f"it has {len(event):,} characters: write at most {MAX_LENGTH:,}"]
    words = re.findall(r"\w+(?:['’]\w+)?", event.lower())
    return [*_length_problem(words), *_person_problems(words), *_affect_problems(event, words)]


def _length_problem(words: list[str]) -> list[str]:
    return [] if len(words) >= MIN_WORDS else [f"it has {len(words)} words: write at least {MIN_WORDS}"]


def _person_problems(words: list[str]) -> list[str]:
    stems = [re.split("['’]", word)[0] for word in words]  # "I'm" and "she's" count by their pronoun
    others = list(dict.fromkeys(stem for stem in stems if stem in _SECOND_THIRD))
    found = [f"it speaks of others or to a reader ({', '.join(others)}): write in the first person"] if others else []
    return found if _FIRST.intersection(stems) else [*found, "it has no first person (I, me or my)"]


def _affect_problems(event: str, words: list[str]) -> list[str]:
    from emointerp.emotions import extract  # here, so that listing events needs no lexicon

    found = [*extract(event), *extract(". ".join(words))]  # each word by itself too: "not happy" tells a feeling
    named = list(dict.fromkeys([*(hit.text.lower() for hit in found), *(w for w in words if w in _VERDICTS)]))
    return [f"it tells the feeling ({', '.join(named)}): leave these words out"] if named else []


def _check(value: str, known: tuple[str, ...], what: str) -> None:
    if value not in known:
        raise InputError(f"unknown {what} {value!r}: expected one of {', '.join(known)}")
