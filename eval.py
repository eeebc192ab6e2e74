"""Measure a network that main.py wrote.

    python eval.py --model_path pruned_nets/ebt/digits/vgg_orthoreg_25_0.pth --test_acc True
    python eval.py --model vgg --pruned True --model_path FILE --flops True --compression True

The file knows what it holds; --model and --pruned are only checked against it.
"""
import os
import platform
from functools import lru_cache

from config import (MODELS, InputError, Parser, boolean, exit_with, heading, integer, print_columns,
                    print_table, run_command)

# torch and what needs it is imported inside the functions: --help answers before that.


def measure_cost(network, image_size=32):
    """{"filters", "parameters", "macs", "flops"} of a network, for one image.

    filters: of all prunable layers, carried depthwise ones included. macs: multiply-adds of
    convolutions and linear layers; flops: two for each, counted by torch's FlopCounterMode.
    """
    widths = tuple((name, width if isinstance(width, int) else tuple(width))
                   for name, width in network.widths.items())  # hashable: cached by architecture
    return dict(_cost_of(network.name, network.num_classes, widths, network.width, image_size))


@lru_cache
def _cost_of(name, num_classes, widths, width, image_size):
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from models import build_model

    with torch.device("meta"), torch.no_grad():  # shapes only: nothing is computed
        twin = build_model(name, num_classes, widths, width).eval()
        with FlopCounterMode(display=False) as counter:
            twin(torch.empty(1, 3, image_size, image_size))
    flops = counter.get_total_flops()
    return {"filters": twin.filter_count()[0],
            "parameters": sum(p.numel() for p in twin.parameters()),
            "macs": flops // 2, "flops": flops}


def unpruned_twin(model):
    """The unpruned network that `model` was pruned from, with fresh weights."""
    from models import build_model
    return build_model(model.name, model.num_classes, width=model.width)


def measure_compression(network, file_bytes, info, image_size=32):
    """How many times smaller a network in a file of `file_bytes` is than its unpruned twin.

    {"parameters", "flops", "file": ratios, "file_bytes", "unpruned_file_bytes"}; the twin's file is
    one with the same entries beside the weights.
    """
    from pruner import checkpoint_bytes
    twin = unpruned_twin(network)
    ours, theirs = measure_cost(network, image_size), measure_cost(twin, image_size)
    unpruned = len(checkpoint_bytes(twin, info))
    return {"parameters": theirs["parameters"] / ours["parameters"],
            "flops": theirs["flops"] / ours["flops"], "file": unpruned / file_bytes,
            "file_bytes": file_bytes, "unpruned_file_bytes": unpruned}


def layer_widths(network):
    """{layer: number of its filters}."""
    return {group.name: group.conv.out_channels for group in network.filter_groups()}


def measure_orthogonality(network):
    """{"mean": over layers, "layers": {convolution: degree of orthogonality}}."""
    from train import degree_of_orthogonality
    layers = degree_of_orthogonality(network)
    return {"mean": sum(layers.values()) / len(layers), "layers": layers}


def measure_record(path, network, info, file_bytes):
    """Everything known of a network, as plain numbers, strings, lists and dicts: what its
    checkpoint `info` says, and what can be measured without images."""
    size = info["image_size"]
    return {"file": str(path), "model": network.name, "num_classes": network.num_classes,
            **{"training": None, "history": None, "seconds": None, **info},
            **measure_cost(network, size), "widths": layer_widths(network),
            "compression": measure_compression(network, file_bytes, info, size),
            "orthogonality": measure_orthogonality(network)}


def environment(device):
    """Versions and hardware that a result depends on."""
    import numpy
    import torch
    import torchvision
    name = (torch.cuda.get_device_name(device) if device.type == "cuda"
            else f"{device.type}, {torch.get_num_threads()} threads")
    return {"python": platform.python_version(), "torch": str(torch.__version__),
            "torchvision": torchvision.__version__, "numpy": numpy.__version__,
            "platform": platform.platform(), "device": name}


# -------------------------------------------------------------------------------------- output


def print_architecture(network, before=None):
    """Width of each layer and residual stream, beside that of the same layer of `before`: the
    network it was pruned from, by default the unpruned one."""
    now, then = ({**layer_widths(n), **_stream_widths(n)}
                 for n in (network, before or unpruned_twin(network)))
    print_columns([(name, f"{then[name]} -> {width}" if width < then[name] else str(width))
                   for name, width in now.items()])


def _stream_widths(network):
    streams = {g.stream.name: g.stream.width for g in network.filter_groups()}
    return {f"{name} (residual stream)": width for name, width in streams.items()
            if name not in network.dense}  # in a chain the stream is called like its layer


def print_pruning(before, after, target, image_size):
    """What pruning `before` to `target` percent has made of it: how far it went, and what it won."""
    from pruner import max_percent, pruned_percent
    (had, dense), (has, _) = before.filter_count(), after.filter_count()
    achieved, most = pruned_percent(after), max_percent(after)
    print(f"  requested {target:.2f}%, achieved {achieved:.2f}%: {dense - has:,} of "
          f"{dense:,} filters are gone, {had - has:,} of them in this round")
    if target > most:
        stem = any(g.protected for g in after.filter_groups())
        print(f"  More cannot go than {most:.2f}%: every layer keeps 5% of its filters, rounded "
              "down, and one more" + (", and the first convolution all" if stem else ""))
    if has == had:
        print("  This round removes nothing" + (
            ": the network is already as small as requested" if achieved >= target else ""))
    else:
        print("  filters of each layer, before -> after")
        print_architecture(after, before)
    costs = [measure_cost(network, image_size) for network in (before, after)]
    print_table([("", "before", "after", "left")] + [
        (name, f"{costs[0][key]:,}", f"{costs[1][key]:,}",
         f"{100 * costs[1][key] / costs[0][key]:.1f}%")
        for key, name in (("parameters", "parameters"), ("flops", "FLOPs"))])


def print_orthogonality(figures):
    print(f"  degree of orthogonality (1: orthogonal filters): mean {figures['mean']:.3f}")
    print_columns([(name, f"{degree:.3f}") for name, degree in figures["layers"].items()])


def accuracy_text(figures):
    top5 = f", top-5 {figures['top5']:.2f}%" if "top5" in figures else ""
    return f"top-1 {figures['top1']:.2f}%{top5}"


def megabytes(count):
    return f"{count / 1e6:.2f} MB"


def print_summary(records):
    """The table at the end: the unpruned network beside what each round made of it."""
    heading("Result")
    base = records[0]

    def row(name, text):
        return [name] + [text(record) for record in records]

    def percent(kind, key="top1"):
        return lambda r: f"{r['accuracy'][kind][key]:.2f}%" if kind in r["accuracy"] else ""

    def relative(key):
        return lambda r: f"{r[key]:,}" + (
            "" if r is base else f" ({100 * r[key] / base[key]:.1f}%)")

    def pruning(key):
        return lambda r: "" if r is base else f"{r['pruning'][key]:.2f}%"

    def after_pruning(r):
        return "" if r is base else f"{r['pruning']['after_pruning']['top1']:.2f}%"

    rows = [row("", lambda r: "unpruned" if r is base else f"round {r['pruning']['round']}")]
    if len(records) > 1:
        rows += [row("percent of filters to remove", pruning("requested_percent")),
                 row("percent removed", pruning("achieved_percent"))]
    rows += [row("test accuracy, best epoch", percent("best")),
             row("test accuracy, last epoch", percent("last"))]
    if "top5" in base["accuracy"]["best"]:
        rows.append(row("top-5 accuracy, best epoch", percent("best", "top5")))
    if len(records) > 1:
        rows.append(row("accuracy right after pruning", after_pruning))
    rows += [row("filters", relative("filters")), row("parameters", relative("parameters")),
             row("MACs (multiply-adds)", relative("macs")), row("FLOPs", relative("flops")),
             row("file size", lambda r: megabytes(r["compression"]["file_bytes"])),
             row("mean degree of orthogonality", lambda r: f"{r['orthogonality']['mean']:.3f}")]
    print_table(rows)
    print("  The best epoch was chosen on the test images.")
    for record in records:
        print(f"  {record['file']}")


# ------------------------------------------------------------------------------------- command


def make_parser():
    parser = Parser(prog="eval.py", description=__doc__)
    add = parser.add_argument
    add("--model_path", required=True, metavar="FILE", help="the checkpoint (required)")
    add("--model", "-m", choices=MODELS, help="what the file should hold (default: any)")
    add("--pruned", type=boolean, metavar="BOOL",
        help="whether it should hold a pruned network (default: either)")
    add("--data_path", metavar="DATA",
        help="images to measure accuracy on (default: those it was trained on)")
    for flag, what in (("train_acc", "accuracy on the training images, not augmented"),
                       ("test_acc", "accuracy on the test images"),
                       ("flops", "parameters, multiply-adds (MACs) and FLOPs of one image"),
                       ("compression", "against the unpruned network: parameters, FLOPs, file"),
                       ("eval_ortho", "degree of orthogonality of each layer")):
        add(f"--{flag}", type=boolean, default=False, metavar="BOOL",
            help=f"{what} (default: False)")
    add("--skip_bad_images", type=boolean, default=False, metavar="BOOL",
        help="leave out the images of a folder that cannot be read (default: False)")
    add("--num_classes", type=integer(2), help="checked against the file (default: not checked)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
        help="auto takes a GPU where there is one (default: auto)")
    return parser


def main(argv=None):
    args = make_parser().parse_args(argv)
    return run_command("eval.py", lambda: run(args))


def run(args):
    from data import load_data
    from pruner import load_checkpoint
    from train import evaluate, pick_device

    device = pick_device(args.device)
    model, info = load_checkpoint(args.model_path)
    check_holds(args.model_path, model, info, args.model, args.pruned, args.num_classes)
    image_size = info.get("image_size", 32)
    data = None
    if args.train_acc or args.test_acc:
        trained_on = info.get("data_path", "CIFAR100")
        try:
            data = load_data(args.data_path or trained_on, image_size, args.skip_bad_images)
        except InputError as error:
            raise error if args.data_path else InputError(
                f"{error}; it was trained on {trained_on}, --data_path can name other images")
        check_data(args.model_path, model, info, data)

    now, dense = model.filter_count()
    print(f"{args.model_path}: {describe(model, info)}")
    print(f"  trained on {info.get('data', 'unknown data')}, {model.num_classes} classes, "
          f"{image_size} x {image_size} pixels; {now:,} of {dense:,} filters "
          f"({100 * (1 - now / dense):.2f}% pruned)")
    print("  filters of each layer" + (", of the unpruned network -> here" if now < dense else ""))
    print_architecture(model)

    if args.flops:
        cost = measure_cost(model, image_size)
        print("Cost of one image")
        print_table([("parameters", f"{cost['parameters']:,}"),
                     ("MACs (multiply-adds)", f"{cost['macs']:,}"),
                     ("FLOPs (2 per MAC)", f"{cost['flops']:,}")])
    if args.compression:
        ratio = measure_compression(model, os.path.getsize(args.model_path), info, image_size)
        twin, ours = measure_cost(unpruned_twin(model), image_size), measure_cost(model, image_size)
        print("Compression")
        print_table([("", "unpruned", "here", "ratio"),
                     *((name, f"{twin[key]:,}", f"{ours[key]:,}", f"{ratio[key]:.2f}x")
                       for key, name in (("parameters", "parameters"), ("flops", "FLOPs"))),
                     ("file size", megabytes(ratio["unpruned_file_bytes"]),
                      megabytes(ratio["file_bytes"]), f"{ratio['file']:.2f}x")])
    if args.eval_ortho:
        print("Orthogonality")
        print_orthogonality(measure_orthogonality(model))
    if data:
        data = data.to(device)
        model.to(device)
        for wanted, name, split in ((args.train_acc, "training", data.train),
                                    (args.test_acc, "test", data.test)):
            if wanted:
                figures = evaluate(model, data.plain_batches(split))
                print(f"Accuracy on {len(split):,} {name} images of {data.name}: "
                      f"{accuracy_text(figures)}")
    if not any((args.flops, args.compression, args.eval_ortho, args.train_acc, args.test_acc)):
        print("Nothing was asked for: add --test_acc, --train_acc, --flops, --compression or "
              "--eval_ortho True")


def describe(model, info):
    kind = "pruned" if info["pruned"] else "unpruned"
    penalty = ", trained with the orthonormality penalty" if info.get("penalised") else ""
    return f"{kind} {MODELS[model.name]} (--model {model.name}){penalty}"


def check_holds(path, network, info, model=None, pruned=None, num_classes=None, width=None):
    """Raise InputError where the file holds another network than is wanted; None: any will do."""
    holds = f"{path} holds: {describe(network, info)}, {network.num_classes} classes"
    if model not in (None, network.name):
        raise InputError(f"{holds}; --model={model} is wrong")
    if pruned not in (None, info["pruned"]):
        raise InputError(f"{holds}; a {'' if pruned else 'not '}pruned network was asked for")
    if num_classes not in (None, network.num_classes):
        raise InputError(f"{holds}; --num_classes={num_classes} is wrong")
    if width not in (None, network.width):
        raise InputError(f"{holds}, --width={network.width:g}; --width={width:g} is wrong")


def check_data(path, network, info, data):
    """Raise InputError where a network was trained on other classes or sizes than `data` has."""
    if len(data.classes) != network.num_classes:
        raise InputError(f"{path} is a network for {network.num_classes} classes; {data.name} has "
                         f"{len(data.classes)}")
    if list(info.get("classes", data.classes)) != list(data.classes):
        raise InputError(f"{path} was trained on other classes ({', '.join(info['classes'][:3])}, "
                         f"...) than {data.name} has ({', '.join(data.classes[:3])}, ...)")
    size = info.get("image_size", data.image_size)
    if size != data.image_size:
        raise InputError(f"{path} was trained on images of {size} x {size}, not "
                         f"{data.image_size} x {data.image_size}; --image_size={size} fits it")


if __name__ == "__main__":
    exit_with(main())
