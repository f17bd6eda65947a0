"""The floors hold: imports point down, and each third-party package has its home."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {  # what each folder may import of ours
    "models": {"models"},
    "pipeline": {"pipeline", "models"},
    "cluster": {"cluster"},
    "jobs": {"jobs", "cluster", "pipeline", "models"},
}
HOMES = {  # the only places, as folders or files, that may import a package
    "deepspeed": {f"jobs/training/{name}.py" for name in ("engine", "machine", "optimizer", "zero_state")},
    "ray": {
        *("cluster", "jobs/decode.py", "jobs/encode.py", "jobs/read_files.py", "jobs/scan.py", "jobs/text.py"),
        "jobs/verify.py",
    },
    "decord": {"pipeline/decord_reader.py"},
    "av": {"pipeline/container.py", "pipeline/av_reader.py", "jobs/mp4.py"},
    "scenedetect": {"pipeline/scenes.py"},
    "cv2": {"pipeline/scenes.py"},
    "webdataset": {"pipeline/stream.py", "pipeline/verify.py"},
    "pyarrow": {"pipeline"},
    "obstore": {"pipeline/files.py", "pipeline/location.py", "pipeline/storage.py"},
    "boto3": {"pipeline/location.py"},
    "botocore": {"pipeline/location.py"},
    "pydantic": {"jobs/config.py", "jobs/knobs.py", "jobs/run_toml.py"},
    "typer": {"jobs/__main__.py", "jobs/cluster_verbs.py", "jobs/words.py"},
    "diffusers": {"models/vae"},
    "transformers": {"models/text/t5.py"},
    "huggingface_hub": {"models/hub.py"},
    "matplotlib": {"jobs/plots.py"},
    "yaml": {"jobs/manifest.py"},
    "PIL": {"jobs/pictures.py"},
    "torch": {
        *("models", "jobs", "cluster/torchrun.py", "pipeline/encode.py", "pipeline/gate.py"),
        *("pipeline/batch_reader.py", "pipeline/buffers.py", "pipeline/loader.py"),
    },
}
CODE = {  # what makes code, or a shell's line, of data that somebody else may have written
    *("eval", "exec", "compile", "__import__", "importlib.import_module", "os.system", "os.popen"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open"),
    *("cloudpickle.load", "cloudpickle.loads", "joblib.load", "dill.load", "dill.loads"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "pd.read_pickle", "pandas.read_pickle"),
}
CODE_ALLOWED = {("pipeline/sandbox_child.py", "pickle.loads"): "a work, which its parent sends to the child"}
ARGUMENTS = {"allow_pickle": False, "shell": False, "trust_remote_code": False, "weights_only": True}  # or not given
FORBIDDEN_NAMES = {"utils", "common", "base", "helpers", "misc"}


def sources() -> list[Path]:
    return [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level names of everything a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_imports_point_down(path: Path) -> None:
    floor = name_of(path).split("/")[0]
    ours = imported(path) & set(FLOORS)
    assert ours <= FLOORS[floor]


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_packages_stay_at_home(path: Path) -> None:
    name = name_of(path)
    astray = [
        package
        for package in imported(path) & set(HOMES)
        if not any(name == home or name.startswith(home + "/") for home in HOMES[package])
    ]
    assert not astray


def test_every_home_is_lived_in() -> None:
    lived_in = {
        (package, home)
        for path in sources()
        for package in imported(path) & set(HOMES)
        for home in HOMES[package]
        if name_of(path) == home or name_of(path).startswith(home + "/")
    }
    wanted = {(package, home) for package, homes in HOMES.items() for home in homes}
    assert wanted == lived_in


def test_latent_geometry_needs_only_the_standard_library() -> None:
    assert imported(ROOT / "models" / "latent_spec.py") <= {"hashlib", "json", "dataclasses", "typing"}


def test_no_file_is_named_after_nothing() -> None:
    assert not [name_of(path) for path in sources() if path.stem in FORBIDDEN_NAMES]


def test_arrays_are_reshaped_with_einops_only() -> None:
    """A bare reshape once mixed time into channels in a famous VAE, and nobody saw it."""
    bare = {"reshape", "view", "permute", "transpose", "swapaxes", "moveaxis", "flatten"}
    found = [
        f"{name_of(path)}:{node.lineno} .{node.func.attr}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in bare
    ]
    assert not found


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call of a file, by the name of what it calls."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [(ast.unparse(node.func), node) for node in nodes if isinstance(node, ast.Call)]


def test_nothing_makes_code_of_data() -> None:
    found = {(name_of(path), called) for path in sources() for called, _ in calls(path) if called in CODE}
    assert found == set(CODE_ALLOWED)
    modules = {called.partition(".")[0] for called in CODE if "." in called}
    names = [
        f"{name_of(path)}: from {node.module} import ..."  # whose calls would not be found by their name
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module in modules - {"os"}
    ]
    assert not names


def test_readers_are_told_to_run_no_code() -> None:
    for path in sources():
        for called, call in calls(path):
            given = {one.arg: ast.unparse(one.value) for one in call.keywords}
            wrong = [name for name, value in ARGUMENTS.items() if given.get(name, str(value)) != str(value)]
            if called == "torch.load" and "weights_only" not in given:
                wrong.append("weights_only")
            assert not wrong, f"{name_of(path)}:{call.lineno}"


@pytest.mark.parametrize("module", ["jobs.read_files", "jobs.decode", "pipeline.sandbox_process"])
def test_what_reads_videos_does_without_torch(module: str) -> None:
    """As many processes of them as a cluster has CPUs: torch would cost each a second and 200 MB."""
    ask = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", ask], cwd=ROOT).returncode == 0
