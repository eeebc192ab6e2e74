"""What torchrun starts in the tests: main.py with a preset of two short epochs, or with --scores
FILE OUT the estimators and the accuracy of a checkpoint.

WORKER_FAILS="process step": that process fails at that training step. WORKER_DIFFERS="process":
that process scores filters in another way than the others. A process that is not the first fails
where it writes a file.
"""

import itertools
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import torch  # noqa: E402

import config  # noqa: E402
import main  # noqa: E402
from common.command import exit_with  # noqa: E402
from common.processes import is_first, join_processes, leave_processes  # noqa: E402
from conftest import short_preset  # noqa: E402
from data import load_data  # noqa: E402
from imp_estimator import ESTIMATORS, cal_importance  # noqa: E402
from lab.checkpoint import load_checkpoint  # noqa: E402
from train import evaluate, reestimate  # noqa: E402


def fail_at(last):
    backward, steps = torch.Tensor.backward, itertools.count(1)

    def counted(*args, **kwargs):
        if next(steps) == last:
            raise LookupError("process out of luck")
        return backward(*args, **kwargs)

    torch.Tensor.backward = counted


def refuse(*paths):
    raise LookupError(f"not the first process, but writes {paths}")


def scores(path):
    """{estimator: scores}, the accuracy, and re-estimated statistics, of a network on digits."""
    data, model = load_data("digits", 16), load_checkpoint(path)[0]
    batches = data.train_batches(16, key=(0,), count=52)
    results = {
        "accuracy": evaluate(model, data.test_batches()),
        **{name: cal_importance(model, name, batches) for name in ESTIMATORS},
    }
    reestimate(model, data.train_batches(16, key=(0,), count=48, augmented=False))
    norms = {name: tensor for name, tensor in model.state_dict().items() if ".running_" in name}
    return results | {"statistics": norms}


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "--scores":
        join_processes(torch.device("cpu"))
        result = scores(sys.argv[2])
        if is_first():
            torch.save(result, sys.argv[3])
        leave_processes()
        sys.exit()
    if os.environ["RANK"] != "0":
        os.replace = refuse
    process, step = os.environ.get("WORKER_FAILS", "-1 0").split()
    if os.environ.get("RANK") == process:
        fail_at(int(step))
    if os.environ.get("RANK") == os.environ.get("WORKER_DIFFERS"):
        ESTIMATORS["l1"] = ESTIMATORS["random"]
    config.PRESETS["test"] = short_preset(epochs=2)
    exit_with(main.main())
