"""Networks with any inputs, outputs and losses are scored, selected from, cut, and trained on."""

import collections
import copy
from dataclasses import dataclass, fields
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from channels.checking import check
from channels.costs import measure_cost
from channels.groups import filter_count, filter_groups, remains_of
from common.errors import InputError
from common.inputs import call, tensors_in
from conftest import ROOT
from imp_estimator import cal_importance
from lab.checkpoint import (
    check_holds,
    load_checkpoint,
    load_network,
    save_checkpoint,
    save_network,
)
from lab.networks import build_network, look_at
from pruner import measure_losses, prune, select_filters
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


def segmented(network, size):
    def loss(outputs, targets):
        return F.cross_entropy(outputs["out"], targets)

    targets = torch.randint(0, 3, (2, size, size))
    return Case(network, torch.randn(2, 3, size, size), targets, loss)


def fcn():
    network = models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=3)
    return segmented(network, 16)


def deeplab():
    network = models.segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    )
    return segmented(network, 32)


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
    timm = pytest.importorskip("timm")
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
        outputs = network.eval()(torch.randn(2, 3, 32, 32))
    targets = [torch.randn_like(each) for each in outputs.values()]
    return Case(network, torch.randn(2, 3, 32, 32), targets, squares)


class Words(nn.Module):
    """Which words are in a text, and which of them count."""

    def __init__(self):
        super().__init__()
        self.words, self.body = nn.Embedding(20, 6), conv_bn(6, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, words, counts):
        x = self.body(self.words(words).transpose(1, 2))
        return self.head((x * counts[:, None]).amax(2))


def words():
    inputs = {"words": torch.randint(0, 20, (4, 9)), "counts": torch.rand(4, 9) > 0.3}
    return Case(Words(), inputs, torch.tensor([0, 1, 2, 0]), F.cross_entropy)


CASES = [
    words,
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
    group_of = {group.name: group for group in filter_groups(model)}
    name_of = {module: name for name, module in model.named_modules()}
    for name, index in kept.items():
        gone = torch.ones(len(group_of[name].channels), dtype=torch.bool)
        gone[index] = False
        norm = group_of[name].bn
        last = name if norm is None else name_of[norm]
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


# --------------------------------------------------------------------------------- kinds of outputs


class Pair(NamedTuple):
    kind: object
    maps: object


@dataclass
class Found:
    kind: torch.Tensor
    maps: list


@dataclass
class FoundAsDict(collections.OrderedDict):
    """As the outputs of Hugging Face's networks: attributes and items, without those not there."""

    kind: torch.Tensor = None
    maps: torch.Tensor = None
    more: torch.Tensor = None

    def __post_init__(self):
        for each in fields(self):
            if getattr(self, each.name) is not None:
                self[each.name] = getattr(self, each.name)


class Giving(nn.Module):
    """It gives two results in a form of its own; its joined channels are put in another order."""

    def __init__(self, form):
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 8), conv_bn(3, 8), conv_bn(16, 8)
        self.kind, self.maps, self.form = nn.Linear(8, 3), nn.Conv2d(8, 2, 1), form

    def forward(self, x):
        x = torch.cat((self.a(x), self.b(x)), 1).view(x.shape[0], 2, 8, *x.shape[2:])
        x = self.c(x.transpose(1, 2).flatten(1, 2))
        return self.form(self.kind(x.mean((2, 3))), self.maps(x))


FORMS = {
    "tuples": lambda kind, maps: (kind, (maps, [maps * 2])),
    "a list": lambda kind, maps: [kind, maps],
    "a dict": lambda kind, maps: {"kind": kind, "maps": {0: maps}},
    "an ordered dict": lambda kind, maps: collections.OrderedDict([("0", kind), ("1", maps)]),
    "a named tuple": Pair,
    "a dataclass": lambda kind, maps: Found(kind, [maps, maps + 1]),
    "a dataclass that is a dict": lambda kind, maps: FoundAsDict(kind=kind, maps=maps),
}


@pytest.mark.parametrize("form", FORMS)
def test_outputs_keep_their_form_and_all_their_channels(form):
    torch.manual_seed(0)
    model = settle(Giving(FORMS[form])).double()
    images = torch.randn(3, 3, 8, 8).double()
    assert [group.name for group in filter_groups(model)] == ["a.0", "b.0", "c.0"]
    kept = select_filters(model, cal_importance(model, "l1"), 40, ranking="layer")
    small = prune(model, kept)
    assert type(small).forward is not Giving.forward  # its channels are put in order anew
    with torch.no_grad():
        wanted, result = silenced(model, kept)(images), small(images)
    assert type(result) is type(wanted) and are_equal(wanted, result)
    if isinstance(result, (Found, FoundAsDict, Pair)):
        assert torch.equal(result.kind, tensors_in(result)[0])


