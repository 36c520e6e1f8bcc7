"""What MemoryConfig and MoeConfig have in common: the blocks they are for, and plain values."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

from memory_layers.common.errors import UserError
from memory_layers.common.text import did_you_mean


@dataclass(frozen=True, kw_only=True)
class BlocksConfig:
    """Base of the dataclasses that say which blocks of a model get another layer, and which.

    Attributes:
        layers: Indices of blocks, counted from 0. None: all.
        required: Fields without a default, each with an example for the hint.
        removed: Fields of earlier versions, and what stands for them now.
        removed_defaults: The value of each that is what a config without it means.
    """

    layers: tuple[int, ...] | None
    required: ClassVar[Mapping[str, str]] = MappingProxyType({})
    removed: ClassVar[Mapping[str, str]] = MappingProxyType({})
    removed_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __new__(cls, **values: Any) -> Self:  # noqa: ANN401
        """Refuse unknown fields. Nothing is given when pickle makes a copy."""
        cls._refuse_unknown(values)
        return super().__new__(cls)

    @classmethod
    def _refuse_unknown(cls, names: Iterable[str]) -> None:
        known = [field.name for field in fields(cls)]
        for name in names:
            if name in cls.removed:
                raise UserError(
                    f"{name} was removed from {cls.__name__}. hint: {cls.removed[name]}"
                )
            if name not in known:
                hint = did_you_mean(name, known)
                raise UserError(f"{cls.__name__} has no field {name!r}. hint: {hint}")

    def check_layers(self) -> None:
        """Check the indices of blocks, and turn a list into a tuple.

        Raises:
            UserError: `layers` is not a list, or names a block twice.
        """
        if self.layers is None and "layers" not in self.required:
            return
        if isinstance(self.layers, str) or not isinstance(self.layers, Iterable):
            raise UserError(f"layers must be a list of block indices, got {self.layers!r}")
        object.__setattr__(self, "layers", tuple(self.layers))
        for layer in self.layers:
            if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
                raise UserError(f"layers must be block indices counted from 0, got {layer!r}")
        if len(set(self.layers)) < len(self.layers):
            raise UserError(f"layers must not name a block twice, got {list(self.layers)}")

    def check_named(self) -> None:
        """Check that there is a block that gets another layer.

        Raises:
            UserError: `layers` is empty.
        """
        if self.layers is not None and not self.layers:
            raise UserError("layers must name at least one block, got none. hint: layers: [4]")

    def check_choices(self) -> None:
        """Check the fields that are one of several words, or true or false.

        Raises:
            UserError: A value is of the wrong kind.
        """
        for field in fields(self):
            value, choices = getattr(self, field.name), get_args(field.type)
            if get_origin(field.type) is Literal and value not in choices:
                raise UserError(f"{field.name} must be one of {choices}, got {value!r}")
            if field.type is bool and not isinstance(value, bool):
                raise UserError(f"{field.name} must be true or false, got {value!r}")

    def chosen_layers(self, blocks: int) -> tuple[int, ...]:
        """Return the indices of the blocks that get another layer.

        Args:
            blocks: Number of blocks of the model.

        Raises:
            UserError: `layers` is empty, or an index in it is not below the number of blocks.
        """
        self.check_named()
        layers = tuple(range(blocks)) if self.layers is None else self.layers
        beyond = [layer for layer in layers if layer >= blocks]
        if beyond:
            raise UserError(
                f"layers must be below the number of blocks, {blocks}, got {beyond}. "
                f"hint: the last block is {blocks - 1}"
            )
        return layers

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON and YAML."""
        return {**asdict(self), "layers": None if self.layers is None else list(self.layers)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a config from what `to_dict` of this or an earlier version returned.

        Raises:
            UserError: A field is unknown (the closest name is given), missing or wrong.
        """
        known = {name: value for name, value in values.items() if name not in cls.removed}
        for name in values.keys() & cls.removed.keys():
            if values[name] != cls.removed_defaults[name]:
                warnings.warn(
                    f"{name}={values[name]!r} of an earlier version has no effect: {name} was "
                    f"removed from {cls.__name__}. hint: {cls.removed[name]}",
                    stacklevel=2,
                )
        # First: a field that is misspelled is missing too.
        cls._refuse_unknown(known)
        for name, example in cls.required.items():
            if name not in known:
                raise UserError(f"{cls.__name__} needs `{name}`. hint: {name}: {example}")
        return cls(**known)
