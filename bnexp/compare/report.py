"""`bnexp report`: run directories → the comparison as tables, figures, Markdown, an HTML page and TensorBoard files."""

import hashlib
import os
import shlex
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from bnexp.compare.arms import ArmResult, arrange, compare_panels, distinct, only, pick_by, settings_of, swept_keys
from bnexp.compare.figures import plot_figure
from bnexp.compare.page import Notice, Panel, make_panel, page
from bnexp.compare.planned import Missing, Planned, describe_missing, read_planned
from bnexp.compare.report_tables import footnotes, markdown_table, marked_down, times_note
from bnexp.runs.config import ConfigError, require, require_path
from bnexp.runs.console import count, print_line, printable, show_table
from bnexp.runs.directory import SWEEP, holds_run, to_json
from bnexp.runs.files import LONGEST_NAME, is_utf8, write_whole
from bnexp.runs.record import RunRecord, comparison_of
from bnexp.training.recorder import write_bands

MOST_LINES = 12  # about missing runs that the console shows


@dataclass(frozen=True)
class Output:
    """The folder of a report's files, and the suffix of their names: -act in compare-act.md."""

    folder: Path
    suffix: str

    def path(self, file: str) -> Path:
        """Return the path of a file, with the suffix in its name: compare.md → compare-act.md."""
        stem, dot, kind = file.partition(".")
        return self.folder / f"{stem}{self.suffix}{dot}{kind}"

    def link(self, file: str) -> str:
        """Return the link to a file from another file of the report: its name with the suffix, URL-quoted."""
        return quote(self.path(file).name)


# ---- texts and Markdown


def markdown(
    title: str, made: str, panels: list[Panel], results: list[ArmResult], notice: Notice | None, output: Output
) -> str:
    """Return the content of compare.md.

    `made` says with which versions and on which machine the runs were made; `notice` says which runs are missing.
    """
    lines = [f"# {marked_down(title)}", "", *(markdown_notice(notice) if notice else [])]
    lines += [f"![accuracy against iteration and seconds]({output.link('compare.svg')})", ""]
    for panel in panels:
        lines += [f"## {marked_down(panel.name)}", ""] if panel.name else []
        lines += [*markdown_table(*panel.table), ""]
    lines += [f"- {marked_down(line)}" for line in footnotes(results)]
    lines += ["", "# Time to accuracy", "", f"![Kaplan-Meier curves and throughput]({output.link('times.svg')})", ""]
    for panel in panels:
        lines += [f"**{marked_down(panel.name)}**", ""] if panel.name else []
        lines += [*markdown_table(*panel.times), ""]
    return "\n".join([*lines, f"- {marked_down(times_note(results))}", "", marked_down(made), ""])


def markdown_notice(notice: Notice) -> list[str]:
    """Return a `Notice` of missing runs as lines of Markdown.

    The notice's shell commands become an indented code block, which Markdown shows as they are.
    """
    lines = [f"**{marked_down(notice.heading)}**", "", *(f"- {marked_down(line)}" for line in notice.lines), ""]
    commands = [f"    {printable(command)}" for command in notice.commands]
    return [*lines, *(["To go on:", "", *commands, ""] if commands else [])]


def title_of(runs: list[RunRecord]) -> str:
    """Return the title of a report: what all runs share, and the number of seeds of an arm.

    Named are the data set, architecture, activation, optimizer, learning rate and batch size, where they are shared.
    """
    configs = settings_of([run.config for run in runs])
    named = [key for key in ("dataset", "arch") if len(distinct(configs, key)) == 1]
    shared = [key for key in ("act", "optim", "optim.lr", "batch_size") if len(distinct(configs, key)) == 1]
    parts = [*(str(configs[0][key]) for key in named), *(f"{key}={configs[0][key]}" for key in shared)]
    sizes = Counter(str(config) for config in configs).values()
    seeds = count(max(sizes), "seed") if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)} seeds"
    return f"{', '.join(parts)}: {seeds} an arm"


