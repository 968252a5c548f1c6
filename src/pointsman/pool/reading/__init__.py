"""Evaluation logs from files: reading, prices, and splitting into parts."""

from pointsman.pool.reading.prices import Price, read_prices
from pointsman.pool.reading.queries import read_queries
from pointsman.pool.reading.read import looks_like_log, read_log
from pointsman.pool.reading.split import split_log

__all__ = ["Price", "looks_like_log", "read_log", "read_prices", "read_queries", "split_log"]
