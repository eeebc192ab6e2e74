"""A container, a job or a file system may give less than the machine has, or know less."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from common import device, machine
from conftest import ROOT


@pytest.mark.parametrize(
    "files, cores, memory",
    [
        ({}, 4, 8e9),
        ({"cpu.max": "200000 100000"}, 2, 8e9),
        ({"cpu.max": "max 100000"}, 4, 8e9),
        ({"memory.max": "1000000000\n"}, 4, 1e9),
        ({"memory.max": "max\n"}, 4, 8e9),
        (
            {
                "cpu/cpu.cfs_quota_us": "150000",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
            },
            2,
            8e9,
        ),
        ({"job/cpu.max": "200000 100000", "job/step/memory.max": "2000000000"}, 2, 2e9),
        ({"cpu/job/cpu.cfs_quota_us": "100000", "cpu/job/cpu.cfs_period_us": "100000"}, 1, 8e9),
        ({"cpu.max": "rubbish", "memory.max": ""}, 4, 8e9),
    ],
)
def test_limits_of_a_container_are_those_that_count(files, cores, memory, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text("0::/job/step\n3:cpu,cpuacct:/job\n")
    monkeypatch.setattr(machine, "GROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 8_000_000, "SC_PAGE_SIZE": 1000}.get)
    assert machine.cores() == cores and machine.memory() == memory


def test_a_result_says_which_processor_computed_it(tmp_path):
    known = tmp_path / "cpuinfo"
    known.write_text("processor\t: 0\nmodel name\t: AMD EPYC 9B14: 96 cores\nmodel name\t: other\n")
    assert device.processor(known) == "AMD EPYC 9B14: 96 cores"
    assert device.processor(tmp_path / "none") == (platform.processor() or platform.machine())
    assert device.environment(torch.device("cpu"))["processor"] == device.processor()


def test_a_user_without_a_name_and_a_system_without_inodes(tmp_path, folder):
    """As in a container whose user is a number, and on drives whose inode numbers change."""
    code = """import os, pwd, sys
def nobody(*_): raise KeyError("no such user")
pwd.getpwuid = nobody
plain, count = os.fstat, [0]
def changing(*args):
    count[0] += 1
    stat = plain(*args)
    return os.stat_result((stat[0], count[0], *stat[2:])) if stat.st_mode & 0o100000 else stat
os.fstat = changing
sys.path.insert(0, sys.argv.pop(1))
import main
main.main([*sys.argv[1:]])"""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME")
    }
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            str(ROOT),
            "--preset=quick",
            "--image_size=8",
            "--width=0.125",
            "--ebt=True",
            f"--data_path={folder}",
            "--only_train=base",
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    assert (tmp_path / "pretrained/ebt/shapes/vgg-w0.125.pth").is_file()


def test_requirements_are_installed_by_what_is_there(tmp_path):
    """With stand-ins for Python and uv that only say how they are called."""
    tmp_path = tmp_path / "a b"
    tmp_path.mkdir()
    python = '#!/bin/sh\ncase "$*" in *pip*) exit 1;; esac\nexit 0\n'
    for name, text in (("python", python), ("uv", '#!/bin/sh\necho uv "$@"\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    script, path = str(ROOT / "requirements.sh"), f"{tmp_path}:/usr/bin:/bin"
    with_uv = subprocess.run(["sh", script], env={"PATH": path}, capture_output=True, text=True)
    assert with_uv.returncode == 0 and with_uv.stdout.startswith("uv pip install --python "), (
        with_uv
    )
    (tmp_path / "uv").unlink()
    without = subprocess.run(["sh", script], env={"PATH": path}, capture_output=True, text=True)
    assert without.returncode == 1 and "neither pip nor ensurepip" in without.stderr
    assert b"\r" not in (ROOT / "requirements.sh").read_bytes()
    assert "*.sh text eol=lf" in (ROOT / ".gitattributes").read_text()
