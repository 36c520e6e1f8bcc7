"""Count the text that is installed, into text.json beside this file: python text.py.

Tokens are those of data.text: [builtin, packages], with the tokenizer that is trained on it, and
one token at the end of each document.
"""

import json
import platform
import sys
from itertools import chain
from pathlib import Path

from memory_layers.data.encode import encode_texts
from memory_layers.data.prose import FREE_PACKAGES, builtin_text, package_text, package_versions
from memory_layers.data.tokenizer import slices, train_tokenizer

VOCAB_SIZE = 2048


def main() -> int:
    """Read, train a tokenizer, count and write."""
    builtin = builtin_text()
    texts = {"Python": builtin} | package_text(builtin)
    versions = {"Python": platform.python_version()} | package_versions()
    licences = {"Python": "PSF-2.0"} | {package.name: package.licence for package in FREE_PACKAGES}
    tokenizer = train_tokenizer(slices(chain.from_iterable(texts.values())), VOCAB_SIZE)
    sources = [
        {
            "source": name,
            "version": versions[name],
            "licence": licences[name],
            "documents": len(documents),
            "words": sum(len(document.split()) for document in documents),
            "tokens": sum(len(ids) + 1 for ids, _ in encode_texts(tokenizer, documents)),
        }
        for name, documents in texts.items()
    ]
    written = {"vocab_size": VOCAB_SIZE, "sources": sources}
    Path(__file__).with_name("text.json").write_text(json.dumps(written, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
