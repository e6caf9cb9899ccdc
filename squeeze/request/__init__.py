"""Turn what is asked, overrides and conf/, into cells: checked, frozen, hashed.

Hydra reads the grammar of overrides and composes conf/ once a request; the points of a grid are resolved here, for two
reasons. Speed: composing anew takes Hydra some 50 ms a point, so that listing 10,000 cells would take minutes, not
seconds. Safety: no resolver ever runs (``${oc.env:...}`` could carry a secret into a record), nothing is instantiated
or imported (``_target_`` is a name that is looked up), and whatever is misspelt is refused in one line.
"""