# ------------------------------------------------- other operations in training than in evaluation


class Helped(nn.Module):
    """In training a second head helps, and channels are joined the other way round; in evaluation
    a softmax comes last."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 8), conv_bn(3, 8), conv_bn(16, 12)
        self.head = nn.Linear(12, num_classes)
        self.help = nn.Sequential(conv_bn(16, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.help_head = nn.Linear(8, num_classes)

    def forward(self, x):
        both = torch.cat((self.a(x), self.b(x)), 1)
        both = both.view(x.shape[0], 2, 8, *x.shape[2:]).transpose(1, 2).reshape(both.shape)
        result = self.head(self.c(both).mean((2, 3)))
        if self.training:
            return result, self.help_head(self.help(both))
        return result.softmax(1)


def is_not_to_be_called(_layer, _inputs):
    raise AssertionError("it is for training alone")


def googlenet():
    network = models.googlenet(weights=None, aux_logits=True, init_weights=False, num_classes=4)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # so that both networks compute the same in training
    return network


def in_training(model):
    """A network in train mode, whose BatchNorms normalise as in evaluation."""
    for module in model.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


@pytest.mark.parametrize("make", [Helped, googlenet])
def test_auxiliary_heads_that_only_training_has_are_cut_as_well(make):
    torch.manual_seed(0)
    model = settle(make()).double()
    images, labels = torch.randn(2, 3, 48, 48).double(), torch.tensor([0, 3])
    reestimate(model, [(images, labels)])
    kept = select_filters(
        model, cal_importance(model, "fisher", [(images, labels)]), 40, ranking="layer"
    )
    assert any("aux" in name or "help" in name for name in kept)
    small = prune(model, kept, images)
    assert all(len(kept[group.name]) < group.dense for group in filter_groups(model))
    twin = silenced(model, kept)
    with torch.no_grad():
        assert are_equal(twin(images), small(images))
        wanted, result = in_training(twin)(images), in_training(small)(images)
    assert type(result) is type(wanted) and are_equal(wanted, result)
    outputs = small.train()(images)
    sum(F.cross_entropy(each, labels) for each in tensors_in(outputs)).backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    assert isinstance(small.eval()(images), torch.Tensor)
    again = copy.deepcopy(small).train()  # the class that was made for it still knows both modes
    assert len(tensors_in(again(images))) == len(tensors_in(outputs))
    for name, module in small.named_modules():
        if "aux" in name or "help" in name:  # evaluation does without
            module.register_forward_pre_hook(is_not_to_be_called)
    small(images)


def test_a_wrong_cut_of_any_output_is_found():
    torch.manual_seed(0)
    for model, spoilt in ((TwoHeads(), "depth"), (Helped(), "help_head")):
        model = settle(model)
        filters = remains_of(model, 12).filters
        check(model, model, filters)
        wrong = copy.deepcopy(model)
        with torch.no_grad():
            wrong.get_submodule(spoilt).weight.mul_(1.01)
        with pytest.raises(ValueError, match="computes something else"):
            check(model, wrong, filters)


def test_a_detector_goes_on_with_its_pruned_backbone():
    torch.manual_seed(0)
    detector = models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    )
    with pytest.raises(ValueError, match="cannot be traced"):
        filter_groups(detector)
    whole = sum(parameter.numel() for parameter in detector.parameters())
    backbone, images = detector.backbone, torch.randn(2, 3, 32, 32)
    groups = filter_groups(backbone, images)
    scores = cal_importance(backbone, "l1")
    detector.backbone = prune(backbone, select_filters(backbone, scores, 50, ranking="layer"))
    assert sum(parameter.numel() for parameter in detector.parameters()) < 0.7 * whole
    boxes = {"boxes": torch.tensor([[2.0, 3, 20, 25]]), "labels": torch.tensor([1])}
    sum(detector.train()(list(images), [boxes, boxes]).values()).backward()
    layers = [detector.backbone.get_submodule(group.name) for group in groups]
    assert all(layer.weight.grad is not None for layer in layers)


def test_inception_as_it_comes_can_be_pruned_with_its_auxiliary_head():
    model = models.inception_v3(weights=None, aux_logits=True, init_weights=False)
    names = {group.name for group in filter_groups(model, 299)}
    assert {"AuxLogits.conv0.conv", "AuxLogits.conv1.conv"} < names
    assert not remains_of(model).structure.fixed


# ---------------------------------------------------------------------------- scores, and messages


def test_a_filter_that_is_used_twice_has_one_change_of_the_loss():
    """theis is the mean square of what each image's loss loses, to first order, with the filter's
    outputs in both uses."""
    torch.manual_seed(0)
    case = siamese()
    model, inputs = settle(case.network).double(), in_double(case.inputs)
    targets, scores = in_double(case.targets), None
    filter_groups(model, inputs)
    scores = cal_importance(model, "theis", [(inputs, targets)], loss=case.loss)
    factors = torch.ones(4, 8, dtype=torch.double, requires_grad=True)  # images x filters

    def scale(_layer, _inputs, result):
        return result * factors[:, :, None, None]

    model.body[0][1].register_forward_hook(scale)
    loss = len(targets) * case.loss(call(model, inputs), targets)
    (slopes,) = torch.autograd.grad(loss, factors)
    wanted = slopes.square().sum(0) / (2 * len(targets))
    assert torch.allclose(scores["body.0.0"].double(), wanted, rtol=1e-5)


def test_inputs_that_have_no_gradient_do_for_all_estimators():
    torch.manual_seed(0)
    case, model = words(), settle(words().network)
    filter_groups(model, case.inputs)
    for method in ("fisher", "theis", "tfo", "rdt", "grasp"):
        scores = cal_importance(model, method, [(case.inputs, case.targets)])
        assert scores["body.0"].count_nonzero() > 4, method


def test_the_default_loss_is_the_mean_cross_entropy():
    torch.manual_seed(0)
    model, batches = settle(signals().network), [(signals().inputs, signals().targets)]
    filter_groups(model, signals().inputs)
    for method in ("fisher", "theis", "tfo"):
        default = cal_importance(model, method, batches)
        own = cal_importance(model, method, batches, loss=F.cross_entropy)
        assert all(torch.allclose(default[name], own[name], rtol=1e-4) for name in default)


def test_what_an_estimator_cannot_do_with_is_said():
    case, model = two_heads(), settle(two_heads().network)
    batches = [(case.inputs, case.targets)]
    for method, loss, says in (
        ("fisher", None, "gives a tuple, and the cross-entropy needs one tensor of logits; give"),
        ("grasp", None, "gives a tuple, and the cross-entropy needs one tensor of logits; give"),
        ("rdt", case.loss, "gives a tuple, and the mean prediction needs"),
        ("tfo", lambda *_: torch.ones(3), r"loss gives a tensor of \(3,\); it must give the mean"),
    ):
        with pytest.raises(ValueError, match=says):
            cal_importance(model, method, batches, loss=loss)
    model = settle(fully_convolutional())
    with pytest.raises(ValueError, match="a row of logits for each image"):
        cal_importance(model, "rdt", [(torch.randn(2, 3, 8, 8), None)])
    assert cal_importance(two_heads().network, "grasp", batches, loss=case.loss)
    with pytest.raises(ValueError, match="ranking='measured' needs a row of logits"):
        measure_losses(model, cal_importance(model, "l1"), [(torch.randn(2, 3, 8, 8), None)])


def fully_convolutional():
    return nn.Sequential(conv_bn(3, 8), nn.Conv2d(8, 2, 1))


@pytest.mark.parametrize(
    "network, example, says",
    [
        (Siamese(), None, r"missing 1 required positional argument: 'right'; filter_groups\("),
        (signals().network, None, r"no convolution of images; filter_groups\(network, example\)"),
        (Siamese(), (torch.ones(2, 1, 8, 8), None), "the example has a NoneType; give a tensor"),
        (Siamese(), {}, "the example is empty"),
        (Siamese(), "two images", "the example has a str; give a tensor"),
        (signals().network, torch.ones(2, 3, 20), "cannot take 2 x 3 x 20: 0.0: "),
    ],
)
def test_what_is_no_example_is_said(network, example, says):
    with pytest.raises(ValueError, match=says):
        filter_groups(network, example)


def test_costs_are_those_of_a_sample_of_the_example():
    model = signals().network
    for count in (1, 3):
        model._remains = None
        filter_groups(model, torch.randn(count, 2, 20))
        assert measure_cost(model)["macs"] == 20 * 2 * 8 * 3 + 10 * 8 * 12 * 3 + 12 * 3


def test_the_example_of_the_page_runs():
    page = (ROOT / "lab/README.md").read_text().split("### Any inputs, outputs and loss")[1]
    code = page.split("```python\n")[1].partition("```")[0]

    class Segmenting(nn.Sequential):
        def forward(self, x):
            return {"out": super().forward(x)}

    torch.manual_seed(0)
    network = settle(Segmenting(conv_bn(3, 8), conv_bn(8, 8), nn.Conv2d(8, 2, 1)))
    batches = [(torch.randn(4, 3, 8, 8), torch.randint(0, 2, (4, 8, 8)))]
    names = {"net": network, "batches": batches}
    exec(code, names)
    assert filter_count(names["small"]) == (8, 16)


def test_the_names_of_inputs_stay_those_of_the_network():
    torch.manual_seed(0)
    inputs = siamese().inputs

    class Shuffled(Siamese):
        def forward(self, left, right):
            return super().forward(left[:, :, :8], right.view(right.shape[0], 1, 10, 10)[:, :, :8])

    model = settle(Shuffled())
    filter_groups(model, inputs)
    kept = select_filters(model, cal_importance(model, "l1"), 40, ranking="layer")
    small = prune(model, kept)
    left, right = inputs
    with torch.no_grad():
        assert torch.equal(small(left, right), small(right=right, left=left))


# ---------------------------------------------------------------------------------- checkpoints


FILE = """
import torch
from torch import nn


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 8, 3, padding=1), nn.Conv1d(3, 8, 3, padding=1)
        self.up, self.head = nn.ConvTranspose1d(16, 6, 2, 2), nn.Conv1d(6, 2, 1)

    def forward(self, sound, motion):
        both = torch.cat((self.a(sound).relu(), self.b(motion).relu()), 1)
        both = both.view(sound.shape[0], 2, 8, -1).transpose(1, 2).reshape(both.shape)
        return {"map": self.head(self.up(both).relu())}


