"""compare(): train all variants on the same tokens, in worker processes, and write the report.

A comparison that was stopped goes on where it was. Next: config.py, what it reads, match.py, which
makes variants cost the same, runs.py, which trains them, and report/, which shows them.
"""

from pathlib import Path
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.common.progress import ProgressLine
from memory_layers.data.prepare import prepare_data
from memory_layers.study.config import CompareConfig
from memory_layers.study.match import match_variants
from memory_layers.study.outcome import about_study, read_outcome, write_results
from memory_layers.study.report import write_report
from memory_layers.study.runs import cores, run_all, workers_for
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
        UserError: `out` holds another comparison, there are no facts to ask for, or the data is
            malformed.
        KeyboardInterrupt: Ctrl-C or SIGTERM. All runs have saved a checkpoint.
    """
    if config.base.data.facts is None:
        raise UserError("a comparison measures recall and needs data.facts. hint: facts: builtin")
    variants = config.variants()
    # Once for each, however many variants share it.
    different = dict.fromkeys(run.data for run in variants.values())
    with ProgressLine() as line:
        prepared = {data: prepare_data(data, line.update) for data in different}
    sizes = {name: len(prepared[run.data].tokenizer) for name, run in variants.items()}
    matched = match_variants(config, sizes)
    jobs = config.jobs(matched.variants)
    for name, (_, _, run) in jobs.items():
        claim_folder(out / "runs" / name, run)
    workers = workers_for(jobs, workers)
    about = {
        **about_study(config.base.name, command, workers),
        "facts": next(iter(prepared.values())).summary,
        "kinds": config.kinds(),
        "match": matched.record,
    }

    def write(*, complete: bool) -> dict[str, Any]:
        runs = [
            read_outcome(variant, seed, out / "runs" / name)
            for name, (variant, seed, _) in jobs.items()
        ]
        return write_results(out, {**about, "complete": complete, "runs": runs})

    threads = max(1, cores() // workers)
    run_all(jobs, out / "runs", workers, threads, lambda _name: write(complete=False))
    results = write(complete=True)
    write_report(results, out)
    return results
