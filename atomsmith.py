"""Sample crystals, train generators on your own data, and judge the samples: the front door.

    import atomsmith
    structures = atomsmith.sample("diffcsp-mp20-csp", n=4, formula="SrTiO3", out="srtio3")

Each verb is one function here and one command of the same argument names (`atomsmith --help`).
"""

from __future__ import annotations

import errno
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.main import get_command

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from checkpoints import CheckpointInfo, LoadedModel
    from checkpoints.drawing import Drawing
    from chem.molecule_list import Molecules
    from chem.prepare import PrepareReport
    from evaluation.campaigns.campaign import Outcome
    from evaluation.campaigns.relaxing import Relaxing
    from evaluation.relaxation.potentials import Potential
    from evaluation.report import Report

__version__ = "0.1.0"
__all__ = ["campaign", "evaluate", "load", "models", "prepare", "rank", "sample", "train"]


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
    num_atoms: int | str | Sequence[int] | Mapping[int, float] | None = None,
    elements: str | Sequence[str] | None = None,
    chemical_system: str | None = None,
    forbid: str | Sequence[str] | None = None,
    lattice: Any = None,
    volume: float | None = None,
    fixed: tuple[Structure | str | Path, Sequence[int]] | str | None = None,
    init: Structure | str | Path | None = None,
    noise: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int | Literal["auto"] = "auto",
    out: str | Path | None = None,
    device: str = "auto",
    progress: bool | None = None,
    conditions: Mapping[str, float] | Sequence[str] | None = None,
    guidance: float | None = None,
) -> list[Structure] | Molecules:
    """n crystals as pymatgen structures, or molecules as RDKit's with a conformer, in a fixed order.

    Their provenance is among their properties. A molecule has the bonds and formal charges that RDKit perceives; it is
    not sanitised. One in which nothing can be perceived has no bonds and counts as a failure: `.reasons` of the list
    are their numbers, `.failures` themselves as ASE atoms.

    formula, z: a cell of z formula units, for models that predict structures.
    num_atoms, elements, chemical_system: for models that choose the composition; the number of atoms as 8, "4-8" or
    {4: 0.5, 8: 0.5} (default: the sizes of the training set), symbols that may occur, or "Li-Fe-P-O", all of which do.
    forbid: symbols that may not occur. lattice: 3 x 3 rows in ångström, a pymatgen Lattice or "a,b,c,alpha,beta,gamma",
    kept in every digit. volume: of the cell in cubic ångström, to which the finished cell is scaled.
    fixed: (structure, site indices) or "file.cif:0,1,2"; these sites come first, with their elements and fractional
    coordinates in every digit; their lattice is kept only where `lattice` says so. init, noise: start from a structure
    noised to a level in (0, 1], and make the last part `noise` of the steps. Of molecules (RDKit, ASE or a file) it is
    the Cartesian coordinates that are kept; the sample comes in their frame. Lattices and volumes are for crystals.
    conditions: values of properties that the model was trained with, {"gap": 0.2} or ["gap=0.2"], in the unit of its
    data (a value outside of their range warns). guidance: how far to go beyond what the model thinks of them, 0 by
    default; more than 0 takes two network passes a step.

    steps: predictor steps (default: the model's). batch_size: a multiple of 16. out: a folder where samples are
    written as they are made (extxyz, CIF or SDF, a manifest); a second call continues it, a larger n extends it.
    progress: show a bar (default: on a terminal).

    Raises ValueError naming the argument, its value and what is allowed.
    """
    from checkpoints.drawing import CONTROLS, Drawing
    from chem.molecule_folder import MoleculeFolder
    from chem.molecule_list import Molecules
    from chem.sample_folder import SampleFolder
    from generative.guidance import read_values

    if n < 1:
        raise ValueError(f"n = {n}, allowed: >= 1")
    loaded = load(model, device) if isinstance(model, (str, Path)) else model
    asked = (formula, z, num_atoms, elements, chemical_system, forbid, lattice, volume, fixed, init, noise)
    controls = dict(zip(CONTROLS, asked, strict=True))
    size = None if batch_size == "auto" else batch_size
    drawing = Drawing.of(loaded, controls, *read_values(conditions, guidance), steps, seed, size)
    kind: Any = MoleculeFolder if drawing.molecules else SampleFolder
    folder = kind(out, drawing.request) if out is not None else None
    provenance = {**drawing.origin, "controls": drawing.controls.asked()}
    convert: Any = _to_molecules if drawing.molecules else _to_structures
    done: Any = Molecules() if drawing.molecules else []
    done += folder.samples(n) if folder is not None else []
    keeping = folder.kept(n) if folder is not None else nullcontext()
    with keeping, _progress(n, len(done), drawing.taken, progress) as tick:
        for first, batch in drawing.batches(n, len(done), tick):
            fresh = convert(batch[len(done) - first :], len(done), provenance)
            done += fresh
            if folder is not None:
                folder.append(fresh)
                failed = {"failures": done.reasons} if drawing.molecules else {}
                folder.note(n=len(done), **_manner(drawing), **failed)
    return done


