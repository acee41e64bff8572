"""SAMA's operations: per operation a plain torch reference, faster kernels, and one public function.

Each operation is a package: ``reference.py`` says what is computed, ``README.md`` gives the mathematics, and
the function that the package exports picks the backend (see `sama_kernels.dispatch`). Nothing is imported
here, so that importing one operation never pays for another.
"""
