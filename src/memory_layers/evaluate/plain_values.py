"""What a task file that is not trusted is run in: templates and documents of plain values alone."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from memory_layers.common.errors import UserError

# Whose objects templates may use. A picture, for one, can write files.
_PLAIN = ("builtins", "datetime", "decimal", "jinja2")


@contextmanager
def plain_values() -> Generator[None]:
    """Let templates of tasks use the values of documents and nothing else.

    Raises:
        UserError: A data set has more than values.
    """
    import datasets
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    class Plain(SandboxedEnvironment):
        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:  # noqa: ANN401
            known = type(obj).__module__.partition(".")[0] in _PLAIN
            return known and super().is_safe_attribute(obj, attr, value)

    def load(*args: Any, **options: Any) -> Any:  # noqa: ANN401
        loaded = load_dataset(*args, **options)
        for split in loaded.values():
            if names := sorted(name for name, one in split.features.items() if _opens_files(one)):
                raise UserError(
                    f"data set {options.get('path')}: {names[0]!r} holds {split.features[names[0]]}"
                    ", which may be read from any file. hint: --trust-remote-code True, if you "
                    "trust it"
                )
        return loaded

    environment, load_dataset = utils.env, datasets.load_dataset
    checked: Any = load
    inside = Plain(
        loader=environment.loader, undefined=environment.undefined, keep_trailing_newline=True
    )
    inside.filters.update(environment.filters)
    utils.env, datasets.load_dataset = inside, checked
    try:
        yield
    finally:
        utils.env, datasets.load_dataset = environment, load_dataset


def _opens_files(feature: Any) -> bool:  # noqa: ANN401
    """Tell whether a feature of a data set is a picture, a sound and so on, or holds one."""
    if isinstance(feature, dict | list | tuple):
        inner = feature.values() if isinstance(feature, dict) else feature
        return any(map(_opens_files, inner))
    if hasattr(feature, "feature"):
        return _opens_files(feature.feature)
    return hasattr(feature, "decode_example") and type(feature).__name__ != "Json"
