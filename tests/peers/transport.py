"""Birkhoff's transport engine beside POT's solvers; called by transport.sh, which says what it prints."""
import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

TOLERANCE = 1e-9
ARGUMENTS = argparse.ArgumentParser()
for option, preset in [("birkhoff", None), ("sizes", "500"), ("etas", "10,50,200,600,1200"),
                       ("problems", "assignment,mnist-l2,mnist-l1"), ("rounds", "1"), ("seconds", "60"), ("threads", "2")]:
    ARGUMENTS.add_argument("--" + option, default=preset)
A = ARGUMENTS.parse_args()
for name in "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS":
    os.environ[name] = A.threads

import h5py  # noqa: E402  (behind the number of threads)
import numpy as np  # noqa: E402
import ot  # noqa: E402
from scipy.spatial.distance import cdist  # noqa: E402


# ---- problems ----

def mnist(n):
    folder = os.path.join(os.environ["BIRKHOFF_DATA"], "mnist")
    with gzip.open(os.path.join(folder, "train-images-idx3-ubyte.gz")) as file:
        pixels = np.frombuffer(file.read(16 + 2 * n * 784), np.uint8, offset=16)
    return pixels.reshape(2 * n, 784) / 255.0


def problem(name, n):
    if name == "assignment":
        return np.random.default_rng(0).uniform(size=(n, n))
    x = mnist(n)
    cost = cdist(x[:n], x[n:], "sqeuclidean" if name == "mnist-l2" else "cityblock")
    return cost / cost.max()


# ---- solvers: each returns (status, sweeps, steps, error, seconds) ----

def error_of(plan, n):
    if not np.all(np.isfinite(plan)):
        return float("nan")
    return abs(plan.sum(1) - 1 / n).sum() + abs(plan.sum(0) - 1 / n).sum()


def birkhoff(method, folder, eta):
    line = subprocess.run([A.birkhoff, "transport", folder + "/problem.h5", folder + "/out.h5", "--json", "--quiet",
                           f"method={method}", f"epsilon={1 / eta!r}", f"tolerance={TOLERANCE}", "iterations=100000",
                           f"threads={A.threads}"],
                          check=True, capture_output=True, text=True).stdout
    r = json.loads(line)
    return r["status"], r["sweeps"], r["newton_steps"], r["residual"], r["seconds"]


def pot(method, cost, eta):
    n = len(cost)
    a = np.full(n, 1 / n)

    def solve(sweeps, tolerance):
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plan, log = ot.sinkhorn(a, a, cost, 1 / eta, method=method, numItermax=sweeps, stopThr=tolerance, log=True)
        return plan, log, time.perf_counter() - start

    few = 20
    solve(1, 1e-300)
    sweeps = int(min(100000, max(few, float(A.seconds) / max(solve(few, 1e-300)[2] / few, 1e-6))))
    plan, log, seconds = solve(sweeps, TOLERANCE)
    error = error_of(plan, n)
    done = len(log["err"]) * 10 if log.get("err") else sweeps
    done = int(log.get("niter", log.get("n_iter", done)))
    status = "converged" if error <= 10 * TOLERANCE else "not finite" if not np.isfinite(error) else "not converged"
    return status, done, 0, error, seconds


SOLVERS = [("birkhoff sinkhorn", lambda f, c, e: birkhoff("sinkhorn", f, e)),
           ("birkhoff newton", lambda f, c, e: birkhoff("newton", f, e)),
           ("birkhoff sns", lambda f, c, e: birkhoff("sns", f, e)),
           ("POT sinkhorn", lambda f, c, e: pot("sinkhorn", c, e)),
           ("POT sinkhorn_log", lambda f, c, e: pot("sinkhorn_log", c, e)),
           ("POT sinkhorn_stabilized", lambda f, c, e: pot("sinkhorn_stabilized", c, e))]


# ---- the table ----

def compare(folder, cost, eta):
    runs = {name: [] for name, _ in SOLVERS}
    for _ in range(int(A.rounds)):
        for name, solve in SOLVERS:
            runs[name].append(solve(folder, cost, eta))
    return {name: (*rows[0][:4], statistics.median(r[4] for r in rows)) for name, rows in runs.items()}


def print_rows(name, n, eta, rows):
    peers = [r[4] for k, r in rows.items() if k.startswith("POT") and r[0] == "converged"]
    for solver, (status, sweeps, steps, error, seconds) in rows.items():
        ratio = f"{min(peers) / seconds:9.1f}" if peers and status == "converged" else "        -"
        print(f"{name:11} {n:5} {eta:6} {solver:24} {status:15} {sweeps:7} {steps:5} {error:9.1e} {seconds:9.4f} {ratio} "
              f"{seconds / max(sweeps, 1) * 1e3:9.3f}", flush=True)


def main():
    print(f"to {TOLERANCE:g}, {A.threads} threads, {A.rounds} rounds, POT {ot.__version__}")
    print("problem         n    eta solver                   status           sweeps steps     error   seconds  best POT"
          "  ms/sweep")
    for name in A.problems.split(","):
        if name.startswith("mnist") and "BIRKHOFF_DATA" not in os.environ:
            print(f"{name:11} left out: BIRKHOFF_DATA is not set")
            continue
        for n in map(int, A.sizes.split(",")):
            cost = problem(name, n)
            with tempfile.TemporaryDirectory() as folder:
                with h5py.File(folder + "/problem.h5", "w") as file:
                    file["cost"] = cost
                for eta in map(float, A.etas.split(",")):
                    print_rows(name, n, f"{eta:g}", compare(folder, cost, eta))


if __name__ == "__main__":
    sys.exit(main())
