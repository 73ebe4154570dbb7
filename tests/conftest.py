"""Shapes and types are checked at run time; tiny random checkpoints of five model families lie on disk."""

import jaxtyping

jaxtyping.install_import_hook("workbench", "beartype.beartype")

from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers  # noqa: E402

import workbench.stages  # noqa: E402
from workbench.datasets import write_counterfact  # noqa: E402
from workbench.facts import EditRequest, Probe, Record  # noqa: E402
from workbench.models import Model, load_model  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = ("gpt2", "gptj", "gpt_neox", "llama", "qwen2")
TEXTS = (
    "The capital of France is Paris.",
    "The Eiffel Tower stands in Paris, and the Colosseum stands in Rome.",
    "In Iceland, most people speak Icelandic; in Japan, most people speak Japanese.",
    "Steve Jobs founded Apple, which was founded in California.",
    "東京は日本の首都です。 القاهرة عاصمة مصر.",
)


def make_tokenizer(folder: Path, *, bos: bool) -> None:
    """A byte-level BPE of 340 tokens; with `bos` it puts <s> in front and </s> behind, as some Llamas do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def make_config(family: str) -> transformers.PretrainedConfig:
    """3 layers x 32, 4 heads; d_mlp differs between families."""
    shared = {"vocab_size": 340, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    old = {"n_layer": 3, "n_embd": 32, "n_head": 4, "n_positions": 48, "initializer_range": 0.2, **shared}
    new = {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "max_position_embeddings": 48,
        "initializer_range": 0.2,
        **shared,
    }
    match family:
        case "gpt2":
            return transformers.GPT2Config(n_inner=96, **old)
        case "gptj":
            return transformers.GPTJConfig(n_inner=80, rotary_dim=4, **old)
        case "gpt_neox":
            return transformers.GPTNeoXConfig(intermediate_size=72, **new)
        case "llama":
            return transformers.LlamaConfig(intermediate_size=56, num_key_value_heads=2, **new)
        case "qwen2":
            tied = {"num_key_value_heads": 2, "tie_word_embeddings": True}
            return transformers.Qwen2Config(intermediate_size=64, **tied, **new)
    raise ValueError(family)


@torch.no_grad()
def randomise(hf: torch.nn.Module) -> None:
    """Biases and norms too, so that a forgotten one is seen."""
    for parameter in hf.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))


def load_hf(folder: Path) -> Any:
    """A checkpoint without TransformerLens."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of a tiny random checkpoint of each family; only Llama's tokenizer adds BOS and EOS."""
    folders = {}
    transformers.utils.logging.disable_progress_bar()
    for seed, family in enumerate(FAMILIES):
        folders[family] = tmp_path_factory.mktemp(family)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hf = transformers.AutoModelForCausalLM.from_config(make_config(family))
            randomise(hf)
        hf.save_pretrained(folders[family])
        make_tokenizer(folders[family], bos=family == "llama")
    return folders


@pytest.fixture(scope="session", params=FAMILIES)
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
    return load_model(str(GOLDEN / "tiny-gpt2"), device="cpu")


# A small study of the golden model ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three records in CounterFact's schema about countries that the tiny model knows."""
    capitals = (("Portugal", "Lisbon", "Moscow"), ("Japan", "Tokyo", "Rome"), ("Egypt", "Cairo", "Athens"))
    path = tmp_path_factory.mktemp("records") / "records.json"
    write_counterfact(
        [
            Record(
                case_id=index,
                request=EditRequest(
                    template="The capital of {} is", subject=subject, target_new=new, target_true=true, relation="P36"
                ),
                paraphrase_prompts=(f"In the book, {subject}'s capital city is",),
                neighborhood_prompts=("The capital of France is",),
                generation_prompts=(f"People in {subject} speak",),
                reversion_prompts=(Probe(prompt=f"{new} is the capital of", targets_new=(subject,)),),
            )
            for index, (subject, true, new) in enumerate(capitals)
        ],
        path,
    )
    return path


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text(
        "".join((GOLDEN / "tiny-gpt2" / "corpus.txt").read_text(encoding="utf-8").splitlines(keepends=True)[:300])
    )
    return path


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Second moments of the tests stay out of the user's cache, and are computed once."""
    monkeypatch.setattr(workbench.stages, "CACHE", tmp_path_factory.getbasetemp() / "cache")
