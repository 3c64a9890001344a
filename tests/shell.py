"""Commands as the shell runs them, in this process: an error of the package ends in its message and exit code."""

from click.testing import CliRunner

from fastltssl.commands.cli import cli
from fastltssl.errors import FastltsslError


def invoke(*arguments, code=0):
    """The result, its exit code checked; with an error of the package `told` is its message, else the output."""
    result = CliRunner().invoke(cli, [str(part) for part in arguments])
    error = result.exception
    is_ours = isinstance(error, FastltsslError)
    if error and not is_ours and not isinstance(error, SystemExit):
        raise error
    result.told = str(error) if is_ours else result.output
    assert (error.exit_code if is_ours else result.exit_code) == code, result.told
    return result
