"""The join of prompt and answer follows the writing, everywhere: in tables of cases, and through a whole study."""

# ruff: noqa: RUF001

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from conftest import GOLDEN

from workbench.editors.ft import FT
from workbench.editors.search.rows import rows_of
from workbench.editors.search.values import prompt_batch
from workbench.editors.shared.requests import check_requests
from workbench.editors.shared.tuning import tuning_batch
from workbench.measuring.evaluate import evaluate, score_state
from workbench.measuring.metrics import ngram_entropy
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.models.scoring import score_targets
from workbench.records.counterfact import read_counterfact, write_counterfact
from workbench.records.course import read_requests, write_requests
from workbench.records.facts import EditRequest, Fact, Record
from workbench.records.fields import RecordError
from workbench.records.joining import join, whole_word
from workbench.records.reading import read_facts, read_records
from workbench.studies.stacked_edits import untouched
from workbench.tracing.known import answer_token
from workbench.tracing.sweep import TraceSet, trace_facts

DIRECT = (
    ("法国的首都是", "巴黎"),
    ("日本の首都は", "東京"),
    ("スカイツリーは", "タワー"),
    ("เมืองหลวงของฝรั่งเศสคือ", "ปารีส"),
    ("ປະເທດລາວ", "ວຽງຈັນ"),
    ("រាជធានី", "ភ្នំពេញ"),
    ("မြို့တော်", "ရန်ကုန်"),
    ("བོད་", "ལྷ་ས"),
    ("苹果公司的首席执行官是", "Tim Cook"),
    ("制造iPhone", "的公司"),
    ("答案：", "Rome"),
    ("葛\U000e0100", "飾区"),
    ("他说“是”", "的"),
    ("東京（", "Tokyo"),
    ('He said "', "Rome"),
    ("He said “", "Rome"),
    ("Er sagte „", "Rom"),
    ("Es heißt »", "Rom"),
    ("Il dit «", "Rome"),
    ("called '", "Rome"),
    ("La capitale de l'", "Italie"),
    ("The city (", "Rome"),
    ("Jean-", "Paul"),
    ("his/", "her"),
    ("The city", ", Rome"),
    ("The city", "."),
    ("Rome ", "Italy"),
    ("Rome", " Italy"),
    ("Rome", "\nItaly"),
)
SPACED = (
    ("The capital of France is", "Paris"),
    ("The capital of Japan is", "東京"),
    ("프랑스의 수도는", "파리"),
    ("عاصمة مصر هي", "القاهرة"),
    ("राजधानी है", "दिल्ली"),
    ('It\'s called "Rome"', "and"),
    ("„Rom“", "ist"),
    ("»Rom«", "ist"),
    ("the workers'", "party"),
    ("'Rome'", "is"),
    ("Rome -", "Paris"),
    ("Rome (Italy)", "is"),
    ("The answer:", "Rome"),
    ("Microsoft makes", ".NET"),
)


@pytest.mark.parametrize(("prompt", "target"), DIRECT)
def test_writing_that_asks_for_no_space(prompt: str, target: str) -> None:
    assert join(prompt, target) == prompt + target


@pytest.mark.parametrize(("prompt", "target"), SPACED)
def test_writing_that_asks_for_a_space(prompt: str, target: str) -> None:
    assert join(prompt, target) == f"{prompt} {target}"


def test_a_separator_overrules_the_writing_and_is_whitespace() -> None:
    assert join("The capital is", "Rome", "") == "The capital isRome"
    assert join("首都是", "罗马", " ") == "首都是 罗马"
    for make in (
        lambda: EditRequest(template="{} is", subject="a", target_new="b", separator="-"),
        lambda: Fact(template="{} is", subject="a", object="b", separator="-"),
    ):
        with pytest.raises(ValueError, match=r"separator is whitespace or empty, .* got '-'"):
            make()


def test_the_separator_travels_from_the_files(tmp_path: Path) -> None:
    request = EditRequest(
        template="{}的首都是", subject="法国", target_new="东京", target_true="巴黎", relation="P36", separator=""
    )
    record = Record(case_id=3, request=request)
    write_counterfact([record], tmp_path / "counterfact.json")
    assert read_counterfact(tmp_path / "counterfact.json") == [record]
    assert read_facts(tmp_path / "counterfact.json")[0].separator == ""
    write_requests([record], tmp_path / "requests.json")
    assert read_requests(tmp_path / "requests.json")[0].request.separator == ""
    known = {"subject": "法国", "attribute": "巴黎", "prompt": "法国的首都是", "relation_id": "P36", "separator": " "}
    (tmp_path / "known.json").write_text(json.dumps([known]))
    assert read_facts(tmp_path / "known.json")[0].separator == " "
    (tmp_path / "known.json").write_text(json.dumps([known | {"separator": "x"}]))
    with pytest.raises(RecordError, match="field 'separator': expected whitespace"):
        read_facts(tmp_path / "known.json")


