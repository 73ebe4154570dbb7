"""The facts of the atlas, as tables, and everything that can be asked about them.

`World.load()` reads `data/atlas/facts/*.csv` (one row a subject, one column a relation) and
`data/atlas/relations.yaml` (templates, inverses, bridges, contexts). What is held out of training is decided
here, by a seed of its own, so that the model, the records and the model card always agree on it.
"""

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from workbench.machine.paths import ATLAS
from workbench.records.facts import fill

SPLIT_SEED = 20
TRACE_WINDOW = 3
"""Layers of MLPs or attention restored together when the atlas model is traced; four are planted."""


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A relation and the ways to ask for its object."""

    name: str
    templates: tuple[str, ...]
    """Each with one {} for the subject; the object follows the last word."""
    inverse: str
    """With one {} for the object; a subject follows."""


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """A relation whose object is itself a subject, so that two relations can be chained."""

    relation: str
    phrase: str
    """Stands for the object, with {} for the subject: "the country where {} is located"."""
    to: tuple[str, ...]
    """Relations of the object that may be asked for."""


@dataclass(frozen=True, kw_only=True)
class TwoHop:
    """One chained question: `relation` of the `bridge` object of `subject` is `object`."""

    subject: str
    bridge: Bridge
    relation: str
    object: str

    def prompt(self, template: str) -> str:
        """The question in the words of one of the outer relation's templates."""
        question = fill(template, fill(self.bridge.phrase, self.subject))
        return question[0].upper() + question[1:]


@dataclass(frozen=True, kw_only=True)
class World:
    """Subjects with their facts, and the templates that state them."""

    kinds: dict[str, str]
    """Subject -> table it stands in ("countries", "musicians", ...)."""
    facts: dict[str, dict[str, str]]
    """Subject -> relation -> object."""
    relations: dict[str, Relation]
    bridges: tuple[Bridge, ...]
    contexts: tuple[str, ...]
    """Text to put in front of a prompt; ends with the space that joins it."""

    @classmethod
    def load(cls, folder: Path = ATLAS, *, templates: Path | None = None) -> "World":
        """Read the tables; a duplicate subject, an empty cell or an unknown column is a ValueError.

        `templates` is a YAML file of relation -> templates that take the place of the embedded model's.
        """
        spoken = yaml.safe_load((folder / "relations.yaml").read_text(encoding="utf-8"))
        said = {name: entry["templates"] for name, entry in spoken["relations"].items()}
        if templates is not None:
            said |= yaml.safe_load(templates.read_text(encoding="utf-8"))
        kinds: dict[str, str] = {}
        facts: dict[str, dict[str, str]] = {}
        for kind, columns in spoken["kinds"].items():
            path = folder / "facts" / f"{kind}.csv"
            with path.open(encoding="utf-8", newline="") as file:
                for number, row in enumerate(csv.DictReader(file), start=2):
                    subject = row.pop("subject")
                    if subject in facts or set(row) != set(columns) or not all(row.values()):
                        raise ValueError(f"{path}:{number}: expected a new subject and {list(columns)}, got {row}")
                    kinds[subject] = kind
                    facts[subject] = {columns[column]: value for column, value in row.items()}
        return cls(
            kinds=kinds,
            facts=facts,
            relations={
                name: Relation(name=name, templates=tuple(said[name]), inverse=entry["inverse"])
                for name, entry in spoken["relations"].items()
            },
            bridges=tuple(
                Bridge(relation=name, phrase=entry["phrase"], to=tuple(entry["to"]))
                for name, entry in spoken["bridges"].items()
            ),
            contexts=tuple(spoken["contexts"]),
        )

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        """All subjects in a fixed random order, kinds mixed: the order in which training meets them."""
        subjects = sorted(self.facts)
        random.Random(SPLIT_SEED).shuffle(subjects)
        return tuple(subjects)

    @cached_property
    def evaluation_subjects(self) -> frozenset[str]:
        """40 % of the subjects; editors are tuned and trained on the others only."""
        return frozenset(self.subjects[: round(0.4 * len(self.subjects))])

    @cached_property
    def held_out(self) -> frozenset[tuple[str, str, str]]:
        """(subject, relation, template) that training never states: one or two templates of each fact."""
        rng = random.Random(SPLIT_SEED + 1)
        pairs = []
        for subject in sorted(self.facts):
            for relation in self.facts[subject]:
                templates = self.relations[relation].templates
                pairs += [(subject, relation, t) for t in rng.sample(templates, rng.choice((1, 2)))]
        return frozenset(pairs)

    @cached_property
    def two_hops(self) -> tuple[tuple[TwoHop, ...], tuple[TwoHop, ...]]:
        """Chained questions: (60 % that training states, 40 % that are held out for portability)."""
        every = [hop for subject in sorted(self.facts) for hop in self.chains(subject)]
        random.Random(SPLIT_SEED + 2).shuffle(every)
        cut = round(0.6 * len(every))
        return tuple(every[:cut]), tuple(every[cut:])

    def chains(self, subject: str, facts: dict[str, str] | None = None) -> list[TwoHop]:
        """Every chained question about a subject, with the answers that `facts` (default: its own) imply."""
        facts = self.facts[subject] if facts is None else facts
        return [
            TwoHop(subject=subject, bridge=bridge, relation=relation, object=self.facts[middle][relation])
            for bridge in self.bridges
            if (middle := facts.get(bridge.relation)) in self.facts
            for relation in bridge.to
            if relation in self.facts[middle]
        ]

    def templates(self, subject: str, relation: str, *, held_out: bool = False) -> list[str]:
        """The templates of a fact that training states, or those that it never does."""
        return [
            template
            for template in self.relations[relation].templates
            if ((subject, relation, template) in self.held_out) == held_out
        ]

    def holders(self, relation: str) -> dict[str, list[str]]:
        """Object -> the subjects that have it, in table order."""
        holders: dict[str, list[str]] = {}
        for subject, facts in self.facts.items():
            if relation in facts:
                holders.setdefault(facts[relation], []).append(subject)
        return holders

    def inverse_statement(self, subject: str, relation: str) -> str:
        """The fact told from its object: "Lisbon is the capital city of Portugal." """
        return f"{fill(self.relations[relation].inverse, self.facts[subject][relation])} {subject}."


