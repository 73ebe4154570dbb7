"""Plugins: files with editors and readers of one's own, which then stand beside those of the workbench."""

import re
from pathlib import Path

from workbench.editors.editor import Editor
from workbench.editors.registry import ADDED
from workbench.machine.plugins import PluginError, import_file
from workbench.records.reading import READERS, Reader


def load_plugin(path: str | Path) -> tuple[str, ...]:
    """Take in what a Python file defines, and give the names: subclasses of `Editor`, and values that are a `Reader`.

    An editor's name is its `method` in lower case, anything but letters and digits as "_": "My editor" is `my_editor`.
    Without presets in data/presets/NAME.json it is used with the defaults of its fields. PluginError, which names the
    file and the reason, for one that cannot be imported, defines neither, lacks something, or takes a name that exists.
    """
    module = import_file(Path(path))
    source = f"plugin {module.__file__}"
    mine = [
        each
        for name, each in vars(module).items()
        if isinstance(each, type) and each.__module__ == module.__name__ and not name.startswith("_")
    ]
    editors = {method_name(each): each for each in mine if issubclass(each, Editor)}
    readers = {each.name: each for each in vars(module).values() if isinstance(each, Reader)}
    if not editors and not readers:
        raise PluginError(f"{source}: it defines no subclass of Editor and no Reader")
    for name, editor in editors.items():
        ADDED.add(name, editor, source=source)
    for name, reader in readers.items():
        READERS.add(name, reader, source=source)
    return (*editors, *readers)


def method_name(editor: type[Editor]) -> str:
    """The name by which a method is called in commands."""
    method = getattr(editor, "method", editor.__name__)
    return re.sub(r"[^a-z0-9]+", "_", str(method).lower()).strip("_")
