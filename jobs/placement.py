"""Where the work of a run goes in a cluster, and whether there is room for it. A function of nodes: it asks nobody."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from cluster.capacity import Capacity, Node
from jobs.config import RunConfig
from pipeline.errors import Refused

PARTS = 10_000  # Ray counts CPUs and GPUs in parts of this size, and drops what is less


@dataclass(frozen=True)
class Ask:
    """Workers of one kind that a verb asks a cluster for."""

    verb: str
    what: str  # one of them
    number: int  # with fewer the verb does not begin
    cpus: float  # of each
    gpus: float  # of each, on one device
    label: str  # key=value of the nodes it goes to; empty = to any
    remedy: str  # what to do where there is no room

    @property
    def labels(self) -> dict[str, str]:
        """By which Ray finds these nodes."""
        key, _, value = self.label.partition("=")
        return {key: value} if key else {}

    @property
    def options(self) -> dict[str, Any]:
        """In Ray's words."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "label_selector": self.labels}


def least_cpus(config: RunConfig) -> int:
    """CPU slots that an encoder and a decode task need, who wait for each other."""
    return config.encode.encoder_cpus + ceil(config.encode.decode_cpus)


def ask_decoding(config: RunConfig, capacity: Capacity, verb: str) -> Ask:
    """The tasks that read videos."""
    label = _carried(config.cluster.decode_label, capacity)
    return Ask(verb, "decode task", 1, config.encode.decode_cpus, 0, label, "lower encode.decode_cpus")


def ask_encoding(config: RunConfig, capacity: Capacity) -> Ask:
    """Encoders, each on one GPU where there is any."""
    settings, label = config.encode, _carried(config.cluster.encode_label, capacity)
    gpus = settings.encoder_gpus if _have_gpus(label, capacity) else 0
    remedy = f"lower encode.encoders{', encode.encoder_gpus' if gpus else ''} or encode.encoder_cpus"
    return Ask("encode", "encoder", settings.encoders or 1, settings.encoder_cpus, gpus, label, remedy)


def ask_writing(config: RunConfig, capacity: Capacity) -> Ask:
    """What encodes captions, with a GPU where there is any."""
    label = _carried(config.cluster.encode_label, capacity)
    return Ask("text", "text encoder", 1, 1, int(_have_gpus(label, capacity)), label, "end what holds its nodes")


def ask_verifying(config: RunConfig, capacity: Capacity) -> Ask:
    """What reads a cache again needs no GPU, and goes where decoding goes."""
    label = _carried(config.cluster.decode_label, capacity)
    return Ask("verify", "verifier", 1, 1, 0, label, "end what holds its nodes")


def ask_training(config: RunConfig, capacity: Capacity) -> Ask:
    """The fewest workers that training begins with, each on one GPU where there is any."""
    settings = config.train
    knob, least = "train.min_workers", settings.min_workers
    if least is None:
        knob, least = "train.workers", settings.workers
    remedy = f"lower {knob} or train.cpus_per_worker"
    return Ask("train", "worker", least, settings.cpus_per_worker, int(_have_gpus("", capacity)), "", remedy)


def _carried(label: str, capacity: Capacity) -> str:
    """The label where any node has it, or may come with it; else none."""
    return label if any(label in node.labels for node in capacity.possible) else ""


def _have_gpus(label: str, capacity: Capacity) -> bool:
    """Whether any node that work with this label goes to has a GPU."""
    return any(node.gpus for node in capacity.possible if not label or label in node.labels)


