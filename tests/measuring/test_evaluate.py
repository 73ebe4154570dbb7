"""One record's scores are the published code's before and after its edit, and what is generated agrees with them."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from known_scores import scored
from safetensors.torch import load_file
from torch import Tensor

from workbench.editors.ike import IKE
from workbench.edits.edit import Edit
from workbench.edits.weights import WeightEdit, WeightUpdate
from workbench.measuring.evaluate import evaluate, score_state, score_states
from workbench.measuring.metrics import kl_divergence
from workbench.measuring.sampled_texts import sample_texts
from workbench.measuring.scores import KINDS, Evaluation, RecordScores
from workbench.models.generation import generate
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.models.sampler import Sampler
from workbench.models.scoring import score_targets
from workbench.records.facts import EditRequest, Probe, Record

NAN = math.nan

RECORD = Record(
    case_id=7,
    request=EditRequest(
        template="In {}, most people speak", subject="Argentina", target_new="Polish", target_true="Spanish"
    ),
    paraphrase_prompts=("The language spoken in Argentina is", "People in Argentina speak"),
    neighborhood_prompts=(
        "In Spain, most people speak",
        "The language spoken in Spain is",
        "People in Spain speak",
    ),
    generation_prompts=("The capital of Argentina is", "People in Argentina speak"),
    portability_prompts=(
        Probe(prompt="The capital of Argentina is", targets_new=("Warsaw",), targets_true=("Buenos Aires",)),
    ),
    reversion_prompts=(Probe(prompt="The official language of Poland is", targets_new=("Spanish", "Polish")),),
)


def test_an_edit_that_is_applied_is_not_evaluated(tiny_gpt2: Model, published_edit: Edit) -> None:
    """It would be applied twice, and what is called before would be after."""
    with (
        published_edit.applied(tiny_gpt2),
        pytest.raises(ValueError, match=r"is applied to .* already: evaluate it outs"),
    ):
        evaluate(tiny_gpt2, published_edit, RECORD, fluency_tokens=None)


@pytest.fixture(scope="module")
def published_edit() -> WeightEdit:
    """The published code's ROME edit for RECORD's request, in layer 2."""
    tensors = load_file(GOLDEN / "rome.safetensors")
    left, right = tensors["rome.2.left"].reshape(-1, 1), tensors["rome.2.right"].reshape(1, -1)
    update = WeightUpdate(layer=2, left=left, right=right)
    return WeightEdit(updates=(update,), method="rome", requests=(RECORD.request,), provenance={})


@pytest.fixture(scope="module")
def evaluation(tiny_gpt2: Model, published_edit: Edit) -> Evaluation:
    return evaluate(tiny_gpt2, published_edit, RECORD, fluency_tokens=24)


def test_probabilities_are_those_of_the_published_code(tiny_gpt2: Model) -> None:
    golden = json.loads((GOLDEN / "memit.json").read_text())
    for request, (new, true) in zip(golden["requests"], golden["mean_nll_pre_[new,true]"], strict=True):
        record = Record(
            case_id=request["case_id"],
            request=EditRequest(
                template=request["prompt"],
                subject=request["subject"],
                target_new=request["target_new"]["str"],
                target_true=request["target_true"]["str"],
            ),
        )
        (scores,) = score_state(tiny_gpt2, record, generate=False, fluency_tokens=None).prompts["rewrite"]
        assert scores.p_new == pytest.approx(math.exp(-new), rel=1e-4)
        assert scores.p_true == pytest.approx(math.exp(-true), rel=1e-4)


def test_an_edit_gives_the_probabilities_of_the_published_code(tiny_gpt2: Model, published_edit: Edit) -> None:
    golden = json.loads((GOLDEN / "rome.json").read_text())["rome"][2]
    pairs = [(RECORD.request.prompt, target) for target in ("Polish", "Spanish")]

    def first_tokens() -> list[float]:
        return [score.log_probs[0].exp().item() for score in score_targets(tiny_gpt2, pairs)]

    assert first_tokens() == pytest.approx([golden["p_new_pre"], golden["p_true_pre"]], rel=1e-3)
    with published_edit.applied(tiny_gpt2):
        assert first_tokens() == pytest.approx([golden["p_new_post"], golden["p_true_post"]], rel=1e-3)


def test_an_edit_shows_in_the_scores_and_is_gone_afterwards(
    tiny_gpt2: Model, published_edit: Edit, evaluation: Evaluation
) -> None:
    (pre,), (post,) = evaluation.pre.prompts["rewrite"], evaluation.post.prompts["rewrite"]
    assert pre.p_true > 0.9 > pre.p_new
    assert post.p_new > post.p_true
    assert post.p_new > pre.p_new
    assert evaluation.case_id == 7
    assert evaluation.kl > 0
    assert evaluation.relative_norms == published_edit.norms(tiny_gpt2)
    assert evaluation.seconds > 0
    fresh = score_state(tiny_gpt2, RECORD, fluency_tokens=24)
    assert fresh.to_dict() == evaluation.pre.to_dict()
    assert tiny_gpt2.edits == []


def test_metrics_of_an_evaluation(evaluation: Evaluation) -> None:
    pre, post = evaluation.metrics()
    assert pre["ES"] == 0
    assert post["ES"] == 1
    assert pre["generated.rewrite.true"] == 1  # the model knows the fact
    assert pre["generated.rewrite.new"] == 0
    assert pre["generated.neighborhood.true"] == 1
    assert pre["generated.portability.true"] == 1
    assert math.isnan(pre["generated.reversion.true"])  # the probe does not say
    assert pre["NS"] == 1
    rewrite = evaluation.post.prompts["rewrite"][0]
    assert post["EM"] == pytest.approx(rewrite.p_new - rewrite.p_true)
    paraphrases = evaluation.post.prompts["paraphrase"]
    assert post["PM"] == pytest.approx(np.mean([one.p_new - one.p_true for one in paraphrases]))
    neighbors = evaluation.post.prompts["neighborhood"]
    assert post["NM"] == pytest.approx(np.mean([one.p_true - one.p_new for one in neighbors]))
    assert post["kl"] == evaluation.kl
    assert post["relative_norm.2"] == evaluation.relative_norms[2]
    assert post["generated.portability.new_if_known"] == post["generated.portability.new"]
    assert "kl" not in pre


def test_generations_agree_with_the_model(tiny_gpt2: Model, evaluation: Evaluation) -> None:
    for kind in KINDS:
        for scores in evaluation.pre.prompts[kind]:
            assert (
                scores.generated
                == generate(tiny_gpt2, [scores.prompt], max_new_tokens=_new_tokens(tiny_gpt2, evaluation.pre))[0]
            )
            # A target that is the top choice token by token is what greedy generation gives.
            for answer in ("new", "true"):
                if scores.correct(answer, "top1") == 1:
                    assert scores.correct(answer, "generated") == 1


def _new_tokens(model: Model, scores: RecordScores) -> int:
    pairs = [
        (one.prompt, target)
        for kind in KINDS
        for one in scores.prompts[kind]
        for target in one.targets_new + one.targets_true
    ]
    return 2 + max(len(log_probs) for log_probs in scored(model, *map(list, zip(*pairs, strict=True))))


def test_kl_is_that_of_the_next_token_on_neighborhood_prompts(
    tiny_gpt2: Model, published_edit: Edit, evaluation: Evaluation
) -> None:
    def next_log_probs() -> Tensor:
        rows = [tiny_gpt2.logits(tiny_gpt2.tokenize([prompt]))[0, -1] for prompt in RECORD.neighborhood_prompts]
        return torch.stack(rows).log_softmax(dim=-1)

    before = next_log_probs()
    with published_edit.applied(tiny_gpt2):
        after = next_log_probs()
    assert evaluation.kl == pytest.approx(kl_divergence(before, after).mean().item(), rel=1e-3)


def test_no_edit_is_the_model_as_it_is(tiny_gpt2: Model) -> None:
    evaluation = evaluate(tiny_gpt2, None, RECORD, fluency_tokens=None)
    assert evaluation.post.to_dict() == evaluation.pre.to_dict()
    assert evaluation.kl == 0
    assert evaluation.relative_norms == {}


@pytest.mark.slow
def test_scores_before_can_be_used_for_several_edits(
    tiny_gpt2: Model, published_edit: Edit, evaluation: Evaluation
) -> None:
    pre = score_state(tiny_gpt2, RECORD, fluency_tokens=24)
    again = evaluate(tiny_gpt2, published_edit, RECORD, pre=pre, fluency_tokens=24)
    assert again.to_dict() | {"seconds": 0} == evaluation.to_dict() | {"seconds": 0}
    stored = RecordScores.from_dict(pre.to_dict())
    with pytest.raises(ValueError, match="fresh score_state"):
        evaluate(tiny_gpt2, published_edit, RECORD, pre=stored, fluency_tokens=24)


@pytest.mark.slow
def test_sampling_depends_on_seed_and_record_alone(tiny_gpt2: Model) -> None:
    def texts(seed: int, case_id: int) -> tuple[str, ...]:
        record = Record(case_id=case_id, request=RECORD.request, generation_prompts=RECORD.generation_prompts)
        return score_state(tiny_gpt2, record, fluency_tokens=30, seed=seed, generate=False).texts

    first = texts(0, 7)
    assert first == texts(0, 7)
    assert first != texts(1, 7)
    assert first != texts(0, 8)
    assert all(text.startswith(prompt) for text, prompt in zip(first, RECORD.generation_prompts, strict=True))


def test_fluency_is_cut_at_the_context_and_needs_room(tiny_gpt2: Model) -> None:
    record = Record(case_id=0, request=RECORD.request, generation_prompts=RECORD.generation_prompts)
    (text, _) = score_state(tiny_gpt2, record, generate=False, fluency_tokens=10_000).texts
    assert len(text) > len(RECORD.generation_prompts[0])
    with pytest.raises(ValueError, match="raise fluency_tokens or shorten the prompts"):
        score_state(tiny_gpt2, record, generate=False, fluency_tokens=3)


def test_sampled_texts_go_on_past_the_end_of_a_text(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As published: with what is cut, fluency would be the length of the texts."""
    shutil.copytree(checkpoints["gpt2"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(1, 1000))}))
    model, length = load_model(str(tmp_path), device="cpu"), 24
    drawn: list[int] = []
    monkeypatch.setattr(Sampler, "__call__", spied(Sampler.__call__, drawn))
    (texts,) = sample_texts(model, [RECORD], length)
    longest = max(len(row.ids) for row in model.encode(RECORD.generation_prompts))
    assert len(drawn) == length - longest
    assert generate(model, RECORD.generation_prompts, max_new_tokens=4) == [""] * len(texts)


