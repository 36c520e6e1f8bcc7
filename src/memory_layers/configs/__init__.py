"""Configurations that come with the package, each by its name: `memory-layers train tiny`."""

from difflib import get_close_matches
from pathlib import Path

from memory_layers.common.errors import UserError
from memory_layers.common.paths import expand

FOLDER = Path(__file__).parent


def config_names() -> list[str]:
    """Return the names of the configurations that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_config(name: str) -> Path:
    """Return the file of a configuration.

    Args:
        name: A path, or the name of a configuration that comes with the package.

    Raises:
        UserError: There is no file and no configuration of that name.
    """
    path, names = Path(expand(name)), config_names()
    if path.is_file():
        return path
    if name in names:
        return FOLDER / f"{name}.yaml"
    problem = "Is a directory" if path.is_dir() else "No such file or configuration"
    here = sorted(str(file) for file in path.parent.glob("*.yaml"))
    # Of a run, the file that its folder holds.
    same = [file for file in here if Path(file).stem == path.stem]
    same += [str(file) for file in path.glob("config.json")]
    close = same or get_close_matches(name, [*names, *here], n=1)
    hint = f"did you mean {close[0]!r}? The package has" if close else "a YAML file, or one of"
    raise UserError(f"{name}: cannot be read: {problem}. hint: {hint} {', '.join(names)}")
