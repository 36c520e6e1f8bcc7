"""What each command of `memory-layers` does.

Modules are imported where they are used, so that no command loads what another one needs.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from memory_layers.cli.arguments import (
    Compare,
    Export,
    Generate,
    Init,
    Plan,
    Report,
    Scale,
    Show,
    Train,
)
from memory_layers.common.errors import UserError
from memory_layers.common.files import write_file
from memory_layers.common.progress import ProgressLine
from memory_layers.common.reader import read_yaml
from memory_layers.configs import find_config
from memory_layers.evaluate.command import Eval
from memory_layers.integrations.serve import Serve
from memory_layers.train.config import RunConfig

# Packages that a command may lack, and the extra that installs each.
EXTRAS = {
    "lm_eval": "eval", "jinja2": "train", "matplotlib": "train", "scipy": "train",
    "tensorboard": "train",
}  # fmt: skip


def run_train(args: Train) -> int:
    """Train a model."""
    _needs("tensorboard")
    from memory_layers.train.loop import train

    out = args.out or Path("runs") / args.run.name
    _quiet_transformers()
    trained = train(args.run, out)
    if not trained.history:
        # One of several ranks: the first one has written and says so.
        return 0
    print(f"model: {out / 'model'}\nmetrics: {out / 'metrics.jsonl'}")
    final = trained.history[-1]
    if "recall" in final:
        shown = {"recall": final["recall"], "answer_nll": final["answer_nll"]}
        print(json.dumps(shown, indent=2, ensure_ascii=False))
    return 0


def run_compare(args: Compare) -> int:
    """Train variants and print what came of each."""
    _needs("tensorboard", "matplotlib", "jinja2", "scipy")
    from memory_layers.study.compare import compare
    from memory_layers.study.config import check_seeds, load_compare
    from memory_layers.study.report import render_table

    check_seeds(args.seeds, "--seeds")
    _check_counts(workers=args.workers)
    config = load_compare(find_config(args.config))
    config = replace(config.with_base(args.run), seeds=tuple(args.seeds))
    out = args.out or Path("runs") / args.run.name
    _quiet_transformers()
    if config.match:
        print(f"matching {' and '.join(config.match)}: a minute or so", file=sys.stderr, flush=True)
    results = compare(config, out, workers=args.workers, command=args.command)
    return _print_results(results, render_table(results), out)


def run_scale(args: Scale) -> int:
    """Train a sweep and print what came of it."""
    _needs("tensorboard", "matplotlib", "jinja2", "scipy")
    from memory_layers.study.report import render_scale_table
    from memory_layers.study.scale import load_scale, scale

    _check_counts(workers=args.workers, threads=args.threads)
    config = load_scale(find_config(args.config)).changed(args.run, args.slots, args.seeds)
    out = args.out or Path("runs") / args.run.name
    _quiet_transformers()
    results = scale(config, out, workers=args.workers, threads=args.threads, command=args.command)
    return _print_results(results, render_scale_table(results), out)


def _print_results(results: Mapping[str, Any], table: Any, out: Path) -> int:  # noqa: ANN401
    from rich.console import Console

    Console().print(table)
    print(f"results: {out / 'results.json'}\nreport: {out / 'report.html'}")
    return 1 if any(run["status"] != "ok" for run in results["runs"]) else 0


def run_plan(args: Plan) -> int:
    """Print whether a run fits."""
    from memory_layers.plan.command import plan_text

    print(plan_text(args.run, args.ranks, args.device, as_json=args.json))
    return 0


def run_report(args: Report) -> int:
    """Write a report."""
    _needs("matplotlib", "jinja2", "scipy")
    from memory_layers.study.report import write_report, write_scale_report

    try:
        results = json.loads(args.results.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{args.results}: is not JSON: {error}") from error
    if not isinstance(results, dict) or "runs" not in results:
        raise UserError(
            f"{args.results}: must hold `runs`. hint: results.json of `compare` or `scale`"
        )
    write = write_scale_report if "exchange" in results else write_report
    print(f"report: {write(results, args.out or args.results.parent)}")
    return 0


def run_export(args: Export) -> int:
    """Write a model folder."""
    from memory_layers.train.export import export_checkpoint

    _quiet_transformers()
    with ProgressLine() as line:
        export_checkpoint(
            args.checkpoint,
            args.out,
            progress=lambda done, size: line.update(done, size, "bytes written"),
        )
    print(f"model: {args.out}")
    return 0


def run_eval(args: Eval) -> int:
    """Print what a model knows."""
    if args.tasks:
        _needs("lm_eval")
    from memory_layers.evaluate.command import evaluate_model

    _quiet_transformers()
    print(evaluate_model(args))
    return 0


def run_generate(args: Generate) -> int:
    """Print a text and how a model continues it."""
    import torch

    from memory_layers.evaluate.trained import load_trained
    from memory_layers.models import fuse_for_inference

    if args.max_tokens < 1 or args.temperature < 0:
        raise UserError(
            f"--max-tokens must be >= 1 and --temperature >= 0, got {args.max_tokens} and "
            f"{args.temperature}"
        )
    _quiet_transformers()
    model, tokenizer = load_trained(args.model, trust_remote_code=args.trust_remote_code)
    fuse_for_inference(model)
    inputs = tokenizer(args.prompt, return_tensors="pt", add_special_tokens=False)
    if inputs["input_ids"].shape[1] == 0:
        raise UserError("the prompt is empty. hint: give at least one word")
    torch.manual_seed(args.seed)
    sampling: dict[str, Any] = {"do_sample": False}
    if args.temperature > 0:
        sampling = {"do_sample": True, "temperature": args.temperature}
    ids = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=args.max_tokens,
        pad_token_id=tokenizer.eos_token_id,
        **sampling,
    )
    print(tokenizer.decode(ids[0], skip_special_tokens=True))
    return 0


def run_serve(args: Serve) -> int:
    """Serve a model until interrupted."""
    from memory_layers.integrations.serve import serve

    serve(args)
    return 0


def run_show(args: Show) -> int:
    """Print what a configuration says in full."""
    import yaml

    path = find_config(args.config)
    values = read_yaml(path)
    if args.slots and "bases" not in values:
        raise UserError("--slots has no effect: the file lists no `bases:`. hint: leave it out")
    if "variants" in values:
        from memory_layers.study.config import load_compare

        runs = load_compare(path).with_base(args.run).variants()
    elif "bases" in values:
        from memory_layers.study.scale import load_scale

        sweep = load_scale(path)
        cells = sweep.changed(args.run, args.slots or sweep.slots, sweep.seeds).cells()
        runs = {name: run for name, (_, _, run) in cells.items()}
    else:
        runs = {args.run.name: args.run}
    shown = {name: _plain(asdict(_resolved(run))) for name, run in runs.items()}
    print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True))
    _print_parameters(runs)
    return 0


def run_init(args: Init) -> int:
    """Write a configuration."""
    path = Path(f"{args.name.removesuffix('.yaml')}.yaml")
    if path.exists():
        raise UserError(f"{path} exists already. hint: choose another name")
    lines = find_config("tiny").read_text("utf-8").splitlines()[1:]
    lines = [f"name: {path.stem}" if line == "name: tiny" else line for line in lines]
    head = f"# A small model with memory on real facts: memory-layers train {path}"
    write_file(path, "\n".join([head, *lines]) + "\n")
    print(f"{path}\nnext: memory-layers train {path}")
    return 0


def run_bench(arguments: list[str]) -> int:
    """Run a benchmark of the checkout that this package lies in."""
    from importlib import import_module

    root = Path(__file__).parents[3]
    if not (root / "benchmarks" / "__main__.py").is_file():
        raise UserError(
            "benchmarks are not part of the installed package. hint: in a checkout of the project, "
            f"python -m benchmarks {' '.join(arguments)}"
        )
    sys.path.insert(0, str(root))
    _quiet_transformers()
    return import_module("benchmarks.__main__").main(arguments)


def _needs(*modules: str) -> None:
    """Refuse to begin what would end in a missing package."""
    for module in modules:
        if find_spec(module) is None:
            raise ImportError(
                f'{module} is not installed. hint: pip install "memory-layers[{EXTRAS[module]}]"'
            )


def _check_counts(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} must be >= 1, got {value}")


def _resolved(run: RunConfig) -> RunConfig:
    """Return a run in which the sizes that depend on the model are filled in."""
    if run.memory is None:
        return run
    sizes = run.memory.resolved(run.model.to_preset().hidden_size)
    return replace(run, memory=replace(run.memory, **asdict(sizes)))


def _print_parameters(runs: dict[str, RunConfig]) -> None:
    from rich.console import Console
    from rich.table import Table

    from memory_layers.data.tokenizer import load_tokenizer
    from memory_layers.study.flops import shape_of
    from memory_layers.study.measure import count_parameters

    table = Table("variant", "parameters", "of these in value tables", "used by a token")
    for name, run in runs.items():
        vocab_size = run.data.vocab_size
        if run.data.tokenizer is not None:
            vocab_size = len(load_tokenizer(Path(run.data.tokenizer)))
        counts = count_parameters(shape_of(run, vocab_size))
        columns = ("params_total", "params_memory", "params_active")
        table.add_row(name, *(f"{counts[column]:,}" for column in columns))
    Console().print(table)


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value


def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
