"""Make the panels of a report, and its HTML page.

The page has its figures inline and no script, and fetches nothing; every text from a run is escaped.
"""

from dataclasses import dataclass
from html import escape

from bnexp.compare.arms import TARGETS, UNITS, ArmResult, Arms, end_of, make_curve
from bnexp.compare.figures import Curve, Plot, accuracy_plot, arrivals_plot, plot_svg, speed_plot
from bnexp.compare.report_tables import Table, arm_table, times_table
from bnexp.compare.statistics import Survival

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fdfdfb; --rule: #d5d3cc; --faint: #5d5b55; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e6e0; --paper: #17181a; --rule: #3d3f44; --faint: #a5a29a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; line-height: 1.3; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 0.5rem; overflow-wrap: anywhere; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.9rem 0.3rem 0; text-align: right; white-space: nowrap; }
tr { border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1rem; }
.figures svg { width: 100%; height: auto; display: block; background: #fff; border-radius: 6px; }
.missing { border: 2px solid #b3001b; border-radius: 6px; padding: 0.6rem 1rem; overflow-wrap: anywhere; }
.missing p { margin: 0.3rem 0; }
.missing pre { white-space: pre-wrap; margin: 0.3rem 0; }
.notes, footer { font-size: 0.85rem; color: var(--faint); overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Panel:
    """A panel of a report: its name, and the arms' curves of validation accuracy, tables and plots.

    The main table is shown above all plots, the table of times below them.
    """

    name: str
    curves: list[Curve]
    table: Table
    accuracy_plots: list[Plot]
    times: Table
    time_plots: list[Plot]


def make_panel(name: str, arms: Arms, results: list[ArmResult], complete: bool) -> Panel:
    """Return a panel with its tables and plots.

    `arms` are those of the panel, with their finished runs; `results` are the results of the arms of all panels.
    Unless the report is `complete`, the plots name each arm with its numbers of finished and planned runs.
    """
    results = [result for result in results if result.panel == name]
    labels = [arm.arm if complete else f"{arm.arm} ({arm.n} of {arm.planned})" for arm in results]
    curves = [make_curve(label, runs) for label, runs in zip(labels, arms.values(), strict=True)]
    speeds = [[run.summary["steps_per_second"] for run in runs] for runs in arms.values()]
    end = max((end_of(run, "steps") for runs in arms.values() for run in runs), default=0.0)
    arrivals = []
    for target in TARGETS:
        survivals = [result.time(target, "steps").survival for result in results]
        reached = dict(zip(labels, map(share_reached, survivals), strict=True))
        arrivals.append(arrivals_plot(reached, f"share of runs at {target:.0%}", end))
    return Panel(
        name=name,
        curves=curves,
        table=arm_table(results, complete),
        accuracy_plots=[accuracy_plot(curves, unit) for unit in UNITS],
        times=times_table(results),
        time_plots=[*arrivals, speed_plot(dict(zip(labels, speeds, strict=True)))],
    )


def share_reached(survival: Survival | None) -> tuple[list[float], list[float]]:
    """Return times, and the share of runs at the target by each, 1 - the Kaplan-Meier curve; both empty for None."""
    return (survival.times, [1 - share for share in survival.shares]) if survival else ([], [])


@dataclass(frozen=True)
class Notice:
    """The notice of missing runs.

    `heading` says how many are missing, `lines` which ones and why, and `commands` finish them in a shell.
    """

    heading: str
    lines: list[str]
    commands: list[str]


def page(title: str, panels: list[Panel], notes: list[str], made: str, notice: Notice | None = None) -> str:
    """Return the HTML page of a report.

    `notes` are its footnotes; `made` says with which versions and on which machine the runs were made; `notice`, above
    the panels, says which runs are missing.
    """
    body = "".join(panel_html(panel, number) for number, panel in enumerate(panels))
    above = notice_html(notice) if notice else ""
    below = list_html(notes, ' class="notes"')
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"{above}{body}{below}\n<footer>{escape(made)}</footer>\n</body>\n</html>\n"
    )


def list_html(lines: list[str], attributes: str = "") -> str:
    """Return lines as an HTML list; `attributes` are inserted into its <ul> tag as they are."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul{attributes}>{items}</ul>"


def notice_html(notice: Notice) -> str:
    """Return the notice of missing runs as an HTML box."""
    commands = "".join(f"<pre>{escape(command)}</pre>" for command in notice.commands)
    way = f"<p>To go on:</p>{commands}" if commands else ""
    heading = f"<p><strong>{escape(notice.heading)}</strong></p>"
    return f'<div class="missing" role="note">{heading}{list_html(notice.lines)}{way}</div>\n'


def panel_html(panel: Panel, number: int) -> str:
    """Return a panel as HTML; `number`, its position on the page, makes the ids in its figures unique."""
    heading = f"<h2>{escape(panel.name)}</h2>\n" if panel.name else ""
    plots = enumerate([*panel.accuracy_plots, *panel.time_plots])
    figures = "".join(own_names(plot_svg(plot), f"p{number}-{place}-") for place, plot in plots)
    return f'{heading}{table_html(*panel.table)}<div class="figures">{figures}</div>\n{table_html(*panel.times)}'


def own_names(svg: str, prefix: str) -> str:
    """Return an <svg> with a prefix before its ids and references, so that figures on a page share no id."""
    for reference in ('id="', 'href="#', "url(#"):
        svg = svg.replace(reference, f"{reference}{prefix}")
    return svg


def table_html(header: list[str], rows: list[list[str]]) -> str:
    """Return a table as HTML."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>\n'
