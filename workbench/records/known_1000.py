"""known_1000 (Meng et al. 2022): facts that GPT2-XL states, to be traced."""

from pathlib import Path

from workbench.records.facts import Fact
from workbench.records.fields import nodes


def read_known_1000(path: str | Path) -> list[Fact]:
    """Facts in the schema of known_1000; a template is a prompt with the first mention of its subject as {}.

    (The file's own `template` is cut short.) FileNotFoundError, or RecordError naming file, record and field.
    """
    facts = []
    for node in nodes(path):
        subject, prompt = node.at("subject").text(), node.at("prompt")
        if subject not in prompt.text():
            prompt.fail(f"a prompt with the subject {subject!r} in it")
        if "{}" in prompt.text():
            prompt.fail("a prompt without {}")
        facts.append(
            Fact(
                subject=subject,
                template=prompt.text().replace(subject, "{}", 1),
                object=node.at("attribute").text(),
                relation=node.at("relation_id").text(),
                separator=node.separator(),
            )
        )
    return facts
