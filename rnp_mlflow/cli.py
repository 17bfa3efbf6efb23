"""The command line: `python -m rnp_mlflow STEP --name value …`. It only maps options to parameters."""

import sys
from typing import Any

import click

from rnp_mlflow.config import choices, is_common, parameters, rename_hint, text
from rnp_mlflow.errors import RnpError

ENTRIES = {
    "attack": "Train a backdoored model, the suspect of the other steps.",
    "import": "Import a model that was trained elsewhere. Nothing in its files is executed.",
    "unlearn": "Raise the loss until clean accuracy collapses. Name the suspected class.",
    "recover": "Learn the mask that restores clean accuracy.",
    "prune": "Prune by the mask, store the purified model. Draw the curve and select the operating point.",
    "main": "Run all four steps again as children of one run.",
    "rerun": "Repeat a finished run and compare. It uses the logged settings, and compares bit by bit.",
}


def run(entry: str, values: dict[str, Any]) -> int:
    """Run one entry point and return its exit code. values: parameter → text or value."""
    from rnp_mlflow import steps

    return steps.run(entry, values)


class Command(click.Command):
    """A command whose `--help` shows the common parameters, and `--help-all` all parameters."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        hidden = sum(option.hidden for option in self.params if isinstance(option, click.Option))
        if hidden:
            formatter.write(f"\n--help-all shows {hidden} more parameters.\n")


def show_all(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    """Print the help with every parameter."""
    if value:
        for parameter in ctx.command.params:
            if isinstance(parameter, click.Option):
                parameter.hidden = False
        click.echo(ctx.get_help())
        ctx.exit()


def command(entry: str) -> click.Command:
    """Build the command of one entry point; its options are the fields of `config`."""
    options: list[click.Parameter] = []
    for name, field in parameters(entry).items():
        words = "|".join(choices(field)) or "TEXT"
        default = "required" if field.is_required() else f"default: {text(field.default)}"
        settings: dict[str, Any] = {"metavar": words, "help": f"{field.description}  [{default}]"}
        settings |= {"required": field.is_required(), "hidden": not is_common(field)}
        options.append(click.Option([f"--{name}"], **settings))
    flag: dict[str, Any] = {"is_flag": True, "is_eager": True, "expose_value": False, "callback": show_all}
    options.append(click.Option(["--help-all"], help="Show every parameter and exit.", **flag))

    def invoke(**values: Any) -> int:
        """Pass on only the values that the user gave, including those that equal the default."""
        return run(entry, {name: value for name, value in values.items() if value is not None})

    return Command(entry, params=options, help=ENTRIES[entry], callback=invoke)


def group() -> click.Group:
    """Build `rnp_mlflow` with one command per entry point."""
    help_text = "Reconstructive Neuron Pruning: find a backdoor's neurons with clean images, and prune them."
    return click.Group("rnp_mlflow", commands={entry: command(entry) for entry in ENTRIES}, help=help_text)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Exit code 0: success; 1: a rerun that differs, or a defect; 2: bad input."""
    try:
        code = group().main(arguments, prog_name="python -m rnp_mlflow", standalone_mode=False)
    except click.NoSuchOption as error:
        path = error.ctx.command_path if error.ctx else "python -m rnp_mlflow"
        return fail(f"{rename_hint(error.option_name.lstrip('-')) or error.format_message()} (see {path} --help)", 2)
    except click.UsageError as error:
        command_path = error.ctx.command_path if error.ctx else "python -m rnp_mlflow"
        return fail(f"{error.format_message()} (see {command_path} --help)", 2)
    except RnpError as error:
        return fail(str(error), 2)
    except (click.Abort, KeyboardInterrupt):
        return fail("interrupted", 130)
    except OSError as error:
        return fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return fail(f"{type(error).__name__}: {reason} (a defect of this program; see the run's error.txt)", 1)
    except BaseException as error:  # Stopped: the run is already closed
        return fail(str(error) or type(error).__name__, 143)
    return code if isinstance(code, int) else 0


def fail(message: str, code: int) -> int:
    """Print one line on standard error and return the exit code."""
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    return code
