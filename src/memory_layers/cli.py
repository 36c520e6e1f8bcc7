"""The command `memory-layers`: one function for each of its subcommands."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tyro

from memory_layers.arguments import (
    USAGE,
    CompareArgs,
    EvalArgs,
    ExportArgs,
    GenerateArgs,
    ReportArgs,
    ScaleArgs,
    ServeArgs,
    TrainArgs,
)
from memory_layers.common.errors import LostRankError, UserError
from memory_layers.config import MemoryConfig
from memory_layers.configs import find_config
from memory_layers.data.config import BUILTIN, DataConfig
from memory_layers.study.config import check_seeds, load_compare
from memory_layers.train.config import RunConfig, load_run, read_yaml


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: Arguments without the program name. None: those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "compare": _compare,
        "scale": _scale,
        "plan": _plan,
        "report": _report,
        "export": _export,
        "eval": _eval,
        "generate": _generate,
        "serve": _serve,
        "show": _show,
        "bench": _bench,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in commands:
        return _fail(f"unknown command `{name}`. hint: one of {', '.join(commands)}")
    try:
        return commands[name](rest)
    except KeyboardInterrupt as stopped:
        _tell(f"{str(stopped) or 'interrupted'}\nto go on, run the same command again")
        return 130
    except LostRankError as error:
        _fail(str(error), own=True)
        # Threads that wait for the lost rank would hold this process.
        os._exit(2)
    except OSError as error:
        return _fail(str(error), own=True)
    except (UserError, FloatingPointError, ImportError) as error:
        return _fail(str(error))


def _train(arguments: list[str]) -> int:
    from memory_layers.train.loop import train

    path, flags = _config_path("train", arguments)
    for field, command in (("variants", "compare"), ("bases", "scale")):
        if field in read_yaml(path):
            raise UserError(f"{path} lists {field}. hint: memory-layers {command} {path}")
    args = _parse("train", TrainArgs, flags, TrainArgs(load_run(path)))
    _check_selection(args.run.data, flags)
    out = args.out or Path("runs") / args.run.name
    _quiet_transformers()
    trained = train(args.run, out)
    if not trained.history:
        # One of several ranks: the first one has written and says so.
        return 0
    print(f"model: {out / 'model'}\nmetrics: {out / 'metrics.jsonl'}")
    final = trained.history[-1]
    if "recall" in final:
        _print_recall(final)
    return 0


def _compare(arguments: list[str]) -> int:
    import shlex

    from rich.console import Console

    from memory_layers.study.compare import compare
    from memory_layers.study.report import render_table

    path, flags = _config_path("compare", arguments)
    config = load_compare(path)
    args = _parse("compare", CompareArgs, flags, CompareArgs(config.base, config.seeds))
    check_seeds(args.seeds, "--seeds")
    _check_selection(args.run.data, flags)
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers must be >= 1, got {args.workers}")
    config = replace(config.with_base(args.run), seeds=tuple(args.seeds))
    out = args.out or Path("runs") / args.run.name
    _quiet_transformers()
    command = shlex.join(["memory-layers", "compare", *arguments])
    if config.match:
        print(f"matching {' and '.join(config.match)}: a minute or so", file=sys.stderr, flush=True)
    results = compare(config, out, workers=args.workers, command=command)
    Console().print(render_table(results))
    print(f"results: {out / 'results.json'}\nreport: {out / 'report.html'}")
    failed = [run for run in results["runs"] if run["status"] != "ok"]
    return 1 if failed else 0


def _scale(arguments: list[str]) -> int:
    import shlex

    from rich.console import Console

    from memory_layers.study.scale import load_scale, scale
    from memory_layers.study.scale_report import render_scale_table

    path, flags = _config_path("scale", arguments)
    config = load_scale(path)
    default = ScaleArgs(config.base, config.slots, config.seeds)
    args = _parse("scale", ScaleArgs, flags, default)
    _check_selection(args.run.data, flags)
    for name in ("workers", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be >= 1, got {value}")
    config = config.changed(args.run, args.slots, args.seeds)
    out = args.out or Path("runs") / args.run.name
    _quiet_transformers()
    command = shlex.join(["memory-layers", "scale", *arguments])
    results = scale(config, out, workers=args.workers, threads=args.threads, command=command)
    Console().print(render_scale_table(results))
    print(f"results: {out / 'results.json'}\nreport: {out / 'report.html'}")
    return 1 if any(run["status"] != "ok" for run in results["runs"]) else 0


def _plan(arguments: list[str]) -> int:
    from memory_layers.plan.command import plan_command

    return plan_command(arguments, print)


def _report(arguments: list[str]) -> int:
    from memory_layers.study.report import write_report
    from memory_layers.study.scale_report import write_scale_report

    args = _parse("report", ReportArgs, arguments)
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


def _export(arguments: list[str]) -> int:
    from rich.progress import Progress

    from memory_layers.train.export import export_checkpoint

    args = _parse("export", ExportArgs, arguments)
    _quiet_transformers()
    with Progress(disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("export")
        export_checkpoint(
            args.checkpoint,
            args.out,
            progress=lambda done, size: progress.update(task, completed=done, total=size),
        )
    print(f"model: {args.out}")
    return 0


def _eval(arguments: list[str]) -> int:
    from memory_layers.evaluate.command import evaluate_model

    _quiet_transformers()
    print(evaluate_model(**asdict(_parse("eval", EvalArgs, arguments))))
    return 0


def _generate(arguments: list[str]) -> int:
    import torch

    from memory_layers.evaluate.trained import load_trained
    from memory_layers.models import fuse_for_inference

    args = _parse("generate", GenerateArgs, arguments)
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


def _serve(arguments: list[str]) -> int:
    from memory_layers.integrations.serve import serve

    args = _parse("serve", ServeArgs, arguments)
    options = asdict(args)
    serve(options.pop("model"), **options)
    return 0


def _show(arguments: list[str]) -> int:
    import yaml

    path, flags = _config_path("show", arguments)
    if "variants" in read_yaml(path):
        config = load_compare(path)
        args = _parse("show", CompareArgs, flags, CompareArgs(config.base, config.seeds))
        runs = config.with_base(args.run).variants()
    elif "bases" in read_yaml(path):
        from memory_layers.study.scale import load_scale

        sweep = load_scale(path)
        args = _parse("show", ScaleArgs, flags, ScaleArgs(sweep.base, sweep.slots, sweep.seeds))
        cells = sweep.changed(args.run, args.slots, args.seeds).cells()
        runs = {name: run for name, (_, _, run) in cells.items()}
    else:
        args = _parse("show", TrainArgs, flags, TrainArgs(load_run(path)))
        runs = {args.run.name: args.run}
    shown = {name: _plain(asdict(_resolved(run))) for name, run in runs.items()}
    print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True))
    _print_parameters(runs)
    return 0


def _bench(arguments: list[str]) -> int:
    from importlib import import_module

    root = Path(__file__).parents[2]
    if not (root / "benchmarks" / "__main__.py").is_file():
        raise UserError(
            "benchmarks are not part of the installed package. hint: in a checkout of the project, "
            f"python -m benchmarks {' '.join(arguments)}"
        )
    sys.path.insert(0, str(root))
    _quiet_transformers()
    return import_module("benchmarks.__main__").main(arguments)


def _resolved(run: RunConfig) -> RunConfig:
    """Return a run in which the sizes that depend on the model are filled in."""
    if run.memory is None:
        return run
    sizes = run.memory.resolved(run.model.to_preset().hidden_size)
    return replace(run, memory=replace(run.memory, **asdict(sizes)))


def _check_selection(data: DataConfig, flags: list[str]) -> None:
    """Refuse flags that select built-in facts when the facts are others."""
    for flag in flags:
        name = flag.split("=")[0].replace("_", "-")
        if data.facts != BUILTIN and name in ("--data.relations", "--data.max-subjects"):
            raise UserError(
                f"{name} selects built-in facts, but data.facts is {data.facts!r}. hint: leave "
                f"{name} out, users' facts are used whole"
            )


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


def _config_path(command: str, arguments: list[str]) -> tuple[Path, list[str]]:
    if arguments and not arguments[0].startswith("-"):
        return find_config(arguments[0]), arguments[1:]
    if any(argument in ("-h", "--help") for argument in arguments):
        # The flags are the fields of any run: show them with the defaults of a plain one.
        layers = MemoryConfig(layers=(1,))
        run = RunConfig(name="NAME", memory=layers)
        sweeps = {"compare": CompareArgs(run, (0,)), "scale": ScaleArgs(run, (0, 65_536), (0,))}
        args = sweeps.get(command, TrainArgs(run))
        _parse(f"{command} CONFIG.yaml", type(args), ["--help"], args)
    example = {"train": "tiny", "scale": "scale"}.get(command, "demo")
    raise UserError(
        f"`{command}` needs a configuration file first. hint: memory-layers {command} {example}"
    )


def _parse(command: str, kind: Any, flags: list[str], default: Any = None) -> Any:  # noqa: ANN401
    extra = {} if default is None else {"default": default}
    try:
        return tyro.cli(
            kind,
            prog=f"memory-layers {command}",
            args=flags,
            config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
            **extra,
        )
    except ValueError as error:
        # tyro prints what is wrong with one part of a run, not with how its parts fit together.
        raise UserError(str(error)) from error


def _print_recall(values: dict[str, Any]) -> None:
    shown = {"recall": values["recall"], "answer_nll": values["answer_nll"]}
    print(json.dumps(shown, indent=2, ensure_ascii=False))


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value


def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _fail(message: str, *, own: bool = False) -> int:
    _tell(f"error: {message}", own=own)
    return 2


def _tell(message: str, *, own: bool = False) -> None:
    """Print to stderr. Of many ranks, the first speaks for all but for what is a rank's own."""
    rank, size = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE"))
    if own and size > 1:
        message = f"rank {rank}: {message}"
    if own or rank == 0:
        print(message, file=sys.stderr, flush=True)
