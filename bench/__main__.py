"""The command: `python -m bench`."""

import inspect
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import click

from bench import machine, report
from bench.processes import StartError, Steal
from bench.rounds import Plan
from bench.suite import BENCHES, Bench
from bench.wrk import LoadError

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
# Characters of a line of the page, as in the other documents.
WIDTH = 120


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--only",
    "names",
    multiple=True,
    type=click.Choice(list(BENCHES)),
    help="Run only this bench; may be repeated.",
)
@click.option("--quick", is_flag=True, help="Check in short runs that every bench works.")
@click.option("--rounds", type=click.IntRange(1, 20), help="Default: 3, with --quick 1.")
@click.option(
    "--seconds", type=click.IntRange(1, 60), help="Duration of a run. Default: 4, with --quick 1."
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Page whose sections are replaced. Default: docs/performance.md, with --quick none.",
)
def main(
    names: tuple[str, ...],
    *,
    quick: bool,
    rounds: int | None,
    seconds: int | None,
    output: Path | None,
) -> None:
    """Measure the bridge and compare it with its peers.

    Everything is started on free ports and stopped again. Each round runs every service once, so
    that noise of the machine affects all alike. bench/setup installs the peers; those that are not
    installed are left out.
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
            for section in _sections(names or BENCHES, plan):
                click.echo(f"{section}\n")
                if output:
                    page = output.read_text() if output.exists() else ""
                    output.write_text(report.replace_section(page, section))
        except (LoadError, StartError) as error:
            click.echo(f"bench: {error}", err=True)
            sys.exit(1)


def _sections(names: Iterable[str], plan: Plan) -> Iterable[str]:
    yield f"## Machine\n\n{machine.describe(plan.folder)}"
    for name in names:
        began = time.monotonic()
        click.echo(f"{name}:", err=True)
        section = measured(BENCHES[name], replace(plan, folder=plan.new_folder(name)))
        click.echo(f"  took {time.monotonic() - began:.0f} s", err=True)
        yield section


def heading(bench: Bench) -> str:
    """Return the heading of a bench's section."""
    return f"## {_docstring(bench)[0].rstrip('.')}"


def measured(bench: Bench, plan: Plan) -> str:
    """Run a bench and return its section of the page."""
    _, description = _docstring(bench)
    steal = Steal()
    results = [one.markdown() if isinstance(one, report.Table) else one for one in bench.run(plan)]
    conditions = (
        f"Measured {time.strftime('%Y-%m-%d', time.gmtime())}, {plan.rounds} rounds of "
        f"{plan.seconds} s, CPU steal {steal.percent():.0f} %."
    )
    text = textwrap.fill(
        f"{description} {conditions}", WIDTH, break_long_words=False, break_on_hyphens=False
    )
    return "\n\n".join([heading(bench), text, *results])


def _docstring(bench: Bench) -> tuple[str, str]:
    first, _, rest = inspect.cleandoc(bench.__doc__ or "").partition("\n\n")
    return first, rest


if __name__ == "__main__":
    main()
