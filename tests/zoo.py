"""What can be pruned in the networks of torchvision and timm, and whether the cuts are right.

    python -m tests.zoo                    # torchvision's convolutional classifiers: ten minutes
    python -m tests.zoo --largest 50       # those of at most 50 million parameters
    python -m tests.zoo --timm             # one of each convolutional family of timm
    python -m tests.zoo resnet50 timm:resnet26d

Each network is pruned by 25, 50 and 75% with random scores. Filters: those that can be pruned, of
all; parameters, MACs: what is left at 75%; seconds: to find out what can be pruned, and for one
cut; difference: the largest, at any percent, of the pruned and the masked network's logits for
noise, in double precision, as a share of the largest logit. BatchNorms have scales and statistics
that are not trivial.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from channels.checking import Masked  # noqa: E402
from channels.costs import measure_cost  # noqa: E402
from channels.groups import all_filters, filter_groups, remains_of  # noqa: E402
from common.errors import InputError  # noqa: E402
from imp_estimator import cal_importance  # noqa: E402
from lab.networks import build_network  # noqa: E402
from pruner import cut, select_filters  # noqa: E402

TIMM = """bat_resnext26ts convmixer_768_32 convnext_atto cspdarknet53 cspresnet50 cspresnext50
    darknet53 densenet121 dla34 dpn68 ecaresnet26t edgenext_xx_small efficientnet_b0 efficientnetv2_rw_t
    ese_vovnet19b_dw fasternet_t0 fbnetc_100 gernet_s ghostnet_100 hardcorenas_a hgnetv2_b0
    hrnet_w18_small inception_v3 inception_v4 inception_resnet_v2 lcnet_050 legacy_seresnet18
    legacy_xception mixnet_s mnasnet_small mobilenetv2_050 mobilenetv3_small_050
    mobilenetv4_conv_small mobileone_s0 nf_regnet_b0 regnetx_002 regnety_002 regnetz_b16
    repghostnet_050 repvgg_a0 res2net50_26w_4s resnest14d resnet26d resnetv2_50 resnext50_32x4d
    rexnet_100 selecsls42 seresnext26d_32x4d skresnet18 spnasnet_100 starnet_s1 tinynet_e tresnet_m
    vgg11_bn vovnet39a xception41""".split()
OTHERS = ("vit", "swin", "maxvit")  # of torchvision, not made of convolutions


def torchvision_names():
    import torchvision

    return [
        name
        for name in torchvision.models.list_models(module=torchvision.models)
        if not name.startswith(OTHERS)
    ]


def settle(model, seed=0):
    """Give a network weights that hand signals on, and BatchNorms that do not look alike; in eval
    mode."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            fan_in = layer.weight[0].numel()
            layer.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            if layer.bias is not None:
                layer.bias.data.normal_(0, 0.1, generator=generator)
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._NormBase):
            for tensor, (low, high) in (
                (norm.weight, (0.5, 1.5)),
                (norm.bias, (-0.3, 0.3)),
                (norm.running_mean, (-0.2, 0.2)),
                (norm.running_var, (0.5, 1.5)),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=generator)
    return model.eval()


def calibrate(model, images, seed=0):
    """Give the BatchNorms of a deep network statistics near those of some images: with others its
    activations grow or shrink at each layer, until rounding alone changes the logits."""
    generator = torch.Generator().manual_seed(seed)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        model(images)
    for norm in norms:
        norm.eval()
        shift, factor = torch.rand(2, norm.num_features, generator=generator, dtype=images.dtype)
        norm.running_mean += 0.4 * (shift - 0.5) * norm.running_var.sqrt()
        norm.running_var.mul_(0.8 + 0.5 * factor).add_(0.01)


def difference(model, small, kept, images):
    """The largest difference of pruned and masked logits, as a share of the largest logit."""
    masked = Masked(model)
    masked.keep(kept)
    with torch.no_grad():
        wanted, result = masked.network(images), small(images)
        whole = model(images)
    assert wanted.std() > 1e-3 * wanted.abs().max() > 0 and not torch.equal(wanted, whole)
    assert result.isfinite().all()
    return ((wanted - result).abs().max() / wanted.abs().max()).item()


def removable_filters(model, structure):
    """(filters that may leave, all filters) of all convolutions, depthwise ones and gates too."""
    free = structure.is_sum & ~structure.is_fixed
    for name, numbers in structure.filters.items():
        free[numbers] = ~torch.tensor(structure.fixed_filters[name])
    can = count = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            count += module.out_channels
            if name in structure.layers:
                can += int(free[structure.root[structure.layers[name].writes]].sum())
    return can, count


def prune_all(name, percents=(25, 50, 75)):
    """One row of the table, as a dict."""
    torch.manual_seed(0)
    model = settle(build_network(name, 10)).double()  # in which a fault is not taken for rounding
    start = time.monotonic()
    filter_groups(model)
    found = time.monotonic() - start
    structure = remains_of(model).structure
    can, count = removable_filters(model, structure)
    row = {"network": name, "can": can, "all": count, "find": found, "worst": 0.0}
    images = torch.randn(
        2, *structure.image_shape, dtype=torch.double, generator=torch.Generator().manual_seed(1)
    )
    calibrate(model, images)
    for percent in percents:
        kept = select_filters(model, cal_importance(model, "random", seed=percent), percent)
        start = time.monotonic()
        small = cut(model, kept)
        row["cut"] = time.monotonic() - start
        row["worst"] = max(row["worst"], difference(model, small, kept, images))
    size = structure.image_shape[1]
    now, before = measure_cost(small, size), measure_cost(small, size, all_filters(small))
    return {
        **row,
        "parameters": now["parameters"] / before["parameters"],
        "macs": now["macs"] / before["macs"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--timm", action="store_true")
    parser.add_argument("--largest", type=float, default=1e9, help="million parameters")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    names = args.networks or (
        [f"timm:{name}" for name in TIMM] if args.timm else torchvision_names()
    )
    print(
        "| network | filters | parameters | MACs | find | cut | difference |\n" + "|---" * 7 + "|"
    )
    whole = right = 0
    for name in names:
        try:
            row = prune_all(name)
        except (InputError, ValueError) as error:
            print(f"| {name} | {error} |||||||", flush=True)
            continue
        whole += row["can"] == row["all"]
        right += row["worst"] < 1e-9
        print(
            f"| {name} | {row['can']:,} of {row['all']:,} | {row['parameters']:.1%} "
            f"| {row['macs']:.1%} | {row['find']:.2f} s | {row['cut']:.2f} s "
            f"| {row['worst']:.0e} |",
            flush=True,
        )
    print(
        f"\n{len(names)} networks, {right} pruned with the right logits, {whole} of them with "
        "every filter removable"
    )


if __name__ == "__main__":
    main()
