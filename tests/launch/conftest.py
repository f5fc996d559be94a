"""Makes `river`, the run in miniature, importable for tests and for the jobs they start."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
