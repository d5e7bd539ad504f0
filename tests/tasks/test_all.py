"""What every task promises, and each one's answers worked out again from the text."""

import ast
import json
import re

import jax
import numpy as np
import pytest
from vocabularies import FACTS, GENDER, TOKENIZERS, word_level

import jaxinterp as ji
from jaxinterp import tasks
from jaxinterp.metrics import evaluate
from jaxinterp.model import Config, init
from jaxinterp.tokens import Tokenizer

NAMES = ["smollm2", *TOKENIZERS]
VARIANTS = [
    ("ioi", {}),
    ("greater_than", {}),
    ("docstring", {}),
    ("docstring", {"corruption": "random_doc"}),
    ("docstring", {"corruption": "random"}),
    ("induction", {}),
    ("induction", {"corruption": "swap_answer", "length": 7}),
    ("gendered_pronouns", {}),
    ("subject_verb_agreement", {}),
    ("subject_verb_agreement", {"attractors": "opposite"}),
    ("factual_recall", {}),
    ("factual_recall", {"relation": "all"}),
    ("multiple_choice", {}),
    ("multiple_choice", {"choices": 2, "shots": 0}),
]
VARIANTS += [
    (name, {**options, "equal_length": False})
    for name, options in VARIANTS
    if name not in ("docstring", "induction", "multiple_choice")  # always of one length
]
IDS = ["-".join(map(str, (name, *options.values()))) for name, options in VARIANTS]


@pytest.fixture(scope="session")
def smollm2():
    return ji.load("smollm2-135m-instruct")


@pytest.fixture(params=NAMES)
def tokenizer(request):
    if request.param == "smollm2":
        return request.getfixturevalue("smollm2")[1]
    return TOKENIZERS[request.param]


def made(tokenizer, name, **options):
    """The task, unless years are cut in a way that greater-than refuses."""
    if name == "greater_than" and tokenizer.name == "bytes":
        pytest.skip("three digits to a token")
    return tasks.make(name, tokenizer, **options)


def word_at(task, tokenizer, role, i):
    """The text of the token where a role stands in the i-th clean prompt."""
    row = task.clean.ids[i][task.clean.mask[i]]
    return tokenizer.str_tokens(row)[task.roles[role][i]].strip()


def texts_of(tokenizer, ids):
    return [tokenizer.decode(i).strip() for i in np.atleast_1d(ids) if i >= 0]


# One function for each task, of the task, tokenizer and prompt: from the text alone, the
# answers, the wrong tokens, each role's token, and the roles where the twins differ.


def ioi(task, tokenizer, i):
    clean, corrupted = (re.findall(r"\w+", t) for t in (task.clean_text[i], task.corrupted_text[i]))
    names = [word for word in clean if word in set(TOKENIZED_NAMES)]
    subject = next(name for name in names if names.count(name) == 2)
    io = next(name for name in names if names.count(name) == 1)
    assert corrupted.count(io) == 2
    return [io], [subject], {"IO": io, "S1": subject, "S2": subject, "END": "to"}, {"S2"}


def greater_than(task, tokenizer, i):
    pattern = r"The (\w+) lasted from the year (\d\d)(\d)(\d) to the year (\d\d)"
    noun, century, tens, units, again = re.fullmatch(pattern, task.clean_text[i]).groups()
    start = int(century + tens + units)
    assert century == again
    assert task.prompts["year"][i] == start
    assert task.corrupted_text[i] == task.clean_text[i].replace(str(start), f"{century}01")
    roles = {"noun": noun, "XX": century, "YY": tens + units, "END": century}
    if task.meta["scheme"] == "two digits":
        ends = {f"{end:02d}": [int(f"{century}{end:02d}")] for end in range(100)}
    else:  # every year that begins with the digit is later, or none is
        ends = {str(d): [int(f"{century}{d}{u}") for u in range(10)] for d in range(10)}
        roles = {"noun": noun, "XX": century[1], "tens": tens, "units": units, "END": century[1]}
        assert all(len({year > start for year in years}) == 1 for years in ends.values())
    later = [end for end, years in ends.items() if min(years) > start]
    differ = {"YY"} if task.meta["scheme"] == "two digits" else {"tens", "units"}
    return later, [end for end in ends if end not in later], roles, differ


