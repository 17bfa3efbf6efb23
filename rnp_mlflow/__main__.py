"""`python -m rnp_mlflow`."""

import os
import sys

from rnp_mlflow.tracking import process, signals


def main() -> int:
    """Run the command line; Ctrl-C is one line at any moment."""
    signals.leave_at_once()
    if "MLFLOW_RUN_ID" in os.environ:
        process.remember_parents()
    from rnp_mlflow import cli

    try:
        code = cli.main()
        signals.ignore_interrupts()
    except (KeyboardInterrupt, signals.Stopped) as error:  # while an error was being printed
        code = cli.fail(str(error) or "interrupted", getattr(error, "exit_code", 130))
    return code


if __name__ == "__main__":
    sys.exit(main())
