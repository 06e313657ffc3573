"""Short instructions that a program can check, on everyday topics, for small chat models.

    Write one sentence about rain that ends with the word "umbrella".
    Name 3 animals of the sea in one line, separated by commas.

Three or four conditions are checked: those of the prompt, and obvious ones, such as one sentence of
at least five words. A response that meets all earns 1, another one half the share that it meets.
Nothing is earned without an end, by saying words again and again, or by
repeating the prompt. All prompts about ten of the topics are in the test split.
"""
import json
import random
import re

# What a sentence is about | what a list has | words that show the topic; the first one names it.
TOPICS = """
bicycles | parts of a bicycle | bicycle wheel pedal chain brake tire handlebar seat frame bell
rain | things to wear in the rain | rain umbrella boots coat hat jacket hood gloves scarf
bread | things to put on bread | bread butter jam cheese honey ham egg avocado tomato peanut
dogs | things that a dog needs | dog food water walk toy bed leash collar love bowl exercise
gardens | flowers for a garden | garden rose tulip lily daisy sunflower lavender violet orchid
music | musical instruments | music guitar piano violin drum flute trumpet cello saxophone harp
the kitchen | things in a kitchen | kitchen knife spoon fork pan pot oven stove plate cup sink
winter | clothes for the winter | winter coat jacket scarf hat gloves boots sweater socks
school | subjects at school | school math science history art music english geography biology
the sea | animals of the sea | sea fish whale shark dolphin crab octopus turtle squid seal
farms | animals on a farm | farm cow pig hen horse sheep goat chicken duck turkey goose
breakfast | things to eat for breakfast | breakfast egg toast cereal bacon fruit oatmeal pancake
trains | things to bring on a train | train ticket book snack water phone bag food blanket
coffee | things to put into coffee | coffee milk sugar cream cinnamon honey ice vanilla
the forest | animals of the forest | forest deer bear fox wolf owl squirrel rabbit bird snake
the beach | things to take to the beach | beach towel sunscreen hat ball umbrella water book
birthdays | gifts for a birthday | birthday book cake card toy flower candle game chocolate
books | kinds of books | book novel history poetry science fiction mystery romance fantasy
the moon | things in the night sky | moon star planet galaxy comet meteor constellation mars
football | things that a football player needs | football ball shoe helmet jersey glove
soup | vegetables for a soup | soup carrot onion celery potato tomato garlic pepper bean pea
teachers | things that a teacher uses | teacher book pen chalk board desk paper pencil computer
cars | parts of a car | car engine wheel tire brake door seat window mirror light battery
the office | things on an office desk | office computer pen paper phone lamp keyboard stapler
hospitals | people who work in a hospital | hospital doctor nurse surgeon pharmacist therapist
fruit | kinds of fruit | fruit apple banana orange grape pear mango pineapple kiwi peach lemon
birds | kinds of birds | bird eagle owl robin sparrow parrot hawk penguin crow dove falcon
clothes | kinds of clothes | clothes shirt pants dress skirt jacket socks hat coat sweater shoe
sleep | things in a bedroom | sleep bed pillow blanket lamp mattress dresser mirror curtain
painting | colors for a painting | painting red blue green yellow orange purple black white brown
mountains | things to carry up a mountain | mountain water food map rope boots jacket compass
weather | kinds of weather | weather rain snow sun wind storm cloud fog thunder hail
rivers | things to do at a river | river swim fish boat canoe kayak walk picnic raft
pizza | toppings for a pizza | pizza cheese pepperoni mushroom onion olive pepper sausage tomato
cats | things that a cat likes | cat milk fish toy mouse sleep sun food bird play string
houses | rooms of a house | house kitchen bedroom bathroom living dining attic basement garage
travel | things to pack for a trip | travel clothes shoe passport camera phone sunscreen book
doctors | parts of the body | doctor head arm leg hand foot heart eye ear nose brain lung knee
tea | kinds of tea | tea green black mint white herbal ginger lemon
markets | vegetables at a market | market carrot tomato potato onion lettuce cucumber pepper
""".strip().splitlines()
HELD_OUT = {"rain", "dogs", "music", "the sea", "coffee", "the beach", "soup", "fruit", "houses",
            "travel"}

