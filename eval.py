"""Measure a network that main.py wrote, or compare the results of many runs.

    python eval.py --model_path pruned_nets/ebt/digits/vgg_orthoreg_25_0.pth --test_acc True
    python eval.py --model vgg --pruned True --model_path FILE --flops True --compression True
    python eval.py --report sweeps/cpu

The file knows what it holds; --model, --pruned and --num_classes are only checked against it.
"""

import os
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from common.command import exit_with, run_command
from common.device import DEVICES, environment, pick_device
from common.errors import InputError
from common.files import to_csv, to_json, write_atomically
from common.flags import OR, Parser, boolean, check_needed, flag, integer, location, switch
from common.libraries import lazy, load
from common.processes import processes
from common.signals import explained, uninterrupted
from common.terminal import megabytes, print_notes, print_table
from config import INTERPOLATIONS, MODELS
from imp_estimator import ESTIMATORS, PLAIN, cal_importance
from lab import hints
from lab.experiment import Experiment, normalization
from lab.record import GROUPS_IN

# Loaded by what uses them, after the flags have been read.
data, models, torch, train = map(lazy, ("data", "models", "torch", "train"))
checkpoint, classes, exports, groups, measure, networks = map(
    lazy,
    (
        "lab.checkpoint",
        "lab.classes",
        "lab.export",
        "lab.groups",
        "lab.measure",
        "lab.networks",
    ),
)
predict, reader, report, sensitivity, splits, tables = map(
    lazy,
    (
        "lab.predict",
        "lab.reader",
        "lab.report",
        "lab.sensitivity",
        "lab.splits",
        "lab.tables",
    ),
)

JUDGES = f"group_check=True{OR}sensitivity=True"  # what judges filters
ON_IMAGES = "train_acc", "test_acc", "per_class", "group_check", "sensitivity", "export"
ASKS = "asks"  # mark of a flag that asks for something to be measured or written


