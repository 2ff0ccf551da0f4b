#!/bin/bash
# test: labels=fault,slow timeout=5400
# The faults of script_faults.sh with every rank, rank count and mode of saving at every point.
FAULTS=all exec bash "$BIRKHOFF_SOURCE/tests/jobs/script_faults.sh"
