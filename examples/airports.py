"""Write facts of 300 airports and of 100 others, as two folders in the format of users' facts.

python examples/airports.py FOLDER
"""

import sys
from pathlib import Path

from memory_layers.data.builtin import builtin_facts
from memory_layers.data.fact_files import save_facts
from memory_layers.data.facts import FactSet

RELATIONS = ("airport_iata", "airport_icao", "airport_timezone", "airport_country")
OLD, NEW = 300, 100


def main(folder: str) -> None:
    """Write FOLDER/old and FOLDER/new."""
    found = builtin_facts(RELATIONS, max_subjects=OLD + NEW)
    known = {fact.subject for fact in builtin_facts(RELATIONS, max_subjects=OLD).facts}
    for name in ("old", "new"):
        facts = [fact for fact in found.facts if (fact.subject in known) == (name == "old")]
        save_facts(FactSet(tuple(facts), found.templates), Path(folder) / name)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
