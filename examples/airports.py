"""Write facts of 300 airports and of 100 others, as two folders in the format of users' facts.

python examples/airports.py FOLDER
"""

import json
import sys
from pathlib import Path

import yaml

from memory_layers.data.builtin import builtin_facts
from memory_layers.data.facts import Fact, RelationTemplates

RELATIONS = ("airport_iata", "airport_icao", "airport_timezone", "airport_country")
OLD, NEW = 300, 100


def main(folder: str) -> None:
    """Write FOLDER/old and FOLDER/new."""
    found = builtin_facts(RELATIONS, max_subjects=OLD + NEW)
    known = {fact.subject for fact in builtin_facts(RELATIONS, max_subjects=OLD).facts}
    for name in ("old", "new"):
        facts = [fact for fact in found.facts if (fact.subject in known) == (name == "old")]
        write(Path(folder) / name, facts, found.templates)


def write(folder: Path, facts: list[Fact], templates: dict[str, RelationTemplates]) -> None:
    """Write facts.jsonl and templates.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"relation": fact.relation, "subject": fact.subject, "answer": fact.answer}
        for fact in facts
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "facts.jsonl").write_text(text, "utf-8")
    wordings = {
        name: {"statements": list(found.statements), "question": found.question}
        for name, found in templates.items()
    }
    text = yaml.safe_dump(wordings, allow_unicode=True, width=200)
    (folder / "templates.yaml").write_text(text, "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