def provenance(runs: list[RunRecord]) -> str:
    """Return a line that says with which versions, on which machine and when the first of these runs was made."""
    record = runs[0].record
    commit = str(record["code"]["commit"])[:10] + (" with changes" if record["code"]["dirty"] else "")
    return printable(
        f"bnexp {record['packages']['bnexp']} (commit {commit}), torch {record['packages']['torch']}, "
        f"{record['machine']}, device {record['device']}, {record['threads']} thread(s); {record['created'][:10]}"
    )


# ---- the whole


@dataclass(frozen=True)
class Comparison:
    """A comparison of the runs in some directories.

    planned: the runs, also those that are missing. by: the key whose values make the arms. output: where files go.
    missing: the runs that are, and notice the same in words; None where none is.
    """

    planned: Planned
    by: str | None
    output: Output
    results: list[ArmResult]
    missing: list[Missing]
    panels: list[Panel]
    title: str
    notice: Notice | None


def compare_directories(directories: list[Path], by: str | None, out: Path | None) -> Comparison:
    """Compare the runs in and below `directories`. Raises ConfigError as `report` does."""
    planned = read_planned(directories)
    key, output = choose_output(planned, by, out)
    arranged = arrange(planned.runs, key)
    finished = only(arranged, planned.finished)
    results, missing = compare_panels(arranged, finished), planned.missing_runs(arranged)
    panels = [make_panel(name, arms, results, planned.complete) for name, arms in finished.items()]
    notice = make_notice(planned, missing)
    return Comparison(planned, key, output, results, missing, panels, title_of(planned.runs), notice)


def report(directories: list[Path], by: str | None = None, out: Path | None = None) -> None:
    """Compare the runs in and below `directories`: print a table for each panel, and write the report's files.

    These are compare.json, .md, .png and .svg, times.svg, report.html, and event files for TensorBoard below bands/,
    which is replaced. They go to the folder `out`, by default to the first directory. `by` is the key whose values make
    the arms: by default the first of these that differs between the runs: the one in the first directory's sweep.json,
    norm, all other keys. With another key, the files have it in their names. Raises ConfigError where no run can be
    compared, or `by` or `out` is invalid.
    """
    compared = compare_directories(directories, by, out)
    planned, output, results, panels = compared.planned, compared.output, compared.results, compared.panels
    title, notice, made = compared.title, compared.notice, provenance(planned.finished)
    accuracy = [output.path("compare.png"), output.path("compare.svg")]
    write_figures(title, panels, notice, (accuracy, [output.path("times.svg")]))
    record = {
        "title": title,
        "by": compared.by,
        "finished": len(planned.finished),
        "planned": planned.size,
        "missing": [asdict(run) for run in compared.missing],
        "unreadable": [str(path) for path in planned.unknown],
        "go_on": planned.commands(),
        "arms": [asdict(result) for result in results],
    }
    write_whole(output.path("compare.json"), to_json(record))
    write_whole(output.path("compare.md"), markdown(title, made, panels, results, notice, output))
    notes = [*footnotes(results), times_note(results)]
    write_whole(output.path("report.html"), page(title, panels, notes, made, notice))
    shutil.rmtree(output.path("bands"), ignore_errors=True)
    bands = {folder_name(p.name, c.name): (c.x, c.mean, c.low, c.high) for p in panels for c in p.curves}
    write_bands(output.path("bands"), bands)
    show(title, panels, results, notice, output)


def choose_output(planned: Planned, by: str | None, out: Path | None) -> tuple[str | None, Output]:
    """Return the key that makes the arms (None where no key differs), and where the files go.

    Makes the folder `out`. Raises ConfigError where `by` or `out` is invalid.
    """
    keys = swept_keys(settings_of([run.config for run in planned.runs]))
    recorded = (comparison_of(planned.roots[0]) or {"by": None})["by"]
    default = pick_by(recorded if recorded in keys else None, keys)
    key = default if by is None else pick_by(by, keys)
    return key, Output(output_folder(planned.roots, out), "" if key == default else f"-{file_name(str(key))}")


