# %% [markdown]
# # Sample crystals, then train on your own files
# Every cell runs as it stands: `python docs/tutorial.py`, or open the file as a notebook.

# %%
import tempfile
from pathlib import Path

import atomsmith
from chem.datasets import load
from chem.io import read

work = Path(tempfile.mkdtemp())
print(atomsmith.models().keys())

# %% [markdown]
# ## Sample
# A formula, a number, a seed. The same call gives the same crystals; `out` keeps them as they are made.

# %%
structures = atomsmith.sample("diffcsp-mp20-csp", n=4, formula="MgO", steps=50, seed=1, out=work / "mgo")
for structure in structures:
    print(structure.composition, round(float(structure.density), 2), "g/cm3")

# %% [markdown]
# More of the same: the first four are kept, four are added. `records` are what any other program would see.

# %%
atomsmith.sample("diffcsp-mp20-csp", n=8, formula="MgO", steps=50, seed=1, out=work / "mgo")
records = list(read(work / "mgo" / "samples.extxyz"))
print(len(records), "frames;", sum(record.error is not None for record in records), "unreadable")

# %% [markdown]
# ## Your own files
# Any folder of CIF or POSCAR files, a table with a `cif` column, extxyz or JSON lines becomes a data set with splits,
# statistics and a list of what could not be read. Here the files are the ones just sampled.

# %%
report = atomsmith.prepare(work / "mgo" / "cif", name="mine", out=work, split=(0.6, 0.4, 0.0))
print(report.num_structures, "structures,", len(report.failures), "failures")
print(len(load(report.folder, "train")), "to train on")

# %% [markdown]
# ## Train
# From nothing on the built-in prototypes, with a toy size so that it takes seconds; leave the sizes out for the preset.

# %%
atomsmith.train("diffcsp-csp", "prototypes", out=work / "run", epochs=2, hidden=32, layers=2, frequencies=8)
print(atomsmith.sample(work / "run", n=1, formula="MgO", steps=20)[0])

# %% [markdown]
# ## Fine-tune
# The shipped weights, continued on your data: its elements must be ones the model has seen.

# %%
atomsmith.train("diffcsp-csp", report.folder, out=work / "tuned", init="diffcsp-mp20-csp", epochs=2, lr=1e-4)
print(atomsmith.sample(work / "tuned", n=1, formula="MgO", steps=20)[0].composition)
