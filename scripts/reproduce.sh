#!/bin/sh
# The figures of README.md and results/: one line each. Needs MNIST (fetched where it is missing); 2 cores, about 1½ minutes.
set -eu
bin=${BIN:-.venv/bin}
figures=results/figures
mkdir -p "$figures"

compare() { # NAME OVERRIDE …: run the comparison, keep its figure and table
    name=$1
    shift
    rm -rf "results/sweeps/$name"
    "$bin/bnexp" compare "$@" "hydra.sweep.dir=results/sweeps/$name"
    cp "results/sweeps/$name/compare.svg" "$figures/$name.svg"
    cp "results/sweeps/$name/compare.png" "$figures/$name.png"
    sed "s/compare\.svg/$name.svg/" "results/sweeps/$name/compare.md" >"$figures/$name.md"
}

compare lesson experiment=udacity norm=none,batch act=relu,sigmoid 'seed=range(5)' steps=10000
