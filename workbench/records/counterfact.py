"""CounterFact in its original form (Meng et al. 2022), in which the workbench also writes its own records."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.records.facts import EditRequest, Probe, Record, fill
from workbench.records.fields import Node, probe
from workbench.records.files import Source, each, nodes
from workbench.records.questions import one_hop

_PROMPT_LISTS = ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts")
_PROBE_LISTS = ("portability_prompts", "reversion_prompts", "locality_prompts")


def read_counterfact(source: Source) -> list[Record]:
    """Records in CounterFact's original schema.

    `requested_rewrite` may have a "separator", which stands between prompt and answer (`joining.join`).
    `portability_prompts`, `reversion_prompts` and `locality_prompts` may be there too, and hold
    {"prompt", "targets_new": [...], "targets_true": [...], "kind": "..."}; so may "rephrased_by" (`Record`), and of the
    survey (Yao et al. 2023) "portability" (one hop) and "alternative_subject" (alias).
    FileNotFoundError, or RecordError naming file, record and field.
    """
    return each(nodes(source), _counterfact_record)


def write_counterfact(records: Sequence[Record], path: str | Path) -> None:
    """Write records in CounterFact's schema, to be read by `read_counterfact`."""
    items = []
    for record in records:
        request = record.request
        true = None if request.target_true is None else {"str": request.target_true}
        item: dict[str, Any] = {
            "case_id": record.case_id,
            "requested_rewrite": {
                "prompt": request.template,
                "relation_id": request.relation,
                "target_new": {"str": request.target_new},
                "target_true": true,
                "subject": request.subject,
            }
            | ({} if request.separator is None else {"separator": request.separator}),
        }
        item |= {name: list(getattr(record, name)) for name in _PROMPT_LISTS}
        item |= {name: [_written(one) for one in getattr(record, name)] for name in _PROBE_LISTS}
        if not record.locality_prompts:
            del item["locality_prompts"]
        items.append(item | ({"rephrased_by": record.rephrased_by} if record.rephrased_by else {}))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(items, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _written(one: Probe) -> dict[str, Any]:
    item = {"prompt": one.prompt, "targets_new": list(one.targets_new), "targets_true": list(one.targets_true)}
    return item | ({"kind": one.kind} if one.kind else {})


def _counterfact_record(node: Node) -> Record:
    rewrite = node.at("requested_rewrite")
    true = rewrite.at("target_true")
    request = EditRequest(
        template=rewrite.at("prompt").template(),
        subject=rewrite.at("subject").text(),
        target_new=rewrite.at("target_new").at("str").text(),
        target_true=None if true.value is None else true.at("str").text(),
        relation=rewrite.at("relation_id").string(),
        separator=rewrite.separator(),
    )
    texts = {name: node.at(name).texts() for name in _PROMPT_LISTS}
    probes = {name: _probes(node.at(name, optional=True)) for name in _PROBE_LISTS}
    probes["portability_prompts"] += tuple(_of_the_survey(node, request))
    return Record(
        case_id=node.at("case_id").integer(),
        request=request,
        rephrased_by=node.at("rephrased_by", optional=True).label(),
        **texts,  # pyright: ignore[reportArgumentType]
        **probes,  # pyright: ignore[reportArgumentType]
    )


def _of_the_survey(node: Node, request: EditRequest) -> list[Probe]:
    probes = one_hop(node)
    if node.has("alternative_subject"):
        true = () if request.target_true is None else (request.target_true,)
        prompt = fill(request.template, node.at("alternative_subject").text())
        probes.append(Probe(prompt=prompt, targets_new=(request.target_new,), targets_true=true, kind="alias"))
    return probes


def _probes(node: Node) -> tuple[Probe, ...]:
    return tuple(
        probe(
            item.at("prompt"),
            item.at("targets_new").answers(),
            item.at("targets_true", optional=True).texts(),
            kind=item.at("kind", optional=True).label(),
        )
        for item in node.items()
    )