def _to_structures(batch: Any, first: int, provenance: dict[str, Any]) -> list[Structure]:
    from chem.convert import to_structures

    structures = to_structures(batch.to("cpu"))
    for i, structure in enumerate(structures):
        structure.properties = {**provenance, "index": first + i}
    return structures


def _to_molecules(batch: Any, first: int, provenance: dict[str, Any]) -> Molecules:
    from chem.molecule_text import set_properties
    from evaluation.molecules.perceived import with_perceived_bonds

    molecules = with_perceived_bonds(batch)
    for i, mol in enumerate(molecules):
        set_properties(mol, {**provenance, "index": first + i})
    return molecules


def _manner(drawing: Drawing) -> dict[str, Any]:
    """How samples were made, for the manifest."""
    import platform

    import torch

    from generative.processes.flow import slopes_of

    denoiser = drawing.denoiser
    manner: dict[str, Any] = {"network_calls": denoiser.network_calls(drawing.taken)}
    manner |= {"slopes": slopes} if (slopes := slopes_of(denoiser.noisy)) else {}
    versions = {"atomsmith": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return {**manner, "device": str(denoiser.device), "threads": torch.get_num_threads(), "versions": versions}


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
    conditions: str | Sequence[str] | None = None,
    property: str | None = None,
) -> Path:
    """Train a model and return the folder of its best checkpoint, ready for `load` and `sample`.

    model: diffcsp, flowmm or crysbfn, with -csp or -ab-initio behind it; of molecules geobfn, whose elements are
    ordered by number as is best for QM9, geobfn-categorical, for any set of elements, or regressor. data: mp20, perov5,
    carbon24, mpts52, prototypes, qm9, or a folder made by `prepare`; files are looked for under `root` (default:
    ATOMSMITH_DATA). out: run folder with checkpoints, curves and weights; resume=True continues a run that stopped, bit
    for bit on the CPU in fp32. init: fine-tune a checkpoint by name or path, of either task (its size and statistics
    are kept; restat takes those of the new data). The other arguments change settings of the preset. threads: CPU
    threads (default: torch's).
    conditions: numeric columns of the data that samples can be asked for, "gap,mu"; rows without a value train the
    model without conditions, and a model that was trained without any may take some up by `init`. property: the column
    that a regressor learns. NAME:first-half and NAME:second-half are halves of the train split of a data set: a
    regressor that judges a generator (`evaluate`) is trained on the other half.

    Raises ValueError naming the argument, its value and what is allowed.
    """
    import torch

    from checkpoints import making
    from generative.guidance import read_names

    if threads is not None:
        torch.set_num_threads(threads)
    options = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "precision": precision}
    sizes: dict[str, Any] = {"hidden": hidden, "layers": layers, "frequencies": frequencies}
    if init is not None and any(v is not None for v in sizes.values()):
        raise ValueError(f"hidden, layers, frequencies are fixed by init = '{init}'; leave them out")
    properties = {"conditions": read_names(conditions), "property": property}
    recipe = making.recipe(model, preset, {**sizes, **properties}, options)
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
    regressor: str | Path | LoadedModel | None = None,
    potential: str | Potential | None = None,
    hull: str | Path | None = None,
    engine: Literal["processes", "ray"] = "processes",
    part: str | None = None,
    device: str | None = None,
) -> Report:
    """Judge structures, ours or anyone's, by a protocol; with `out`, write report.json, structures.csv, report.html.

    structures_or_files: files, folders, pymatgen structures, a data set as NAME:SPLIT:N, or "baseline:random" and
    "baseline:substitution". reference: what predictions are paired with or samples compared to (a data set, files or
    structures). protocol: "diffcsp-csp" (match rate and RMSE), "cdvae-2022" (validity and distances), "flowmm-sun",
    "mattergen-sun", "lemat-2025" or "strict" (stable, unique and novel, and what else each asks for); for molecules
    "edm-qm9" or "edm-qm9-strict" (stability, validity, uniqueness, novelty, distances) and "edm-qm9-physics" (also
    PoseBusters and GFN2 strain of some), of files, RDKit molecules, ASE atoms or a data set. k: consecutive
    candidates for each target where they carry no property `target`. regressor: a trained one that judges, by the
    protocol "edm-conditional", molecules that were asked for its property. potential: what relaxes and weighs crystals
    where stability is asked for, "chgnet" (the extra `stability`) or an object of evaluation.relaxation.potentials, as
    a calculator of ASE; hull: "mp20", or a table of phases as json, csv or parquet; device: where CHGNet runs, "auto"
    for CUDA where there is one, default the CPU. With `out` a relaxation that was stopped goes on, and relaxed.extxyz
    holds what came of it; engine "ray" relaxes on a Ray cluster, and part "k/n" the share of one of n jobs in a common
    `out`, of which the last to end writes the report. `report["name"]` is a number with its denominator and interval;
    `report.show()` prints the table.

    Raises ValueError in one line for what cannot be judged at all, and evaluation.runs.pipeline.Unfinished where other
    parts have still to be computed; single bad structures are counted with a reason.
    """
    from evaluation.evaluate import evaluate as judge

    by = None if regressor is None else _regressor(regressor)
    stability: dict[str, Any] = {"potential": potential, "hull": hull, "engine": engine, "part": part}
    stability["device"] = None if device is None else _stability_device(device)
    options: dict[str, Any] = {"k": k, "processes": processes, "root": root, "judge": by}
    return judge(structures_or_files, reference, protocol, out, seed, **options, **stability)


