"""Which loss and which threshold rule an Improve should follow, on Multi30k, German to English.

Shows    The `losses` and `rules` of synthetic_improve.py on the task of multi30k_table_1.py; the rules with NLL.
Command  rest study experiments/multi30k_improve.py:losses --out runs/multi30k-losses --corpus.directory DIRECTORY \
             --variants NLL GOLD BVMPO-V-trace --every
         rest study experiments/multi30k_improve.py:rules --out runs/multi30k-rules --corpus.directory DIRECTORY \
             --variants PerSourcePercentile PerSourceInterpolation --every
Data     As multi30k_de_en.py.
Hardware 2 CPU cores; not run yet at this size.
Expect   experiments/LOG.md has what was measured of them on multi30k_de_en.py:quick.
"""

from pathlib import Path

from rest import Experiment, import_file

task: Experiment = import_file(Path(__file__).with_name("multi30k_table_1.py")).base
compared = import_file(Path(__file__).with_name("synthetic_improve.py"))

losses = compared.losses_on(task)
rules = compared.rules_on(task)
experiment = losses["NLL"]
