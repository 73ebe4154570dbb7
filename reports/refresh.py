"""Make what `reports/` and README.md show: `make reports` of the embedded model, `make reports-real` of SmolLM2.

    python reports/refresh.py                             # everything of the embedded model
    python reports/refresh.py --real                      # everything of SmolLM2, hours on two cores
    python reports/refresh.py --gpu                       # what a GPU takes, minutes on an H100
    python reports/refresh.py atlas smollm2/locate_facts  # these only
    python reports/refresh.py --jobs 2                    # two at once, of one thread each; what measures speed alone
    python reports/refresh.py --readme                    # nothing is run: README.md, and one a report

Runs the study and the analyses with their defaults, copies what a reader looks at to `reports/`, with a README.md that
is shown where it is browsed, and puts tables into README.md between their markers. What was stopped goes on.
"""

import ast
import html
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.session import SOME_FAILED, one_of, script
from workbench.runs.artifacts import figures_in
from workbench.tables.markup import escaped

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "reports"
"""Where they are made; what was interrupted goes on from there."""
ANALYSES = (
    "scale_edits",
    "survey_table",
    "compare_editors",
    "survey_sequential",
    "implications",
    "locate_facts",
    "multiple_edits",
    "compare_layers",
    "compare_tracing",
    "check_families",
    "benchmark_tracing",
    "benchmark_editing",
)
"""The longest first, so that of two at once neither is left alone for long; those of speed last."""
WRITING = "ft,ft_l,rome,r_rome,memit,emmet,pmet,alphaedit"
"""The methods of ROME's and MEMIT's tables and their kin."""
STUDY = (Path(sys.executable).parent / "workbench", "study")
COMMANDS: dict[str, tuple[Any, ...]] = {"atlas": (*STUDY, "--fluency", "100")} | {
    name: (sys.executable, f"analyses/{name}.py") for name in ANALYSES
}
COMMANDS["locate_facts"] += ("--limit", "506")
COMMANDS["compare_tracing"] += ("--few", "30")
COMMANDS["survey_table"] += ("--limit", "200", "--together", "20")
COMMANDS["implications"] += ("--together", "20", "--methods", "ft,rome,memit,grace,mend,t_patcher,wise,serac")
COMMANDS["survey_sequential"] += ("--methods", "ft,rome,memit,grace,mend,t_patcher,serac")
COMMANDS["compare_editors"] += ("--methods", WRITING)
COMMANDS["scale_edits"] += ("--methods", WRITING)
"""What makes each folder of `reports/`."""
SURVEYED = "ft,ft_l,rome,memit,grace,ike,mend,ke,kn,t_patcher,calinet,lora,wise,serac"
"""Those of the survey, and their kin."""
REAL = {
    "smollm2/study": (*STUDY, "--model", "smollm2", "--traces", "3", "--limit", "15", "--fluency", "2"),
    **{
        f"smollm2/{name}": (sys.executable, f"analyses/{name}.py", "--model", "smollm2", *options.split())
        for name, options in {
            "tune_editors": "--limit 4 --edits 16 --layer 5",
            "locate_facts": "--limit 1000",
            "compare_layers": "--limit 20 --layers 0,1,2,3,4,5,7,9,12,16,20,26 --methods rome --workers 2",
            "compare_editors": f"--limit 60 --fluency 3 --layer 5 --together 20 --workers 2 --methods {WRITING}",
            "multiple_edits": "--layer 5 --methods rome,memit",
            "scale_edits": "--layer 5 --edits 10,32,100,200,400 --sample 20 --fluency 0 --methods memit,emmet",
            "survey_table": f"--layer 5 --limit 100 --together 20 --workers 2 --methods {SURVEYED}",
            "survey_sequential": "--layer 5 --methods rome,memit,mend,serac",
            "implications": "--layer 5 --limit 40 --together 20 --workers 2 --methods rome,memit",
            "compare_texts": "--layer 5 --limit 20 --texts self,wikitext2_valid.txt",
        }.items()
    },
    "smollm2/benchmark_tracing": (
        *(sys.executable, "analyses/benchmark_tracing.py", "--models", "smollm2", "--facts", "1", "--cells", "12"),
        *("--growth-facts", "1,10,20,100", "--growth-cells", "2"),
    ),
    "smollm2/benchmark_editing": (
        *(sys.executable, "analyses/benchmark_editing.py", "--models", "smollm2", "--requests", "4", "--plain", "1"),
        *("--repeats", "1", "--records", "16", "--alone", "2"),
    ),
}
"""The same of the real model; compare_texts wants the validation text of wikitext-2 in the working folder."""
GPU = {
    f"gpu/{name}": (sys.executable, f"analyses/{analysis}.py", "--device", "cuda", *options.split())
    for name, analysis, options in (
        (
            "tracing_tf32",
            "benchmark_tracing",
            "--models smollm2 --precision tf32 --facts 3 --repeats 3 --cells 12 --no-growth",
        ),
        (
            "tracing_bfloat16",
            "benchmark_tracing",
            "--models smollm2,gpt2-xl-shape --dtype bfloat16 --facts 1 --repeats 3 --cells 12 --no-growth",
        ),
        (
            "editing",
            "benchmark_editing",
            "--models smollm2 --requests 64 --plain 1 --repeats 3 --records 64 --alone 4 --parts edits,many",
        ),
        (
            "editing_gpt2_xl",
            "benchmark_editing",
            "--models gpt2-xl-shape --requests 1000 --plain 1 --repeats 1 --precision tf32 --parts edits",
        ),
    )
}
"""How fast a GPU is; SmolLM2, and GPT2-XL's shape with random weights."""
KEPT = ("report.html", "settings.json", "environment.json", "results.json", "status.json", "figures", "tables")
"""Of a run folder; the per-record results are made again in minutes."""
FINISHED = (0, SOME_FAILED)
"""Exit codes of a run that is done: of records that failed its tables tell."""
TABLES = {
    "real-effects": "smollm2/locate_facts/tables/average_effects.md",
    "real-published": "smollm2/locate_facts/tables/published_effects.md",
    "real-scores": "smollm2/compare_editors/tables/scores.md",
    "real-stacked": "smollm2/compare_editors/tables/stacked.md",
    "real-survey": "smollm2/survey_table/tables/survey.md",
    "real-speed": "smollm2/benchmark_tracing/tables/smollm2.md",
    "real-speed-editing": "smollm2/benchmark_editing/tables/speed.md",
    "scores": "atlas/tables/scores.md",
    "generation": "atlas/tables/generation.md",
    "editors": "compare_editors/tables/scores.md",
    "stacked": "multiple_edits/tables/scores.md",
    "speed": "benchmark_tracing/tables/atlas.md",
    "speed-small": "benchmark_tracing/tables/gpt2_small_shape.md",
    "speed-editing": "benchmark_editing/tables/speed.md",
    "families": "check_families/tables/families.md",
}
"""Shown in README.md, between markers of these names."""
SHORT = {"real-survey": r"\| (Reliability|Generalization|Locality) \| (teacher-forced|generated) "}
"""Of long tables, the rows that are shown there."""


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Some of the reports; an unknown one lists all.")] = None,
    real: Annotated[bool, typer.Option("--real", help="All of SmolLM2 (after `workbench fetch smollm2`).")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="How fast a GPU is (after the same).")] = False,
    readme: Annotated[bool, typer.Option("--readme", help="README.md alone, from what is there.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="So many at once, of one thread each.")] = 1,
) -> None:
    """Run what is asked for, or everything, and put its results in place."""
    every = COMMANDS | REAL | GPU
    if readme and (names or real or gpu):
        raise ValueError("--readme runs nothing: give it without names, --real and --gpu")
    names = [] if readme else names or list(GPU if gpu else REAL if real else COMMANDS)
    for name in names:
        one_of("NAME", name, every)
    alone = [name for name in names if jobs == 1 or "benchmark" in str(every[name][1])]  # with the whole machine
    at_once([name for name in names if name not in alone], every, jobs)
    for name in alone:
        if (code := make(name, every[name])) not in FINISHED:
            raise ValueError(f"{name} ended with {code}: the same command goes on where it was")
    page = ROOT / "README.md"
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
    for report in (ROOT / "reports").rglob("report.html"):
        report.with_name("README.md").write_text(twin(report), encoding="utf-8")
    print(f"refreshed {', '.join([*(f'reports/{name}' for name in names), 'README.md'])}")


def at_once(names: Sequence[str], every: Mapping[str, tuple[Any, ...]], jobs: int) -> None:
    """Run some side by side, each with one thread and a log, and put each in place when it ends; what fails does not
    keep the others from ending."""
    failed = []

    def run(name: str) -> tuple[str, float, int]:
        log, began = RUNS / f"{name}.log", time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as file:
            one = {**os.environ, "OMP_NUM_THREADS": "1"}
            code = make(name, every[name], stdout=file, stderr=subprocess.STDOUT, env=one)
        return name, (time.monotonic() - began) / 60, code

    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(run, name) for name in names]):
            name, minutes, code = done.result()
            if code in FINISHED:
                (RUNS / f"{name}.log").unlink()
                print(f"{name}: {minutes:.1f} min", flush=True)
            else:
                failed.append(name)
                print(f"{name} ended with {code} after {minutes:.1f} min: see {RUNS / f'{name}.log'}", flush=True)
    if failed:
        raise ValueError(f"{', '.join(failed)} failed; the same command goes on where they were")


