"""Whatever stands in a file, it becomes a log or is refused in one line."""

import json
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pointsman.errors import InputError
from pointsman.pool.reading import looks_like_log, read_log

NAMES = ("query", "prompt", "model", "score", "cost", "a", "b", "a cost", "b_cost", "a|latency",
         "b tokens", "id", "query_id", "task", "embedding", "", "x score", "cost/x", "judge",
         "prompt_tokens", "时间")  # fmt: skip
SHAPES = (("query", "model", "score", "cost"), ("query", "a", "b", "a cost", "b_cost"), ())
CELLS = ("", "0", "1", "0.5", "1", "0", "a", "b", "q1", "true", "inf", "nan", "-1", "1e400", "[1]",
         "{}", '"x, y"', "'", "007", "2024-01-01", "  ", "９", "None", "9" * 20)  # fmt: skip
VALUES = (0, 1, 0.5, "a", "b", "q1", None, True, -1, [1, 2], [], {}, {"a": 1, "b": {"c": 2}},
          [{"role": "user", "content": "hi"}], [None], 1e308, 10**30, "")  # fmt: skip


@st.composite
def files(draw):
    """The suffix of a file and its text."""
    columns = [*draw(st.sampled_from(SHAPES)), *draw(st.lists(st.sampled_from(NAMES), max_size=4))]
    columns = list(dict.fromkeys(columns)) or ["query"]
    rows = draw(st.integers(0, 6))
    suffix = draw(st.sampled_from(("csv", "jsonl")))
    kind = st.sampled_from(CELLS if suffix == "csv" else VALUES)
    table = draw(st.lists(st.tuples(*[kind] * len(columns)), min_size=rows, max_size=rows))
    if suffix == "csv":
        return suffix, "\n".join(",".join(row) for row in [columns, *table])
    return suffix, "\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in table)


@given(file=files(), named=st.booleans())
@settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
def test_a_file_is_read_or_refused_in_one_line(file, named):
    suffix, text = file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"log.{suffix}"
        path.write_text(text, encoding="utf-8")
        assert looks_like_log(path) in (True, False)
        try:
            log = read_log(path, models=["a", "b"] if named else None)
            said = log.note
            assert len(log) > 0
            assert len(log.models) > 1
        except InputError as refused:
            said = str(refused)
        assert said
        assert "\n" not in said
