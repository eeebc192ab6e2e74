"""Networks with any inputs, outputs and losses are scored, selected from, cut, and trained on."""

import copy
from dataclasses import dataclass

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from channels.groups import filter_groups
from common.inputs import call, tensors_in
from imp_estimator import cal_importance
from pruner import prune, select_filters
from train import reestimate
from zoo import settle


@dataclass
class Case:
    """A network, what it is called with, what it is trained for, and its loss."""

    network: nn.Module
    inputs: object
    targets: object
    loss: object


def squares(outputs, targets):
    """The mean squared error of all outputs."""
    pairs = zip(tensors_in(outputs), tensors_in(targets), strict=True)
    return sum(F.mse_loss(output, target) for output, target in pairs)


def conv_bn(inputs, outputs, dims=2, **options):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    return nn.Sequential(conv(inputs, outputs, 3, padding=1, **options), norm(outputs), nn.ReLU())


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 8), conv_bn(8, 12))
        self.kind, self.depth = nn.Linear(12, 4), nn.Conv2d(12, 1, 1)

    def forward(self, x):
        x = self.body(x)
        return self.kind(x.mean((2, 3))), self.depth(x)


def two_heads():
    def loss(outputs, targets):
        (kind, depth), (label, distance) = outputs, targets
        return F.cross_entropy(kind, label) + F.mse_loss(depth, distance)

    targets = torch.tensor([0, 1, 2]), torch.randn(3, 1, 12, 12)
    return Case(TwoHeads(), torch.randn(3, 3, 12, 12), targets, loss)


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv_bn(1, 8), nn.MaxPool2d(2), conv_bn(8, 8))
        self.same = nn.Linear(8, 1)

    def forward(self, left, right):
        left, right = (self.body(x).mean((2, 3)) for x in (left, right))
        return self.same((left - right).abs()).squeeze(1)


def siamese():
    inputs = torch.randn(4, 1, 10, 10), torch.randn(4, 1, 10, 10)
    targets = torch.tensor([0.0, 1, 1, 0])
    return Case(Siamese(), inputs, targets, F.binary_cross_entropy_with_logits)


def siamese_by_keywords():
    inputs = {"right": torch.randn(4, 1, 10, 10), "left": torch.randn(4, 1, 10, 10)}
    targets = torch.tensor([0.0, 1, 1, 0])
    return Case(Siamese(), inputs, targets, F.binary_cross_entropy_with_logits)


def segmented(network):
    def loss(outputs, targets):
        return F.cross_entropy(outputs["out"], targets)

    targets = torch.randint(0, 3, (2, 32, 32))
    return Case(network, torch.randn(2, 3, 32, 32), targets, loss)


def fcn():
    return segmented(
        models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=3)
    )


def deeplab():
    network = models.segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    )
    return segmented(network)


class UNet(nn.Module):
    def __init__(self, dims):
        super().__init__()
        pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1]
        up = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.first, self.second = conv_bn(2, 6, dims), conv_bn(6, 8, dims)
        self.deepest, self.pool = conv_bn(8, 10, dims), pool(2)
        self.up_second, self.up_first = up(10, 8, 2, 2), up(8, 6, 2, 2)
        self.back_second, self.back_first = conv_bn(16, 8, dims), conv_bn(12, 6, dims)
        self.head = conv(6, 3, 1)

    def forward(self, x):
        first = self.first(x)
        second = self.second(self.pool(first))
        x = self.up_second(self.deepest(self.pool(second)))
        x = self.back_second(torch.cat((second, x), 1))
        return self.head(self.back_first(torch.cat((first, self.up_first(x)), 1)))


def u_net(dims):
    targets = torch.randint(0, 3, (2, *[8] * dims))
    return Case(UNet(dims), torch.randn(2, 2, *[8] * dims), targets, F.cross_entropy)


def u_net_of_signals():
    return u_net(1)


def u_net_of_images():
    return u_net(2)


def u_net_of_volumes():
    return u_net(3)


def autoencoder():
    network = nn.Sequential(
        conv_bn(1, 8, stride=2),
        conv_bn(8, 12, stride=2),
        nn.ConvTranspose2d(12, 8, 4, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 8, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 1, 4, 2, 1),
    )
    images = torch.randn(3, 1, 8, 8)
    return Case(network, images, images, F.mse_loss)


def super_resolution():
    network = nn.Sequential(
        conv_bn(3, 8), conv_bn(8, 32), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)
    )
    return Case(network, torch.randn(2, 3, 6, 6), torch.randn(2, 3, 12, 12), F.l1_loss)


