"""Slurm: facts -> a script for sbatch that starts Ray on the nodes it is given and submits the verb to it."""

from cluster.manifests.facts import Facts, Nodes

START_S = 300  # for all nodes to join

# USR1, and not TERM, tells that time is nearly over: a job that was cancelled must not come back.
OPTIONS = """\
#SBATCH --job-name={name}-{verb}
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={cpus}
#SBATCH --mem={memory_mb}M
#SBATCH --requeue
#SBATCH --signal=B:USR1@{grace_s}
"""

SCRIPT = """\
set -euo pipefail
umask 077  # the token and the configuration are for nobody else
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" SLURM_EXPORT_ENV=ALL

# A folder that all nodes see.
state=$(mktemp -d "$SLURM_SUBMIT_DIR/.{name}-$SLURM_JOB_ID.XXXXXX")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$state/token"
python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH"
cat > "$state/run.toml" <<'END_OF_RUN_TOML'
{run_toml}END_OF_RUN_TOML

finish() {{
  trap - EXIT USR1 TERM
  jobs -p | xargs --no-run-if-empty kill 2>/dev/null || true
  wait || true
  rm -rf "$state"
}}
trap finish EXIT

read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")  # the first node, where this script runs
read -r ip _ < <(hostname -I)
port=$((20000 + SLURM_JOB_ID % 3000 * 4))  # and three more of our own: jobs may share a node
export RAY_ADDRESS="$ip:$port" RAY_API_SERVER_ADDRESS="http://127.0.0.1:$((port + 1))"
node=(--block --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus={gpus} --labels={label} --disable-usage-stats)
node+=(--dashboard-agent-listen-port=$((port + 2)))
front=(--dashboard-host=127.0.0.1 --dashboard-port=$((port + 1)) --ray-client-server-port=$((port + 3)))
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \\
  ray start --head --node-ip-address="$ip" --port="$port" "${{front[@]}}" "${{node[@]}}" &
if (( SLURM_JOB_NUM_NODES > 1 )); then
  others=$((SLURM_JOB_NUM_NODES - 1))
  srun --overlap --nodes="$others" --ntasks="$others" --exclude="$head" \\
    ray start --address="$RAY_ADDRESS" "${{node[@]}}" &
fi
python -m cluster.gather "$SLURM_JOB_NUM_NODES" {start_s}

python -m jobs submit {verb} "$state/run.toml" --follow &
verb=$!
again=
stop_verb() {{  # again and again: it may not be submitted yet
  while kill -0 "$verb" 2>/dev/null; do python -m jobs stop "$state/run.toml" || true; sleep 1; done
}}
trap 'again=yes; stop_verb' USR1
trap stop_verb TERM
while kill -0 "$verb" 2>/dev/null; do wait "$verb" || true; done  # a signal ends the wait, and not the verb
status=0
wait "$verb" || status=$?
finish
if [ -n "$again" ] && [ "$status" -ne 0 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
"""


def slurm_script(facts: Facts) -> str:
    """All nodes are of the kind with GPUs; decoding runs on their CPUs."""
    [nodes] = [nodes for nodes in facts.nodes if nodes.kind == "gpu"]
    script = SCRIPT.format(
        name=facts.name,
        verb=facts.verb,
        run_toml=facts.run_toml,
        gpus=nodes.gpus,
        label=nodes.label,
        start_s=START_S,
    )
    return f"#!/bin/bash\n{_options(facts, nodes)}\n{script}"


def _options(facts: Facts, nodes: Nodes) -> str:
    options = OPTIONS.format(
        name=facts.name,
        verb=facts.verb,
        nodes=nodes.most,
        cpus=nodes.cpus,
        memory_mb=nodes.memory_bytes // 2**20,
        grace_s=facts.grace_s,
    )
    minutes = -(-facts.time_limit_s // 60)
    more = [
        *([f"--gpus-per-node={nodes.gpus}"] if nodes.gpus else []),
        *([f"--partition={facts.queue}"] if facts.queue else []),
        *([f"--time={minutes}"] if minutes else []),
        *facts.slurm_options,
    ]
    return options + "".join(f"#SBATCH {option}\n" for option in more)