def _stability_device(device: str) -> str:
    """Where crystals are relaxed; "auto" leaves out MPS, which has no float64."""
    from checkpoints.store import pick_device

    found = pick_device(device)
    return "cpu" if device == "auto" and found.type == "mps" else str(found)


def _regressor(model: str | Path | LoadedModel) -> Any:
    """What judges molecules that were asked for a property."""
    from evaluation.molecules.asked import Judge
    from generative.models.regressor import predictor

    loaded = load(model) if isinstance(model, (str, Path)) else model
    if loaded.kind != "regressor":
        raise ValueError(f"regressor = '{loaded.name}' is a {loaded.kind}, allowed: a regressor")
    denoiser: Any = loaded.model
    name = loaded.config.property
    return Judge(name, predictor(denoiser, name, loaded.statistics), loaded.name)


def rank(
    structures_or_files: Any,
    by: Literal["cluster", "likelihood"] | Callable[[Sequence[Structure]], Sequence[float]] = "cluster",
    model: str | Path | LoadedModel | None = None,
    *,
    processes: int | None = None,
    device: str = "auto",
) -> list[Structure]:
    """Candidates for one formula, best first: copies with `rank`, `score` and `rank_by` among their properties.

    structures_or_files: pymatgen structures, files or folders. by: "cluster", the candidate that most others match;
    "likelihood", under the flow `model`, of cells of one size; or a callable that takes the list of structures and
    returns one number each, the higher the better. What has no score comes last with the reason in `not_ranked`.
    processes: of the matcher, by default all cores.

    Raises ValueError naming the argument, its value and what is allowed.
    """
    from evaluation.ranking import best_first

    if not (callable(by) or by in ("cluster", "likelihood")):
        raise ValueError(f"by = '{by}', allowed: cluster, likelihood, or a callable of the list of structures")
    if (model is None) == (by == "likelihood"):
        named = "None" if model is None else f"'{model}'"
        raise ValueError(f"model = {named}, allowed with by = '{by}': {'a flow' if model is None else 'None'}")
    if by == "likelihood" and model is not None:
        scorer = _likelihood(load(model, device) if isinstance(model, (str, Path)) else model)
        return best_first(structures_or_files, scorer, processes=processes, name="likelihood")
    name = getattr(by, "__name__", type(by).__name__) if callable(by) else by
    return best_first(structures_or_files, by, processes=processes, name=name)  # type: ignore[arg-type]


