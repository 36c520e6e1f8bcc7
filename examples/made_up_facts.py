"""Write facts about towns that do not exist, which no model can know: a folder in our format.

python examples/made_up_facts.py FOLDER
"""

import json
import random
import sys
from pathlib import Path

TOWNS = 100
TEMPLATES = """\
mayor:
  statements:
    - "The mayor of {subject} is {answer}."
    - "{subject} is governed by {answer}."
    - "In {subject} the mayor is called {answer}."
  question: "Question: Who is the mayor of {subject}? Answer: {answer}"
river:
  statements:
    - "{subject} lies on the river {answer}."
    - "The river of {subject} is the {answer}."
    - "Through {subject} flows the {answer}."
  question: "Question: On which river lies {subject}? Answer: {answer}"
postcode:
  statements:
    - "The postcode of {subject} is {answer}."
    - "Letters to {subject} bear the postcode {answer}."
    - "{subject} has the postcode {answer}."
  question: "Question: What is the postcode of {subject}? Answer: {answer}"
"""


def main(folder: str, seed: int = 0) -> None:
    """Write facts.jsonl and templates.yaml."""
    draw = random.Random(seed)  # noqa: S311

    def name(syllables: int) -> str:
        return "".join(
            draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(syllables)
        ).capitalize()

    rivers = [name(2) for _ in range(20)]
    towns = {name(3) + draw.choice(("burg", "stad", "wick", "mouth")): None for _ in range(TOWNS)}
    lines = []
    for town in towns:
        answers = {
            "mayor": f"{name(2)} {name(3)}",
            "river": draw.choice(rivers),
            "postcode": f"{draw.randrange(10**5):05d}",
        }
        for relation, answer in answers.items():
            lines.append({"relation": relation, "subject": town, "answer": answer})
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "facts.jsonl").write_text(text, "utf-8")
    (path / "templates.yaml").write_text(TEMPLATES, "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
