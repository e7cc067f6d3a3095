import os


# One thread in each process of pytest-xdist, before torch is imported: more of them would compete for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