def make(name: str, command: Sequence[Any], **told: Any) -> int:
    """Run a command, see `subprocess.run` for what it may be told, and put in place what it has; its exit code."""
    code = subprocess.run([*command, "--out", RUNS / name], cwd=ROOT, check=False, **told).returncode
    if code in FINISHED:
        put(name)
    return code


def put(name: str) -> None:
    """What a reader looks at of a finished run, in place of what was there; the run is removed."""
    run, shown = RUNS / name, ROOT / "reports" / name
    shutil.rmtree(shown, ignore_errors=True)
    shown.mkdir(parents=True)
    for kept in KEPT:
        source = run / kept
        if source.exists():
            (shutil.copytree if source.is_dir() else shutil.copy)(source, shown / kept)
    shutil.rmtree(run)


def twin(report: Path) -> str:
    """A report in Markdown, which is shown where its folder is looked at: its headline, figures and tables."""
    page, folder = report.read_text(encoding="utf-8"), report.parent

    def said(start: str) -> str:
        found = re.search(f"{start}(.*?)</", page, re.DOTALL)
        return escaped(html.unescape(found[1]).strip()) if found else ""

    figures = [
        f"![{escaped(caption)}](figures/{path.name})\n\n*{escaped(caption)}*"
        for path, caption in ((each.path, each.caption) for each in figures_in(folder / "figures").values())
    ]
    tables = [path.read_text(encoding="utf-8").strip() for path in sorted((folder / "tables").glob("*.md"))]
    note = "The whole report is the page report.html beside this file, to be opened in a browser."
    return "\n\n".join(filter(None, [f"# {said('<h1>')}", said('class="headline">'), note, *figures, *tables])) + "\n"


