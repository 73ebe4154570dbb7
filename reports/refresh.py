"""Make what `reports/` and README.md show, from the embedded model: `make reports`.

Runs the study and the comparison of layers with their defaults into new folders, copies what a reader looks at to
`reports/` and puts the scores into README.md between its markers.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "atlas": (Path(sys.executable).parent / "workbench", "study"),
    "compare_layers": (sys.executable, "analyses/compare_layers.py"),
}
"""What makes each folder of `reports/`."""
KEPT = ("report.html", "settings.json", "environment.json", "results.json", "status.json", "figures", "tables")
"""Of a run folder; the per-record results are made again in minutes."""
TABLES = ("scores", "generation")
"""Shown in README.md."""


def main() -> None:
    """Run everything and put its results in place."""
    for name, command in COMMANDS.items():
        with tempfile.TemporaryDirectory() as folder:
            run, shown = Path(folder) / name, ROOT / "reports" / name
            subprocess.run([*command, "--out", run], cwd=ROOT, check=True)
            shutil.rmtree(shown, ignore_errors=True)
            shown.mkdir(parents=True)
            for kept in KEPT:
                source = run / kept
                (shutil.copytree if source.is_dir() else shutil.copy)(source, shown / kept)
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text(encoding="utf-8")), encoding="utf-8")
    print("refreshed reports/ and README.md")


def with_tables(text: str) -> str:
    """The text with the tables of `reports/atlas` between their markers, `<!-- scores -->` to `<!-- /scores -->`."""
    for name in TABLES:
        table = (ROOT / "reports" / "atlas" / "tables" / f"{name}.md").read_text(encoding="utf-8").strip()
        between = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not between.search(text):
            raise ValueError(f"README.md has no <!-- {name} --> ... <!-- /{name} -->")
        text = between.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
    return text


if __name__ == "__main__":
    main()
