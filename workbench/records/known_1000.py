"""known_1000 (Meng et al. 2022): facts that GPT2-XL states, to be traced."""

from workbench.records.facts import Fact
from workbench.records.fields import Node
from workbench.records.files import Source, each, nodes


def read_known_1000(source: Source) -> list[Fact]:
    """Facts in the schema of known_1000; a template is a prompt with the first mention of its subject as {}.

    (The file's own `template` is cut short.) FileNotFoundError, or RecordError naming file, record and field.
    """
    return each(nodes(source), _fact)


def _fact(node: Node) -> Fact:
    subject, prompt = node.at("subject").text(), node.at("prompt")
    if subject not in prompt.text():
        prompt.fail(f"a prompt with the subject {subject!r} in it")
    if "{}" in prompt.text():
        prompt.fail("a prompt without {}")
    return Fact(
        subject=subject,
        template=prompt.text().replace(subject, "{}", 1),
        object=node.at("attribute").text(),
        relation=node.at("relation_id").text(),
        separator=node.separator(),
    )
