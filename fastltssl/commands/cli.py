"""The command `fastltssl`: a table of commands, each imported when it is called, so that help is instant."""

import importlib

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
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="fastltssl")
def cli() -> None:
    """Long-tailed semi-supervised learning on cached foundation-model features: extract once, train in seconds.

    Start with:  fastltssl demo
    """
