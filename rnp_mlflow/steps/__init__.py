"""The entry points as plain functions; what they need is imported only when one is called."""

from typing import Any


def run(entry: str, values: dict[str, Any]) -> int:
    """Run an entry point with these parameters (texts or values); 0, or 1 for a rerun that differs.

    Raises:
        RnpError: bad input; the message says what was wrong, where, and what to do.
    """
    from rnp_mlflow.steps import chain, main, rerun, runtime
    from rnp_mlflow.steps.plan import make_plan

    runtime.stop_on_sigterm()
    runtime.forward_log_records()
    if entry == "rerun":
        return rerun.repeat(values)
    if entry == "main":
        main.run_all(make_plan(entry, values))
    else:
        chain.run_step(entry, make_plan(entry, values))
    return 0
