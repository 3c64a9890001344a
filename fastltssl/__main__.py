"""`python -m fastltssl` and the `fastltssl` command."""

import errno
import io
import os
import sys

import click

from fastltssl.commands.cli import cli
from fastltssl.errors import FastltsslError, plain

OF_A_DISK = (  # errors of the system that are no fault of the code
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
OF_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory")  # as torch, CUDA and the system say it
WITH_LESS = "Train fewer --seeds at once, lower --batch, --m1 or --n1, or run where more memory is allowed"


def main() -> None:
    """Run the command line; an error the package raised itself ends in its message and exit code."""
    try:
        code = cli(prog_name="fastltssl", standalone_mode=False)  # click returns what a command exits with
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        text = io.StringIO()
        error.show(text)
        click.echo(plain(text.getvalue()), err=True, nl=False)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)
    except FastltsslError as error:
        click.echo(f"Error: {plain(str(error))}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # of `fastltssl ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(words in str(error) for words in OF_MEMORY):
            reason = " ".join(str(error).split()) or "nothing more is told"
            click.echo(plain(f"Error: there is too little memory ({reason}). {WITH_LESS}"), err=True)
            sys.exit(1)
        if not isinstance(error, OSError) or error.errno not in OF_A_DISK:
            raise
        where = f"{error.filename} cannot be used: " if error.filename else ""
        click.echo(plain(f"Error: {where}{error.strerror}. Choose another place, or free some space"), err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