def with_tables(text: str) -> str:
    """The text with what stands between its markers, such as `<!-- scores -->` and `<!-- /scores -->`, as it is now.

    Tables of `reports/`, and the map of the rooms.
    """
    shown = {name: (ROOT / "reports" / path).read_text(encoding="utf-8").strip() for name, path in TABLES.items()}
    shown |= {name: short(shown[name], rows) for name, rows in SHORT.items()}
    for name, content in (shown | {"rooms": rooms()}).items():
        between = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not between.search(text):
            raise ValueError(f"README.md has no <!-- {name} --> ... <!-- /{name} -->")
        text = between.sub(lambda found, content=content: f"{found[1]}{content}\n{found[2]}", text)
    return text


def short(table: str, rows: str) -> str:
    """A table in Markdown with its caption, of whose rows those remain that match."""
    lines = table.split("\n")
    first = next(index for index, line in enumerate(lines) if line.startswith("| ---")) + 1
    return "\n".join([*lines[:first], *(line for line in lines[first:] if re.search(rows, line))])


def rooms() -> str:
    """A line a file of `workbench/`: the first sentence of its docstring, the lowest room first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    lines = []
    for room in reversed(contracts["contracts"][0]["layers"]):
        folder = ROOT / "workbench" / room
        lines.append(f"{room + '/':<29} {_says(folder / '__init__.py')}")
        for file in sorted(folder.rglob("*.py"), key=lambda file: (len(file.relative_to(folder).parts), file)):
            name = str(file.relative_to(folder))
            if file.name != "__init__.py":
                lines.append(f"    {name:<25} {_says(file)}")
            elif file.parent != folder:
                lines.append(f"    {name.removesuffix('__init__.py'):<25} {_says(file)}")
    return "\n".join(["```", *lines, "```"])


def _says(file: Path) -> str:
    first = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
    uncited = re.sub(r" \([^()]*et al\.[^()]*\)", "", " ".join(first.split()))
    return uncited.split(". ")[0].removesuffix(".")


if __name__ == "__main__":
    script(main)
