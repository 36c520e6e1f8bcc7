"""Write the data of gpu.yaml into a folder that travels: python pack.py FOLDER.

Facts, wordings and text come from the installed packages. The folder needs none of them.
"""

import json
import sys
from pathlib import Path

from memory_layers.data.builtin import builtin_facts
from memory_layers.data.fact_files import save_facts
from memory_layers.data.facts import FactSet
from memory_layers.data.prose import builtin_text

# Of each source, which leaves half a million facts and more.
MAX_SUBJECTS = 54_000
LARGEST_MIB = 60


def main(folder: Path) -> int:
    """Write facts.jsonl, templates.yaml and text.jsonl, and say how large they are."""
    facts = builtin_facts(max_subjects=MAX_SUBJECTS)
    folder.mkdir(parents=True, exist_ok=True)
    save_facts(FactSet(facts.facts, facts.templates), folder)
    with (folder / "text.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in builtin_text())
    mib = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    sys.stdout.write(f"{len(facts.facts):,} facts, {mib:.1f} MiB in {folder}\n")
    return int(mib > LARGEST_MIB)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
