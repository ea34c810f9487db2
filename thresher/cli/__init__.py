"""The `thresher` command: this file turns errors into one line, `app` holds the commands."""

from __future__ import annotations

import sys

from thresher import in_the_way


def main() -> None:
    """Run the command; a user's mistake is one line on standard error and exit status 1 (2 where the command has no
    such option or word), Ctrl-C is status 130.

    Anything else that goes wrong is a bug, shown in full with a request to report it.
    """
    try:
        from thresher.cli import console

        console.prepare()
        if blocked := in_the_way():
            raise OSError(blocked)
        from thresher.cli.app import run  # inside, because Ctrl-C may come while it loads

        try:
            status = run()
        finally:
            console.finish()
    except KeyboardInterrupt:
        status = 130
    except (ValueError, OSError, MemoryError) as error:
        console.complain(error)
        status = 1
    except Exception as error:
        _report(error)
        status = 1
    sys.exit(status)


def _report(error: Exception) -> None:
    """Show a bug, and say what to do with it."""
    import platform
    import traceback
    from importlib.metadata import version

    traceback.print_exc()
    print(
        f"thresher: this is a bug in thresher ({type(error).__name__}), not a mistake of yours. Please report it where "
        f"you have thresher from, in the issues of its repository, with all lines above and this one: thresher "
        f"{version('thresher')}, Python {platform.python_version()}, {platform.platform()}",
        file=sys.stderr,
    )
