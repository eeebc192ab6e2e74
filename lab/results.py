"""The results below a folder, read: the files of main.py, and those of --group_check."""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from common.errors import InputError
from common.files import digest_of
from lab.record import GROUPS_IN, Record, read_groups, read_result

LARGEST = 50_000_000  # bytes of a result; one of 500 epochs has 1 MB
MOST = 200_000  # files and folders that are looked at; a comparison has hundreds


class Result(NamedTuple):
    record: Record
    run_folder: str  # the folder that its run wrote into, below the folder of the report


class Results(NamedTuple):
    """The results below a folder, and the paths of the .json files that are left out."""

    results: list[Result]
    others: list[Path]  # that hold no result
    copies: list[Path]  # of other results in the same folder


def read_results(folder) -> Results:
    """Read all .json files below a folder that main.py wrote.

    Raises InputError where the folder holds too many files.
    """
    results, others, copies = [], [], []
    contents = set()
    for path in files_below(folder, ".json"):
        if GROUPS_IN in path.name:
            continue
        record = _record_in(path)
        if record is None:
            others.append(path)
            continue
        run_folder = _run_folder(path.relative_to(folder))
        content = run_folder, digest_of(path)
        if content in contents:
            copies.append(path)
            continue
        contents.add(content)
        results.append(Result(record, run_folder))
    return Results(results, others, copies)


def read_group_checks(folder):
    """{name of a file that --group_check wrote below a folder: {network: its GroupCheck}}. Files
    that hold something else are left out."""
    checks = {}
    for path in files_below(folder, ".json"):
        if GROUPS_IN in path.name:
            with suppress(OSError, ValueError):
                if _is_readable(path):
                    checks["/".join(path.relative_to(folder).parts)] = read_groups(path)
    return checks


def files_below(folder, suffix):
    """The paths of the files below a folder whose names end with a suffix, sorted. Links are not
    followed. Raises InputError where the folder holds more than MOST files and folders."""
    paths, count = [], 0
    for parent, folders, names in os.walk(folder):
        count += len(folders) + len(names)
        if count > MOST:
            raise InputError(
                f"--report={folder} holds more than {MOST:,} files; name the folder "
                "that the results are in"
            )
        for name in names:
            if name.endswith(suffix):
                paths.append(Path(parent) / name)
    return sorted(paths)


def _record_in(path):
    """The record in a file; None where it holds none."""
    try:
        if not _is_readable(path):
            return None
        return replace(read_result(path), file=str(path.with_suffix(".pth")))
    except (OSError, ValueError):
        return None


def _is_readable(path):
    return path.is_file() and path.stat().st_size <= LARGEST


def _run_folder(path):
    """The folder that holds a run's pruned_nets/; without one, the file's own folder."""
    parents = path.parts[:-1]
    if "pruned_nets" in parents:
        parents = parents[: parents.index("pruned_nets")]
    return "/".join(parents) or "."
