"""How a checkpoint is stored: as torch's Distributed Checkpoint (DCP) and a few files beside it.

With a process group DCP's own functions are used. Without one they warn at every call, which
cannot be silenced in a background thread: there the same planner and writer are called directly.
"""

import pickle
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.staging import AsyncStager

from memory_layers.common.files import require_space

# What reading a damaged file of torch or pickle raises.
_DAMAGED = (
    OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError,
    ImportError, AssertionError, pickle.UnpicklingError, dcp.api.CheckpointException,
)  # fmt: skip


class Writer(dcp.FileSystemWriter):
    """Write the shards and the metadata, then complete the folder.

    Args:
        part: Gets the files. Must be seen by all ranks.
        complete: Called on the coordinator when all ranks have written. What it raises is raised
            on all ranks.
    """

    def __init__(self, part: Path, complete: Callable[[], None]) -> None:
        super().__init__(part)
        self._complete = complete

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Check that there is room. Runs on the coordinator, which knows what all ranks write."""
        require_space(
            Path(self.path), sum(i.tensor_storage_size() or 0 for p in plans for i in p.items)
        )
        return super().prepare_global_plan(plans)

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        """Write the metadata. Runs on the coordinator, when all ranks have written."""
        super().finish(metadata, results)
        self._complete()


class _CopyToCpu(AsyncStager):
    """Copy everything at once, so that what is written later is of the step of the save."""

    _synchronize_after_execute = False

    def stage(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state_dict.items()}

    def synchronize_staging(self) -> None:
        pass

    def close(self) -> None:
        pass


def start_write(
    tensors: dict[str, Tensor], writer: Writer, group: dist.ProcessGroup | None
) -> Future:
    """Copy tensors, and write the copies in the background.

    Args:
        tensors: By name. All ranks have the same names.
        writer: Where to.
        group: Of gloo, used by nothing else. None: this process is alone.

    Returns:
        Done on a rank when all ranks are. Its exception is what went wrong on any of them.
    """
    stager = _CopyToCpu()
    if group is not None:
        future: Any = dcp.async_save(
            tensors, storage_writer=writer, process_group=group, async_stager=stager
        )
        return future
    pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
    future = pool.submit(_write_alone, stager.stage(tensors), writer)
    pool.shutdown(wait=False)
    return future


def _write_alone(tensors: dict[str, Tensor], writer: Writer) -> None:
    planner = DefaultSavePlanner()
    planner.set_up_planner(tensors, writer.storage_meta(), is_coordinator=True)
    writer.set_up_storage_writer(True)
    plan = writer.prepare_local_plan(planner.create_local_plan())
    plans, metadata = planner.create_global_plan([plan])
    plans = writer.prepare_global_plan(plans)
    written = writer.write_data(planner.finish_plan(plans[0]), planner)
    writer.finish(metadata, [written.wait()])


def read_metadata(folder: Path) -> Metadata:
    """Read what a checkpoint holds, and check that its files are there in full length.

    Raises:
        OSError: It is damaged. Says which file.
    """
    try:
        metadata = dcp.FileSystemReader(folder).read_metadata()
        stored = list(metadata.storage_data.values())
    except _DAMAGED as error:
        raise damaged(folder, folder / ".metadata", error) from error
    ends: dict[str, int] = {}
    for info in stored:
        end = info.offset + info.length
        ends[info.relative_path] = max(end, ends.get(info.relative_path, 0))
    for name, end in ends.items():
        file = folder / name
        if not file.is_file():
            raise damaged(folder, file, "it is missing")
        if file.stat().st_size < end:
            raise damaged(folder, file, f"it has {file.stat().st_size} of {end} bytes")
    return metadata


def read_tensors(
    folder: Path,
    tensors: dict[str, Tensor],
    metadata: Metadata,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Load tensors in place, whatever number of ranks has written them.

    Args:
        folder: A checkpoint.
        tensors: Tensors and DTensors by name, changed in place.
        metadata: What `read_metadata` returned.
        group: All its ranks call this. None: this process is alone.

    Raises:
        OSError: The checkpoint is damaged.
    """
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    reader = dcp.FileSystemReader(folder)
    try:
        if group is not None:
            dcp.load(tensors, storage_reader=reader, planner=planner, process_group=group)
            return
        planner.set_up_planner(tensors, metadata, is_coordinator=True)
        reader.set_up_storage_reader(metadata, True)
        plan = reader.prepare_local_plan(planner.create_local_plan())
        plans = reader.prepare_global_plan(planner.create_global_plan([plan]))
        reader.read_data(planner.finish_plan(plans[0]), planner).wait()
    except _DAMAGED as error:
        raise damaged(folder, folder, reason_of(error)) from error


def read_plain(file: Path) -> Mapping[str, Any]:
    """Read numbers and tensors that torch.save wrote.

    Raises:
        OSError: The file is damaged or missing.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise damaged(file.parent, file, error) from error


def damaged(folder: Path, file: Path, reason: object) -> OSError:
    """Return an error that says which file is damaged and what to do."""
    return OSError(
        f"{file} cannot be read: {reason}. hint: the checkpoint is damaged, delete {folder} to "
        "resume from the one before"
    )


def not_written(folder: Path, reason: object) -> OSError:
    """Return an error that says that a folder could not be written, and what to do."""
    return OSError(
        f"could not write {folder}: {reason}. Checkpoints written before are intact. "
        "hint: free disk space and run the same command again"
    )


def reason_of(error: BaseException) -> str:
    """Return what went wrong, and on which rank if DCP knows it."""
    if not isinstance(error, dcp.api.CheckpointException):
        return str(error) or type(error).__name__
    return "; ".join(
        f"rank {rank}: {str(failure) or type(failure).__name__}"
        for rank, (failure, _) in error.failures.items()
    )
