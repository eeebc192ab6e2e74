"""A million images of 64 x 64 pixels start and train within 4 GB of resident memory.

    python -m tests.million FOLDER [COUNT]        # about 10 minutes, 13 GB below FOLDER

It makes 2,000 JPEGs of noise, of which all others are hard links, and stops the training after its
first seconds. Not run by pytest.
"""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT, CLASSES, POOL, MOST = Path(__file__).resolve().parent.parent, 100, 2000, 4e9
TRAINING = 60  # seconds


def write_noise(folder, count):
    random, pool = np.random.RandomState(0), folder / "pool"
    pool.mkdir(parents=True)
    for k in range(POOL):
        Image.fromarray(random.randint(0, 255, (64, 64, 3), np.uint8)).save(pool / f"{k}.jpg")
    for part, images in (("train", count // CLASSES), ("test", 10)):
        for name in range(CLASSES):
            folder_of_class = folder / "noise" / part / f"{name:02}"
            folder_of_class.mkdir(parents=True)
            for k in range(images):
                os.link(pool / f"{(31 * name + k) % POOL}.jpg", folder_of_class / f"{k}.jpg")


def main(folder, count=10**6):
    folder = Path(folder)
    if not (folder / "noise").exists():
        write_noise(folder, count)
    command = [
        sys.executable,
        ROOT / "main.py",
        "--data_path=noise",
        "--image_size=64",
        "--ebt=True",
        "--preset=quick",
        "--model=mobilenet",
        "--width=0.125",
        "--only_train=base",
    ]
    began = time.monotonic()
    with subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(folder), "PYTHONUNBUFFERED": "1"},
    ) as run:
        for line in run.stdout:
            print(line, end="", flush=True)
            if re.match("Train the plain network", line):
                print(f"  begun after {time.monotonic() - began:.0f} s", flush=True)
                time.sleep(TRAINING)
                run.send_signal(signal.SIGINT)
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"{count:,} images: at most {largest / 1e9:.2f} GB of resident memory")
    assert largest < MOST


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
