"""One description of what files hold: files of earlier versions load, and damage is named."""

import copy
import json

import pytest

from conftest import ROOT
from lab.record import Record

STUDY = sorted(
    path
    for path in (ROOT / "pruned_nets/comparison").rglob("*_?.json")
    if path.parent.name not in ("practice", "claim")
)  # which practice.py and claim.py write


def test_the_results_of_the_study_written_before_records_existed_still_load():
    assert len(STUDY) > 50
    for path in STUDY:
        content = json.loads(path.read_text())
        record = Record.read_result(content)
        assert Record.read(record.json()) == record  # nothing is lost on the way
        assert record.best == content["accuracy"]["best"]["top1"]
        assert record.requested == content["pruning"]["requested_percent"]
        assert (
            record.flops_left
            == pytest.approx(
                100 * content["flops"] / (content.get("base") or content["pruned"])["flops"],
                rel=1e-6,
            )
            or record.control
        )
        assert [row["epoch"] for row in record.rows()] == [
            epoch["epoch"] for epochs in content["history"].values() for epoch in epochs
        ]


@pytest.mark.parametrize(
    "path, value, says",
    [
        (("accuracy", "best", "top1"), "good", "accuracy.best.top1 is 'good', not a number"),
        (("accuracy", "best"), 4, "accuracy.best is 4"),
        (("accuracy", "last"), 3, "accuracy.last"),
        (("classes",), ["one"], "classes has 1 names"),
        (("image_size",), 0, "image_size is 0"),
        (("image_size",), True, "image_size is True"),
        (("interpolation",), "cubic", "interpolation is 'cubic', none of bilinear, bicubic"),
        (("history", "retrain"), {}, "history.retrain"),
        (("history", "retrain", 0, "test"), {}, "history.retrain[0].test.top1 is missing"),
        (("pruning", "achieved_percent"), float("nan"), "achieved_percent is nan"),
        (("widths", "features.0"), 10**400, "widths.features.0"),
        (("seed",), 1.5, "seed is 1.5"),
        (("orthogonality", "layers"), [1], "orthogonality.layers is"),
        (("penalised",), 1, "penalised is 1"),
        (("base", "accuracy", "best"), [], "base.accuracy.best"),
        (("flags",), [], "flags is"),
    ],
)
def test_a_record_checks_itself_and_names_the_entry(path, value, says):
    content = copy.deepcopy(json.loads(STUDY[0].read_text()))
    content["history"] = {"retrain": [{"epoch": 1, "test": {"top1": 1.0}}]}
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ValueError) as error:
        Record.read(content)
    assert says in str(error.value) or says.split(" is ")[0] in str(error.value), error.value
    assert len(str(error.value)) < 200


def test_what_a_later_version_adds_is_no_obstacle():
    content = json.loads(STUDY[0].read_text())
    known = Record.read(content)
    assert (
        Record.read(
            {**content, "colour": "blue", "accuracy": {**content["accuracy"], "median": 3}}
        ).best
        == known.best
    )
    assert Record.read({**content, "flags": {}}).flag("budget") == "filters"
