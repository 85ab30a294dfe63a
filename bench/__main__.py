"""The command: `python -m bench`."""

import inspect
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import click

from bench import machine, report
from bench.processes import StartError
from bench.rounds import Plan
from bench.suite import BENCHES, Bench
from bench.wrk import LoadError

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--only",
    "names",
    multiple=True,
    type=click.Choice(list(BENCHES)),
    help="This bench; may be given several times.",
)
@click.option("--quick", is_flag=True, help="One short round of each, to see that all works.")
@click.option("--rounds", type=click.IntRange(1, 20), help="3, or 1 with --quick.")
@click.option("--seconds", type=click.IntRange(1, 60), help="A run's; 4, or 1 with --quick.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The page whose tables are replaced: docs/performance.md, but none with --quick.",
)
def main(
    names: tuple[str, ...],
    *,
    quick: bool,
    rounds: int | None,
    seconds: int | None,
    output: Path | None,
) -> None:
    """Measure the bridge beside what a user would pick instead.

    Everything is started here, on free ports, and ended again. Each contender has its turn in
    each round, so that a noisy machine is unfair to all. What it is compared with is installed by
    bench/setup; who is not installed is left out.
    """
    output = output or (None if quick else PAGE)
    runs = HERE / ".runs"
    runs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runs) as folder:
        plan = Plan(
            rounds=rounds or (1 if quick else 3),
            seconds=seconds or (1 if quick else 4),
            warm_requests=2000 if quick else 10000,
            quick=quick,
            folder=Path(folder),
        )
        try:
            for name, text in _sections(names or BENCHES, plan):
                click.echo(f"{text}\n")
                if output:
                    page = output.read_text() if output.exists() else ""
                    output.write_text(report.put(page, name, text))
        except (LoadError, StartError) as error:
            click.echo(f"bench: {error}", err=True)
            sys.exit(1)


def _sections(names: Iterable[str], plan: Plan) -> Iterable[tuple[str, str]]:
    yield "machine", f"## Machine\n\n{machine.describe(plan.folder)}"
    for name in names:
        began = time.monotonic()
        click.echo(f"{name}:", err=True)
        room = Plan(**{**vars(plan), "folder": plan.room(name)})
        text = section(BENCHES[name], room)
        click.echo(f"  took {time.monotonic() - began:.0f} s", err=True)
        yield name, text


def section(bench: Bench, plan: Plan) -> str:
    """A bench's part of the page."""
    heading, _, explained = inspect.cleandoc(bench.__doc__ or "").partition("\n\n")
    shown = [one.markdown() if isinstance(one, report.Table) else one for one in bench.run(plan)]
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    rounds = f"Measured {when}, {plan.rounds} rounds of {plan.seconds} s."
    return "\n\n".join([f"## {heading.rstrip('.')}", explained, *shown, rounds])


if __name__ == "__main__":
    main()
