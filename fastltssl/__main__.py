"""`python -m fastltssl` and the `fastltssl` command."""

import sys

import click

from fastltssl.commands.cli import cli

USAGE = (
    "UnknownMethod",
    "UnknownKnob",
    "SwitchError",
    "ConfigError",
    "ViewError",
    "PromptError",
    "PretrainError",
    "TuningError",
)


def main() -> None:
    """Run the command line; an error the package raised itself ends in one message and exit code 1."""
    try:
        code = cli(prog_name="fastltssl", standalone_mode=False)  # click returns what a command exits with
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)
    except Exception as error:
        if not type(error).__module__.startswith("fastltssl"):
            raise
        click.echo(f"Error: {error}", err=True)
        sys.exit(2 if type(error).__name__ in USAGE else 1)


if __name__ == "__main__":
    main()
