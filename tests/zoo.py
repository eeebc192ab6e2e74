"""What can be pruned in the networks of torchvision and timm, and whether the cuts are right.

    python -m tests.zoo                    # torchvision's classifiers: half an hour
    python -m tests.zoo --largest 50       # those of at most 50 million parameters
    python -m tests.zoo --timm             # one of each family of timm
    python -m tests.zoo resnet50 timm:resnet26d

Each network is pruned by 25, 50 and 75% with random scores. Filters: those that can be pruned, of
all, rows of hidden linear layers included; may leave: parameters, as the floors of the layers
allow; parameters, MACs: what is left at 75%; seconds: to find out what can be pruned, and for one
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

from channels.attention import weight_of  # noqa: E402
from channels.checking import Masked  # noqa: E402
from channels.costs import measure_cost  # noqa: E402
from channels.groups import all_filters, filter_groups, remains_of  # noqa: E402
from channels.structure import LINEAR_LAYERS  # noqa: E402
from common.errors import InputError  # noqa: E402
from imp_estimator import cal_importance  # noqa: E402
from lab.networks import build_network  # noqa: E402
from pruner import cut, explore, max_percent, select_filters  # noqa: E402

# The smallest network of each family, those of convolutions first.
TIMM = """bat_resnext26ts botnet26t_256 convmixer_768_32 convnext_atto convnextv2_atto cspdarknet53
    cspresnet50 cspresnext50 darknet53 densenet121 dla34 dpn68 ecaresnet26t edgenext_xx_small
    efficientnet_b0 efficientnetv2_rw_t ese_vovnet19b_dw fasternet_t0 fbnetc_100 gernet_s
    ghostnet_100 halonet26t hardcorenas_a hgnetv2_b0 hrnet_w18_small inception_next_atto
    inception_v3 inception_v4 inception_resnet_v2 lambda_resnet26t lcnet_050 legacy_seresnet18
    legacy_xception mambaout_femto mixnet_s mnasnet_small mobilenetv2_050 mobilenetv3_small_050
    mobilenetv4_conv_small mobileone_s0 nf_regnet_b0 rdnet_tiny regnetx_002 regnety_002 regnetz_b16
    repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_26w_4s resnest14d resnet26d resnetv2_50
    resnext50_32x4d rexnet_100 selecsls42 seresnext26d_32x4d skresnet18 spnasnet_100 starnet_s1
    tinynet_e tresnet_m vgg11_bn vovnet39a xception41

    beit_base_patch16_224 caformer_s18 cait_xxs24_224 coat_tiny coat_lite_tiny coatnet_nano_rw_224
    convformer_s18 convit_tiny crossvit_tiny_240 davit_tiny deit_tiny_patch16_224
    deit3_small_patch16_224 efficientformer_l1 efficientformerv2_s0 efficientvit_b0 efficientvit_m0
    eva02_tiny_patch14_224 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gmlp_ti16_224 hiera_tiny_224
    levit_128s maxvit_pico_rw_256 mixer_s32_224 mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny
    nextvit_small pit_ti_224 poolformer_s12 pvt_v2_b0 resmlp_12_224 sequencer2d_s shvit_s1
    swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swiftformer_xs tiny_vit_5m_224
    tnt_s_patch16_224 twins_pcpvt_small twins_svt_small visformer_tiny vit_tiny_patch16_224
    vitamin_small_224 volo_d1_224 xcit_nano_12_p16_224""".split()


def torchvision_names():
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


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
        elif isinstance(norm, nn.LayerNorm) and norm.weight is not None:  # some begin with zeros
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
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
    """(filters that may leave, all filters) of all convolutions, depthwise ones and gates too, and
    of hidden linear layers and attentions."""
    free = structure.is_sum & ~structure.is_fixed
    for name, numbers in structure.filters.items():
        free[numbers] = ~torch.tensor(structure.fixed_filters[name])
    can = count = 0
    for name, module in model.named_modules():
        is_hidden = name in structure.filters or name in structure.fixed
        if isinstance(module, nn.Conv2d) or (is_hidden and isinstance(module, LINEAR_LAYERS)):
            count += len(weight_of(module))
            if name in structure.layers:
                can += int(free[structure.root[structure.layers[name].writes]].sum())
    return can, count


def prune_all(name, percents=(25, 50, 75), largest=float("inf")):
    """One row of the table, as a dict; None of a network of more than `largest` parameters."""
    torch.manual_seed(0)
    model = build_network(name, 10)
    if sum(parameter.numel() for parameter in model.parameters()) > largest:
        return None
    model = settle(model).double()  # in which a fault is not taken for rounding
    start = time.monotonic()
    filter_groups(model)
    found = time.monotonic() - start
    explore(model)
    structure = remains_of(model).structure
    can, count = removable_filters(model, structure)
    row = {"network": name, "can": can, "all": count, "find": found, "worst": 0.0}
    row["removable"] = max_percent(model, "params", structure.image_shape[1])
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
        "| network | filters | may leave | parameters | MACs | find | cut | difference |\n"
        + "|---" * 8
        + "|"
    )
    tried = whole = right = 0
    for name in names:
        try:
            row = prune_all(name, largest=args.largest * 1e6)
        except (InputError, ValueError) as error:
            print(f"| {name} | {error} ||||||||", flush=True)
            tried += 1
            continue
        if row is None:
            continue
        tried += 1
        whole += row["can"] == row["all"]
        right += row["worst"] < 1e-6  # some compute their attention in single precision
        print(
            f"| {name} | {row['can']:,} of {row['all']:,} | {row['removable']:.1f}% "
            f"| {row['parameters']:.1%} | {row['macs']:.1%} | {row['find']:.2f} s | {row['cut']:.2f} s "
            f"| {row['worst']:.0e} |",
            flush=True,
        )
    print(
        f"\n{tried} networks, {right} pruned with the right logits, {whole} of them with "
        "every filter removable"
    )


if __name__ == "__main__":
    main()
