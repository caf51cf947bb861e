"""Run the lessons as notebooks: executed notebooks and pages, with their figures.

    python scripts/course/run.py runs/course                          # all lessons (`make course`)
    python scripts/course/run.py runs/course --lessons 4 6            # two of them
    python scripts/course/run.py runs/course --pages scripts/course/pages

Each lesson runs in a process of its own, in this folder. A lesson that fails ends the run, with status 1, its name and its error;
the lessons before it are written. Needs the extra `dev`.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from cells import COURSE, lesson_files, read_cells

PARAMETERS = "cell-parameters"  # the id of the cell that replaces the lesson's parameters


def notebook_of(path: Path, parameters: dict | None = None):
    """A lesson as a notebook that has not run; `parameters` replace those of the lesson."""
    import nbformat

    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    for number, cell in enumerate(read_cells(path)):
        make = nbformat.v4.new_markdown_cell if cell.markdown else nbformat.v4.new_code_cell
        notebook.cells.append(make(cell.source, metadata={"tags": list(cell.tags)} if cell.tags else {}, id=f"cell-{number}"))
        if "parameters" in cell.tags and parameters:
            values = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
            notebook.cells.append(nbformat.v4.new_code_cell(f"from pathlib import *\n\n{values}", id=PARAMETERS))
    return notebook


def execute(path: Path, parameters: dict | None = None, timeout: int = 600):
    """The lesson's notebook with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    from nbclient import NotebookClient
    from traitlets.config import Config

    notebook, config = notebook_of(path, parameters), Config()
    with tempfile.TemporaryDirectory() as sockets:
        if sys.platform != "win32":  # files of this user alone, in place of ports that any user of the machine could read
            config.KernelManager.transport, config.KernelManager.ip = "ipc", f"{sockets}/kernel"
        settings = {
            "timeout": timeout,
            "startup_timeout": timeout,
            "kernel_name": "python3",
            "coalesce_streams": True,
            "config": config,
        }
        NotebookClient(notebook, resources={"metadata": {"path": str(COURSE)}}, **settings).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day, which would differ in every run
        if cell.cell_type == "code":  # progress bars are left out
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def links(name: str, pages: Path) -> str:
    """From a page to the table of lessons, to the file that can be run, and to the next lesson, in Markdown."""
    names = [path.stem for path in lesson_files()]
    course = Path(os.path.relpath(COURSE, pages)).as_posix()
    found = [f"[All lessons]({course}/README.md)", f"[this lesson as a file, to run it and do its exercises]({course}/{name}.py)"]
    found += [f"[next: lesson {int(after[:2])}]({after}.md)" for after in names[names.index(name) + 1 :][:1]]
    return " · ".join(found)


def write(notebook, name: str, output: Path, pages: Path | None) -> None:
    """`name.ipynb` and `name.html` in `output`; `name.md` with its figures in `pages`."""
    import nbformat
    from nbconvert import HTMLExporter, MarkdownExporter

    output.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, output / f"{name}.ipynb")
    page, _ = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="").from_notebook_node(notebook)
    (output / f"{name}.html").write_text(page, encoding="utf-8")
    if pages is not None:
        notebook.cells = [cell for cell in notebook.cells if cell.id != PARAMETERS]  # a path of this machine
        text, resources = MarkdownExporter().from_notebook_node(notebook, {"unique_key": name, "output_files_dir": "figures"})
        (pages / "figures").mkdir(parents=True, exist_ok=True)
        for old in (pages / "figures").glob(f"{name}_*"):  # the number of a cell that has moved is in its name
            old.unlink()
        lines = [line.rstrip() for line in text.strip().splitlines()]
        lines[1:1] = ["", links(name, pages)]
        (pages / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for file, content in resources["outputs"].items():
            (pages / file).write_bytes(content)


def main(arguments: list[str]) -> int:
    """Run the lessons that are asked for; the status of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for NN_name.ipynb and NN_name.html")
    parser.add_argument("--lessons", type=int, nargs="+", help="numbers of the lessons to run; default: all")
    parser.add_argument("--pages", type=Path, help="folder for Markdown pages, which a repository host shows")
    parser.add_argument("--checkpoint", type=Path, help="in place of runs/quickstart")
    args = parser.parse_args(arguments)
    files = {int(path.stem[:2]): path for path in lesson_files()}
    unknown = [number for number in args.lessons or [] if number not in files]
    if unknown:
        print(f"error: --lessons {unknown[0]}: the lessons are {', '.join(map(str, files))}", file=sys.stderr)
        return 1
    for number in args.lessons or files:
        path, start = files[number], time.monotonic()
        takes_it = any("parameters" in cell.tags and "checkpoint" in cell.source for cell in read_cells(path))
        parameters = {"checkpoint": args.checkpoint.resolve()} if args.checkpoint and takes_it else None
        try:
            notebook = execute(path, parameters)
        except Exception as error:  # of the lesson, whatever it is
            lines = str(error).strip().splitlines() or [f"{type(error).__name__}, without a message"]
            line = lines[0] if isinstance(error, TimeoutError) else lines[-1]  # a traceback ends with what happened
            print(f"error: {path.name}: {line}", file=sys.stderr)
            return 1
        write(notebook, path.stem, args.output, args.pages)
        print(f"{path.stem}: {time.monotonic() - start:.0f} s", flush=True)
    print(f"executed notebooks and pages are in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
