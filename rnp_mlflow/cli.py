"""The command line: `python -m rnp_mlflow STEP --name value …`. A thin map; no logic of its own."""

import sys
from typing import Any

import click

from rnp_mlflow.config import choices, is_common, parameters, text
from rnp_mlflow.errors import RnpError

ENTRIES = {
    "attack": "Train a backdoored model: the test subject of the other steps.",
    "import": "Take in a model that we did not train; nothing in its files is executed.",
    "unlearn": "Ascend the loss on a few clean images until clean accuracy collapses.",
    "recover": "Learn the mask that brings clean accuracy back.",
    "prune": "Prune along the mask, draw the curve, choose the point, keep the purified model.",
    "main": "All four steps anew as children of one run.",
    "rerun": "Repeat a finished run from what it logged, and compare to the bit.",
}


def run(entry: str, values: dict[str, Any]) -> int:
    """Do what one entry point does; its exit code. `values`: parameter → text or value."""
    from rnp_mlflow import steps

    return steps.run(entry, values)


class Command(click.Command):
    """A command whose `--help` shows the common parameters, and `--help-all` all."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        hidden = sum(option.hidden for option in self.params if isinstance(option, click.Option))
        if hidden:
            formatter.write(f"\n--help-all shows {hidden} more parameters.\n")


def show_all(ctx: click.Context, option: click.Parameter, asked: bool) -> None:
    """Print the help with every parameter in it."""
    if asked:
        for each in ctx.command.params:
            if isinstance(each, click.Option):
                each.hidden = False
        click.echo(ctx.get_help())
        ctx.exit()


def command(entry: str) -> click.Command:
    """The command of one entry point; its options are config.py's fields."""
    options: list[click.Parameter] = []
    for name, field in parameters(entry).items():
        words = "|".join(choices(field)) or "TEXT"
        default = "required" if field.is_required() else f"default: {text(field.default)}"
        settings: dict[str, Any] = {"metavar": words, "help": f"{field.description}  [{default}]"}
        settings |= {"required": field.is_required(), "hidden": not is_common(field)}
        options.append(click.Option([f"--{name}"], **settings))
    every: dict[str, Any] = {"is_flag": True, "is_eager": True, "expose_value": False, "callback": show_all}
    options.append(click.Option(["--help-all"], help="Show every parameter and exit.", **every))

    def call(**values: Any) -> int:
        """Hand on what was given, and nothing else: a value that equals the default is still one that was given."""
        return run(entry, {name: value for name, value in values.items() if value is not None})

    return Command(entry, params=options, help=ENTRIES[entry], callback=call)


def group() -> click.Group:
    """`rnp_mlflow` with one command an entry point."""
    help_text = "Reconstructive Neuron Pruning: find a backdoor's neurons with clean images, and prune them."
    return click.Group("rnp_mlflow", commands={entry: command(entry) for entry in ENTRIES}, help=help_text)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 done, 1 a rerun that differs or a failure of ours, 2 bad input."""
    try:
        code = group().main(arguments, prog_name="python -m rnp_mlflow", standalone_mode=False)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "python -m rnp_mlflow"
        return fail(f"{error.format_message()} (see {where} --help)", 2)
    except RnpError as error:
        return fail(str(error), 2)
    except (click.Abort, KeyboardInterrupt):
        return fail("interrupted", 130)
    except OSError as error:
        return fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return fail(f"{type(error).__name__}: {reason} (a defect of this program; the run's error.txt has more)", 1)
    except BaseException as error:  # Stopped: the run is closed already
        return fail(str(error) or type(error).__name__, 143)
    return code if isinstance(code, int) else 0


def fail(message: str, code: int) -> int:
    """One line on standard error."""
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    return code
