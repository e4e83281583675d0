"""Everything after the numbers: result files, published values, tables, figures and pages."""

import os

os.environ["MPLBACKEND"] = "Agg"  # before matplotlib: figures are files, also in a notebook
