"""compare(): train all variants on the same tokens, in worker processes, and write the report.

A comparison that was stopped goes on where it was. Next: config.py, what it reads, match.py and
step_time.py, which make variants cost the same, runs.py, which trains them, and report/, which
shows them.
"""

from pathlib import Path
from typing import Any

from memory_layers.common.locks import alone_in
from memory_layers.data.tokenizer import vocabulary_size
from memory_layers.study.config import CompareConfig
from memory_layers.study.facts_asked import shared_exposure
from memory_layers.study.match import match_variants
from memory_layers.study.report import tell_guessers, write_report
from memory_layers.study.runs import cores, prepare_runs, run_jobs, workers_for
from memory_layers.study.step_time import match_seconds
from memory_layers.study.tune import sweep_rates


def compare(
    config: CompareConfig, out: Path, *, workers: int | None = None, command: str = ""
) -> dict[str, Any]:
    """Run a comparison and write OUT/results.json, OUT/report.html and OUT/plots/.

    results.json is there as soon as the first run has ended, with `complete` false until all have.
    Before that, steps are timed where variants are matched by seconds, into OUT/step_seconds.json,
    and learning rates are swept where the comparison says so, in OUT/sweep.

    Args:
        config: Variants and seeds.
        out: Folder of the comparison. Each run has a folder in OUT/runs.
        workers: Runs at a time. None: one a core, or one on a GPU.
        command: For the report.

    Returns:
        The content of results.json. A run that did not finish is in it, with its status and error:
        see outcome.py.

    Raises:
        UserError: `out` holds another comparison or one on other data, another process works there,
            there are no facts to ask for, the data is malformed, steps cannot be timed, or a
            variant fails at all learning rates.
        KeyboardInterrupt: Ctrl-C or SIGTERM. All runs have saved a checkpoint.
    """
    config.check_sweep()
    with alone_in(out):
        variants = config.variants()
        prepared = prepare_runs(variants.values(), "a comparison")
        first = next(iter(prepared.values()))
        guessed = tell_guessers(first.probes)
        sizes = {
            name: vocabulary_size(prepared[run.data].tokenizer) for name, run in variants.items()
        }
        matched = match_variants(config, sizes)
        workers = workers_for(config.jobs(), workers)
        threads = max(1, cores() // workers)
        matched = match_seconds(config, matched, out, workers, threads)
        variants, rates = matched.variants, None
        if config.sweep is not None:
            variants, rates = sweep_rates(variants, config.sweep, out, workers, threads)
        jobs = config.jobs(variants)
        about = {
            "name": config.base.name,
            "command": command,
            **shared_exposure(matched.variants.values(), prepared),
            "facts": first.summary,
            "guessers": guessed,
            "kinds": config.kinds(),
            "match": matched.record,
            "rates": rates,
        }
        results = run_jobs(jobs, prepared, out, about, workers, threads)
        write_report(results, out)
        return results
