"""`python -m tests.benchmarks [NAME [PART...]]...`: run the benchmarks, all or those named, one after the other."""

import importlib
import sys
from pathlib import Path

NAMES = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


def main(words: list[str]) -> None:
    """Words behind a benchmark's name are the parts of it to run."""
    chosen: list[tuple[str, list[str]]] = []
    for word in words or NAMES:
        if word in NAMES:
            chosen.append((word, []))
        elif chosen:
            chosen[-1][1].append(word)
        else:
            sys.exit(f"no benchmark is called {word}; there are: {', '.join(NAMES)}")
    for name, parts in chosen:
        benchmark = importlib.import_module(f"tests.benchmarks.bench_{name}")
        known = getattr(benchmark, "PARTS", {})
        if unknown := set(parts) - set(known):
            sys.exit(f"{name} has no part {', '.join(sorted(unknown))}; it has: {', '.join(known) or 'none'}")
        benchmark.main(*parts)


if __name__ == "__main__":
    main(sys.argv[1:])
