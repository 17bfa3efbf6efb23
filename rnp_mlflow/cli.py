"""The command line: `python -m rnp_mlflow STEP --name value …`. It only maps options to parameters."""

import errno
import sys
from typing import Any

import click
from click.shell_completion import CompletionItem
from pydantic.fields import FieldInfo

import rnp_mlflow
from rnp_mlflow.config import HEADINGS, choices, extra, heading, is_common, parameters, rename_hint, text
from rnp_mlflow.errors import RnpError
from rnp_mlflow.steps import output

ENTRIES = {
    "attack": "Train a backdoored model, the suspect of the other steps.",
    "import": "Import a model that was trained elsewhere. Nothing in its files is executed.",
    "unlearn": "Raise the loss until clean accuracy collapses. Name the suspected class.",
    "recover": "Learn the mask that restores clean accuracy.",
    "prune": "Prune by the mask, store the purified model. Draw the curve and select the operating point.",
    "main": "Run all four steps again as children of one run.",
    "grid": "Make every combination of settings, each step once. Give lists (--seed 0,1,2) or a TOML file.",
    "report": "Compare finished prune runs in one table and one picture.",
    "rerun": "Repeat a finished run and compare. It uses the logged settings, and compares bit by bit.",
    "upload": "Store the files of a finished step that the tracking store did not take.",
}
# What is printed. These are no parameters: they are not logged, and MLproject does not declare them.
FLAGS = {
    "quiet": (["-q", "--quiet"], "Print only errors and the last lines of the result."),
    "verbose": (["-v", "--verbose"], "Print also where the verdict comes from, and what was measured on which images."),
    "as_json": (["--json", "as_json"], "Print the result as one JSON object on standard output."),
}
# errors of files that the user named, or whose folder or disk this process may not use
UNUSABLE = {
    errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS,
    errno.ENOSPC, errno.EDQUOT,
}  # fmt: skip
PROGRAM = "python -m rnp_mlflow"
# `--dry-run` is `--dry_run`
SETTINGS = {"help_option_names": ["-h", "--help"], "token_normalize_func": lambda word: word.replace("-", "_")}


def run(entry: str, values: dict[str, Any], **shown: bool) -> int:
    """Run one entry point and return its exit code. values: parameter → text or value. shown: the flags given."""
    from rnp_mlflow import steps

    return steps.run(entry, values, **shown)


class Parameter(click.Option):
    """An option that is a parameter of an entry point."""

    def __init__(self, name: str, field: FieldInfo):
        self.words = choices(field)
        self.heading, self.role = heading(field), extra(field).get("role")
        default = "required" if field.is_required() else f"default: {text(field.default)}"
        alone: dict[str, Any] = {"is_flag": False, "flag_value": "yes"} if self.words == ("yes", "no") else {}
        super().__init__(
            [f"--{name}"],
            metavar="|".join(self.words) or "TEXT",
            help=f"{field.description}  [{default}]",
            required=field.is_required(),
            hidden=not is_common(field),
            **alone,
        )

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return what a shell offers: the words that the parameter takes, or files."""
        if self.role in ("file", "place"):
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(word) for word in self.words if word.startswith(incomplete)]


class Command(click.Command):
    """A command whose `--help` shows the common parameters under headings, and `--help-all` all parameters."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group; those that say what to print are the last of `Output`."""
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in HEADINGS}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record:
                groups[option.heading if isinstance(option, Parameter) else HEADINGS[-1]].append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Say how many parameters are left out."""
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
    """Build the command of one entry point; its options are the fields of `config`, and `FLAGS`."""
    options: list[click.Parameter] = [Parameter(name, field) for name, field in parameters(entry).items()]
    options += [click.Option(names, is_flag=True, help=meaning) for names, meaning in FLAGS.values()]
    flag: dict[str, Any] = {"is_flag": True, "is_eager": True, "expose_value": False, "callback": show_all}
    options.append(click.Option(["--help-all"], help="Show every parameter and exit.", **flag))

    def invoke(**values: Any) -> int:
        """Pass on only the values that the user gave, including those that equal the default."""
        shown = {name: True for name in FLAGS if values.pop(name)}
        if {"quiet", "verbose"} <= shown.keys():
            raise click.UsageError("give --quiet or --verbose, not both", click.get_current_context())
        return run(entry, {name: value for name, value in values.items() if value is not None}, **shown)

    return Command(entry, params=options, help=ENTRIES[entry], callback=invoke, context_settings=SETTINGS)


def group() -> click.Group:
    """Build `rnp_mlflow` with one command per entry point; without one it prints its help."""
    help_text = "Reconstructive Neuron Pruning: find a backdoor's neurons with clean images, and prune them."

    def no_command() -> None:
        context = click.get_current_context()
        if context.invoked_subcommand is None:
            click.echo(context.get_help())

    commands = {entry: command(entry) for entry in ENTRIES}
    how: dict[str, Any] = {"invoke_without_command": True, "callback": no_command, "context_settings": SETTINGS}
    found = click.Group("rnp_mlflow", commands=commands, help=help_text, **how)
    return click.version_option(rnp_mlflow.__version__, message="%(prog)s %(version)s")(found)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Exit code 0: success; 1: a rerun that differs, or a defect; 2: bad input."""
    try:
        code = group().main(arguments, standalone_mode=False)
    except click.NoSuchOption as error:
        path = error.ctx.command_path if error.ctx else PROGRAM
        return fail(f"{rename_hint(error.option_name.lstrip('-')) or error.format_message()} (see {path} --help)", 2)
    except click.UsageError as error:
        command_path = error.ctx.command_path if error.ctx else PROGRAM
        return fail(f"{error.format_message()} (see {command_path} --help)", 2)
    except RnpError as error:
        return fail(str(error), 2)
    except (click.Abort, KeyboardInterrupt):
        return fail("interrupted", 130)
    except SystemExit as ended:  # click's own end: after shell completion, or if nobody reads the help
        return ended.code if isinstance(ended.code, int) else 0
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        return fail(f"{error.strerror or error}{place}", 2 if error.errno in UNUSABLE else 1)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return fail(f"{type(error).__name__}: {reason} (a defect of this program; see the run's error.txt)", 1)
    except BaseException as error:  # Stopped: the run is already closed
        return fail(str(error) or type(error).__name__, getattr(error, "exit_code", 1))
    return code if isinstance(code, int) else 0


def fail(message: str, code: int) -> int:
    """Print one line on standard error and return the exit code."""
    output.write(["error: " + " ".join(message.split())], sys.stderr)
    return code