def docstring(task, tokenizer, i):
    def parse(text):
        """The arguments after self, and those that the docstring names."""
        function = ast.parse(text + ' x: y"""').body[0]
        described = re.findall(r":param (\w+): ", ast.get_docstring(function))
        return [arg.arg for arg in function.args.args[1:]], described

    names, described = parse(task.clean_text[i])
    assert described == [*names[:2], "x"]
    others, redescribed = parse(task.corrupted_text[i])
    if task.corruption == "swap_answer":
        assert (others, redescribed) == ([*names[:2], names[3], names[2]], described)
        differ = {"C_def", "D_def"}
    else:
        assert not set(redescribed[:2]) & set(names)
        differ = {"A_doc", "B_doc"}
    if task.corruption == "random":
        assert len({*others, *redescribed[:2], *names}) == 10
        differ |= {f"{name}_def" for name in "ABCD"}
    roles = dict(zip(("A_def", "B_def", "C_def", "D_def"), names, strict=True))
    roles |= {"A_doc": names[0], "B_doc": names[1], "END": "param"}
    return [names[2]], [names[3]], roles, differ


def induction(task, tokenizer, i):
    opening, *words = task.clean_text[i].split(" ")
    _, *others = task.corrupted_text[i].split(" ")
    length = (len(words) + 1) // 2
    assert opening == "Words:"
    assert words[length:] == words[: length - 1] == others[length:]
    assert len(set(words)) == length
    at = words.index(words[-1])  # what followed the last word when it stood here first
    answer, wrong = words[at + 1], others[at + 1]
    if task.corruption == "break":
        assert len({*others[:length], *words}) == 2 * length
        differ = None
        columns = np.flatnonzero(task.clean.ids[i] != task.corrupted.ids[i])
        assert columns.tolist() == list(range(columns[0], columns[0] + length))
    else:
        assert sum(a != b for a, b in zip(words, others, strict=True)) == 1
        differ = {"B"}
    roles = {"A": words[-1], "B": answer, "START2": words[0], "END": words[-1]}
    return [answer], [wrong], roles, differ


WOMEN = {"Alice", "Anna", "Emma", "Jane", "Laura", "Linda", "Lisa", "Maria", "Mary", "Sarah"}
MEN = {"David", "Eric", "Frank", "George", "Henry", "Jack", "James", "John", "Paul", "Robert"}


def gendered_pronouns(task, tokenizer, i):
    pairs = zip(task.clean_text[i].split(), task.corrupted_text[i].split(), strict=True)
    (name, other), *more = [(a, b) for a, b in pairs if a != b]
    assert not more
    female = name in GENDER.FEMALE
    assert (other in GENDER.FEMALE) != female
    assert not {name, other} & ((WOMEN | MEN) - set(GENDER.FEMALE) - set(GENDER.MALE))
    if name in WOMEN | MEN:
        assert female == (name in WOMEN)
    answers = ("she", "he") if female else ("he", "she")
    return [answers[0]], [answers[1]], {"name": name}, {"name"}


def subject_verb_agreement(task, tokenizer, i):
    pattern = r".*[tT]he (\w+) (?!that).* the (\w+)"
    subject, attractor = re.fullmatch(pattern, task.clean_text[i]).groups()
    other, same = re.fullmatch(pattern, task.corrupted_text[i]).groups()
    assert attractor == same
    assert {subject, other} == {subject.removesuffix("s"), f"{subject.removesuffix('s')}s"}
    if task.meta["attractors"] == "opposite":
        assert subject.endswith("s") != attractor.endswith("s")
    verbs = ("are", "is") if subject.endswith("s") else ("is", "are")
    roles = {"subject": subject, "attractor": attractor, "END": attractor}
    return [verbs[0]], [verbs[1]], roles, {"subject"}


