#!/bin/bash
# Each task of the array is a step of figures/make.py. At the time limit it saves, and is queued
# again, where it goes on:  ONLY='hashing/e1_*' sbatch --array=1-12 figures/slurm.sh
#SBATCH --array=1-12 --time=04:00:00 --signal=B:TERM@120 --requeue --open-mode=append
steps=(uv run figures/make.py --preset "${PRESET:-report}" --only "${ONLY:-hashing/e1_b*_d?}")
command=$("${steps[@]}" --dry-run | grep '^  ' | sed -n "${SLURM_ARRAY_TASK_ID}s/.*: //p")
trap 'kill -TERM $child; wait $child; scontrol requeue $SLURM_JOB_ID' TERM
uv run $command &
child=$!
wait $child
