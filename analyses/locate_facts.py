"""Where is a fact recalled? Heat maps of single facts in the layout of Meng et al. (2022), figure 1, and averages.

    python analyses/locate_facts.py                                   # 40 facts of the embedded model
    python analyses/locate_facts.py --model gpt2-xl --records known_1000.json --limit 100
    python analyses/locate_facts.py --severed mlp_out                 # without the way through later MLPs (figure 3)
    python analyses/locate_facts.py --prompt "{} is located in the city of" --subject Colosseum --object Rome

Writes figures (PNG, PDF), tables and a report into --out; a run that was interrupted goes on where it stopped.
"""

import argparse
from pathlib import Path

from workbench.models.loading import load_model
from workbench.records.counterfact import read_facts
from workbench.records.facts import Fact
from workbench.report.write import write_report
from workbench.runs.run import Run
from workbench.studies.defaults import default_records, default_window, records_path
from workbench.studies.locate import locate
from workbench.tracing.fact import ENGINES
from workbench.tracing.positions import parse_positions


def main() -> None:
    """Trace, print the mediating layer, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="atlas")
    parser.add_argument("--records", help="CounterFact or known_1000 file, 'atlas', 'smollm2' (default: by the model)")
    parser.add_argument("--limit", type=int, default=40, help="how many facts are traced")
    parser.add_argument("--prompt", help="a single fact instead: its template with {}")
    parser.add_argument("--subject", help="its subject")
    parser.add_argument("--object", help="its answer")
    parser.add_argument("--window", type=int, help="layers restored together (default 10; atlas: 3)")
    parser.add_argument("--samples", type=int, default=10, help="noise samples a fact")
    parser.add_argument("--noise", default="s3", help="s3: 3 deviations of the embeddings; 0.2, us3, u0.2, m")
    parser.add_argument("--span", type=int, default=1, help="tokens restored together")
    parser.add_argument("--severed", choices=("mlp_out", "attn_out"), help="modules of later layers kept corrupted")
    parser.add_argument("--metric", choices=("probability", "kl"), default="probability")
    parser.add_argument("--positions", default="all", help="all, last_subject, roles, or indices of tokens: 3,-1")
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--workers", type=int, help="facts traced at once (default: a process a thread on a CPU)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/locate_facts"))
    arguments = parser.parse_args()
    parse_positions(arguments.positions)

    arguments.records = arguments.records or default_records(arguments.model)
    facts = read_facts(records_path(arguments.records))
    if arguments.prompt:
        if not (arguments.subject and arguments.object):
            parser.error("a single fact needs --prompt, --subject and --object")
        # The other facts stay in the set, so that the noise has their subjects' scale.
        facts = [Fact(subject=arguments.subject, template=arguments.prompt, object=arguments.object), *facts]
        arguments.limit = 1
    model = load_model(arguments.model)
    window = arguments.window or default_window(model)
    settings = vars(arguments) | {"command": "locate_facts", "window": window}
    settings.pop("workers")  # another number goes on with a run
    run = Run.create(settings.pop("out"), settings)
    run.check_model(model.fingerprint())
    try:
        with run.running():
            located = locate(
                run, model, facts, limit=arguments.limit, seed=arguments.seed, window=window,
                samples=arguments.samples, noise=arguments.noise, span=arguments.span, severed=arguments.severed,
                metric=arguments.metric, positions=arguments.positions, engine=arguments.engine,
                workers=arguments.workers,
            )  # fmt: skip
            known, skipped = len(located.found.traces), len(located.found.skipped)
            seconds = run.read_json("results.json")["seconds_tracing"]
            print(f"{known} facts traced, {skipped} not known; {arguments.samples} samples, {seconds:.0f} s in all")
            found = "none, the last subject tokens were not traced" if located.layer is None else located.layer
            print(f"mediating layer: {found}")
    finally:
        print(f"report: {write_report(run, title='Where facts are recalled')}")


if __name__ == "__main__":
    main()
