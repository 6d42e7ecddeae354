"""Every test has one core: tests run side by side (`make test`), and two threads on one core wait for each other."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, here and in the stages that tests start
