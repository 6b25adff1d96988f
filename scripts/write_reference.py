"""Write docs/configuration.md: every group, choice and key, from conf/ and the schema of bnexp.runs.config.

    python scripts/write_reference.py

A choice is described by the comment at the head of its file, a key by its explanation in the schema.
"""

import re
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bnexp.runs.config import Key, explain_keys

ROOT = Path(__file__).parent.parent
CONF, PAGE = ROOT / "conf", ROOT / "docs" / "configuration.md"
TITLES = {
    "dataset": "Data set",
    "arch": "Architecture",
    "norm": "Normalization",
    "act": "Activation",
    "init": "Initialization",
    "optim": "Optimizer",
    "experiment": "Experiment",
    "executor": "Executor",
}
HEADER = ["key", "default", "meaning", "allowed"]
HEAD = """\
# Configuration reference

<!-- Written by scripts/write_reference.py: change the schema in bnexp/ or the files in conf/, not this page. -->

A run is fixed by its configuration. `GROUP=CHOICE` selects a choice, which brings its own keys and defaults;
`KEY=VALUE` sets one key. Later arguments override earlier ones. `bnexp train OVERRIDE … --cfg job` prints the
configuration that the overrides make. The default choices are {defaults}.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")


def render() -> str:
    """The whole page as Markdown."""
    chosen = default_choices()
    defaults = ", ".join(f"`{group}={choice}`" for group, choice in chosen.items())
    keys = explain_keys()
    groups = [section(group, chosen.get(group), keys) for group in TITLES if (CONF / group).is_dir()]
    single = [key for key in keys if key.name.partition(".")[0] not in TITLES]
    run = "## Run\n\nThese keys belong to no group; every run has them.\n\n" + table(
        HEADER, [[f"`{key.name}`", f"`{key.default}`", key.help, key.allowed] for key in single]
    )
    return "\n".join([HEAD.format(defaults=defaults), run, *groups])


def default_choices() -> dict[str, str]:
    """The choices of conf/config.yaml by their groups."""
    entries = read(CONF / "config.yaml")["defaults"]
    pairs = [pair for entry in entries if isinstance(entry, dict) for pair in entry.items()]
    return {group: choice for group, choice in pairs if group in TITLES and choice}


def read(file: Path) -> dict[str, Any]:
    """A YAML file as it is written, without interpolation."""
    content: Any = OmegaConf.to_container(OmegaConf.load(file))
    return content


def section(group: str, default: str | None, keys: list[Key]) -> str:
    """A group: the table of its choices, and that of their keys."""
    files = sorted((CONF / group).glob("*.yaml"), key=lambda file: (file.stem != default, file.stem))
    rows = [[f"`{group}={file.stem}`", description(file)] for file in files]
    text = f"## {TITLES[group]}\n\n" + table(["choice", "what it is"], rows)
    contents = {file.stem: read(file) for file in files}
    own = [key_row(key, contents) for key in keys if key.name.startswith(f"{group}.")]
    if own:
        return text + "\n" + table(HEADER, own)
    commented = commented_keys(group, files) if group == "executor" else []
    header = ["key", "default", "meaning", "choices that have it"]
    return text + ("\n" + table(header, commented) if commented else "")


def description(file: Path) -> str:
    """The comment at the head of a file, without directives for Hydra; indented lines of it are commands."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#")
        if not text.startswith(" @package"):
            lines.append(f"`{text.strip()}`" if text.startswith("   ") else text.strip())
    return " ".join(lines)


def commented_keys(group: str, files: list[Path]) -> list[list[str]]:
    """The keys of choices that no run's schema has: each is explained by the comment on its line."""
    choices: dict[tuple[str, str, str], list[str]] = {}
    for file in files:
        for row in re.findall(r"^(\w+): (.*?) # (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE):
            choices.setdefault(row, []).append(file.stem)
    return [
        [f"`{group}.{name}`", f"`{value}`", meaning, ", ".join(having)]
        for (name, value, meaning), having in choices.items()
    ]


def key_row(key: Key, contents: dict[str, dict[str, Any]]) -> list[str]:
    """A key's row, with its default in each choice."""
    name = key.name.partition(".")[2]
    values = {choice: written(content[name]) for choice, content in contents.items() if name in content}
    distinct = dict.fromkeys(values.values())
    defaults = [[choice for choice, value in values.items() if value == each] for each in distinct]
    shown = [f"`{value}` ({', '.join(who)})" for value, who in zip(distinct, defaults, strict=True)]
    default = f"`{next(iter(distinct))}`" if len(distinct) == 1 else ", ".join(shown)
    meaning = key.help + (owners(key, list(values), list(contents)) if len(distinct) == 1 else "")
    return [f"`{key.name}`", default, meaning, key.allowed]


def owners(key: Key, having: list[str], choices: list[str]) -> str:
    """Which choices have the key, where not all do and its explanation doesn't begin with them."""
    if len(having) == len(choices) or key.help.startswith(f"{', '.join(having)}:"):
        return ""
    others = [choice for choice in choices if choice not in having]
    named = f"all but {', '.join(others)}" if len(others) < len(having) else ", ".join(having)
    return f" ({named})"


def written(value: object) -> str:
    """A value as one types it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if value == "${oc.env:BNEXP_DATA,data}":
        return "data"
    return str(value).replace(" ", "")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; a | within a cell is escaped."""
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    main()
