"""Sample crystals, train generators on your own data, and judge the samples: the front door.

    import atomsmith
    structures = atomsmith.sample("diffcsp-mp20-csp", n=4, formula="SrTiO3", out="srtio3")

Each verb is one function here and one command of the same argument names (`atomsmith --help`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from checkpoints import CheckpointInfo, LoadedModel
    from chem.prepare import PrepareReport
    from evaluation.report import Report

__version__ = "0.1.0"
__all__ = ["evaluate", "load", "models", "prepare", "sample", "train"]


def models() -> dict[str, CheckpointInfo]:
    """The trained models that come with the package, by name."""
    import checkpoints

    return checkpoints.available()


def load(name_or_path: str | Path, device: str = "auto") -> LoadedModel:
    """A trained model by name, or from a checkpoint folder or a training run; "auto" is CUDA, else MPS, else the CPU.

    Raises ValueError for an unknown name (listing the known ones) and for damaged files.
    """
    import checkpoints

    run = Path(name_or_path)
    if not (run / "best").is_dir():
        return checkpoints.load(name_or_path, device)
    return replace(checkpoints.load(run / "best", device), name=run.resolve().name)


def sample(
    model: str | Path | LoadedModel,
    n: int,
    formula: str | None = None,
    z: int = 1,
    num_atoms: int | None = None,
    elements: Sequence[str] | None = None,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int | Literal["auto"] = "auto",
    out: str | Path | None = None,
    device: str = "auto",
    progress: bool | None = None,
) -> list[Structure]:
    """n crystals as pymatgen structures, in a fixed order, with their provenance in `.properties`.

    formula, z: a cell of z formula units, for models that predict structures. num_atoms, elements: size of the cells
    (default: the sizes of the training set) and symbols that may occur, for models that choose the composition.
    steps: predictor steps (default: the model's). batch_size: a multiple of 16. out: a folder where samples are
    written as they are made (extxyz, CIF, a manifest); a second call continues it, a larger n extends it. progress:
    show a bar (default: on a terminal).

    Raises ValueError naming the argument, its value and what is allowed.
    """
    from chem.sample_folder import SampleFolder
    from generative import sampling

    if n < 1:
        raise ValueError(f"n = {n}, allowed: >= 1")
    loaded = load(model, device) if isinstance(model, (str, Path)) else model
    denoiser: Any = loaded.model
    steps = steps if steps is not None else denoiser.steps
    denoiser.times.grid(steps)
    request = sampling.CrystalRequest(formula, z, num_atoms, tuple(elements) if elements is not None else None)
    templates = sampling.CrystalTemplates(request, denoiser, loaded.statistics, seed)
    size = sampling.batch_size_for(denoiser) if batch_size == "auto" else batch_size
    provenance = {"model": loaded.name, "weights_sha256": loaded.sha256, "seed": seed, "steps": steps}
    asked = {**provenance, "formula": formula, "z": z, "num_atoms": num_atoms, "elements": request.elements}
    folder = SampleFolder(out, asked) if out is not None else None
    done = folder.structures(n) if folder is not None else []
    try:
        with _progress(n, len(done), steps, progress) as tick:
            for first, batch in sampling.sample_batches(denoiser, templates, n, len(done), size, steps, seed, tick):
                fresh = _to_structures(batch, first, provenance)[len(done) - first :]
                done += fresh
                if folder is not None:
                    folder.append(fresh)
                    folder.note(n=len(done), network_calls=denoiser.network_calls(steps), **_environment(denoiser))
    finally:
        if folder is not None:
            folder.close()
    return done


def _to_structures(batch: Any, first: int, provenance: dict[str, Any]) -> list[Structure]:
    from chem.convert import to_structures

    structures = to_structures(batch.to("cpu"))
    for i, structure in enumerate(structures):
        structure.properties = {**provenance, "index": first + i}
    return structures


def _environment(denoiser: Any) -> dict[str, Any]:
    import platform

    import torch

    versions = {"atomsmith": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return {"device": str(denoiser.device), "threads": torch.get_num_threads(), "versions": versions}


@contextmanager
def _progress(n: int, done: int, steps: int, show: bool | None) -> Iterator[Callable[[int], None] | None]:
    """A bar on stderr while the context lasts: a function to call when `size` samples moved a step, or None."""
    if not (sys.stderr.isatty() if show is None else show):
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("sampling", total=n * steps, completed=done * steps)
        yield lambda size: bar.advance(task, size)


def train(
    model: str,
    data: str | Path,
    out: str | Path,
    preset: Literal["small", "paper"] = "small",
    seed: int = 0,
    init: str | Path | None = None,
    resume: bool = False,
    restat: bool = False,
    root: str | Path | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    hidden: int | None = None,
    layers: int | None = None,
    frequencies: int | None = None,
    threads: int | None = None,
    devices: int | Literal["auto"] = "auto",
) -> Path:
    """Train a model and return the folder of its best checkpoint, ready for `load` and `sample`.

    model: "diffcsp-csp" or "diffcsp-ab-initio". data: mp20, perov5, carbon24, mpts52, prototypes, or a folder made by
    `prepare`; files are looked for under `root` (default: ATOMSMITH_DATA). out: run folder with checkpoints, curves
    and weights; resume=True continues a run that stopped, bit for bit on the CPU in fp32. init: fine-tune a
    checkpoint by name or path (its size and statistics are kept; restat takes those of the new data). The other
    arguments change settings of the preset. threads: CPU threads (default: torch's).

    Raises ValueError naming the argument, its value and what is allowed.
    """
    import torch

    from checkpoints import making

    if threads is not None:
        torch.set_num_threads(threads)
    options = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "precision": precision}
    sizes = {"hidden": hidden, "layers": layers, "frequencies": frequencies}
    if init is not None and any(v is not None for v in sizes.values()):
        raise ValueError(f"hidden, layers, frequencies are fixed by init = '{init}'; leave them out")
    recipe = making.recipe(model, preset, sizes, options)
    return making.train(recipe, data, Path(out), seed, init, restat, resume, root, devices=devices)


def evaluate(
    structures_or_files: Any,
    reference: Any = None,
    protocol: str = "diffcsp-csp",
    out: str | Path | None = None,
    seed: int = 0,
    *,
    k: int | None = None,
    processes: int | None = None,
    root: str | Path | None = None,
) -> Report:
    """Judge structures, ours or anyone's, by a named protocol; with `out`, also write report.json and structures.csv.

    structures_or_files: files, folders, pymatgen structures, a data set as NAME:SPLIT:N, or "baseline:random" and
    "baseline:substitution". reference: what predictions are paired with or samples compared to (a data set, files or
    structures). protocol: "diffcsp-csp" (match rate and RMSE) or "cdvae-2022" (validity and distances). k: consecutive
    candidates for each target where they carry no property `target`. `report["name"]` is a number with its
    denominator and interval; `report.show()` prints the table.

    Raises ValueError in one line for what cannot be judged at all; single bad structures are counted with a reason.
    """
    from evaluation.evaluate import evaluate as judge

    return judge(structures_or_files, reference, protocol, out, seed, k=k, processes=processes, root=root)


def prepare(
    source: str | Path | Sequence[str | Path],
    name: str,
    out: str | Path = ".",
    seed: int = 0,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
    id_column: str | None = None,
) -> PrepareReport:
    """Make the data set folder `out/name` from a folder, files or a table of structures; train on it by that path.

    source: CIF, POSCAR, extxyz, JSON lines, csv or parquet with a `cif` column. Rows that fail are counted and named
    in the report. Raises ValueError where nothing can be read or the folder is a data set already.
    """
    from chem.prepare import prepare as make

    return make(source, out, name, seed, split, id_column)


# The command line: thin commands over the verbs, with the same argument names.
app = typer.Typer(
    help=(__doc__ or "").splitlines()[0],
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
option = typer.Option


@app.command("models", help="List the trained models that come with the package.")
def _models() -> None:
    for name, info in models().items():
        typer.echo(f"{name}\t{info.kind}\t{info.num_bytes / 1e6:.1f} MB\t{info.sha256[:12]}")


@app.command("sample", help="Sample crystals into a folder: extxyz, CIF files and a manifest.")
def _sample(
    model: Annotated[str, typer.Argument(help="name of a trained model, or a checkpoint or run folder")],
    n: Annotated[int, option("-n", help="how many")],
    out: Annotated[Path, option(help="folder; a second call with the same arguments continues it")],
    formula: Annotated[str | None, option(help="composition, for models that predict structures")] = None,
    z: Annotated[int, option(help="formula units in a cell")] = 1,
    num_atoms: Annotated[int | None, option(help="atoms in a cell, for models that choose the composition")] = None,
    elements: Annotated[str | None, option(help="symbols that may occur, e.g. Li,Fe,O")] = None,
    steps: Annotated[int | None, option(help="predictor steps (default: the model's)")] = None,
    seed: Annotated[int, option()] = 0,
    batch_size: Annotated[str, option(help="a multiple of 16, or auto")] = "auto",
    device: Annotated[str, option(help="auto, cpu, cuda, mps")] = "auto",
) -> None:
    size = batch_size if batch_size == "auto" else _integer(batch_size, "batch_size")
    symbols = [s.strip() for s in elements.split(",")] if elements is not None else None
    made = sample(model, n, formula, z, num_atoms, symbols, steps, seed, size, out, device)  # type: ignore[arg-type]
    typer.echo(f"{len(made)} samples in {out}")


@app.command("train", help="Train a model on a data set.")
def _train(
    model: Annotated[str, typer.Argument(help="diffcsp-csp or diffcsp-ab-initio")],
    data: Annotated[str, typer.Argument(help="mp20, perov5, carbon24, mpts52, prototypes, or a prepared folder")],
    out: Annotated[Path, option(help="run folder")],
    preset: Annotated[str, option(help="small or paper")] = "small",
    seed: Annotated[int, option()] = 0,
    init: Annotated[str | None, option(help="checkpoint to fine-tune")] = None,
    resume: Annotated[bool, option("--resume", help="continue a run that stopped")] = False,
    restat: Annotated[bool, option("--restat", help="with init: statistics of the new data")] = False,
    root: Annotated[Path | None, option(help="directory of the data (default: ATOMSMITH_DATA)")] = None,
    epochs: Annotated[int | None, option()] = None,
    batch_size: Annotated[int | None, option()] = None,
    lr: Annotated[float | None, option()] = None,
    precision: Annotated[str | None, option(help="fp32 or bf16")] = None,
    hidden: Annotated[int | None, option()] = None,
    layers: Annotated[int | None, option()] = None,
    frequencies: Annotated[int | None, option()] = None,
    threads: Annotated[int | None, option(help="CPU threads")] = None,
    devices: Annotated[str, option(help="how many devices, or auto")] = "auto",
) -> None:
    count = devices if devices == "auto" else _integer(devices, "devices")
    options = (epochs, batch_size, lr, precision, hidden, layers, frequencies, threads, count)
    best = train(model, data, out, preset, seed, init, resume, restat, root, *options)  # type: ignore[arg-type]
    typer.echo(f"best weights in {best}")


@app.command("prepare", help="Make a data set of a folder, files or a table of structures.")
def _prepare(
    source: Annotated[list[str], typer.Argument(help="files or folders, or one table")],
    name: Annotated[str, option(help="name of the data set")],
    out: Annotated[Path, option(help="folder in which it is made")] = Path("."),
    seed: Annotated[int, option(help="of the splits")] = 0,
    id_column: Annotated[str | None, option(help="column or property that names a structure")] = None,
) -> None:
    report = prepare(source if len(source) > 1 else source[0], name, out, seed, id_column=id_column)
    typer.echo(f"{report.num_structures} structures in {report.folder}, {len(report.failures)} failures")


@app.command("evaluate", help="Judge structures by a named protocol: a table, report.json, one row a structure.")
def _evaluate(
    files: Annotated[list[str], typer.Argument(help="files or folders, a data set NAME:SPLIT:N, or baseline:random")],
    reference: Annotated[str | None, option(help="data set NAME:SPLIT:N, or files")] = None,
    protocol: Annotated[str, option(help="diffcsp-csp or cdvae-2022")] = "diffcsp-csp",
    out: Annotated[Path | None, option(help="folder for report.json and structures.csv")] = None,
    seed: Annotated[int, option(help="of bootstraps and baselines")] = 0,
    k: Annotated[int | None, option(help="consecutive candidates for each target")] = None,
    processes: Annotated[int | None, option(help="of the matcher (default: all cores)")] = None,
    root: Annotated[Path | None, option(help="directory of the data sets (default: ATOMSMITH_DATA)")] = None,
) -> None:
    given = files if len(files) > 1 else files[0]
    evaluate(given, reference, protocol, out, seed, k=k, processes=processes, root=root).show()


def _integer(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} = '{text}', allowed: a number or auto") from None


def main() -> None:
    """The command line: exit code 2 and one line for a mistake of the user's, 1 for a fault, 75 for a stopped run."""
    try:
        app()
    except ValueError as error:
        print(f"atomsmith: {error}", file=sys.stderr)
        sys.exit(2)
    except (OSError, RuntimeError, MemoryError) as error:
        print(f"atomsmith: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("atomsmith: interrupted; what was finished is kept", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
