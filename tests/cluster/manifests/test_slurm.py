"""The script for sbatch: bash takes it, and on nodes that are played by small scripts it does what it should."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cluster.manifests.facts import Facts
from cluster.manifests.slurm import slurm_script
from jobs.cluster_facts import describe_cluster
from jobs.training.committed import list_committed
from jobs.training.metrics import read_metrics
from tests.cluster_facts import DECODE, GPU, TRAIN, VARIANTS, options_of_ray, some_facts
from tests.conftest import cache_config

SRUN = """\
#!/bin/bash
echo "srun $*" >> "$PLAYED/calls"
stat -c %a "$RAY_AUTH_TOKEN_PATH" >> "$PLAYED/token_modes"
cp "$RAY_AUTH_TOKEN_PATH" "$PLAYED/token"
echo "$RAY_AUTH_MODE" >> "$PLAYED/auth_modes"
echo $$ >> "$PLAYED/pids"
exec sleep 60
"""
SCONTROL = """\
#!/bin/bash
echo "scontrol $*" >> "$PLAYED/calls"
if [ "$1" = show ]; then printf 'node1\\nnode2\\nnode3\\n'; fi
"""
HOSTNAME = "#!/bin/bash\necho 10.0.0.1 fe80::1\n"
# The verb ends with VERB_CODE, or where that is empty when it is told to stop, over which it takes a while.
PYTHON = """\
#!/bin/bash
case "$1 $2" in
  "-m cluster.gather")
    while [ "$(wc -l < "$PLAYED/pids")" -lt "$SRUNS" ]; do sleep 0.02; done
    echo "python $*" >> "$PLAYED/calls"; exit "$GATHER_CODE" ;;
  "-m jobs")
    if [ "$3" = stop ]; then echo "verb told to stop" >> "$PLAYED/calls"; exit; fi
    cp "$5" "$PLAYED/run.toml"
    echo "python $1 $2 $3 $4 run.toml $6 at $RAY_API_SERVER_ADDRESS" >> "$PLAYED/calls"
    if [ -n "$VERB_CODE" ]; then exit "$VERB_CODE"; fi
    until grep -q "told to stop" "$PLAYED/calls"; do sleep 0.02; done
    sleep 0.3; exit 143 ;;
  *) exec REAL_PYTHON "$@" ;;
esac
"""
# Nodes that are this machine, with what is installed here.
REAL = {
    "srun": """\