def _likelihood(loaded: LoadedModel) -> Callable[[Sequence[Structure]], list[float]]:
    """What scores candidates of one composition and cell size by their density."""
    from generative.scoring import log_likelihoods

    denoiser: Any = loaded.model

    def score(structures: Sequence[Structure]) -> list[float]:
        if len(sizes := sorted({len(structure) for structure in structures})) > 1:
            raise ValueError(f"by = 'likelihood' compares cells of one size, got {sizes[0]} and {sizes[-1]} atoms")
        try:
            return log_likelihoods(denoiser, structures)
        except ValueError as error:
            raise ValueError(f"model = '{loaded.name}' has no likelihood: {error}") from error

    return score


def campaign(
    model: str | Path,
    n: int,
    out: str | Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    conditions: Mapping[str, float] | Sequence[str] | None = None,
    guidance: float | None = None,
    allowed: Sequence[str] | None = None,
    validity: Literal["cdvae", "strict"] = "strict",
    min_distance: float | None = None,
    composition: bool = False,
    relax: Literal["chgnet"] | Relaxing | None = None,
    hull: str | Path = "mp20",
    top: int = 100,
    workers: int | None = None,
    engine: Literal["processes", "ray"] = "processes",
    seconds: float = 600.0,
    part: str | None = None,
    device: str = "auto",
    **controls: Any,
) -> Outcome:
    """Sample, filter, find duplicates, relax, weigh against a hull, rank, and export a shortlist; in a folder.

    model, n, steps, seed, conditions, guidance, device and controls (formula, num_atoms, elements, ...): as in
    `sample`, which draws the same crystals. A sample is kept when its elements are among `allowed`, its structure is
    valid by the rule `validity`, no two atoms are nearer than `min_distance` in ångström and, with composition=True,
    SMACT finds it valid. relax: "chgnet", or an campaigns.relaxing.Relaxing of your own; hull: what "chgnet" is
    weighed against. top: crystals of the shortlist (CIF, extxyz, ASE database). workers: processes, default all cores,
    0 for this one; engine "ray" takes them from a Ray cluster. seconds: limit of a chunk of work, see
    campaigns.campaign. part: "k/n", one of n jobs that share the folder. The same call goes on where a campaign was
    stopped.

    Raises ValueError naming the argument, and ImportError for the extras campaign, stability and ray.
    """
    from checkpoints.drawing import CONTROLS, Draws
    from evaluation.campaigns import campaign as run
    from evaluation.campaigns.screening import Filters
    from generative.guidance import read_values

    if foreign := [name for name in controls if name not in CONTROLS]:
        raise ValueError(f"{foreign[0]} is no argument of a campaign; those of sample are {', '.join(CONTROLS)}")
    if n < 1:
        raise ValueError(f"n = {n}, allowed: >= 1")
    name = str(Path(model) / "best") if (Path(model) / "best").is_dir() else str(model)
    draws = Draws(name, controls, *read_values(conditions, guidance), steps, seed, device)
    filters = Filters(tuple(allowed) if allowed else None, validity, min_distance, composition)
    wishes: dict[str, Any] = {"relax": _relaxing(relax, hull, device), "top": top, "seconds": seconds, "part": part}
    with run.on_engine(engine, workers) as options:
        return run.campaign(out, draws, n, filters, request=draws.prepare().request, **wishes, **options)


def _relaxing(relax: Any, hull: str | Path, device: str) -> Relaxing | None:
    """What `campaign` relaxes with."""
    from evaluation.campaigns.relaxing import Relaxing, chgnet_against

    if relax is None or isinstance(relax, Relaxing):
        if str(hull) != "mp20":
            raise ValueError(f"hull = '{hull}' is for relax = 'chgnet'; allowed without: mp20")
        return relax
    if relax != "chgnet":
        raise ValueError(f"relax = '{relax}', allowed: chgnet, or an evaluation.campaigns.relaxing.Relaxing")
    return chgnet_against(hull, "cpu" if device == "auto" else device)


