"""Make what `reports/` and README.md show, from the embedded model: `make reports`.

Runs `workbench study` with its defaults into a new folder, copies what a reader looks at to `reports/atlas/` and puts
the scores into README.md between its markers.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("report.html", "settings.json", "environment.json", "results.json", "status.json", "figures", "tables")
"""Of a run folder; the per-record results are made again in minutes."""
TABLES = ("scores", "generation")
"""Shown in README.md."""


def main() -> None:
    """Run the study and put its results in place."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "atlas"
        subprocess.run([Path(sys.executable).parent / "workbench", "study", "--out", run], cwd=ROOT, check=True)
        shown = ROOT / "reports" / "atlas"
        shutil.rmtree(shown, ignore_errors=True)
        shown.mkdir(parents=True)
        for name in KEPT:
            source = run / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, shown / name)
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"refreshed {shown.relative_to(ROOT)} and README.md")


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