def spied(sample: Callable[..., torch.Tensor], drawn: list[int]) -> Callable[..., torch.Tensor]:
    def one(self: Sampler, logits: torch.Tensor) -> torch.Tensor:
        drawn.append(len(logits))
        return sample(self, logits)

    return one


def test_texts_that_an_edit_leaves_no_room_for_are_not_sampled(tiny_gpt2: Model) -> None:
    """Shorter ones have a lower entropy whatever they say."""
    edit = IKE(records=(), demonstrations=0, question="Q: {} A:")(tiny_gpt2, [RECORD.request])
    found = evaluate(tiny_gpt2, edit, RECORD, fluency_tokens=10_000)
    assert found.pre.texts and not found.post.texts
    assert math.isnan(found.metrics()[1]["fluency"])
    assert evaluate(tiny_gpt2, edit, RECORD, fluency_tokens=16).post.texts


def test_a_prompt_near_the_context_does_not_shorten_the_others(tiny_gpt2: Model) -> None:
    long = "In Spain, " * 11 + "most people speak"
    room = tiny_gpt2.n_ctx - tiny_gpt2.tokenize([long]).ids.shape[1]
    target = "Spanish, and in Argentina, most people speak Spanish"
    assert 1 < room < tiny_gpt2.tokenize([target]).ids.shape[1]
    request = EditRequest(template="In {}, most people speak", subject="Chile", target_new=target)
    probe = Probe(prompt=long, targets_new=("Spanish",))
    record = Record(case_id=0, request=request, portability_prompts=(probe,))
    scores = score_state(tiny_gpt2, record, fluency_tokens=None)
    short, near = scores.prompts["rewrite"][0].generated, scores.prompts["portability"][0].generated
    assert short is not None and near is not None
    assert tiny_gpt2.tokenize([short]).ids.shape[1] > room


