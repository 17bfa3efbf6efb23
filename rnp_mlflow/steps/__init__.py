"""The entry points as plain functions; what they need is imported only when one is called."""

from contextlib import nullcontext
from typing import Any


def run(
    entry: str, values: dict[str, Any], *, quiet: bool = False, verbose: bool = False, as_json: bool = False
) -> int:
    """Run an entry point with these parameters (texts or values); 0, or 1 for a rerun that differs.

    quiet, verbose: print less or more. as_json: print the result as one JSON object.

    Raises:
        RnpError: bad input; the message says what was wrong, where, and what to do.
    """
    from rnp_mlflow.steps import output, progress

    with nullcontext() if quiet else progress.note("starting"):
        from rnp_mlflow.steps import chain, main, opened, report, rerun, runtime
        from rnp_mlflow.steps.plan import make_plan
        from rnp_mlflow.tracking import lineage, signals, store

    signals.install()
    runtime.forward_log_records()
    lineage.forget()
    code = 0
    with output.amount(quiet=quiet, verbose=verbose), store.refusals():
        opened.check(entry, values)
        if entry == "rerun":
            code = rerun.repeat(values)
        elif entry == "grid":
            from rnp_mlflow.steps import grid

            code = grid.run(values)
        elif entry == "upload":
            from rnp_mlflow.steps import upload

            upload.store_kept(values)
        elif entry == "report":
            report.compare(values)
        elif entry == "main":
            main.run_all(make_plan(entry, values))
        else:
            chain.run_step(entry, make_plan(entry, values))
    output.print_newest(quiet=quiet, verbose=verbose, as_json=as_json)
    return code