@dataclass(frozen=True)
class Measurement:
    """One command line: the value of every flag."""

    model_path: str = flag(
        "network",
        None,
        "the checkpoint; of several state dicts in a file FILE:KEY takes the one under that key",
        type=location,
        metavar="FILE",
        shown="required, except with --report",
    )
    model: str = flag(
        "network",
        None,
        "what the file should hold: "
        + ", ".join(MODELS)
        + ", or as in main.py; FILE.py:NAME lets that file build it",
        "-m",
        shown="any",
        type=location,
        metavar="NAME",
    )
    pruned: bool = flag(
        "network",
        None,
        "whether the file should hold a pruned network",
        shown="either",
        type=boolean,
        metavar="True|False",
    )
    num_classes: int = flag(
        "network",
        None,
        "stop if the file has another number of classes",
        shown="not checked",
        type=integer(2),
        metavar="N",
    )

    test_acc: bool = switch("measure", "accuracy on the test images", marks=[ASKS])
    per_class: bool = switch(
        "measure",
        "accuracy and precision of each class on the test images, "
        "and the classes that are confused; also as CSV and PNG beside the "
        "file",
        marks=[ASKS],
    )
    train_acc: bool = switch(
        "measure", "accuracy on the training images, not augmented", marks=[ASKS]
    )
    flops: bool = switch(
        "measure", "parameters, multiply-adds (MACs) and FLOPs of one image", marks=[ASKS]
    )
    compression: bool = switch(
        "measure",
        "how much smaller than the unpruned network: parameters, FLOPs, file",
        marks=[ASKS],
    )
    layers: bool = switch(
        "measure",
        "filters, multiply-adds and degree of orthogonality of each "
        "layer; also as CSV beside the file",
        marks=[ASKS],
    )
    eval_ortho: bool = switch("measure", "degree of orthogonality of each layer", marks=[ASKS])
    latency: bool = switch(
        "measure",
        "milliseconds and images per second of batches of 1, 32 and 128, beside the unpruned "
        "network, on the CPU and on a GPU where there is one",
        marks=[ASKS],
    )
    predict: str = flag(
        "measure",
        None,
        "name the classes of an image, or of all images below a "
        "folder; also as CSV beside the file",
        shown="none",
        type=location,
        metavar="PATH",
        marks=[ASKS],
    )

    export: str = flag(
        "export",
        None,
        "write the network for use without this suite: a file .pt2, .onnx or .safetensors",
        shown="none",
        type=location,
        metavar="FILE",
        marks=[ASKS],
    )
    export_normalize: bool = switch(
        "export",
        "put the normalisation of pixels from 0 to 1 into the exported graph",
        only_with="export",
    )
    export_fold: bool = flag(
        "export",
        True,
        "make each BatchNorm part of the convolution before it, where that is exact",
        type=boolean,
        metavar="True|False",
        only_with="export",
    )
    export_opset: int = flag(
        "export",
        None,
        "opset of the .onnx file, for older runtimes; lab/README.md says which runtime needs which",
        shown="the newest that PyTorch recommends",
        type=integer(15, 99),
        metavar="N",
        only_with="export",
    )

    report: str = flag(
        "comparison",
        None,
        "compare the results below a folder: report.md, "
        "report.csv, plots; with --latency=True also by measured time",
        shown="none",
        type=location,
        metavar="FOLDER",
    )
    group_check: bool = switch(
        "comparison",
        "measure whether the importance of a group of filters is the sum of its members'",
        marks=[ASKS],
    )
    compare: str = flag(
        "comparison",
        None,
        "a second checkpoint to check in the same way, such as the network with the penalty",
        shown="none",
        type=location,
        metavar="FILE",
        only_with="group_check=True",
    )
    sensitivity: bool = switch(
        "comparison",
        "accuracy without the 10 to 90% lowest scored filters of one layer at a time; nothing is "
        "trained; also as CSV, JSON and PNG beside the file",
        marks=[ASKS],
    )
    sensitivity_images: int = flag(
        "comparison",
        500,
        "test images that this accuracy is measured on (all, if there are fewer)",
        type=integer(1),
        metavar="N",
        only_with="sensitivity=True",
    )
    pruning_type: str = flag(
        "comparison",
        PLAIN,
        "how filters are judged: " + ", ".join(ESTIMATORS),
        choices=ESTIMATORS,
        metavar="TYPE",
        only_with=JUDGES,
    )
    imp_samples: int = flag(
        "comparison",
        256,
        "training images on which filters are judged, and groups removed",
        type=integer(1),
        metavar="N",
        only_with=JUDGES,
    )
    seed: int = flag(
        "comparison",
        0,
        "seed of the random groups, and of random scores",
        type=integer(0),
        metavar="N",
        only_with=JUDGES,
    )

    data_path: str = flag(
        "data",
        None,
        "images to measure accuracy on: as in main.py, or test "
        "images alone, in folders that are called like the classes",
        shown="those it was trained on",
        type=location,
        metavar="DATA",
    )
    image_size: int = flag(
        "data",
        None,
        "height and width in pixels, for a file that does not say",
        shown="what the file says, else 32",
        type=integer(1, 1024),
        metavar="N",
    )
    normalize: tuple = flag(
        "data",
        None,
        "as in main.py, for a file that does not say",
        shown="what the file says, else half",
        type=normalization,
        metavar="NAME|LIST",
    )
    interpolation: str = flag(
        "data",
        None,
        "as in main.py, for a file that does not say",
        shown="what the file says, else bilinear",
        choices=INTERPOLATIONS,
    )
    skip_bad_images: bool = switch("data", "leave out images that cannot be read")

    device: str = flag("hardware", "auto", "auto takes a GPU where there is one", choices=DEVICES)


def make_parser():
    trains = {option.name: "it is a flag of main.py" for option in fields(Experiment)}
    parser = Parser(prog="eval.py", description=__doc__, hints=trains | hints.EVAL)
    parser.add_flags(Measurement)
    return parser


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv

    def body():
        run(make_parser().parse_args(argv))

    return run_command("eval.py", body)