def test_what_a_record_lacks_is_nan(tiny_gpt2: Model, published_edit: Edit) -> None:
    request = EditRequest(template="The capital of {} is", subject="Portugal", target_new="Moscow")
    bare = evaluate(tiny_gpt2, published_edit, Record(case_id=0, request=request))
    _, values = bare.metrics()
    for metric in ("ES", "EM", "PS", "NS", "fluency", "kl", "generated.paraphrase.new", "top1.rewrite.true"):
        assert math.isnan(values[metric]), metric
    assert values["top1.rewrite.new"] in (0.0, 1.0)
    assert Evaluation.from_dict(json.loads(json.dumps(bare.to_dict(), allow_nan=False))).to_dict() == bare.to_dict()


def test_evaluations_go_through_json(evaluation: Evaluation) -> None:
    line = json.dumps(evaluation.to_dict(), allow_nan=False)
    read = Evaluation.from_dict(json.loads(line))
    assert read.to_dict() == evaluation.to_dict()  # as dicts, in which NaN is None
    assert read.metrics()[1] == pytest.approx(evaluation.metrics()[1], nan_ok=True)
    assert Evaluation.from_dict(json.loads(line) | {"editor": "rome"}).to_dict() == read.to_dict()


def test_records_scored_together_have_the_scores_that_they_have_alone(tiny_gpt2: Model) -> None:
    """Also the sampled texts: each record draws from a generator of its own, however long the others' texts are."""
    shorter = replace(RECORD, case_id=8, generation_prompts=("Poland",), paraphrase_prompts=())
    bare = replace(RECORD, case_id=9, generation_prompts=(), portability_prompts=(), reversion_prompts=())
    long = replace(RECORD, case_id=10, request=replace(RECORD.request, target_new="Polish and a little German"))
    records = [RECORD, shorter, bare, long]
    together = score_states(tiny_gpt2, records, fluency_tokens=16)
    for record, found in zip(records, together, strict=True):
        alone = score_state(tiny_gpt2, record, fluency_tokens=16)
        assert found.texts == alone.texts
        for kind in KINDS:
            for one, other in zip(found.prompts[kind], alone.prompts[kind], strict=True):
                assert one.generated == other.generated and (one.top_new, one.top_true) == (
                    other.top_new,
                    other.top_true,
                )
                assert [one.p_new, one.p_true] == pytest.approx([other.p_new, other.p_true], rel=1e-4, nan_ok=True)
    assert together[0].texts != score_state(tiny_gpt2, replace(RECORD, case_id=11), fluency_tokens=16).texts
    assert len(together[3].prompts["rewrite"][0].generated or "") > len(
        together[0].prompts["rewrite"][0].generated or ""
    )
