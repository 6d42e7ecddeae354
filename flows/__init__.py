"""Runs the DVC graph in parallel, watched by Prefect: `python -m flows reproduce chex fedformer --jobs 2`.

* `plan.py`: what is out of date, from DVC's own graph; `project.py`: the workspace, DVC's locks, cache and lock file.
* `process.py`: a stage's command with its log, its limits and the end of its whole process tree; `slots.py`: CPUs,
  memory and named GPUs; `stage.py`: one stage from check to record; `engine.py`: which stage starts when.
* `reproduce.py`: the same as a Prefect flow; `server.py`: the server it talks to; `artifacts.py`: tables and claims.
* `experiments.py`, `sweep.py`: several values of parameters as DVC experiments, and the flow that runs them.
* `serve.py`: servers, deployments and a worker on this machine; `deployed.py`: the flows as the UI and workers see them.
* `away.py`: stages on workers in other clones; `worker.py`: such a worker, started again when it dies.

Nothing here knows a paper: flows read the `dvc.yaml` files, and stages know nothing of flows.
"""