#!/bin/bash
echo $$ >> "$PLAYED/pids"
while [ "$1" != start ]; do shift; done
exec REAL_PYTHON -m ray.scripts.scripts "$@" --min-worker-port=0 --max-worker-port=0
""",
    "hostname": "#!/bin/bash\necho 127.0.0.1\n",
    "python": '#!/bin/bash\nexec REAL_PYTHON "$@"\n',
}
ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Allocation:
    """Nodes of Slurm, and what was called on them."""

    folder: Path
    environment: dict[str, str]

    def start(self, facts: Facts, num_nodes: int, **played: str) -> subprocess.Popen[str]:
        script = self.folder / "job.sbatch"
        script.write_text(slurm_script(facts))
        sruns = "2" if num_nodes > 1 else "1"
        own = {"SLURM_JOB_NUM_NODES": str(num_nodes), "SRUNS": sruns, "GATHER_CODE": "0", "VERB_CODE": "0", **played}
        environment = {**self.environment, **own}
        return subprocess.Popen(["bash", str(script)], env=environment, text=True, stderr=subprocess.PIPE)

    def run(self, facts: Facts, num_nodes: int = 3, within_s: float = 20, **played: str) -> int:
        process = self.start(facts, num_nodes, **played)
        process.communicate(timeout=within_s)
        return process.returncode

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for(self, text: str) -> None:
        for _ in range(500):
            if any(text in call for call in self.calls()):
                return
            time.sleep(0.02)
        raise AssertionError(f"no {text!r} in {self.calls()}")

    def leftovers(self) -> list[str]:
        """Files of the job, and processes, that are still there."""
        pids = (self.folder / "pids").read_text().split()
        alive = [pid for pid in pids if Path("/proc", pid).exists()]
        return [path.name for path in (self.folder / "submitted").iterdir()] + alive


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Allocation]:
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    played = {"srun": SRUN, "scontrol": SCONTROL, "hostname": HOSTNAME}
    for name, text in {**played, "python": PYTHON.replace("REAL_PYTHON", sys.executable)}.items():
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(0o755)
    (tmp_path / "submitted").mkdir()
    (tmp_path / "pids").touch()
    allocation = Allocation(
        tmp_path,
        {
            "PATH": f"{stand_ins}:/usr/bin:/bin",
            "PLAYED": str(tmp_path),
            "SLURM_JOB_ID": "7",
            "SLURM_SUBMIT_DIR": str(tmp_path / "submitted"),
            "SLURM_JOB_NODELIST": "node[1-3]",
            "SLURM_CPUS_PER_TASK": "32",
        },
    )
    yield allocation
    for pid in (tmp_path / "pids").read_text().split():
        if Path("/proc", pid).exists():
            os.kill(int(pid), signal.SIGKILL)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bash_takes_the_script(variant: str) -> None:
    done = subprocess.run(["bash", "-n"], input=slurm_script(VARIANTS[variant]), text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


def options(facts: Facts) -> list[str]:
    """What sbatch reads: the options before the first command."""
    head, _, rest = slurm_script(facts).partition("\n\n")
    assert "#SBATCH" not in rest
    shebang, *lines = head.splitlines()
    assert shebang == "#!/bin/bash"
    return [line.removeprefix("#SBATCH ") for line in lines]


def test_sbatch_is_asked_for_the_nodes_and_warned_before_time_is_over() -> None:
    found = options(some_facts(verb="train", nodes=(TRAIN,), grace_s=300))
    assert {"--nodes=3", "--ntasks-per-node=1", "--cpus-per-task=32", "--gpus-per-node=8", "--mem=65536M"} <= set(found)
    assert {"--requeue", "--signal=B:USR1@300", "--open-mode=append"} <= set(found)
    assert not any(option.startswith(("--partition", "--time")) for option in found)
    asked = options(some_facts(queue="gpu", time_limit_s=3601, slurm_options=("--account=video",)))
    assert {"--partition=gpu", "--time=61", "--account=video", "--nodes=2"} <= set(asked)
    on_cpus = options(some_facts(nodes=(DECODE, replace(GPU, gpus=0))))
    assert not any("gpus" in option for option in on_cpus)


def test_ray_is_started_on_all_nodes_before_the_verb(slurm: Allocation) -> None:
    assert slurm.run(some_facts(verb="encode")) == 0
    calls = slurm.calls()
    assert calls[0] == "scontrol show hostnames node[1-3]"
    head, others = sorted(calls[1:3], key=lambda call: "--head" not in call)
    assert "--overlap --nodes=1 --ntasks=1 --nodelist=node1 ray start" in head
    assert "--overlap --nodes=2 --ntasks=2 --exclude=node1 ray start" in others
    first, joining = (options_of_ray(call[call.index("ray start") :]) for call in (head, others))
    assert first["head"] and (first["node_ip_address"], first["port"]) == ("10.0.0.1", 20028)
    assert first["dashboard_host"] == "127.0.0.1"
    ports = ("port", "dashboard_port", "dashboard_agent_listen_port", "ray_client_server_port")
    assert {first[port] for port in ports} == {20028, 20029, 20030, 20031}
    assert joining["address"] == "10.0.0.1:20028"
    for one in (first, joining):
        assert (one["block"], one["num_cpus"], one["num_gpus"], one["labels"]) == (True, 32, 4, "stage=encode")
    submitted = f"python -m jobs submit encode run.toml --follow at http://127.0.0.1:{first['dashboard_port']}"
    assert calls[3:] == ["python -m cluster.gather 3 300", submitted]
    assert (slurm.folder / "run.toml").read_text() == some_facts().run_toml
    assert slurm.leftovers() == []


def test_the_token_is_a_file_that_nobody_else_reads_and_is_in_no_script_or_command(slurm: Allocation) -> None:
    assert slurm.run(some_facts()) == 0
    assert (slurm.folder / "token_modes").read_text().split() == ["600", "600"]
    assert (slurm.folder / "auth_modes").read_text().split() == ["token", "token"]
    token = (slurm.folder / "token").read_text()
    assert len(token) == 64
    assert token not in (slurm.folder / "job.sbatch").read_text() + "\n".join(slurm.calls())


def test_one_node_is_enough(slurm: Allocation) -> None:
    assert slurm.run(some_facts(), num_nodes=1) == 0
    assert len([call for call in slurm.calls() if call.startswith("srun")]) == 1
    assert slurm.leftovers() == []


@pytest.mark.parametrize("code", ["1", "3"])
def test_the_exit_code_of_the_verb_is_that_of_the_job(slurm: Allocation, code: str) -> None:
    assert slurm.run(some_facts(), VERB_CODE=code) == int(code)
    assert not any("requeue" in call for call in slurm.calls())
    assert slurm.leftovers() == []


@pytest.mark.parametrize(("told", "comes_back"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_the_verb_is_told_to_stop_and_the_job_comes_back_where_only_time_was_over(
    slurm: Allocation, told: signal.Signals, comes_back: bool
) -> None:
    process = slurm.start(some_facts(verb="train"), num_nodes=3, VERB_CODE="")
    slurm.wait_for("-m jobs submit train")
    process.send_signal(told)
    process.communicate(timeout=20)
    assert process.returncode == 143  # what the verb ended with, once it had written its checkpoint
    assert "verb told to stop" in slurm.calls()
    assert (slurm.calls()[-1] == "scontrol requeue 7") is comes_back
    assert slurm.leftovers() == []


def test_nodes_that_do_not_come_end_the_job(slurm: Allocation) -> None:
    assert slurm.run(some_facts(), GATHER_CODE="1") == 1
    assert not any("-m jobs" in call for call in slurm.calls())
    assert slurm.leftovers() == []


@pytest.mark.slow
@pytest.mark.parametrize("told", [None, signal.SIGUSR1])
def test_a_real_ray_is_started_and_takes_the_verb_as_a_job(
    slurm: Allocation,
    shapes: Path,
    tmp_path: Path,
    ray_folder: Path,
    told: signal.Signals | None,
) -> None:
    for name, text in REAL.items():
        (tmp_path / "bin" / name).write_text(text.replace("REAL_PYTHON", sys.executable))
    slurm.environment |= {"SLURM_CPUS_PER_TASK": "2", "SLURM_JOB_ID": str(os.getpid()), "PYTHONPATH": str(ROOT)}
    slurm.environment["RAY_TMPDIR"] = str(ray_folder)  # a head that is killed leaves its address behind
    config = cache_config(shapes, tmp_path, "train.steps=100000", "cluster.gpus_per_node=0")
    facts = describe_cluster(config, "run")
    if told is None:
        assert slurm.run(replace(facts, verb="scan"), num_nodes=1, within_s=120) == 0
        assert config.cache.manifest.exists()
    else:
        process = slurm.start(facts, num_nodes=1)
        while not read_metrics(config.train.out / "metrics.jsonl"):
            assert process.poll() is None
            time.sleep(0.5)
        process.send_signal(told)
        process.communicate(timeout=120)
        assert process.returncode == 143
        assert list_committed(config.train.out / "checkpoints")
    assert slurm.leftovers() == []