def prepare(
    source: str | Path | Sequence[str | Path],
    name: str,
    out: str | Path = ".",
    seed: int = 0,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
    id_column: str | None = None,
) -> PrepareReport:
    """Make the data set folder `out/name` from a folder, files or a table of structures; train on it by that path.

    source: crystals as CIF, POSCAR, extxyz, JSON lines, csv or parquet with a `cif` column, or molecules as SDF, or as
    xyz or extxyz without a lattice, of any elements. Rows that fail are counted and named in the report. Raises
    ValueError where nothing can be read or the folder is a data set already.
    """
    from chem.prepare import prepare as make

    return make(source, out, name, seed, split, id_column)


# The command line: thin commands over the verbs, with the same argument names.
EXIT_CODES = "Exit codes: 2 for a mistake in what was asked, 1 for faults and Ctrl-C, 75 for a training that was ended."
app = typer.Typer(
    help=(__doc__ or "").splitlines()[0],
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
option = typer.Option
UsageError: Any = typer.BadParameter.__base__  # of click, which some versions of typer carry inside
STOPPED = 75
# what the system says of a path that cannot be used as it was asked
WRONG_PATH = (errno.ENOENT, errno.EACCES, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.ENAMETOOLONG)


@app.command("models", help="List the trained models that come with the package.")
def _models() -> None:
    for name, info in models().items():
        typer.echo(f"{name}\t{info.kind}\t{info.num_bytes / 1e6:.1f} MB\t{info.sha256[:12]}")


@app.command("sample", help="Sample crystals or molecules into a folder: extxyz, CIF files or SDF, a manifest.")
def _sample(
    model: Annotated[str, typer.Argument(help="name of a trained model, or a checkpoint or run folder")],
    n: Annotated[int, option("-n", help="how many")],
    out: Annotated[Path, option(help="folder; a second call with the same arguments continues it")],
    formula: Annotated[str | None, option(help="composition, for models that predict structures")] = None,
    z: Annotated[int, option(help="formula units in a cell")] = 1,
    num_atoms: Annotated[str | None, option(help="atoms in a cell or molecule: 8, 4-8, or weights 4:0.5,8:0.5")] = None,
    elements: Annotated[str | None, option(help="symbols that may occur, e.g. Li,Fe,O")] = None,
    chemical_system: Annotated[str | None, option(help="exactly these elements, e.g. Li-Fe-P-O")] = None,
    forbid: Annotated[str | None, option(help="symbols that may not occur, e.g. Pb,Cd")] = None,
    lattice: Annotated[str | None, option(help="a,b,c,alpha,beta,gamma in ångström and degrees")] = None,
    volume: Annotated[float | None, option(help="of the cell in cubic ångström")] = None,
    fixed: Annotated[str | None, option(help="sites that are kept, e.g. host.cif:0,1,2 or ring.sdf:0,1")] = None,
    init: Annotated[str | None, option(help="file with a structure to start from; needs --noise")] = None,
    noise: Annotated[float | None, option(help="level in (0, 1] that the start structure is noised to")] = None,
    steps: Annotated[int | None, option(help="predictor steps (default: the model's)")] = None,
    seed: Annotated[int, option()] = 0,
    batch_size: Annotated[str, option(help="a multiple of 16, or auto")] = "auto",
    device: Annotated[str, option(help="auto, cpu, cuda, mps")] = "auto",
    condition: Annotated[list[str] | None, option(help="value of a property, as gap=0.2; repeatable")] = None,
    guidance: Annotated[float | None, option(help="how far beyond the model's own idea of the conditions")] = None,
) -> None:
    from chem.molecule_list import Molecules

    size = batch_size if batch_size == "auto" else _integer(batch_size, "batch_size")
    asked = (formula, z, num_atoms, elements, chemical_system, forbid, lattice, volume, fixed, init, noise)
    wishes: dict[str, Any] = {"conditions": condition, "guidance": guidance}
    made = sample(model, n, *asked, steps, seed, size, out, device, **wishes)  # type: ignore[arg-type]
    failed = sum(made.reasons.values()) if isinstance(made, Molecules) else 0
    typer.echo(f"{len(made)} samples in {out}" + (f", {failed} of them without bonds" if failed else ""))


@app.command("train", help="Train a model on a data set.")
def _train(
    model: Annotated[
        str, typer.Argument(help="diffcsp-, flowmm- or crysbfn-csp or -ab-initio, geobfn(-categorical), regressor")
    ],
    data: Annotated[str, typer.Argument(help="mp20, perov5, carbon24, mpts52, prototypes, qm9, or a prepared folder")],
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
    conditions: Annotated[str | None, option(help="columns of the data to condition on, e.g. gap,mu")] = None,
    property_: Annotated[str | None, option("--property", help="column of the data that a regressor learns")] = None,
) -> None:
    count = devices if devices == "auto" else _integer(devices, "devices")
    options = (epochs, batch_size, lr, precision, hidden, layers, frequencies, threads, count, conditions, property_)
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
    protocol: Annotated[
        str, option(help="diffcsp-csp, cdvae-2022, flowmm-sun, mattergen-sun, lemat-2025, strict, edm-qm9, ...")
    ] = "diffcsp-csp",
    out: Annotated[Path | None, option(help="folder for report.json, structures.csv and report.html")] = None,
    seed: Annotated[int, option(help="of bootstraps and baselines")] = 0,
    k: Annotated[int | None, option(help="consecutive candidates for each target")] = None,
    processes: Annotated[int | None, option(help="of the matcher (default: all cores)")] = None,
    root: Annotated[Path | None, option(help="directory of the data sets (default: ATOMSMITH_DATA)")] = None,
    regressor: Annotated[str | None, option(help="with edm-conditional: a trained regressor")] = None,
    potential: Annotated[str | None, option(help="for stability: chgnet")] = None,
    hull: Annotated[str | None, option(help="for stability: mp20, or a table of phases")] = None,
    engine: Annotated[str, option(help="of the relaxation: processes or ray")] = "processes",
    part: Annotated[str | None, option(help="k/n: the k-th of n jobs that share the folder, from 0")] = None,
    device: Annotated[str | None, option(help="for stability: auto, cpu, cuda (default: cpu)")] = None,
) -> None:
    from evaluation.runs.pipeline import Unfinished

    given = files if len(files) > 1 else files[0]
    options: dict[str, Any] = {"k": k, "processes": processes, "root": root, "regressor": regressor}
    options |= {"potential": potential, "hull": hull, "engine": engine, "part": part, "device": device}
    try:
        evaluate(given, reference, protocol, out, seed, **options).show()
    except Unfinished as stage:
        typer.echo(stage)


