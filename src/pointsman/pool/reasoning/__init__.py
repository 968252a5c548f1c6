"""How long to reason, with whom, and where to look: policies learned from rewards.

Nothing here runs a language model: a policy sees features of the state of a query and gives the
probabilities of what to do next. What a language model would write is parsed and judged by the
same rules that its training uses.
"""
