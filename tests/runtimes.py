"""Milliseconds and differences of exported networks in other runtimes: python -m tests.runtimes

Prints the table of lab/README.md, for whichever of onnxruntime, openvino and opencv-python are
installed. The networks are whole, pruned to half of their multiply-adds by `l1` without training;
their BatchNorms fit their activations, and their largest logit is 10. All variants and runtimes of a network take turns.
"""

import contextlib
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

from channels.costs import measure_cost  # noqa: E402
from conftest import narrow  # noqa: E402
from imp_estimator import cal_importance  # noqa: E402
from lab.export import export  # noqa: E402
from models import NETWORKS  # noqa: E402
from pruner import prune, select_filters  # noqa: E402

SIZE, BATCHES, TURNS, SECONDS = 32, (1, 32), 7, 0.25
THREADS = torch.get_num_threads()


def onnxruntime_on(content, optimise=True):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = THREADS, 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def openvino_on(content):
    import openvino

    compiled = openvino.compile_model(
        openvino.Core().read_model(content),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": THREADS},
    )
    return lambda images: compiled(images)[0]


def opencv_on(content):
    import cv2

    cv2.setNumThreads(THREADS)
    network = cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8))

    def run(images):
        network.setInput(images)
        return network.forward().copy()

    return run


RUNTIMES = {
    "ONNX Runtime": onnxruntime_on,
    "not optimised": lambda content: onnxruntime_on(content, optimise=False),
    "OpenVINO": openvino_on,
    "OpenCV": opencv_on,
}


def pytorch_on(network):
    network = network.to(memory_format=torch.channels_last)

    def run(images):
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    return run


def int8(path, images, to):
    """Quantise a file statically, as lab/README.md does."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        batches = iter(np.split(images, 8))

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    quant_pre_process(path, to)
    quantize_static(to, to, Reader(), per_channel=True, reduce_range=True)


def variants(name, images):
    """{what: (network, content of its .onnx)}, and the share of multiply-adds that is left."""
    dense = narrow(name, 10, width=1.0)
    head = next(layer for layer in reversed(list(dense.modules())) if isinstance(layer, nn.Linear))
    with torch.no_grad():  # so that the largest logit is 10
        scale = 10 / dense(torch.from_numpy(images)).abs().max()
        head.weight *= scale
        head.bias *= scale
    scores = cal_importance(dense, "l1")
    networks = {
        "dense": dense,
        **{
            title: prune(dense, select_filters(dense, scores, 50, budget="macs", round_to=multiple))
            for title, multiple in (("pruned", 1), ("pruned, --round_to=8", 8))
        },
    }
    files = {}
    for title, network in networks.items():
        export(network, list("0123456789"), "net.onnx", torch.from_numpy(images[:4]))
        left = measure_cost(network, SIZE)["macs"] / measure_cost(dense, SIZE)["macs"]
        files[f"{title} ({100 * left:.0f}%)"] = network, Path("net.onnx").read_bytes()
    int8("net.onnx", images, "int8.onnx")
    files["the last as int8"] = networks["pruned, --round_to=8"], Path("int8.onnx").read_bytes()
    return files


def measure(name):
    """[(variant, runtime, {batch: milliseconds}, largest difference of logits or why there is none)]"""
    images = np.random.RandomState(0).rand(64, 3, SIZE, SIZE).astype("float32") * 2 - 1
    runs, rows = {}, []
    for title, (network, content) in variants(name, images).items():
        with torch.no_grad():
            wanted = network(torch.from_numpy(images[:32])).numpy()
        makers = dict.fromkeys(RUNTIMES) if "int8" in title else {"PyTorch": None, **RUNTIMES}
        for runtime in makers:
            try:
                run = pytorch_on(network) if runtime == "PyTorch" else RUNTIMES[runtime](content)
                difference = max(np.abs(run(images[:n]) - wanted[:n]).max() for n in BATCHES)
            except ImportError:
                rows.append((title, runtime, {}, "not installed"))
                continue
            except Exception:
                rows.append((title, runtime, {}, "refuses it"))
                continue
            runs[title, runtime] = run
            rows.append((title, runtime, {batch: [] for batch in BATCHES}, f"{difference:.0e}"))
    for _ in range(TURNS):
        for title, runtime, times, _ in rows:
            for batch in times:
                given, start, count = images[:batch].copy(), time.perf_counter(), 0
                while count == 0 or time.perf_counter() - start < SECONDS / TURNS:
                    runs[title, runtime](given)
                    count += 1
                times[batch].append(1000 * (time.perf_counter() - start) / count)
    return rows


def main():
    logging.disable(logging.WARNING)
    print("| network | | " + " | ".join(["PyTorch", *RUNTIMES]) + " | largest difference |")
    print("|---" * (4 + len(RUNTIMES)) + "|")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name in NETWORKS:
            cells = {}
            for title, runtime, times, difference in measure(name):
                text = " / ".join(f"{statistics.median(seconds):.1f}" for seconds in times.values())
                cells.setdefault(title, {})[runtime] = text or difference, difference
            for title, row in cells.items():
                numbers = [float(difference) for text, difference in row.values() if "/" in text]
                print(
                    f"| {name} | {title} | "
                    + " | ".join(
                        row.get(runtime, ("", ""))[0] for runtime in ("PyTorch", *RUNTIMES)
                    )
                    + f" | {max(numbers):.0e} |",
                    flush=True,
                )
                name = ""
    print(f"\nMilliseconds at batch 1 / 32, {os.cpu_count()} cores, torch {torch.__version__}")


if __name__ == "__main__":
    main()
