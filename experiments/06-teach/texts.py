"""Running text that no arm trains on, and text that the base writes itself.

The damage of an arm is what its loss on these texts rises by, and how far its distributions are
from those of the base, KL(base || taught), both per token.
"""

import pydoc_data.topics
from collections.abc import Callable
from importlib.metadata import Distribution, distributions
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import PreTrainedModel, PreTrainedTokenizerBase

BLOCK = 256
# Of the text that the base writes: replayed, and measured on.
REPLAYED, MEASURED = 0, 1


def python_documentation() -> str:
    """Return the topics of Python's help()."""
    topics = pydoc_data.topics.topics
    return "\n".join(topics[name] for name in sorted(topics))


def _installed() -> list[Distribution]:
    found = {dist.metadata["Name"].lower(): dist for dist in distributions()}
    return [found[name] for name in sorted(found)]


def licences() -> str:
    """Return the licences of installed packages, each text once."""
    texts: dict[str, str] = {}
    for dist in _installed():
        for file in dist.files or ():
            path = Path(str(file.locate()))
            is_licence = "licen" in file.name.lower() and file.suffix in ("", ".txt", ".md", ".rst")
            if is_licence and path.is_file():
                text = path.read_text("utf-8", errors="replace")
                # The same licence of other holders differs in its first lines alone.
                texts.setdefault(text[-400:], text[:20_000])
    return "\n".join(texts.values())


def descriptions() -> str:
    """Return the beginnings of the long descriptions of installed packages."""
    bodies = [str(dist.metadata.get_payload() or "") for dist in _installed()]
    return "\n".join(body[:3000] for body in bodies if len(body) > 1500)


KINDS = {"python": python_documentation, "licences": licences, "descriptions": descriptions}


def blocks(read: Callable[[], str], tokenizer: PreTrainedTokenizerBase, count: int) -> Tensor:
    """Return `count` blocks of tokens [count, BLOCK], evenly spaced over a text."""
    ids = tokenizer(read(), add_special_tokens=False)["input_ids"]
    step = len(ids) // count
    if step < BLOCK:
        raise ValueError(f"expected a text of {count * BLOCK} tokens, got {len(ids)}")
    return torch.tensor([ids[n * step : n * step + BLOCK] for n in range(count)])


@torch.no_grad()
def written(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int, count: int
) -> Tensor:
    """Return text [count, BLOCK] that the base writes, half of it as chats."""
    torch.manual_seed(seed)
    chat = tokenizer("<|im_start|>user\n", add_special_tokens=False)["input_ids"]
    document = tokenizer("<|endoftext|>", add_special_tokens=False)["input_ids"]
    parts = []
    for start, rows in ((chat, count // 2), (document, -(-count // 2))):
        begin = torch.tensor([start]).expand(rows, -1)
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(
                model.generate(
                    begin, attention_mask=torch.ones_like(begin), do_sample=True, top_k=0,
                    top_p=0.98, max_new_tokens=BLOCK - len(start), pad_token_id=0,
                    eos_token_id=-1,  # the text goes on after the end of a turn
                )
            )  # fmt: skip
    return torch.cat(parts)


class Teacher:
    """The base's distributions on a text, kept as the hidden states before its output layer."""

    def __init__(self, text: Tensor, states: Tensor, head: Tensor) -> None:
        """Take text [blocks, BLOCK], states [blocks, BLOCK, D] and the output weights."""
        # In the number type of autocast, copied: the weights of the model change as it is taught.
        self.text, self.states = text, states
        self.head = head.detach().to(torch.bfloat16, copy=True)

    @classmethod
    @torch.no_grad()
    def kept(
        cls, path: Path, model: PreTrainedModel, text: Callable[[], Tensor], rows: int = 4
    ) -> "Teacher":
        """Read a text with the base, or what was read of it before, from `path`.

        The file holds the text too: licences and descriptions are others once a package is added.
        """
        if not path.is_file():
            ids = text()
            with torch.autocast("cpu", torch.bfloat16):
                states = [
                    model.get_decoder()(input_ids=part, use_cache=False).last_hidden_state
                    for part in ids.split(rows)
                ]
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"text": ids, "states": torch.cat(states)}, path)
        return cls(**load_file(path), head=model.get_output_embeddings().weight)

    def log_probabilities(self, rows: Tensor) -> Tensor:
        """Return those of the base [rows, BLOCK, vocabulary]."""
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return log_softmax((self.states[rows] @ self.head.T).float(), -1)


def kl(teacher: Tensor, logits: Tensor) -> Tensor:
    """Return KL(teacher || student) in nats, the mean over tokens."""
    student = log_softmax(logits.float(), -1).flatten(0, -2)
    return kl_div(student, teacher.flatten(0, -2), log_target=True, reduction="batchmean")


@torch.no_grad()
def damage(model: PreTrainedModel, teacher: Teacher, rows: int = 2) -> dict[str, float]:
    """Return loss and KL to the base on a teacher's text, in nats a token."""
    loss = far = 0.0
    for part in torch.arange(len(teacher.text)).split(rows):
        ids = teacher.text[part]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits.float()
        share = len(part) / len(teacher.text)
        loss += share * cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
        far += share * kl(teacher.log_probabilities(part), logits).item()
    return {"loss": loss, "kl": far}