def signals():
    network = nn.Sequential(
        conv_bn(2, 8, 1),
        nn.MaxPool1d(2),
        conv_bn(8, 12, 1),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    return Case(network, torch.randn(4, 2, 20), torch.tensor([0, 1, 2, 0]), F.cross_entropy)


def volumes():
    network = nn.Sequential(
        conv_bn(1, 6, 3),
        nn.AvgPool3d(2),
        conv_bn(6, 8, 3),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    return Case(network, torch.randn(3, 1, 6, 6, 6), torch.tensor([0, 1, 2]), F.cross_entropy)


def features_of_torchvision():
    torch.manual_seed(0)
    network = create_feature_extractor(
        models.resnet18(weights=None), {"layer1": "early", "layer2.0.relu": "late"}
    )
    targets = [torch.randn(2, 64, 8, 8), torch.randn(2, 128, 4, 4)]
    return Case(network, torch.randn(2, 3, 32, 32), targets, squares)


def features_of_timm():
    network = timm.create_model("test_resnet", pretrained=False, features_only=True)
    with torch.no_grad():
        targets = [torch.randn_like(each) for each in network(torch.randn(2, 3, 32, 32))]
    return Case(network, torch.randn(2, 3, 32, 32), targets, squares)


def backbone_of_a_detector():
    detector = models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    )
    network = detector.backbone
    with torch.no_grad():
        outputs = network.eval()(torch.randn(2, 3, 64, 64))
    targets = [torch.randn_like(each) for each in outputs.values()]
    return Case(network, torch.randn(2, 3, 64, 64), targets, squares)


CASES = [
    two_heads,
    siamese,
    siamese_by_keywords,
    fcn,
    deeplab,
    u_net_of_signals,
    u_net_of_images,
    u_net_of_volumes,
    autoencoder,
    super_resolution,
    signals,
    volumes,
    features_of_torchvision,
    features_of_timm,
    backbone_of_a_detector,
]


def in_double(value):
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: in_double(each) for name, each in value.items()}
    return tuple(map(in_double, value))


def silenced(model, kept):
    """A copy of a network in which hooks set the removed filters to zero, which know nothing of the
    graph: behind their BatchNorms, and behind those of depthwise convolutions that follow."""
    twin, behind = copy.deepcopy(model), behind_depthwise(model)
    norms = {group.name: group.bn for group in filter_groups(model)}
    name_of = {module: name for name, module in model.named_modules()}
    for name, index in kept.items():
        gone = torch.ones(model.get_submodule(name).out_channels, dtype=torch.bool)
        gone[index] = False
        last = name if norms[name] is None else name_of[norms[name]]
        for place in {last, behind.get(name, last)}:
            twin.get_submodule(place).register_forward_hook(silence(gone))
    return twin


def behind_depthwise(model):
    """Convolution -> the BatchNorm of the depthwise one that follows it, by the order in which
    MobileNets have their layers: without its input it still gives a shift."""
    behind, last, followed = {}, None, None
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            is_depthwise = module.groups == module.in_channels > 1
            last, followed = name, last if is_depthwise else None
        elif isinstance(module, nn.BatchNorm2d) and followed:
            behind[followed], followed = name, None
    return behind


def silence(gone):
    def hook(_layer, _inputs, result):
        return result.masked_fill(gone.view(-1, *[1] * (result.dim() - 2)), 0)

    return hook


def are_equal(outputs, others):
    pairs = list(zip(tensors_in(outputs), tensors_in(others), strict=True))
    return all(torch.allclose(*pair, rtol=1e-9, atol=1e-12) for pair in pairs)


@pytest.mark.parametrize("make", CASES)
def test_a_network_is_scored_by_its_own_loss_and_cut(make):
    torch.manual_seed(0)
    case = make()
    model, inputs, targets = (
        settle(case.network).double(),
        *map(in_double, (case.inputs, case.targets)),
    )
    reestimate(model, [(inputs, targets)])
    groups = filter_groups(model, inputs)
    scores = cal_importance(model, "fisher", [(inputs, targets)], loss=case.loss)
    kept = select_filters(model, scores, 40, ranking="layer")
    small = prune(model, kept, inputs)
    for group in groups:
        assert group.is_fixed or len(kept[group.name]) < group.dense, group.name
    with torch.no_grad():
        wanted, result = call(silenced(model, kept), inputs), call(small, inputs)
        assert are_equal(wanted, result) and not are_equal(call(model, inputs), result)
    assert type(result) is type(call(model, inputs))
    before = [parameter.detach().clone() for parameter in small.parameters()]
    loss = case.loss(call(small.train(), inputs), targets)
    loss.backward()
    torch.optim.SGD(small.parameters(), 0.1).step()
    assert any(not torch.equal(*pair) for pair in zip(before, small.parameters()))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
