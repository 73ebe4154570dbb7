"""Make what `reports/` and README.md show, from the embedded model: `make reports`.

    python reports/refresh.py                      # everything
    python reports/refresh.py atlas compare_layers # these only

Runs the study and the analyses with their defaults, copies what a reader looks at to `reports/` and
puts tables into README.md between their markers.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "reports"
"""Where they are made; what was interrupted goes on from there."""
ANALYSES = (
    "locate_facts",
    "compare_layers",
    "compare_tracing",
    "compare_editors",
    "multiple_edits",
    "scale_edits",
    "benchmark_tracing",
    "benchmark_editing",
    "check_families",
)
COMMANDS = {"atlas": (Path(sys.executable).parent / "workbench", "study")} | {
    name: (sys.executable, f"analyses/{name}.py") for name in ANALYSES
}
COMMANDS["locate_facts"] += ("--limit", "506")
COMMANDS["compare_tracing"] += ("--few", "30")
"""What makes each folder of `reports/`."""
KEPT = ("report.html", "settings.json", "environment.json", "results.json", "status.json", "figures", "tables")
"""Of a run folder; the per-record results are made again in minutes."""
TABLES = {
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


def main() -> None:
    """Run what is asked for, or everything, and put its results in place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(COMMANDS)}")
    names = parser.parse_args().names or list(COMMANDS)
    if unknown := set(names) - COMMANDS.keys():
        parser.error(f"no report {', '.join(sorted(unknown))}; there are {', '.join(COMMANDS)}")
    for name in names:
        command = COMMANDS[name]
        run, shown = RUNS / name, ROOT / "reports" / name
        subprocess.run([*command, "--out", run], cwd=ROOT, check=True)
        shutil.rmtree(shown, ignore_errors=True)
        shown.mkdir(parents=True)
        for kept in KEPT:
            source = run / kept
            if source.exists():
                (shutil.copytree if source.is_dir() else shutil.copy)(source, shown / kept)
        shutil.rmtree(run)
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text(encoding="utf-8")), encoding="utf-8")
    print("refreshed reports/ and README.md")


def with_tables(text: str) -> str:
    """The text with tables of `reports/` between their markers, such as `<!-- scores -->` and `<!-- /scores -->`."""
    for name, path in TABLES.items():
        table = (ROOT / "reports" / path).read_text(encoding="utf-8").strip()
        between = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not between.search(text):
            raise ValueError(f"README.md has no <!-- {name} --> ... <!-- /{name} -->")
        text = between.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
    return text


if __name__ == "__main__":
    main()
