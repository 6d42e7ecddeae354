"""What holds for every test."""

import gc
import os

# A worker that is forked from pytest must not collect what earlier tests have left: an onnxruntime session waits in its
# destructor for threads that a forked process does not have.
os.register_at_fork(after_in_child=gc.freeze)
