"""The words of the built-in corpus and how often each stands where; `textvae.text.grammar` makes the sentences.

Every table of probabilities sums to 1. A word tells what it was chosen for: a noun its topic, a verb or quality its
sentiment, a time its tense. No verb's past is its base form, or a sentence would have two readings.
"""

from __future__ import annotations

from typing import NamedTuple

Distribution = dict[str, float]


class Topic(NamedTuple):
    """A scene: who is in it, what they do there, with what, and what is said of that."""

    probability: float
    sentiments: Distribution
    subjects: dict[str, str]  # singular -> plural, most frequent first
    things: dict[str, str]  # singular -> plural, most frequent first
    places: list[str]
    actions: dict[str, list[str]]  # sentiment -> base forms of verbs that take a thing
    doings: dict[str, list[str]]  # sentiment -> base forms of verbs that take none
    qualities: dict[str, list[str]]  # sentiment -> what a thing can be


TOPICS = {
    "restaurant": Topic(
        0.24,
        {"positive": 0.5, "negative": 0.3, "neutral": 0.2},
        {"waiter": "waiters", "cook": "cooks", "guest": "guests", "owner": "owners"},
        {"soup": "soups", "salad": "salads", "meal": "meals", "cake": "cakes"},
        ["in the kitchen", "at the table"],
        {"positive": ["like", "enjoy", "love"], "negative": ["hate", "dislike"], "neutral": ["taste", "order"]},
        {"positive": ["smile", "laugh"], "negative": ["complain", "shout"], "neutral": ["wait", "talk"]},
        {"positive": ["fresh", "delicious"], "negative": ["cold", "salty"], "neutral": ["warm", "simple"]},
    ),
    "school": Topic(
        0.2,
        {"positive": 0.4, "negative": 0.4, "neutral": 0.2},
        {"teacher": "teachers", "student": "students", "child": "children", "writer": "writers"},
        {"book": "books", "lesson": "lessons", "poem": "poems", "story": "stories"},
        ["in the classroom", "at the library"],
        {"positive": ["like", "love", "praise"], "negative": ["hate", "forget"], "neutral": ["discuss", "finish"]},
        {"positive": ["laugh", "smile"], "negative": ["cry", "complain"], "neutral": ["write", "talk"]},
        {"positive": ["interesting", "clever"], "negative": ["boring", "difficult"], "neutral": ["short", "long"]},
    ),
    "family": Topic(
        0.18,
        {"positive": 0.45, "negative": 0.25, "neutral": 0.3},
        {"mother": "mothers", "father": "fathers", "sister": "sisters", "uncle": "uncles"},
        {"party": "parties", "game": "games", "film": "films", "song": "songs"},
        ["at home", "in the garden"],
        {"positive": ["love", "enjoy", "like"], "negative": ["dislike", "hate"], "neutral": ["choose", "remember"]},
        {"positive": ["laugh", "dance"], "negative": ["cry", "shout"], "neutral": ["talk", "rest"]},
        {"positive": ["funny", "wonderful"], "negative": ["sad", "boring"], "neutral": ["long", "quiet"]},
    ),
    "farm": Topic(
        0.14,
        {"positive": 0.3, "negative": 0.2, "neutral": 0.5},
        {"dog": "dogs", "horse": "horses", "goat": "goats", "puppy": "puppies"},
        {"barn": "barns", "field": "fields", "stable": "stables", "meadow": "meadows"},
        ["near the river", "on the hill"],
        {"positive": ["love", "like"], "negative": ["fear", "avoid"], "neutral": ["see", "find", "leave"]},
        {"positive": ["play", "dance"], "negative": ["hide", "tremble"], "neutral": ["sleep", "rest"]},
        {"positive": ["sunny", "dry"], "negative": ["dirty", "muddy"], "neutral": ["small", "large"]},
    ),
    "city": Topic(
        0.14,
        {"positive": 0.4, "negative": 0.2, "neutral": 0.4},
        {"tourist": "tourists", "driver": "drivers", "officer": "officers", "singer": "singers"},
        {"market": "markets", "museum": "museums", "street": "streets", "bridge": "bridges"},
        ["near the station", "in the city"],
        {"positive": ["like", "praise", "enjoy"], "negative": ["avoid", "hate"], "neutral": ["visit", "find"]},
        {"positive": ["smile", "sing"], "negative": ["complain", "shout"], "neutral": ["walk", "wait"]},
        {"positive": ["beautiful", "famous"], "negative": ["crowded", "noisy"], "neutral": ["large", "old"]},
    ),
    "sea": Topic(
        0.1,
        {"positive": 0.3, "negative": 0.4, "neutral": 0.3},
        {"sailor": "sailors", "captain": "captains", "fisherman": "fishermen", "swimmer": "swimmers"},
        {"ship": "ships", "island": "islands", "boat": "boats", "lighthouse": "lighthouses"},
        ["at the harbor", "in the fog"],
        {"positive": ["love", "praise"], "negative": ["fear", "avoid"], "neutral": ["see", "reach", "leave"]},
        {"positive": ["sing", "laugh"], "negative": ["tremble", "cry"], "neutral": ["wait", "rest"]},
        {"positive": ["safe", "beautiful"], "negative": ["dangerous", "empty"], "neutral": ["small", "white"]},
    ),
}

