"""Write the data of gpu.yaml, ready to train on, into a folder that travels: python pack.py FOLDER.

Facts and text come from the installed packages. gpu.py needs none of them, only the folder.
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from memory_layers.common.errors import UserError
from memory_layers.common.files import write_json
from memory_layers.common.progress import ProgressLine
from memory_layers.common.provenance import commit
from memory_layers.common.reader import from_dict, read_yaml
from memory_layers.data.config import DataConfig
from memory_layers.data.prepare import prepare_data
from memory_layers.study.guess import guessers
from memory_layers.study.rates import SEED

# With the rest of the repository it travels in 64.
LARGEST_MIB = 40


def pack(folder: Path, config: Path) -> int:
    """Write FOLDER/data.tar.gz, FOLDER/sweep.tar.gz and FOLDER/about.json, and return their bytes.

    Args:
        folder: A new folder.
        config: gpu.yaml, or a file like it.

    Raises:
        UserError: The folder is there, or the configuration cannot be used.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already. hint: remove it, or another folder")
    values = read_yaml(config)
    data = from_dict(DataConfig, values["data"], f"{config}: data")
    with ProgressLine() as line:
        prepared = prepare_data(data, line.update)
        other = replace(data, seed=SEED, tokenizer=str(prepared.folder / "tokenizer"))
        tried = prepare_data(replace(other, **values["sweep_data"]), line.update)
        guessed = guessers(prepared.probes, line.update)
    folder.mkdir(parents=True)
    for name, part in {"data": prepared, "sweep": tried}.items():
        archive = shutil.make_archive(str(folder / name), "gztar", part.folder)
        counts = ", ".join(f"{part.summary[k]:,} {k}" for k in ("documents", "tokens", "facts"))
        sys.stdout.write(f"{archive}: {counts}, {Path(archive).stat().st_size / 2**20:.1f} MiB\n")
    write_json(folder / "about.json", {"commit": commit(), "guessers": guessed})
    return sum(path.stat().st_size for path in folder.iterdir())


def main(folder: str, config: str = "gpu.yaml") -> int:
    """Pack, and say how large it is. A relative path of a configuration is from this folder."""
    try:
        mib = pack(Path(folder), Path(__file__).parent / config) / 2**20
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{folder}: {mib:.1f} MiB, at most {LARGEST_MIB}\n")
    return int(mib > LARGEST_MIB)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