def run(args):
    with explained("the same command measures anew"):
        measure_all(args)


def measure_all(args):
    check(args)
    with uninterrupted():  # libraries do not survive an interruption while they load
        load(torch, train)
    if args.report:
        device = pick_device(args.device) if args.latency else None
        return report.write_report(args.report, device, args.model)
    device = pick_device(args.device)
    model, record, taken = checkpoint.open_checkpoint(args.model_path, args.model)
    checkpoint.check_holds(
        args.model_path, model, record, args.model, args.pruned, args.num_classes
    )
    record, assumed = settle(args, record)
    size, images = record.image_size, None
    if any(getattr(args, name) for name in ON_IMAGES):
        images = load_images(args, model, record)
    introduce(args, model, record, size)
    print_notes(
        [
            *(f"Note: {line}" for line in taken),
            *checkpoint.code_notes(args.model_path, model, record),
            *assumed,
            *(images.notes if images else ()),
        ]
    )
    measure_network(args, model, record, size)
    model.to(device)
    if images:
        images = images.to(device)
        for wanted, name, split in (
            (args.train_acc, "training", images.train),
            (args.test_acc, "test", images.test),
        ):
            if wanted:
                figures = train.evaluate(model, images.plain_batches(split))
                print(
                    f"Accuracy on {len(split):,} {name} images of {images.name}: "
                    f"{tables.accuracy_text(figures)}"
                )
    if args.per_class:
        matrix = classes.confusion(model, images.test_batches(), len(images.classes))
        classes.print_classes(matrix, images.classes, stem(args.model_path))
    if args.predict:
        predict.print_predictions(
            model,
            record,
            args.predict,
            size,
            args.skip_bad_images,
            f"{stem(args.model_path)}_predictions.csv",
        )
    if args.export:
        export(args, model, record, images)
    if args.group_check:
        check_groups(args, model, record, images)
    if args.sensitivity:
        check_sensitivity(args, model, images)
    if args.latency:  # last: it may move the network to another device
        others = ["cpu"] if args.device == "auto" and device.type != "cpu" else []
        tables.print_latency(model, size, [*map(pick_device, others), device])


def check(args):
    """Raise InputError where flags contradict each other."""
    if processes()[1] > 1:
        raise InputError("eval.py measures in one process; run it without torchrun")
    given = [
        option.name
        for option in fields(Measurement)
        if getattr(args, option.name) != option.default
    ]
    alone = {"report", "latency", *(("device", "model") if args.latency else ())}
    if args.report and set(given) - alone:
        others = " ".join(f"--{name}" for name in given if name not in alone)
        raise InputError(f"--report and {others} contradict each other; leave out one of them")
    if not args.report and not args.model_path:
        raise InputError("--model_path is missing: a checkpoint; or --report, a folder of results")
    if args.model and args.model not in MODELS:
        networks.check_name(args.model)
    check_needed(Measurement, args)
    asks = [option.name for option in fields(Measurement) if ASKS in option.metadata["marks"]]
    if not args.report and not any(getattr(args, name) for name in asks):
        raise InputError(
            "nothing was asked for; add one of " + ", ".join(f"--{name}" for name in asks)
        )


def settle(args, record):
    """(the record with the image size, the normalisation and the interpolation to measure with,
    lines on what of these the file does not say). Raises InputError where flags contradict the
    file."""
    notes, settled = [], {}
    for name, fallback, value_of in (
        ("image_size", 32, int),
        ("normalize", "half", data.normalization_of),
        ("interpolation", "bilinear", str),
    ):
        known, given = getattr(record, name), getattr(args, name)
        taken = fallback if given is None else given
        if known is None:
            how = "is assumed" if given is None else "as given"
            notes.append(f"Note: the file does not say --{name}: {taken} {how}")
        elif given is not None and value_of(taken) != value_of(known):
            raise InputError(
                f"{args.model_path} was trained with --{name}={known}; leave out --{name}={given}"
            )
        settled[name] = value_of(taken if known is None else known)
    return replace(record, **{**settled, "normalize": list(settled["normalize"])}), notes