@app.command("rank", help="Rank candidates for one formula, best first.")
def _rank(
    files: Annotated[list[str], typer.Argument(help="files or folders")],
    by: Annotated[str, option(help="cluster or likelihood")] = "cluster",
    model: Annotated[str | None, option(help="with likelihood: name or folder of a flow")] = None,
    out: Annotated[Path | None, option(help="file for them in this order, e.g. ranked.extxyz")] = None,
    processes: Annotated[int | None, option(help="of the matcher (default: all cores)")] = None,
    device: Annotated[str, option(help="auto, cpu, cuda, mps")] = "auto",
) -> None:
    from chem.io import format_of, write

    if out is not None:
        format_of(out)
        if out.exists():
            raise ValueError(f"out = '{out}' exists, allowed: a new file")
    ranked = rank(files, by, model, processes=processes, device=device)  # type: ignore[arg-type]
    if out is not None:
        write([s for s in ranked if "score" in s.properties], out)
    for structure in ranked:
        said = structure.properties
        score = f"{said['score']:.4f}" if "score" in said else f"not ranked: {said['not_ranked']}"
        typer.echo(f"{said['rank']}\t{said.get('id', '')}\t{structure.formula}\t{score}")


@app.command("campaign", help="Sample, filter, drop duplicates, relax, weigh, rank, and export a shortlist.")
def _campaign(
    model: Annotated[str, typer.Argument(help="name of a trained model of crystals, or a checkpoint or run folder")],
    n: Annotated[int, option("-n", help="how many samples")],
    out: Annotated[Path, option(help="folder; the same command goes on where it was stopped")],
    formula: Annotated[str | None, option(help="composition, for models that predict structures")] = None,
    z: Annotated[int, option(help="formula units in a cell")] = 1,
    num_atoms: Annotated[str | None, option(help="atoms in a cell: 8, 4-8, or weights 4:0.5,8:0.5")] = None,
    elements: Annotated[str | None, option(help="symbols that the model may use, e.g. Li,Fe,O")] = None,
    chemical_system: Annotated[str | None, option(help="exactly these elements, e.g. Li-Fe-P-O")] = None,
    forbid: Annotated[str | None, option(help="symbols that the model may not use")] = None,
    steps: Annotated[int | None, option(help="predictor steps (default: the model's)")] = None,
    seed: Annotated[int, option()] = 0,
    condition: Annotated[list[str] | None, option(help="value of a property, as gap=0.2; repeatable")] = None,
    guidance: Annotated[float | None, option(help="how far beyond the model's own idea of the conditions")] = None,
    allowed: Annotated[str | None, option(help="filter: symbols that a sample may contain, e.g. Li,Fe,O")] = None,
    validity: Annotated[str, option(help="filter: cdvae or strict")] = "strict",
    min_distance: Annotated[float | None, option(help="filter: ångström between any two atoms")] = None,
    composition: Annotated[bool, option("--composition", help="filter: valid by SMACT")] = False,
    relax: Annotated[str | None, option(help="chgnet")] = None,
    hull: Annotated[str, option(help="mp20, or a table of phases")] = "mp20",
    top: Annotated[int, option(help="crystals of the shortlist")] = 100,
    workers: Annotated[int | None, option(help="processes (default: all cores), 0 for this one")] = None,
    engine: Annotated[str, option(help="processes or ray")] = "processes",
    seconds: Annotated[float, option(help="limit of one chunk of work")] = 600.0,
    part: Annotated[str | None, option(help="k/n: the k-th of n jobs, from 0")] = None,
    device: Annotated[str, option(help="auto, cpu, cuda, mps")] = "auto",
) -> None:
    wishes: dict[str, Any] = {"conditions": condition, "guidance": guidance, "composition": composition, "relax": relax}
    wishes |= {"formula": formula, "z": z, "num_atoms": num_atoms, "elements": elements, "forbid": forbid}
    wishes |= {"chemical_system": chemical_system, "validity": validity, "min_distance": min_distance, "engine": engine}
    wishes |= {"allowed": allowed.split(",") if allowed else None, "hull": hull, "top": top, "workers": workers}
    found = campaign(model, n, out, steps=steps, seed=seed, seconds=seconds, part=part, device=device, **wishes)
    for line in found.lines():
        typer.echo(line)


