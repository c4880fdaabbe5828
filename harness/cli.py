"""argv to one command; an error is one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import signal
import sys
import traceback

import click

from harness import __version__
from harness.core import plugins
from harness.core.errors import EdgebenchError, UsageError

COMMANDS = "harness.commands"


class Commands(click.Group):
    """The verbs are the files of harness/commands; ``--help`` reads their first lines and imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The verbs, sorted."""
        return plugins.names(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one verb; an unknown one is a UsageError that says the likely intended one."""
        if cmd_name not in plugins.names(COMMANDS):
            raise plugins.unknown("command", cmd_name, plugins.names(COMMANDS))
        command: click.Command = importlib.import_module(f"{COMMANDS}.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """One line per verb, from its file's docstring."""
        with formatter.section("Commands"):
            formatter.write_dl([(n, plugins.summary(COMMANDS, n)) for n in plugins.names(COMMANDS)])


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 fine, 1 regressed, 2 harness or device failure, 3 nothing trustworthy, 4 usage, "
    "130 stopped by Ctrl-C.",
)
@click.version_option(__version__, prog_name="edgebench")
def edgebench() -> None:
    """Which compressed form of my model, in which runtime, is best on which device?"""


def main(argv: list[str] | None = None) -> None:
    """Run one command and exit with its code; being told to end is like Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(argv))


def run(argv: list[str] | None = None) -> int:
    """Run one command; its exit code (see harness.core.errors)."""
    try:
        outcome = edgebench.main(args=argv, prog_name="edgebench", standalone_mode=False)
    except EdgebenchError as error:
        return _fail(error)
    except click.ClickException as error:
        return _fail(UsageError(" ".join(error.format_message().split()), hint=_usage_hint(error)))
    except (KeyboardInterrupt, click.Abort):
        click.echo("edgebench: stopped.", err=True)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away: nothing to say and nobody to say it to
        return 0
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(EdgebenchError(f"{place}{error.strerror or error}.", hint=_space(error)))
    except Exception:  # noqa: BLE001 - a fault of ours must not look like exit code 1, a regression
        traceback.print_exc()
        return _fail(EdgebenchError("This is a fault in edgebench.", hint="Please report the lines above."))
    return outcome if isinstance(outcome, int) else 0


def _fail(error: EdgebenchError) -> int:
    click.echo(f"edgebench: {error.message}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)
    return error.exit_code


def _space(error: OSError) -> str:
    full = error.errno == errno.ENOSPC
    return "Make room, then go on with: edgebench bench --resume RUN" if full else ""


def _usage_hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"See: {context.command_path} --help" if context is not None else ""