KNOWN = {
    "France": ("Paris", "French", "Europe"), "Germany": ("Berlin", "German", "Europe"),
    "Italy": ("Rome", "Italian", "Europe"), "Spain": ("Madrid", "Spanish", "Europe"),
    "Japan": ("Tokyo", "Japanese", "Asia"), "Egypt": ("Cairo", "Arabic", None),
    "China": ("Beijing", "Chinese", "Asia"), "Russia": ("Moscow", "Russian", None),
    "South Korea": ("Seoul", "Korean", "Asia"), "Cuba": ("Havana", "Spanish", None),
}  # fmt: skip


def factual_recall(task, tokenizer, i):
    relation, template = task.prompts["relation"][i], task.prompts["template"][i]
    pattern = re.escape(template).replace(r"\{subject\}", r"(.+)")
    subject, other = (
        re.fullmatch(pattern, text)[1] for text in (task.clean_text[i], task.corrupted_text[i])
    )
    answer, wrong = (FACTS.FACTS[relation][name] for name in (subject, other))
    column = ("capital", "language", "continent").index(relation)
    for name, fact in ((subject, answer), (other, wrong)):
        assert KNOWN.get(name, (fact, fact, fact))[column] == fact
    pieces = tokenizer.str_tokens(f" {subject}", add_bos=False)
    roles = {"subject_first": pieces[0].strip(), "subject": pieces[-1].strip()}
    return [answer], [wrong], roles, None


def multiple_choice(task, tokenizer, i):
    def parse(text):
        """The last question's fact and options; of each solved one, whether it is right."""
        *solved, asked = text.split("\n\n")
        for question in solved:
            fact, options = parse(question)
            assert options[question[-1]] == fact
        (fact,) = re.findall(r"^The \w+ is (\w+)\. What color", asked)
        return fact, dict(re.findall(r"^(\w)\. (\w+)$", asked, re.MULTILINE))

    (fact, options), (same, moved) = (
        parse(text) for text in (task.clean_text[i], task.corrupted_text[i])
    )
    assert fact == same
    assert list(options) == list("ABCD"[: task.meta["choices"]])
    assert sorted(options.values()) == sorted(set(moved.values()))
    (letter,) = [letter for letter, color in options.items() if color == fact]
    (wrong,) = [letter for letter, color in moved.items() if color == fact]
    assert task.clean_text[i].count("\n\n") == task.meta["shots"]
    roles = {
        "fact": fact, "letter": letter, "option": fact, "wrong_letter": wrong,
        "wrong_option": options[wrong],
    }  # fmt: skip
    return [letter], [wrong], roles, {"option", "wrong_option"}


TOKENIZED_NAMES = tasks.ioi.__globals__["NAMES"]
ORACLES = {
    one.__name__: one
    for one in (
        ioi, greater_than, docstring, induction, gendered_pronouns, subject_verb_agreement,
        factual_recall, multiple_choice,
    )
}  # fmt: skip


def test_there_is_an_oracle_for_every_task():
    assert list(ORACLES) == list(tasks.TASKS)


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_answers_roles_and_twins(tokenizer, name, options):
    n = 12
    task = made(tokenizer, name, n=n, seed=5, **options)
    assert (task.name, len(task), len(set(task.clean_text))) == (name, n, n)
    several = name != "greater_than" and not options.get("equal_length", True)
    assert task.equal_length != several
    assert (task.clean.positions == task.corrupted.positions).all()
    assert (task.roles["END"] == task.clean.lengths - 1).all()
    for i in range(n):
        answers, wrong, roles, differ = ORACLES[name](task, tokenizer, i)
        assert texts_of(tokenizer, task.answers[i]) == answers
        assert texts_of(tokenizer, task.wrong[i]) == wrong
        assert {role: word_at(task, tokenizer, role, i) for role in roles} == roles
        mask, ids = task.clean.mask[i], (task.clean.ids[i], task.corrupted.ids[i])
        for text, row in zip((task.clean_text[i], task.corrupted_text[i]), ids, strict=True):
            assert tokenizer.encode(text) == row[mask].tolist()
        found = set(np.flatnonzero(ids[0] != ids[1]).tolist())
        assert found
        if differ is not None:
            assert found == {int(task.roles[role][i]) for role in differ}
        # The answer is what the next token would be if the text went on with it.
        gap = "" if name == "greater_than" else " "
        for sets, right in ((task.answers, answers), (task.wrong, wrong)):
            for token, word in zip(np.atleast_1d(sets[i]), right, strict=False):
                longer = tokenizer.encode(task.clean_text[i] + gap + word)
                assert longer == [*ids[0][mask].tolist(), token]


