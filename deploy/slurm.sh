#!/bin/bash
# Workers of the pool `gpu` on Slurm, one per node, each with all GPUs of its node as slots:
#   sbatch --nodes 4 --gpus-per-node 8 --time 24:00:00 deploy/slurm.sh
# From a folder that all nodes share; PREFECT_API_URL, MLFLOW_TRACKING_URI and DVC's remote have to be reachable from them.
# A stage that runs when the job ends crashes, and its flow sends it again; it goes on if a worker of the same node gets it.
#SBATCH --job-name encore
#SBATCH --ntasks-per-node 1
#SBATCH --cpus-per-task 32
#SBATCH --signal B:TERM@120
set -euo pipefail
: "${PREFECT_API_URL:?names the Prefect server}"
home=$PWD
export home
srun --kill-on-bad-exit=0 bash -c '
  set -euo pipefail
  clone=$home/.encore/slurm/$SLURMD_NODENAME       # a clone per node: a worker needs one of its own
  test -d "$clone/.git" || git clone --quiet "$home" "$clone"
  cp -f "$home/.dvc/config.local" "$clone/.dvc/" 2>/dev/null || true
  cd "$clone"
  source "$home/.venv/bin/activate"
  exec python -m flows worker gpu --limit "${SLURM_GPUS_ON_NODE:-1}"
' &
trap 'kill -TERM $!' TERM
wait || wait  # the first ends with the signal
