"""Small inputs for tests of whole runs."""

import json
from pathlib import Path

SHAPE = {"hidden_size": 16, "layers": 2, "heads": 2, "mlp_size": 32}


def write_facts(folder: Path, count: int = 30) -> Path:
    """Write facts in the user format and return the folder."""
    folder.mkdir()
    lines = [
        json.dumps({"relation": "code", "subject": f"Place {n}", "answer": f"X{n * 37 % 100}"})
        for n in range(count)
    ]
    (folder / "facts.jsonl").write_text("\n".join(lines))
    (folder / "templates.yaml").write_text(
        'code: {statements: ["{subject} has {answer}."], question: "Q {subject}? A: {answer}"}'
    )
    return folder
