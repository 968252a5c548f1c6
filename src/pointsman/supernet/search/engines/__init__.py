"""What proposes genotypes: by chance, by evolution, from models, from learned distributions.

Each is a function of a problem and a seed. Settings are keywords, so that
`partial(nsga2, population=20)` is an engine too.
"""