def _integer(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} = '{text}', allowed: a number or auto") from None


def main() -> None:
    """The command line: exit code 0, 2 for the user's mistakes, 1 for faults and Ctrl-C, 75 after SIGTERM in training.

    Whatever goes wrong is one line on stderr, and so is a warning.
    """
    warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}")
    try:
        # not app(): some versions of typer make an exit of Ctrl-C, and all of them a box of several lines of an error
        command = get_command(app)
        with command.make_context("atomsmith", sys.argv[1:] or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as ended:
        sys.exit(ended.exit_code)
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code != STOPPED:
            raise
        code, text = _explain(error)
        notes = getattr(error, "__notes__", []) if code == 1 else []
        _say("; ".join([text, *notes]))
        exec("")  # CPython forgets that a string it ran was interrupted, and with it to end by the signal
        sys.exit(code)


def _say(text: str) -> None:
    print(f"atomsmith: {' '.join(text.split())}", file=sys.stderr)


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit code and message of an exception."""
    if isinstance(error, UsageError):
        return 2, error.format_message()
    if isinstance(error, ValueError):
        return 2, str(error)
    if isinstance(error, KeyboardInterrupt):
        noted = getattr(error, "__notes__", [])
        return 1, "interrupted" if noted else "interrupted before anything new was made; the same command starts again"
    if isinstance(error, SystemExit):
        return STOPPED, "stopped; a checkpoint is written, --resume continues"
    if isinstance(error, OSError):
        text = f"{error.strerror}: {error.filename}" if error.strerror and error.filename else error.strerror
        return 2 if error.errno in WRONG_PATH else 1, text or str(error)
    if isinstance(error, MemoryError):
        return 1, str(error) or "the memory is full"
    if isinstance(error, RuntimeError) or (isinstance(error, ImportError) and "the extra" in str(error)):
        return 1, str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}, line {place.lineno}"
    return 1, f"{type(error).__name__}: {error} ({where}); this is a fault of the program, please report it"


if __name__ == "__main__":
    main()
