"""Every test process, and those that it starts, computes on one core: `pytest -n` runs several at once."""

import os

os.environ['OMP_NUM_THREADS'] = '1'  # before torch is imported
