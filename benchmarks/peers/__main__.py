"""quick"""
import sys, json
from pathlib import Path
from benchmarks.harness import ROOT, Options
from benchmarks.peers import run
o = Options(ROOT/"benchmarks"/"results", 1, float(sys.argv[3]) if len(sys.argv)>3 else 4.0)
for key in sys.argv[1].split(","):
    for n in sys.argv[2].split(","):
        if n == "k":
            print(key, run.kill(o, key), flush=True)
        else:
            print(key, n, {k: round(v,1) for k,v in run.measure(o, key, int(n)).items()}, flush=True)