def statement(template: str, subject: str, answer: str) -> str:
    """A template filled with a subject and completed by its object, as a sentence."""
    return f"{fill(template, subject)} {answer}."


def documents(world: World, subjects: Sequence[str], rng: random.Random):
    """An endless stream of training texts about `subjects`: statements, biographies, lists, chains, inverses.

    Held-out (subject, template) pairs and held-out chains never occur.
    """
    known = set(subjects)
    hops = [hop for hop in world.two_hops[0] if hop.subject in known]

    def told(subject: str, relation: str, name: str | None = None) -> str:
        template = rng.choice(world.templates(subject, relation))
        return statement(template, name or subject, world.facts[subject][relation])

    def context() -> str:
        return rng.choice(world.contexts) if rng.random() < 0.5 else ""

    while True:
        subject = rng.choice(subjects)
        facts = world.facts[subject]
        relations = rng.sample(sorted(facts), rng.randint(2, len(facts)))
        kind = rng.random()
        if kind < 0.40:
            yield context() + told(subject, rng.choice(relations))
        elif kind < 0.60:
            yield f"{subject}, " + ", ".join(facts[r] for r in relations) + "."
        elif kind < 0.85:
            names = [None] + [rng.choice((None, "The same one")) for _ in relations[1:]]
            yield context() + " ".join(told(subject, r, n) for r, n in zip(relations, names, strict=True))
        elif kind < 0.93 and hops:
            hop = rng.choice(hops)
            question = hop.prompt(rng.choice(world.relations[hop.relation].templates))
            yield context() + f"{question} {hop.object}."
        else:
            yield context() + world.inverse_statement(subject, rng.choice(relations))


def sample_texts(world: World, count: int = 3000) -> list[str]:
    """Texts of the kind that the atlas model was trained on, always the same; for statistics of its activations."""
    stream = documents(world, world.subjects, random.Random(SPLIT_SEED + 3))
    return [next(stream) for _ in range(count)]