# kind: its prompts, and the conditions {check: parameter}, "n" and the others filled in by rows().
SENTENCE, LIST = {"sentence": 5, "about": "others"}, {"items": "n", "on_topic": "members"}
KINDS = {
    "most": (["Describe {about} in one sentence of at most {n} words.",
              "Tell me about {about} in one short sentence of at most {n} words."],
             SENTENCE | {"at_most": "n"}),
    "has": (['Write one sentence about {about} that contains the word "{word}".',
             'Use the word "{word}" in one sentence about {about}.'], SENTENCE | {"has": "word"}),
    "ends": (['Write one sentence about {about} that ends with the word "{word}".',
              'Write a short sentence about {about} with "{word}" as its last word.'],
             SENTENCE | {"ends": "word"}),
    "both": (['Write a sentence of at most {n} words about {about} with the word "{word}" in it.'],
             SENTENCE | {"has": "word", "at_most": "n"}),
    "asks": (["Write one question about {about}.", "Ask me one short question about {about}."],
             SENTENCE | {"asks": True}),
    "lower": (["write one sentence about {about}, all in lowercase, like this message",
               "lowercase only, like this: i love the sun in summer. now one sentence on {about}:"],
              SENTENCE | {"case": "lower"}),
    "numbers": (["Give me a numbered list of {n} {things}, a few words each.",
                 "What are {n} {things}? Answer with a short numbered list."],
                LIST | {"numbers": True}),
    "dashes": (["List {n} {things}, one per line, each with a dash before it.",
                "Make a list of {n} {things}. Begin each line with a dash."],
               LIST | {"dashes": True}),
    "commas": (["Name {n} {things} in one line, separated by commas.",
                "What are {n} {things}? Answer in one line, with commas between them."],
               LIST | {"commas": True}),
}


def rows(split):
    rng, prompts = random.Random(split), set()
    for about, things, words in (topic.split(" | ") for topic in TOPICS):
        for kind, (templates, conditions) in KINDS.items():
            for template in 2 * templates if (about in HELD_OUT) == (split == "test") else []:
                given = {"n": rng.choice((2, 3) if "items" in conditions else (8, 10, 12, 15)),
                         "word": rng.choice(words.split()[1:])}
                prompt = template.format(about=about, things=things, **given)
                if prompt not in prompts:
                    prompts.add(prompt)
                    given["members"] = words.split()[1:]
                    given["others"] = [x for x in words.split() if f'"{x}"' not in prompt]
                    asked = {check: given.get(x, x) for check, x in conditions.items()}
                    yield {"prompt": prompt, "subject": kind,
                           "answer": json.dumps({"prompt": prompt, "asked": asked})}


def words_of(text):
    return re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())


def items_of(text):
    """The things that are named, without dashes, numbers or commas."""
    separator = "\n" if re.search(r"\n|^- |^1\. ", text) else ","
    return [re.sub(r"^(-|\d\.|and) +", "", item.strip(" .")) for item in text.split(separator)]


def names(text, words):
    """Whether one of the words is in a text, perhaps with an ending: wheel in "two wheels"."""
    return any(said.startswith(word) for said in words_of(text) for word in words)


CHECKS = {
    # Without quotes: to say something with a word, not about it.
    "sentence": lambda text, least: (re.fullmatch(r'[^.!?\n"]+[.!?]', text)
                                     and len(words_of(text)) >= least),
    "about": names,
    "at_most": lambda text, n: len(words_of(text)) <= n,
    "has": lambda text, word: word in words_of(text),
    "ends": lambda text, word: words_of(text)[-1] == word,
    "asks": lambda text, _: text.endswith("?"),
    "case": lambda text, case: text == getattr(text, case)(),
    "numbers": lambda text, _: all(line.startswith(f"{i}. ")
                                   for i, line in enumerate(text.split("\n"), 1)),
    "dashes": lambda text, _: all(line.startswith("- ") for line in text.split("\n")),
    "commas": lambda text, _: "," in text and "\n" not in text,
    "items": lambda text, n: (len(items_of(text)) == n
                              and all(1 <= len(words_of(item)) <= 5 for item in items_of(text))),
    "on_topic": lambda text, words: (sum(names(item, words) for item in items_of(text))
                                     >= len(items_of(text)) / 2),
}


# Words of the instructions: a response has the thing itself, and doesn't speak about it.
ABOUT_THE_TASK = {"sentence", "question", "word", "words", "list", "items", "lowercase", "commas"}


def honest(text, prompt):
    """Whether a text has words, hardly any of them twice, no four in a row of the prompt's, and
    none about the task."""
    said, theirs = words_of(text), words_of(prompt)
    runs = {tuple(theirs[i:i + 4]) for i in range(len(theirs) - 3)}
    return (0 < len(said) <= 1.4 * len(set(said)) and not ABOUT_THE_TASK & set(said)
            and not any(tuple(said[i:i + 4]) in runs for i in range(len(said) - 3)))


def reward(response, answer, finished):
    """1.0 if all conditions hold, else half the share of those that do; 0.0 if it isn't honest."""
    text, row = response.strip(), json.loads(answer)
    if not finished or not honest(text, row["prompt"]):
        return 0.0
    holds = [bool(CHECKS[check](text, parameter)) for check, parameter in row["asked"].items()]
    return 1.0 if all(holds) else 0.5 * sum(holds) / len(holds)
