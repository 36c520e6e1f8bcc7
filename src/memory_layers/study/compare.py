"""compare(): train all variants on the same tokens, in worker processes, and write the report.

A comparison that was stopped goes on where it was. Next: config.py, what it reads, match.py, which
makes variants cost the same, runs.py, which trains them, and report.py, which shows them.
"""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.common.provenance import commit, device_name, versions
from memory_layers.data.prepare import prepare_data
from memory_layers.study.config import CompareConfig
from memory_layers.study.match import match_variants
from memory_layers.study.outcome import read_outcome
from memory_layers.study.report import write_report
from memory_layers.study.runs import Job, cores, run_all, workers_for
from memory_layers.train.checkpoint import claim_folder


def compare(
    config: CompareConfig, out: Path, *, workers: int | None = None, command: str = ""
) -> dict[str, Any]:
    """Run a comparison and write OUT/results.json, OUT/report.html and OUT/plots/.

    results.json is there as soon as the first run has ended, with `complete` false until all have.

    Args:
        config: Variants and seeds.
        out: Folder of the comparison. Each run has a folder in OUT/runs.
        workers: Runs at a time. None: one a core, or one on a GPU.
        command: For the report.

    Returns:
        The content of results.json. A run that did not finish is in it, with its status and error:
        see outcome.py.

    Raises:
        UserError: `out` holds another comparison, or there are no facts to ask for.
        UserError: The data is malformed.
        KeyboardInterrupt: Ctrl-C or SIGTERM. All runs have saved a checkpoint.
    """
    if config.base.data.facts is None:
        raise UserError("a comparison measures recall and needs data.facts. hint: facts: builtin")
    variants = config.variants()
    # Once for each, however many variants share it.
    prepared = {data: prepare_data(data) for data in {run.data: None for run in variants.values()}}
    sizes = {name: len(prepared[run.data].tokenizer) for name, run in variants.items()}
    matched = match_variants(config, sizes)
    jobs = config.jobs(matched.variants)
    for name, (_, _, run) in jobs.items():
        claim_folder(out / "runs" / name, run)
    workers = workers_for(jobs, workers)
    about = {
        "format_version": 1,
        "name": config.base.name,
        "command": command,
        "device": device_name(),
        "workers": workers,
        "versions": versions("torch", "numba", "transformers", "tokenizers"),
        "commit": commit(),
        "facts": next(iter(prepared.values())).summary,
        "kinds": config.kinds(),
        "match": matched.record,
    }
    run_all(
        jobs,
        out / "runs",
        workers,
        max(1, cores() // workers),
        ended=lambda _name: _write_results(about, jobs, out, complete=False),
    )
    results = _write_results(about, jobs, out, complete=True)
    write_report(results, out)
    return results


def _write_results(
    about: Mapping[str, Any], jobs: Mapping[str, Job], out: Path, *, complete: bool
) -> dict[str, Any]:
    """Write OUT/results.json with all runs, as far as they are, and return its content."""
    results = {
        **about,
        "complete": complete,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "runs": [
            read_outcome(variant, seed, out / "runs" / name)
            for name, (variant, seed, _) in jobs.items()
        ],
    }
    part = out / "results.json.part"
    part.write_text(json.dumps(results, indent=1), "utf-8")
    os.replace(part, out / "results.json")
    return results
