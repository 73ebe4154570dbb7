"""Shapes and types are checked at run time; tiny random checkpoints of five model families lie on disk."""

import gc

gc.disable()  # until everything is imported

import heavy  # noqa: E402, F401
import jaxtyping  # noqa: E402

jaxtyping.install_import_hook("workbench", "beartype.beartype")

import functools  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
import transformers  # noqa: E402
from command import TINY, Analyse, make_analyse  # noqa: E402
from known_records import CAPITALS, capital  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from workbench.editors.registry import ADDED  # noqa: E402
from workbench.machine import paths  # noqa: E402
from workbench.models import loading  # noqa: E402
from workbench.models.loading import load_model  # noqa: E402
from workbench.models.model import Model  # noqa: E402
from workbench.records.counterfact import write_counterfact  # noqa: E402
from workbench.records.facts import Probe  # noqa: E402
from workbench.records.reading import READERS  # noqa: E402
from workbench.studies.tiny_models import make_checkpoint  # noqa: E402

GOLDEN = TINY.parent
FAMILIES = ("gpt2", "gptj", "gpt_neox", "llama", "qwen2")
QUICK = ("gpt2", "llama")
"""One with a plain MLP and one with a gated one; the others are among the slow tests."""
PLAIN = ("bloom", "mpt", "opt_350m", "stablelm_12b")
"""Those whose blocks cannot be run part by part: linear biases in place of positions, norms behind sums or by head."""
loaded_once = functools.lru_cache(maxsize=4)(load_model)
"""Commands leave a model as they find it, and check that they do."""


def pytest_collection_finish() -> None:
    """What is imported stays: a million objects that are not looked through for garbage again and again."""
    gc.freeze()
    gc.enable()


def load_hf(folder: Path) -> Any:
    """A checkpoint without TransformerLens."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


class _Checkpoints(dict[str, Path]):
    """Folder of a tiny random checkpoint of each family of `tiny_models`, made when first asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def __missing__(self, family: str) -> Path:
        self[family] = self.root / family
        make_checkpoint(family, self[family], seed=FAMILIES.index(family) if family in FAMILIES else 0)
        return self[family]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of a tiny random checkpoint of each family; only Llama's tokenizer adds BOS and EOS."""
    transformers.utils.logging.disable_progress_bar()
    return _Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES],
)
def family(request: pytest.FixtureRequest) -> str:
    """Each family in turn."""
    return request.param


@pytest.fixture(scope="session")
def family_model(family: str, checkpoints: dict[str, Path]) -> Model:
    """The family's tiny model; tests that write weights restore them."""
    return load_model(str(checkpoints[family]), device="cpu")


@pytest.fixture(scope="session")
def family_hf(family: str, checkpoints: dict[str, Path]) -> Any:
    """The same checkpoint as Hugging Face loads it, with eager attention."""
    return load_hf(checkpoints[family])


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Prompts of different lengths, one of them in Japanese."""
    return [
        "In Rome",
        "The Eiffel Tower stands in Paris, and the",
        "東京は日本の",
        "Steve Jobs founded Apple",
    ]


@pytest.fixture(scope="session")
def tiny_gpt2() -> Model:
    """The trained GPT-2 of the golden numbers (6 layers x 64); tests that write weights restore them."""
    return load_model(str(TINY), device="cpu")


@pytest.fixture
def analyse(cache: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Analyse:
    """Runs a script of `analyses/` with arguments, see `Said`."""
    return make_analyse(monkeypatch, capsys)


@pytest.fixture
def quick_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets of the golden model whose edits take no time."""
    shared = {"steps": 3, "weight_decay": 0.01, "loss_layer": None}
    options = {
        "ft": {"around": [0], "steps": 2},
        "rome": {"layer": None, **shared},
        "memit": {"around": [-1, 0], "moment_weight": 1.0, **shared},
    }
    (tmp_path / "presets").mkdir()
    for method, fields in options.items():
        entry = {"fields": fields, "context_lengths": [[3, 2]]}
        published = {"fields": {**fields, "layer": 17} if method == "rome" else {**fields, "layers": [13, 17]}}
        published["fields"].pop("around", None)
        content = {"tiny-gpt2": entry, "gpt2-xl": published | {"context_lengths": [[3, 2]]}}
        (tmp_path / "presets" / f"{method}.json").write_text(json.dumps(content))
    monkeypatch.setattr("workbench.editors.setup.presets.PRESETS", tmp_path / "presets")


@pytest.fixture(autouse=True)
def nothing_added(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plugins that a test adds are gone after it."""
    for added in (ADDED, READERS):
        monkeypatch.setattr(added, "_of_files", {})
    yield
    for name in [name for name in sys.modules if name.startswith("workbench_plugin_")]:
        del sys.modules[name]


# A small study of the golden model ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three records in CounterFact's schema about countries that the tiny model knows."""
    path = tmp_path_factory.mktemp("records") / "records.json"
    some = [
        capital(
            index,
            subject,
            true,
            new,
            relation="P36",
            paraphrase_prompts=(f"In the book, {subject}'s capital city is",),
            neighborhood_prompts=("The capital of France is",),
            generation_prompts=(f"People in {subject} speak",),
            reversion_prompts=(Probe(prompt=f"{new} is the capital of", targets_new=(subject,)),),
        )
        for index, (subject, true, new) in enumerate(CAPITALS)
    ]
    write_counterfact(some, path)
    return path


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("".join((TINY / "corpus.txt").read_text(encoding="utf-8").splitlines(keepends=True)[:300]))
    return path


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Second moments of the tests stay out of the user's cache; they are computed once, and a model is loaded once."""
    monkeypatch.setattr(paths, "CACHE", tmp_path_factory.getbasetemp() / "cache")
    monkeypatch.setattr(loading, "load_model", loaded_once)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not drawn, which takes most of a small study's time: a run keeps blank pictures, and of heat
    maps one."""
    monkeypatch.setattr("workbench.studies.located.HEAT_MAPS", 1)
    blank = b"\x89PNG\r\n\x1a\n"
    monkeypatch.setattr(Figure, "savefig", lambda _, buffer, **options: buffer.write(blank))
