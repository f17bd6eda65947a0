"""`python -m tests.simulate --videos 1000000 --workers 10000 ...`: what encoding on a large cluster comes to."""

import argparse
from dataclasses import fields
from typing import Any

from tests.simulate.measured import measured
from tests.simulate.report import play_and_tell, play_calmly
from tests.simulate.scene import Scene, make_plan


def main() -> None:
    """Plan, play the scene, and compare with what one worker leaves behind when nothing goes wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulate", description=main.__doc__)
    parser.add_argument("--no-oracle", action="store_true", help="do not compare")
    for field in fields(Scene):
        kind: dict[str, Any] = (
            {"action": argparse.BooleanOptionalAction} if field.type is bool else {"type": field.type}
        )
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, **kind)
    asked = vars(parser.parse_args())
    with_oracle = not asked.pop("no_oracle")
    scene = Scene(**asked)
    planned = measured("plan", make_plan, scene)
    found = measured("scene", play_and_tell, scene, planned)
    if with_oracle:
        wanted = measured("oracle", play_calmly, scene, planned)
        assert found == wanted, "not what one worker leaves behind when nothing goes wrong"
        print(f"{len(found)} objects are the same bytes as one worker leaves behind when nothing goes wrong")


if __name__ == "__main__":
    main()
