"""What `memory-layers plan` prints."""

import io
import json
from dataclasses import replace

from rich.console import Console

from memory_layers.common.errors import UserError
from memory_layers.common.text import did_you_mean
from memory_layers.parallel.config import Layout
from memory_layers.plan.devices import DEVICES, Device, measure_cpu
from memory_layers.plan.job import Job
from memory_layers.plan.predict import predict, smallest
from memory_layers.plan.report import as_values, render
from memory_layers.train.config import RunConfig

CPU = "cpu"


def plan_text(run: RunConfig, ranks: int, device: str, *, as_json: bool) -> str:
    """Return the plan of a run, also of one that does not fit.

    Args:
        run: The run.
        ranks: Processes, one a device.
        device: Name of a device, or "cpu" for this one.
        as_json: Return nested values in place of tables.

    Raises:
        UserError: It cannot be planned as asked.
    """
    if ranks < 1:
        raise UserError(f"--ranks must be at least 1, got {ranks}. hint: --ranks 8")
    found = _find_device(device)
    try:
        layout = run.parallel.resolve(ranks)
        shared = _shared(run, layout)
        job = Job(shared, layout)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"--ranks {ranks}: {error}") from error
    prediction = predict(job, found)
    fewest = smallest(job, found)
    if as_json:
        return json.dumps(as_values(prediction, fewest), indent=2)
    text = io.StringIO()
    console = Console(file=text)
    console.print(render(prediction, fewest))
    if shared is not run:
        console.print(
            f"Planned with train.batch_size {shared.train.batch_size}, the next that "
            f"{layout.readers} ranks can share, in place of {run.train.batch_size}."
        )
    return text.getvalue().rstrip()


def _find_device(name: str) -> Device:
    """Return a device by its name, this CPU measured."""
    if name == CPU:
        return measure_cpu()
    if name in DEVICES:
        return DEVICES[name]
    hint = did_you_mean(name, (*DEVICES, CPU))
    raise UserError(f"--device: there is no device {name!r}. hint: {hint}")


def _shared(run: RunConfig, layout: Layout) -> RunConfig:
    """Return a run whose batch the ranks can share: a plan asks what if, `train` would refuse."""
    rows, readers = run.train.batch_size, layout.readers
    if rows % readers == 0:
        return run
    return replace(run, train=replace(run.train, batch_size=-(-rows // readers) * readers))