def fitting(ask: Ask, node: Node) -> int:
    """How many workers a node holds that has nothing else to do."""
    if ask.label and ask.label not in node.labels:
        return 0
    by_cpus = node.cpus * PARTS // max(1, int(ask.cpus * PARTS))
    by_gpus = node.gpus * (PARTS // max(1, int(ask.gpus * PARTS))) if ask.gpus else by_cpus
    return min(by_cpus, by_gpus)


def room(ask: Ask, nodes: Sequence[Node]) -> int:
    """How many workers these nodes hold."""
    return sum(fitting(ask, node) for node in nodes)


def room_to_encode(encoder: Ask, decode: Ask, nodes: Sequence[Node]) -> int:
    """How many encoders these nodes hold with room left for a decode task, wherever Ray puts them."""
    harmless = _harmless(encoder, decode, nodes)
    return room(encoder, nodes) if harmless is None else min(room(encoder, nodes), harmless)


def count_encoders(encoder: Ask, decode: Ask, capacity: Capacity, wanted: int) -> int:
    """How many encoders are worth asking for now: so many as are wanted, or with 0 as many as a cluster can hold.

    Those that nodes may still come for are among them: asking is what brings the nodes. But no more than leave room to
    decode on the nodes that are alive, for Ray puts them where it can.
    """
    most = room_to_encode(encoder, decode, capacity.possible)
    wanted = min(wanted or one_each(encoder, capacity.possible), most)
    harmless = _harmless(encoder, decode, capacity.alive)
    if not room(decode, capacity.alive) and _harmless(encoder, decode, capacity.possible) is None:
        harmless = None  # the nodes that decode will come, and are none of theirs
    return wanted if harmless is None else min(wanted, max(1, harmless))


def one_each(ask: Ask, nodes: Sequence[Node]) -> int:
    """As many as GPUs hold, or one per node where there is none: each uses the CPUs that it is given."""
    return sum(fitting(ask, node) if ask.gpus else min(1, fitting(ask, node)) for node in nodes)


def _harmless(encoder: Ask, decode: Ask, nodes: Sequence[Node]) -> int | None:
    """The most encoders that cannot keep all of these nodes from decoding, wherever they are; None: any number."""
    needed = 0
    for node in nodes:
        if fitting(decode, node):
            occupying = int((node.cpus - decode.cpus) // encoder.cpus) + 1
            if fitting(encoder, node) < occupying:
                return None
            needed += occupying
    return max(0, needed - 1)


def check(ask: Ask, capacity: Capacity) -> str:
    """Refused where a cluster cannot hold what is asked for, whatever comes. Returns what is waited for."""
    return _compare(ask, capacity, room(ask, capacity.alive), room(ask, capacity.possible))


def check_encoding(config: RunConfig, capacity: Capacity) -> str:
    """As `check`, for encoders that leave room for a decode task."""
    encoder, decode = ask_encoding(config, capacity), ask_decoding(config, capacity, "encode")
    now, most = (room_to_encode(encoder, decode, nodes) for nodes in (capacity.alive, capacity.possible))
    return _compare(encoder, capacity, now, most, ", with room left to decode")


def _compare(ask: Ask, capacity: Capacity, now: int, most: int, also: str = "") -> str:
    """`now` is how many workers the nodes that are alive hold, `most` with those that may come."""
    many, each = (f"{ask.number} {ask.what}s", " each") if ask.number > 1 else (f"one {ask.what}", "")
    where = f" on nodes labelled {ask.label}" if ask.label else ""
    asked = f"asks for {many} of {_needs(ask)}{each}{where}{also}"
    alive = sum(node.cpus > 0 for node in capacity.alive)
    grows = f" and can scale to {most}" if capacity.coming else ""
    found = f"the cluster has room for {now} on {alive} node{'s' * (alive != 1)}{grows}"
    if most < ask.number:
        raise Refused(f"{ask.verb}: {asked}; {found}: {ask.remedy}, or let the cluster have more or larger nodes")
    return "" if now >= ask.number else f"{ask.verb}: waiting for nodes: {asked}; {found}"


def _needs(ask: Ask) -> str:
    """What one worker takes."""
    cpus = f"{ask.cpus:g} CPU{'s' * (ask.cpus != 1)}"
    return f"{ask.gpus:g} GPU{'s' * (ask.gpus != 1)} and {cpus}" if ask.gpus else cpus


CHECKS: dict[str, Callable[[RunConfig, Capacity], str]] = {
    "scan": lambda config, capacity: check(ask_decoding(config, capacity, "scan"), capacity),
    "encode": check_encoding,
    "text": lambda config, capacity: check(ask_writing(config, capacity), capacity),
    "verify": lambda config, capacity: check(ask_verifying(config, capacity), capacity),
    "train": lambda config, capacity: check(ask_training(config, capacity), capacity),
}
