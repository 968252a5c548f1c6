"""Skip, run or repeat each block of a residual network: paths, routers, search, and the oracle."""
