"""Time a training step with and without keep_freed_memory: python experiments/01-allocator/run.py.

The two are measured in alternation, each time in a fresh process, because the setting is one of the
process. Writes results.json beside this file.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

ROUNDS = 3
STEPS = 10

CHILD = """
import sys, time, statistics, torch
from memory_layers import MemoryAdamW
from memory_layers.models import PRESETS, build_model
from memory_layers.train.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
torch.manual_seed(0)
model = build_model(PRESETS["tiny"])
optimizer = MemoryAdamW(model)
ids = torch.randint(0, 2048, (12, 128))
times = []
for _ in range(int(sys.argv[2]) + 3):
    start = time.perf_counter()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    times.append(time.perf_counter() - start)
print(statistics.median(times[3:]))
"""


def measure(setting: str) -> float:
    """Return the median seconds of a step in a fresh process."""
    command = [sys.executable, "-c", CHILD, setting, str(STEPS)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Measure, and write results.json."""
    from memory_layers.common.provenance import commit, device_name, versions

    pairs = [(measure("default"), measure("kept")) for _ in range(ROUNDS)]
    ratios = [kept / default for default, kept in pairs]
    results = {
        "what": "seconds of a training step with freed memory kept, divided by those without",
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "rounds": ROUNDS,
        "steps_per_round": STEPS,
        "command": "OMP_NUM_THREADS=1 python experiments/01-allocator/run.py",
        "device": device_name(),
        "versions": versions("torch", "numba", "transformers", "tokenizers"),
        "commit": commit(),
    }
    path = Path(__file__).parent / "results.json"
    path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