class Wide(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, num_classes, 1)

    def forward(self, images):
        return self.b(self.a(images).relu())
"""


def test_a_checkpoint_keeps_what_the_network_is_called_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(FILE)
    torch.manual_seed(0)
    model = build_network("nets.py:Pair", None)
    inputs = {"motion": torch.randn(2, 3, 10), "sound": torch.randn(2, 2, 10)}
    filter_groups(model, inputs)
    kept = select_filters(model, cal_importance(model, "l1"), 50, ranking="layer")
    small = prune(model, kept).eval()
    save_checkpoint("small.pth", small, {})
    with pytest.raises(InputError, match="it holds a network of the file"):
        load_checkpoint("small.pth")
    again, record = load_checkpoint("small.pth", "nets.py:Pair")
    assert record.model == small.origin.name and record.num_classes is None
    save_network("other.pth", small)
    other = load_network("other.pth", build_network("nets.py:Pair", None))
    for each in (again.eval(), other.eval()):
        assert torch.equal(each(**inputs)["map"], small(**inputs)["map"])
        assert not remains_of(each).structure.image_shape
        scores = cal_importance(each, "l1")  # it still knows what it was pruned from
        assert len(prune(each, select_filters(each, scores, 70))(**inputs)["map"]) == 2
    content = torch.load("small.pth", weights_only=True)
    assert content["example"] == {
        "motion": {"dtype": "float32", "shape": [2, 3, 10]},
        "sound": {"dtype": "float32", "shape": [2, 2, 10]},
    }
    with pytest.raises(InputError, match="Pair is called with .* not with images; from Python"):
        check_holds("small.pth", again, record)
    content["example"] = {"motion": "of a kind"}
    torch.save(content, "odd.pth")
    with pytest.raises(InputError, match="cannot be used"):
        load_checkpoint("odd.pth", "nets.py:Pair")


def test_a_checkpoint_of_images_that_gives_no_logits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(FILE)
    model = build_network("nets.py:Wide", 5)
    small = prune(model, select_filters(model, cal_importance(model, "l1"), 50))
    save_checkpoint("small.pth", small, {})
    again, _ = load_checkpoint("small.pth", "nets.py:Wide")
    images = torch.randn(2, 3, 9, 9)
    assert torch.equal(again.eval()(images), small.eval()(images))
    with pytest.raises(InputError, match="not 2 rows of logits.*from Python, networks of any"):
        look_at(model, 32)
