"""Where the study lies. To import this puts the suite on the path, so it comes before the suite's
own modules."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))