def load_images(args, model, record):
    """The images that the network is measured on. Raises InputError."""
    path = args.data_path or record.data_path
    if not path:
        raise InputError(
            f"{args.model_path} does not say what it was trained on; --data_path must "
            f"name images of its {model.origin.num_classes} classes"
        )
    preparation = splits.preparation_of(record, args.skip_bad_images)
    try:
        images = splits.load_for(record, path, preparation, training=needs_training_images(args))
    except InputError as error:
        if args.data_path:
            raise
        raise InputError(
            f"{error}; it was trained on {path}; --data_path can name other images"
        ) from error
    order = checkpoint.check_data(args.model_path, model, record, images)
    return replace(images, notes=(*images.notes, *order))


def needs_training_images(args):
    judges = args.sensitivity and ESTIMATORS[args.pruning_type].needs_images
    return args.train_acc or args.group_check or judges


def introduce(args, model, record, size):
    now, dense = models.filter_count(model)
    print(f"{args.model_path}: {checkpoint.describe(model, record)}")
    print(
        f"  trained on {record.data or 'unknown data'}, {model.origin.num_classes} classes, "
        f"{size} x {size} pixels; {now:,} of {dense:,} filters "
        f"({100 * (1 - now / dense):.2f}% pruned)"
    )
    if not (args.predict or args.export or args.latency or args.layers):
        change = ": unpruned -> this network" if now < dense else ""
        print(f"  filters of each layer{change}")
        tables.print_architecture(model)


def measure_network(args, model, record, size):
    """What needs no images."""
    if args.flops:
        ours = models.measure_cost(model, size)
        print("Cost of one image")
        print_table(
            [
                ("parameters", f"{ours['parameters']:,}"),
                ("MACs (multiply-adds)", f"{ours['macs']:,}"),
                ("FLOPs (2 per MAC)", f"{ours['flops']:,}"),
            ]
        )
    if args.compression:
        twin, ours = (
            models.measure_cost(model, size, filters)
            for filters in (models.all_filters(model), None)
        )
        ratio = measure.measure_compression(
            model, os.path.getsize(reader.file_and_part(args.model_path)[0]), record.plain(), size
        )
        print("Compression")
        print_table(
            [
                ("", "unpruned", "here", "ratio"),
                *(
                    (name, f"{twin[key]:,}", f"{ours[key]:,}", f"{ratio[key]:.2f}x")
                    for key, name in (("parameters", "parameters"), ("flops", "FLOPs"))
                ),
                (
                    "file size",
                    megabytes(ratio["unpruned_file_bytes"]),
                    megabytes(ratio["file_bytes"]),
                    f"{ratio['file']:.2f}x",
                ),
            ]
        )
    if args.layers:
        rows, path = measure.measure_layers(model, size), f"{stem(args.model_path)}_layers.csv"
        print("Layers")
        tables.print_layers(rows)
        write_atomically({path: to_csv(rows)})
        print(f"  saved {path}")
    if args.eval_ortho:
        print("Orthogonality")
        tables.print_orthogonality_of_layers(measure.measure_orthogonality(model))


def stem(path):
    """What stands before the suffix in the names of files that belong to a checkpoint."""
    file, part = reader.file_and_part(path)
    return "_".join(filter(None, [file.removesuffix(".pth"), part]))


