"""FIND, READ and WRITE: the stateless operations. One folder each, the same files in each.

api.py is the public function, reference.py defines correct, cpu.py is the Numba version.
"""
