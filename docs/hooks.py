"""What mkdocs does not do by itself: notebooks, the API's pages and README become pages, and formulas MathML."""

import ast
import base64
import html
import re
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
METHODS = ROOT / "docs" / "methods"
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!http|#)([^)#]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made from other files."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        name = notebook.src_uri.removesuffix(".ipynb")
        text, figures = page_of(Path(str(notebook.abs_src_path)), Path(name).name)
        files.append(File.generated(config, f"{name}.md", content=text))
        for figure, content in figures.items():
            files.append(File.generated(config, f"{Path(name).parent}/{figure}", content=content))
    for room in [page for entry in config.nav if "API" in entry for page in entry["API"]]:
        files.append(File.generated(config, room, content=room_of(Path(room).stem)))
    for name in ("README.md", "CONTRIBUTING.md"):
        text, pictures = from_checkout(ROOT / name)
        files.append(File.generated(config, name.lower(), content=text))
        for path in pictures:
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that hold in the checkout's folders lead to the pages that stand for those files."""
    up = "../" * page.file.src_uri.count("/")
    markdown = re.sub(
        r"\]\((?:\.\./)+(README|CONTRIBUTING)\.md", lambda found: f"]({up}{found[1].lower()}.md", markdown
    )
    return re.sub(r"\]\(((?:\.\./)?(?:tutorials/)?\w+)\.ipynb\)", r"](\1.md)", markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers show without a script."""

    def mathml(found: re.Match[str]) -> str:
        return convert(html.unescape(found[2]).strip(), display="block" if found[1] == "div" else "inline")

    return _FORMULA.sub(mathml, content)


def page_of(path: Path, name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its figures by the names under which it shows them."""
    parts, figures = [], {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                figure = f"{name}_{len(figures) + 1}.png"
                figures[figure] = base64.b64decode(data["image/png"])
                parts.append(f"![What the cell above draws]({figure})")
            elif "<table" in data.get("text/html", ""):
                table = re.sub(r"<style.*?</style>|\n\s*", "", data["text/html"], flags=re.DOTALL)
                parts.append(f'<div class="output">{table}</div>')
            elif text := (output.get("text") or data.get("text/plain", "")).rstrip():
                parts.append(f"```{{.text .output}}\n{text}\n```")
    parts.append(f'<a href="../{path.name}" download>Download this page as a notebook</a>')
    return "\n\n".join(parts) + "\n", figures


def room_of(room: str) -> str:
    """The API's page of a room: every module but those of methods, which have pages; `index`: the public face."""
    if room == "index":
        return face()
    parts = [f"# workbench.{room}", first_lines(ROOT / "workbench" / room / "__init__.py")[""]]
    for path in sorted((ROOT / "workbench" / room).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.name != "__init__.py" and f"::: {module}." not in "".join(map(Path.read_text, METHODS.glob("*.md"))):
            parts.append(f"::: {module}\n    options:\n      heading_level: 2\n")
    return "\n\n".join(parts)


def face() -> str:
    """What `import workbench` offers: a line a name, which leads to its place."""
    path = ROOT / "workbench" / "__init__.py"
    (homes,) = (
        ast.literal_eval(part.value)
        for part in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "_HOMES"
    )
    lines = []
    for module, names in homes.items():
        told = first_lines(path.parent / f"{module.replace('.', '/')}.py")
        lines += [f"| [`{name}`][workbench.{module}.{name}] | {told[name]} |" for name in names]
    head = "What `import workbench` offers, each imported when it is first used. The rooms hold the rest."
    return "\n".join(["# workbench", "", head, "", "| Name | |", "| --- | --- |", *sorted(lines, key=str.lower)])


def first_lines(path: Path) -> dict[str, str]:
    """The first line of what documents each name of a file; that of the file itself under ""."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {"": ast.get_docstring(tree) or ""}
    for part, then in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(part, ast.FunctionDef | ast.ClassDef):
            found[part.name] = ast.get_docstring(part) or ""
        elif isinstance(part, ast.AnnAssign | ast.Assign) and isinstance(then, ast.Expr):
            target = part.target if isinstance(part, ast.AnnAssign) else part.targets[0]
            found[ast.unparse(target)] = str(getattr(then.value, "value", ""))
    return {name: text.split("\n\n")[0].replace("\n", " ").replace("|", "\\|") for name, text in found.items()}


def from_checkout(path: Path) -> tuple[str, list[str]]:
    """A page of the checkout's top folder, and the pictures in it; other files that it links are named instead."""
    pictures: list[str] = []

    def link(found: re.Match[str]) -> str:
        picture, text, target, anchor = found.groups()
        if target in ("README.md", "CONTRIBUTING.md"):
            return f"[{text}]({target.lower()}{anchor or ''})"
        if picture:
            pictures.append(target)
            return found[0]
        return text if target in text else f"{text} (`{target}`)"

    return _LINK.sub(link, path.read_text(encoding="utf-8")), pictures