@pytest.mark.parametrize(("separator", "between"), [(None, ""), ("", ""), (" ", " ")])
def test_scoring_tracing_and_editing_join_alike(tiny_gpt2: Model, separator: str | None, between: str) -> None:
    template, subject, target = "{}的首都是", "法国", "东京"
    prompt = template.replace("{}", subject)
    request = EditRequest(
        template=template, subject=subject, target_new=target, target_true="巴黎", separator=separator
    )
    wanted = tiny_gpt2.tokenizer(between + target, add_special_tokens=False)["input_ids"]

    assert answer_token(tiny_gpt2, prompt, target, separator) == wanted[0]
    assert prompt_batch(tiny_gpt2, request, ["{}的首都是", "{}是"]).targets.tolist() == wanted
    assert rows_of(tiny_gpt2, request, ["{}的首都是", "{}是"])[0].targets == wanted
    assert tuning_batch(tiny_gpt2, (request,), objective="target", kl_template=None).targets.tolist() == wanted
    ids = torch.cat([tiny_gpt2.tokenize([prompt]).ids, torch.tensor([wanted])], dim=1)
    log_probs = tiny_gpt2.bridge.original_model(ids).logits[0].log_softmax(dim=-1)
    by_hand = log_probs[-len(wanted) - 1 : -1].gather(1, torch.tensor(wanted)[:, None])[:, 0]
    scored = score_targets(tiny_gpt2, [(prompt, target)], separator=separator)[0].log_probs
    torch.testing.assert_close(scored, by_hand, atol=1e-4, rtol=0)
    state = score_state(tiny_gpt2, Record(case_id=0, request=request), generate=False, fluency_tokens=None)
    assert state.prompts["rewrite"][0].p_new == pytest.approx(by_hand.double().mean().exp().item(), rel=1e-3)


def test_requests_that_differ_by_a_leading_space_are_one() -> None:
    one = EditRequest(template="{}的首都是", subject="法国", target_new="东京")
    other = EditRequest(template="{}的首都是", subject="法国", target_new=" 东京")
    assert check_requests([one, other]) == (one,)
    with pytest.raises(ValueError, match="contradictory"):
        check_requests([one, EditRequest(template="{}的首都是", subject="法国", target_new="罗马")])


def test_names_are_found_inside_text_without_spaces() -> None:
    assert re.search(whole_word("法国"), "我在法国工作")
    assert re.search(whole_word("Google"), "我在Google工作")
    assert re.search(whole_word("Ann"), "Ann's")
    assert not re.search(whole_word("Ann"), "Anna") and not re.search(whole_word("Ann"), "Joann")

    def request(subject: str) -> EditRequest:
        return EditRequest(
            template="{}的首都是", subject=subject, target_new="东京", target_true="巴黎", relation="P36"
        )

    record = Record(case_id=0, request=request("法国"), neighborhood_prompts=("在德国的首都", "在英国的首都"))
    (left,) = untouched([record], [request("法国"), request("德国")])
    assert left.neighborhood_prompts == ("在英国的首都",)


def test_fluency_counts_characters_where_words_have_no_spaces() -> None:
    assert ngram_entropy("他他他他他") == 0
    assert ngram_entropy("他在法国学习中文") > 1
    assert ngram_entropy("a b c a b d") == ngram_entropy("甲乙丙甲乙丁")


FACTS = (("法国", "巴黎", "东京"), ("日本", "东京", "巴黎"), ("中国", "北京", "罗马"))


def teach(folder: Path, texts: list[str]) -> None:
    """A model of the golden one's shape, trained on texts of equal length until it knows them by heart."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(GOLDEN / "tiny-gpt2")
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = transformers.GPT2LMHeadModel(transformers.GPT2Config.from_pretrained(GOLDEN / "tiny-gpt2"))
    ids = torch.tensor([tokenizer(text)["input_ids"] for text in texts])
    optimiser = torch.optim.Adam(hf.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        hf(ids, labels=ids).loss.backward()
        optimiser.step()
    hf.save_pretrained(folder)


@pytest.mark.slow
def test_chinese_records_are_traced_edited_and_measured(tmp_path: Path) -> None:
    written = [
        Record(
            case_id=index, request=EditRequest(template="{}的首都是", subject=about, target_new=new, target_true=true)
        )
        for index, (about, true, new) in enumerate(FACTS)
    ]
    write_counterfact(written, tmp_path / "records.json")
    teach(tmp_path / "model", [f"{about}的首都是{true}。" for about, true, _ in FACTS])
    model = load_model(str(tmp_path / "model"), device="cpu")
    facts = read_facts(tmp_path / "records.json")
    found = TraceSet.collect(trace_facts(model, facts, seed=0, samples=2, window=3, sites=["mlp_out"]))
    assert len(found.traces) == 3, "every fact counts as known"
    record = read_records(tmp_path / "records.json")[0]
    edit = FT(layers=(0, 1), steps=10)(model, [record.request])
    scored = evaluate(model, edit, record, fluency_tokens=None)
    before, after = (state.prompts["rewrite"][0] for state in (scored.pre, scored.post))
    assert (before.generated or "").startswith("巴黎") and before.correct("true", "generated") == 1
    assert after.p_new > 2 * before.p_new