def export(args, model, record, images):
    batch, _ = next(iter(images.plain_batches(images.test.first(32))))
    settings = exports.ExportSettings(
        normalize=record.normalize,
        white=record.white,
        scaled_size=data.stored_size(record.image_size, record.flag("augment")),
        interpolation=record.interpolation,
        inside=args.export_normalize,
        fold=args.export_fold,
        opset=args.export_opset,
    )
    done = exports.export(model, images.classes, args.export, batch, settings)
    print(
        f"Exported to {args.export}: loaded again, and the logits of {len(batch)} test images of "
        f"{images.name} differ by at most {done['difference']:.1e}"
    )
    metadata = done["metadata"]
    versions = [
        f"torch {metadata['torch']}",
        *(
            f"{name} {metadata[key]}"
            for key, name in (("opset", "opset"), ("ir_version", "IR version"))
            if key in metadata
        ),
    ]
    print(
        f"  input   {metadata['input']}\n  output  {metadata['output']}\n"
        f"  made by {', '.join(versions)}\n"
        f"  The file's metadata has all of this, the names of {len(images.classes)} classes, and "
        "how an image becomes pixels."
    )
    print_notes(exports.width_notes(model, args.export))


def judging_batches(args, images):
    """Training images that filters are judged on."""
    balanced = ESTIMATORS[args.pruning_type].needs == "balanced images"
    return list(
        images.train_batches(
            128, key=(args.seed, "groups"), count=args.imp_samples, balanced=balanced
        )
    )


def check_sensitivity(args, model, images):
    """Measure how much accuracy each layer loses when it is pruned alone."""
    method, split = args.pruning_type, images.test.spread(args.sensitivity_images)
    batches = judging_batches(args, images) if ESTIMATORS[method].needs_images else None
    try:
        scores = cal_importance(model, method, batches, seed=args.seed)
    except ValueError as error:
        raise InputError(f"{args.model_path}: {error}") from error
    print(f"Accuracy (%) on {len(split):,} test images when one layer is pruned alone, by {method}")
    whole, curves = sensitivity.measure_sensitivity(model, scores, images.plain_batches(split))
    sensitivity.print_sensitivity(whole, curves)
    target = f"{stem(args.model_path)}_sensitivity_{method}"
    figures = {
        "accuracy": whole,
        "images": len(split),
        "pruning_type": method,
        "imp_samples": args.imp_samples,
        "seed": args.seed,
        "data": images.name,
        "fingerprint": images.fingerprint,
        "layers": [asdict(curve) for curve in curves],
        "environment": environment(images.test.device),
    }
    rows = sensitivity.rows_of(curves)
    write_atomically({f"{target}.json": to_json(figures), f"{target}.csv": to_csv(rows)})
    sensitivity.plot_sensitivity(whole, curves, f"{target}.png")
    print(f"  saved {target}.csv, and .json and a plot beside it")


def check_groups(args, model, record, images):
    """Check the groups of `model`, and of the network in --compare beside it."""
    batches = judging_batches(args, images)
    device, checked = images.train.device, {args.model_path: (model, record)}
    if args.compare:
        other, other_record = checked[args.compare] = checkpoint.load_checkpoint(
            args.compare, args.model
        )
        if other_record.image_size not in (None, images.image_size):
            raise InputError(
                f"--compare={args.compare} is for images of another size than "
                f"{args.model_path}; compare networks for the same images"
            )
        checkpoint.check_data(args.compare, other, other_record, images)
        other.to(device)
    count, figures = sum(len(labels) for _, labels in batches), {}
    for path, (network, known) in checked.items():
        print(
            f"Is the importance of a group the sum of its members'? {path}, {args.pruning_type}, "
            f"{count:,} images"
        )
        figures[path] = {
            **groups.check_groups(network, batches, args.pruning_type, args.seed),
            "data": images.name,
            "fingerprint": images.fingerprint,
            "penalised": bool(known.penalised),
            "environment": environment(device),
        }
        groups.print_groups(figures[path])
    target = f"{stem(args.model_path)}{GROUPS_IN}{args.pruning_type}"
    write_atomically({f"{target}.json": to_json(figures)})
    names = {path: Path(path).stem for path in figures}
    groups.plot_groups(
        {
            path if len(set(names.values())) < len(names) else names[path]: result
            for path, result in figures.items()
        },
        f"{target}.png",
    )
    plotted = " and the .png beside it" if Path(f"{target}.png").is_file() else ""
    print(f"  saved {target}.json{plotted}")


if __name__ == "__main__":
    exit_with(main())