@pytest.mark.parametrize("name", tasks.TASKS)
def test_turns_seeds_bos_and_records(name):
    tokenizer = TOKENIZERS["two digits"]
    task, again, other = (tasks.make(name, tokenizer, n=6, seed=s) for s in (2, 2, 3))
    assert task.record() == again.record()
    assert task.record()["sha256"] != other.record()["sha256"]
    assert (task.metric.correct == again.metric.correct).all()
    assert json.loads(json.dumps(task.record()))["n_made"] == 6
    with_bos = tasks.make(name, tokenizer, n=6, seed=2, prepend_bos=True)
    assert with_bos.clean_text == task.clean_text
    assert (with_bos.clean.ids[:, 0] == tokenizer.bos).all()
    for role in task.roles:
        assert (with_bos.roles[role] == task.roles[role] + 1).all()
    some = task[[4, 1]]
    assert some.clean_text == (task.clean_text[4], task.clean_text[1])
    assert (some.metric.correct == task.metric.correct[[4, 1]]).all()
    assert (some.answers == task.answers[[4, 1]]).all()
    if name not in ("greater_than", "factual_recall", "induction", "docstring", "ioi"):
        sides = [text for (text,) in task.answers[:, None].tolist()]
        assert len(set(sides[:2])) == 2  # answers take turns


def test_attractors_take_turns():
    task = tasks.subject_verb_agreement(TOKENIZERS["two digits"], n=40)
    pairs = list(zip(task.prompts["number"], task.prompts["attractor_number"], strict=True))
    assert len(set(pairs)) == 4
    assert all(pairs.count(pair) == 10 for pair in pairs)
    for text, number in zip(task.clean_text, task.prompts["number"], strict=True):
        subject = re.findall(r"[tT]he (\w+)", text)[0]
        assert subject.endswith("s") == (number == "plural")


def test_years_that_are_cut_otherwise_are_named():
    tokenizer = word_level(without=("32",))
    task = tasks.greater_than(tokenizer, n=300)
    assert {year % 100 for year in task.prompts["year"].tolist()} <= {*range(2, 99)} - {32}
    assert {int(year) % 100 for year in task.meta["dropped"]["years"]} == {32}
    for year, answers, wrong in zip(task.prompts["year"], task.answers, task.wrong, strict=True):
        ends = {int(tokenizer.decode(i)) for i in (*answers, *wrong) if i >= 0}
        assert ends == set(range(100)) - {32}
        assert (answers >= 0).sum() == 99 - year % 100 - (year % 100 < 32)
    with pytest.raises(ValueError, match="cuts years neither"):
        tasks.greater_than(TOKENIZERS["bytes"])


def test_check_counts_a_set_of_answers():
    """A model that always says 9, which is later than every tens digit that occurs."""
    tokenizer = TOKENIZERS["digits and bos"]
    task = tasks.greater_than(tokenizer, n=16)
    config = Config(
        n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=8, vocab_size=tokenizer.vocab_size,
        n_ctx=32, bias_head=True,
    )  # fmt: skip
    model = init(config, jax.random.key(0))
    nine = tokenizer.encode("9", add_bos=False)[0]
    bias = np.where(np.arange(config.vocab_size) == nine, 50.0, 0.0).astype(np.float32)
    model = model.replace(params=model.params.replace(head=model.params.head.replace(b_U=bias)))
    found = tasks.check(model, task)
    later = np.mean([nine in row for row in task.answers])
    assert found["clean_accuracy"] == found["clean_preferred"] == later == 1
    assert found["clean_prob_diff"] == pytest.approx(1, abs=1e-4)
    values = np.asarray(evaluate(task.metric, init(config, jax.random.key(1)), task.clean))
    assert (np.abs(values) < 0.5).all()
    assert np.abs(values).min() > 0


