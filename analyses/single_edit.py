"""One edit, five prompts: what does the model write before and after, and which of the five came out right?

    python analyses/single_edit.py                                        # data/examples/single_edit.yaml
    python analyses/single_edit.py my_edit.yaml --method memit
    python analyses/single_edit.py my_edit.yaml --model gpt2-xl --records counterfact.json --text wikitext
    python analyses/single_edit.py --case 14                              # a record of --records instead of a file

The file, JSON or YAML, holds the request and the prompts:

    prompt: "{} plays the"          # {} is where the subject goes; with quotes, as YAML has a meaning for {}
    subject: Miles Davis
    target_new: piano               # or {str: piano}
    generation_prompts:
      - prompt: The instrument of Miles Davis is the
        begins_with: piano          # a text, or a list of which one is enough
      - prompt: Miles Davis is famous for
        contains: [piano, pianist]
      - Everyone knows that Miles Davis plays the     # shown, not judged

Continuations are greedy, `--tokens` long; `begins_with` and `contains` are case sensitive. The layer is located by
tracing facts of --records unless --layer gives it. A record's five prompts are its own, a paraphrase, a neighborhood
prompt (right: the old answer, unchanged), a reversion (the subject, asked for by its new object) and a portability
prompt (what follows from the edit), as far as it has them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from workbench.editors.make import check_editor
from workbench.models.generation import generate
from workbench.models.loading import load_model
from workbench.models.model import Model
from workbench.records.counterfact import read_records
from workbench.records.course import GenerationPrompt, SingleEdit, read_single_edit
from workbench.records.facts import Record
from workbench.studies.defaults import default_records, default_text, records_path
from workbench.studies.edit import SHOWN_TOKENS, make_editor
from workbench.studies.locate import find_layer, true_facts
from workbench.tracing.fact import ENGINES

EXAMPLE = Path(__file__).resolve().parents[1] / "data" / "examples" / "single_edit.yaml"


def main() -> None:
    """Make the edit and print its prompts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=EXAMPLE, help="the request and its prompts")
    parser.add_argument("--model", default="atlas")
    parser.add_argument("--records", help="to locate the layer by: a CounterFact file, 'atlas' or 'smollm2'")
    parser.add_argument("--case", type=int, help="case_id of a record of --records, instead of the file")
    parser.add_argument("--method", default="rome", help="any of workbench.editors.EDITORS")
    parser.add_argument("--preset", help="model whose hyperparameters are used (default: --model's)")
    parser.add_argument("--layer", type=int, help="default: the one located by tracing the records' facts")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="what traces for it")
    parser.add_argument("--text", help="for second moments: a file, 'wikitext', 'self', 'atlas' (default: by model)")
    parser.add_argument("--tokens", type=int, default=SHOWN_TOKENS, help="how many are generated")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    arguments.records = arguments.records or default_records(arguments.model)
    records = read_records(records_path(arguments.records))
    single = read_single_edit(arguments.file) if arguments.case is None else of_record(find(records, arguments.case))
    model, layer = load_model(arguments.model), arguments.layer
    check_editor(model, arguments.method, layer=layer, preset_of=arguments.preset)
    if layer is None:
        layer = find_layer(model, true_facts(records), seed=arguments.seed, engine=arguments.engine)
    editor = make_editor(
        model,
        arguments.method,
        preset_of=arguments.preset,
        layer=layer,
        text=arguments.text or default_text(model),
        seed=arguments.seed,
    )
    pre = continuations(model, single, arguments.tokens)
    edit = editor(model, [single.request])
    with edit.applied(model):
        post = continuations(model, single, arguments.tokens)
    request, console = single.request, Console(soft_wrap=True, highlight=False, markup=False)
    old = "" if request.target_true is None else f"{request.target_true} -> "
    layers = sorted({layer for layer, _ in edit.places})
    where = f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
    console.print(f"{request.prompt}: {old}{request.target_new}  ({edit.method}, {where})\n")
    console.print(shown(single, pre, post))


def find(records: Sequence[Record], case: int) -> Record:
    """The record of that number; ValueError for an unknown one."""
    for record in records:
        if record.case_id == case:
            return record
    numbers = [record.case_id for record in records]
    raise ValueError(f"no record has case_id {case}; the file has {len(numbers)}, such as {numbers[:5]}")


def of_record(record: Record) -> SingleEdit:
    """The first prompt of each kind that a record has."""
    request = record.request
    asked = [(request.prompt, (request.target_new,))]
    asked += [(prompt, (request.target_new,)) for prompt in record.paraphrase_prompts[:1]]
    if request.target_true is not None:
        asked += [(prompt, (request.target_true,)) for prompt in record.neighborhood_prompts[:1]]
    probes = [*record.reversion_prompts[:1], *record.portability_prompts[:1]]
    asked += [(probe.prompt, probe.targets_new) for probe in probes]
    prompts = (GenerationPrompt(prompt=prompt, rule="begins_with", texts=texts) for prompt, texts in asked)
    return SingleEdit(request=request, prompts=tuple(prompts))


def continuations(model: Model, single: SingleEdit, tokens: int) -> list[str]:
    """What the model, as it is, writes after each prompt."""
    written = generate(model, [asked.prompt for asked in single.prompts], max_new_tokens=tokens)
    return [text.strip().replace("\n", " ") for text in written]


def shown(single: SingleEdit, pre: Sequence[str], post: Sequence[str]) -> str:
    """A block a prompt, then which of them succeeded."""
    blocks, judged, succeeded = [], 0, []
    for number, (asked, before, after) in enumerate(zip(single.prompts, pre, post, strict=True), start=1):
        lines = [f"{number}. [Prompt]     {asked.prompt}", f"   [Pre-Edit]   {before}", f"   [Post-Edit]  {after}"]
        right = asked.succeeded(after)
        if asked.rule is not None:
            rule = f"{asked.rule.replace('_', ' ')} {' or '.join(map(repr, asked.texts))}"
            lines.append(f"   [Succeeded]  {'yes' if right else 'no'}: {rule}{'' if right else ' was asked for'}")
            judged += 1
            succeeded += [str(number)] * bool(right)
        blocks.append("\n".join(lines))
    which = f": {', '.join(succeeded)}" if succeeded else ""
    return "\n\n".join([*blocks, f"{len(succeeded)} of {judged} succeeded{which}"])


if __name__ == "__main__":
    main()
