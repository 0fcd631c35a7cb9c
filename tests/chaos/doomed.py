"""python -m tests.chaos.doomed FAILPOINT N COMMAND …: a real process with a way to die built in.

COMMAND is one of manage.py's, or `serve PORT`. FAILPOINT `never` lets it live.
"""

from __future__ import annotations

import sys

import django
import uvicorn
from django.core.management import execute_from_command_line

from tests.chaos.failpoints import arm


def main(failpoint: str, passes: str, *command: str) -> None:
    django.setup()
    if failpoint != "never":
        arm(failpoint, int(passes))
    match command:
        case ("serve", port):
            uvicorn.run("project.asgi:application", port=int(port), log_level="warning")
        case _:
            execute_from_command_line(["manage.py", *command])


if __name__ == "__main__":
    main(*sys.argv[1:])