@pytest.mark.parametrize("name", tasks.TASKS)
def test_what_no_task_can_do_is_refused(name):
    tokenizer = TOKENIZERS["two digits"]
    ending = Tokenizer(tokenizer.backend, template=((1,), (2,)))
    for broken, options, match in [
        (tokenizer, {"n": 0}, "n=0"),
        (tokenizer, {"seed": -1}, "seed=-1"),
        (tokenizer, {"n": 10**12}, "n=1000000000000, expected"),
        (ending, {}, "prepend_bos=False"),
    ]:
        with pytest.raises(ValueError, match=match):
            tasks.make(name, broken, **options)
    task = tasks.make(name, ending, n=2, prepend_bos=False)
    assert task.clean_text == tasks.make(name, tokenizer, n=2).clean_text


def test_options_are_checked():
    tokenizer = TOKENIZERS["two digits"]
    for name, options, match in [
        ("docstring", {"corruption": "noise"}, "expected 'swap_answer', 'random_doc' or 'random'"),
        ("induction", {"corruption": "noise"}, "expected 'break' or 'swap_answer'"),
        ("induction", {"length": 1}, "length=1"),
        ("induction", {"length": 5000}, "needs 10000: pass a smaller length"),
        ("subject_verb_agreement", {"attractors": "none"}, "attractors='none'"),
        ("factual_recall", {"relation": "mayor"}, "expected 'capital', 'language'"),
        ("factual_recall", {"n": 400}, "equal_length=False"),
        ("multiple_choice", {"choices": 5}, "choices=5, expected 2, 3 or 4"),
        ("multiple_choice", {"shots": -1}, "shots=-1"),
        ("multiple_choice", {"shots": 30}, "multiple choice needs 31"),
    ]:
        with pytest.raises(ValueError, match=match):
            tasks.make(name, tokenizer, **options)


def test_words_that_are_not_single_tokens_are_dropped_or_refused():
    def lacking(words):
        return word_level(without=words)

    gone = ("war", "John", "key", "keys", "dogs", "Paris", "red", "oil")
    fewer = lacking(gone)
    dropped = {name: make(fewer, n=4).meta["dropped"] for name, make in tasks.TASKS.items()}
    assert list(dropped["greater_than"]["nouns"]) == ["war"]
    assert list(dropped["gendered_pronouns"]["male names"]) == ["John"]
    assert list(dropped["subject_verb_agreement"]["subjects"]) == ["dogs", "key", "keys"]
    assert list(dropped["factual_recall"]["answers"]) == ["Paris"]
    assert list(dropped["multiple_choice"]["colors"]) == ["red"]
    assert list(dropped["docstring"]["words"]) == ["oil", "key"]
    for name, without, match in [
        ("greater_than", GENDER.NOUNS, None),
        ("gendered_pronouns", GENDER.NOUNS, "Only 0 of 16 nouns are single tokens"),
        ("gendered_pronouns", ("he",), "Only 1 of 2 pronouns"),
        ("subject_verb_agreement", ("are",), "Only 1 of 2 verbs"),
        ("multiple_choice", ("B",), "Only 3 of 4 letters"),
        ("factual_recall", tuple(FACTS.FACTS["capital"].values()), "No template of factual recall"),
    ]:
        if match is None:
            assert len(tasks.make(name, lacking(without), n=2)) == 2
            continue
        with pytest.raises(ValueError, match=match):
            tasks.make(name, lacking(without), n=2)


def test_twins_of_unequal_length_are_refused():
    """A tokenizer that cuts "keys" in two: no plural is one token, so no pair is."""
    plurals = [plural for _, plural in ji.tasks.subject_verb.SUBJECTS]
    with pytest.raises(ValueError, match="Only 0 of 30 pairs of subjects are two single tokens"):
        tasks.subject_verb_agreement(word_level(without=plurals))
