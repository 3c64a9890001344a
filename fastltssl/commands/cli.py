"""The command `fastltssl`: a table of commands, each imported when it is called, so that help is instant."""

import importlib
import re
import sys

import click

from fastltssl.errors import did_you_mean

COMMANDS = {  # in the order of the help text; each line is the first of the command's own help
    "extract": "Stage one: run the frozen encoder once over all views of a data set.",
    "cache": "List, inspect, check, import and remove feature caches.",
    "train": "Stage two: train a method from a cache, every seed jointly.",
    "sweep": "Try hundreds of configurations at once, judged on validation rows; the best one is trained and tested.",
    "compare": "Put finished runs into one table, best balanced accuracy first.",
    "studio": "See where the bias of a run comes from, and try a cure: a local page with sliders.",
    "report": "The analysis of finished runs as one HTML file that loads nothing.",
    "predict": "Classify new images with a trained run: labels, probabilities, a CSV.",
    "export": "A trained run as safetensors, a program for torch alone, and an example that calls it.",
    "analyze": "Studies of what training does: each a table, a CSV, a JSON and a picture.",
    "bias": "Estimate a zero-shot model's label bias from the labelled rows of a protocol.",
    "methods": "List the methods, or show the knobs of one.",
    "world": "The embedded world: look at it, or train its tiny CLIP again.",
    "demo": "The whole path on the embedded world: images, cache, methods, table.",
    "doctor": "Check torch, the device, faiss, the embedded model, threads and the cache folder.",
}


class Lazy(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return getattr(importlib.import_module(f"fastltssl.commands.{cmd_name}"), cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            hint = did_you_mean(args[0], COMMANDS)
            ctx.fail(f"{args[0]!r} is no command.{hint} Commands: {', '.join(COMMANDS)}")
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and command is not None:
            _check_options(command, rest, click.Context(command, info_name=name, parent=ctx))
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


LARGEST = 10**18  # of whole numbers: none has a use beyond it, and it fits into 64 bits
WHOLE = r"[-+]?[0-9]+"
NUMBER = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"


def _check_options(command: click.Command, arguments: list[str], ctx: click.Context) -> None:
    """Raise a usage error for an option given twice, of which click takes the last, and for an odd number.

    Numbers are finite and written in the digits 0 to 9: Python would read those of every alphabet, 1_000 and nan, too.
    """
    values, rest, given = command.make_parser(ctx).parse_args(list(arguments))
    if isinstance(command, click.Group):
        inner = command.get_command(ctx, rest[0]) if rest else None
        if inner is not None:
            _check_options(inner, rest[1:], click.Context(inner, info_name=rest[0], parent=ctx))
        return
    options = [option for option in given if isinstance(option, click.Option)]
    for option in options:
        if options.count(option) > 1 and not option.multiple:
            raise click.UsageError(f"{option.opts[0]} is given twice; leave one of them out", ctx)
        text, kind = values.get(str(option.name)), option.type
        is_whole = isinstance(kind, click.types.IntParamType)
        if isinstance(text, str) and (is_whole or isinstance(kind, click.types.FloatParamType)):
            is_number = re.fullmatch(WHOLE if is_whole else NUMBER, text)
            if not is_number or abs(float(text)) > (LARGEST if is_whole else sys.float_info.max):
                shown = text if len(text) < 60 else f"{text[:30]}..."
                what = "a whole number from -1e18 to 1e18" if is_whole else "a finite number"
                raise click.UsageError(f"{option.opts[0]} {shown!r} is not {what}", ctx)


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="fastltssl")
def cli() -> None:
    """Long-tailed semi-supervised learning on cached foundation-model features: extract once, train in seconds.

    Start with:  fastltssl demo
    """
