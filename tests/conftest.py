"""Makes the modules beside this file importable from every test."""

import sys
from pathlib import Path

# pytest has put this folder on the path; the root goes before it, or `tests/compiler` would pass for `compiler`.
sys.path.insert(0, str(Path(__file__).parents[1]))