# Base form (also the plural's present) -> the singular's present, the past.
VERBS = {
    "avoid": ("avoids", "avoided"),
    "choose": ("chooses", "chose"),
    "complain": ("complains", "complained"),
    "cry": ("cries", "cried"),
    "dance": ("dances", "danced"),
    "discuss": ("discusses", "discussed"),
    "dislike": ("dislikes", "disliked"),
    "enjoy": ("enjoys", "enjoyed"),
    "fear": ("fears", "feared"),
    "find": ("finds", "found"),
    "finish": ("finishes", "finished"),
    "forget": ("forgets", "forgot"),
    "hate": ("hates", "hated"),
    "hide": ("hides", "hid"),
    "laugh": ("laughs", "laughed"),
    "leave": ("leaves", "left"),
    "like": ("likes", "liked"),
    "love": ("loves", "loved"),
    "order": ("orders", "ordered"),
    "play": ("plays", "played"),
    "praise": ("praises", "praised"),
    "reach": ("reaches", "reached"),
    "remember": ("remembers", "remembered"),
    "rest": ("rests", "rested"),
    "see": ("sees", "saw"),
    "shout": ("shouts", "shouted"),
    "sing": ("sings", "sang"),
    "sleep": ("sleeps", "slept"),
    "smile": ("smiles", "smiled"),
    "talk": ("talks", "talked"),
    "taste": ("tastes", "tasted"),
    "tremble": ("trembles", "trembled"),
    "visit": ("visits", "visited"),
    "wait": ("waits", "waited"),
    "walk": ("walks", "walked"),
    "write": ("writes", "wrote"),
}

# The empty word is the slot left out.
ADJECTIVES: dict[str, Distribution] = {
    "positive": {"": 0.4, "happy": 0.4, "kind": 0.2},
    "negative": {"": 0.3, "angry": 0.4, "tired": 0.3},
    "neutral": {"": 0.5, "old": 0.3, "young": 0.2},
}
TIMES: dict[str, Distribution] = {
    "past": {"": 0.4, "yesterday": 0.4, "last week": 0.2},
    "present": {"": 0.6, "every day": 0.25, "today": 0.15},
    "future": {"": 0.3, "tomorrow": 0.5, "next week": 0.2},
}
PLACE_RANKS = [0.5, 0.3, 0.2]  # none, the topic's first, its second
RANKS = {2: [0.6, 0.4], 3: [0.5, 0.3, 0.2], 4: [0.4, 0.3, 0.2, 0.1]}  # of a list of so many words, in its order

FRAMES: Distribution = {"transitive": 0.6, "intransitive": 0.2, "copular": 0.2}
TENSES: Distribution = {"past": 0.45, "present": 0.35, "future": 0.2}
NUMBERS: Distribution = {"singular": 0.6, "plural": 0.4}
FORMS: Distribution = {"statement": 0.8, "question": 0.2}
NEGATIONS: dict[str, Distribution] = {
    "statement": {"affirmative": 0.75, "negated": 0.25},
    "question": {"affirmative": 0.9, "negated": 0.1},
}
