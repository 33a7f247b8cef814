"""``python -m benchmarks [name ...]``: measure, keep the results, write ``docs/benchmarks.md``.

The GPU benchmark runs where there is a GPU. ``--page`` measures nothing: it writes the page alone.
"""

from __future__ import annotations

import json
import subprocess
import sys

import torch

from benchmarks.harness import RESULTS, ROOT, table

NAMES = (
    "grpo_step",
    "prompt_length",
    "completion_length",
    "generation",
    "evaluation",
    "grid",
    "orchestration",
    "data_preparation",
    "gpu_step",
)
"""In the order of the page. Each is a module that measures when run."""

HEAD = """# Benchmarks

Figures are ratios against a peer measured in the same run, in turns where that is possible:
absolute times move from machine to machine and from hour to hour, ratios much less. `make bench`
measures again (about an hour on two cores; what needs a GPU only where there is one) and rewrites
this page; `.venv/bin/python -m benchmarks NAME` measures one, `--page` none. Raw results:
`benchmarks/results/`.
"""


def main(names: list[str]) -> None:
    """Run each benchmark in a process of its own, then write the page.

    One that fails keeps no other from running.
    """
    if names == ["--page"]:
        write_page()
        return
    unknown = set(names) - set(NAMES)
    if unknown:
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}. There are: {', '.join(NAMES)}")
    failed = []
    for name in names or NAMES:
        if name == "gpu_step" and not names and not torch.cuda.is_available():
            continue
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            failed.append(name)
    write_page()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}. The page has what was kept of them before.")


def write_page() -> None:
    """``docs/benchmarks.md`` from all results there are."""
    page = ROOT / "docs" / "benchmarks.md"
    page.write_text(HEAD + "".join(_section(name) for name in NAMES))
    print(f"-> {page.relative_to(ROOT)}")


def _section(name: str) -> str:
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return f"\n## {name}\n\nNot run: `.venv/bin/python -m benchmarks {name}` measures it.\n"
    entry = json.loads(file.read_text())
    on = entry["measured"]
    plot = (
        f"\n![{entry['title']}](images/{name}.png)\n"
        if (ROOT / "docs/images" / f"{name}.png").exists()
        else ""
    )
    return (
        f"\n## {entry['title']}\n\n{entry['notes']}\n\n{table(entry['rows'])}\n{plot}\n"
        f"*{on['date']}, commit {on['commit']}, {on['machine']}, {on['threads']} torch threads; "
        f"{on['versions']}.*\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
