"""FIND, READ and WRITE: the stateless operations. One folder each, the same files in each.

api.py is the public function, reference.py defines correct, cpu.py is the version in Numba, and
triton.py the one for GPUs. dispatch.py chooses between them. What the kernels share is in _numba/
and _triton/.
"""