def output_folder(directories: list[Path], out: Path | None) -> Path:
    """Return the folder of the files: `out`, which is made if it is missing, or the first directory.

    Raises ConfigError where its name is not UTF-8, or `out` can't be made or written to, or holds a run, itself or in a
    direct subfolder, although it is not the only directory that is compared.
    """
    folder = directories[0] if out is None else out
    require(
        is_utf8(folder), "out", folder, "a folder whose name is UTF-8, to which alone TensorBoard writes: out=FOLDER"
    )
    if out is None:
        return folder
    require_path("out", str(out))
    same = {directory.resolve() for directory in directories} == {out.resolve()}
    require(same or not holds_run(out), "out", out, "a folder that holds no run and no sweep")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out={out} cannot be made: {error.strerror}") from error
    require(os.access(out, os.W_OK | os.X_OK), "out", out, "a folder one can write to")
    return out


def write_figures(title: str, panels: list[Panel], notice: Notice | None, files: tuple[list[Path], list[Path]]) -> None:
    """Draw the curves into the first files, times and throughput into the second.

    The heading of a notice is added to their titles.
    """
    accuracy = {panel.name: panel.accuracy_plots for panel in panels}
    times = {panel.name: panel.time_plots for panel in panels}
    band_title, warning = f"{title}, band: lowest to highest seed", notice.heading if notice else ""
    plot_figure(band_title, accuracy, files[0], warning)
    plot_figure(f"{title}: time to accuracy, throughput", times, files[1], warning)


def make_notice(planned: Planned, missing: list[Missing]) -> Notice | None:
    """Return the notice of missing runs, with commands to finish them; None where `planned` is complete."""
    if planned.complete:
        return None
    heading = f"INCOMPLETE: {len(planned.finished)} of {count(planned.size, 'planned run')} finished"
    heading += f" and {SWEEP} cannot be read" if planned.unknown else ""
    unknown = [f"{path} cannot be read: what was planned there is not known" for path in planned.unknown]
    return Notice(heading, describe_missing(missing) + unknown, planned.commands())


def folder_name(panel: str, arm: str) -> str:
    """Return the name of an arm's folder below bands/, made of the names of its panel and its own."""
    return file_name(",".join(part for part in (panel.replace(", ", ","), arm) if part))


def file_name(text: str) -> str:
    """Return text as a file's name: slashes become _, and text too long for a name becomes its SHA-256 digest."""
    name = text.replace(os.sep, "_")
    return name if len(name.encode()) <= LONGEST_NAME else hashlib.sha256(name.encode()).hexdigest()


def show(title: str, panels: list[Panel], results: list[ArmResult], notice: Notice | None, output: Output) -> None:
    """Print the main tables, the footnotes but the first, the paths of the files, and the notice of missing runs."""
    for panel in panels:
        show_table(f"{title}{f', {panel.name}' if panel.name else ''}", *panel.table)
    for line in footnotes(results)[1:]:
        print_line(line)
    if all(result.planned == 1 for result in results):
        print_line("one seed an arm has no interval: add 'seed=range(10)'")
    page_file, figure, table = (output.path(name) for name in ("report.html", "compare.png", "compare.md"))
    print_line(f"page: {page_file}; figures: {figure} (and .svg), {output.path('times.svg')}")
    board = shlex.join(["tensorboard", "--logdir", str(output.folder)])
    print_line(f"tables: {table}, {output.path('compare.json')}; curves: {board}")
    if notice is not None:
        show_notice(notice, str(table))


def show_notice(notice: Notice, file: str) -> None:
    """Print the notice of missing runs; beyond MOST_LINES lines, only name `file`, which has them all."""
    print_line(notice.heading)
    for line in notice.lines[:MOST_LINES]:
        print_line(f"  {line}")
    if len(notice.lines) > MOST_LINES:
        print_line(f"  and more: {file}")
    for command in notice.commands:
        print_line(f"finish it by: {command}")
