"""Inputs and outputs in S3, spoken for by moto's server on this machine."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from udever import Embedder
from udever.errors import JobChangedError

# The clients use deprecated parts of Python and of each other; that is theirs to mend.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A file system with an empty bucket `bulk`."""
    pytest.importorskip("s3fs", reason="s3fs is not installed here")
    server = pytest.importorskip("moto.server", reason="moto is not installed here")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    _, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, value in {
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        }.items():
            patch.setenv(name, value)
        import fsspec

        fs = fsspec.filesystem("s3")
        fs.mkdir("bulk")
        yield fs
        fs.clear_instance_cache()
    running.stop()


def put(fs: Any, table: pa.Table, name: str) -> None:
    with fs.open(name, "wb") as file:
        pq.write_table(table, file, row_group_size=40)


def test_a_job_in_s3(s3: Any, texts: list[str], do: Callable, model: Embedder, tmp_path: Path) -> None:
    put(s3, pa.table({"id": range(150), "text": texts[:150]}), "bulk/in/1.parquet")
    put(s3, pa.table({"id": range(100), "text": texts[150:]}), "bulk/in/2.parquet")
    inputs, output = ["s3://bulk/in/*.parquet"], "s3://bulk/deep/out"
    summary = do(inputs, output, shard_rows=60)
    assert (summary.vectors, summary.bad_rows) == (250, 0)
    s3.invalidate_cache()
    names = sorted(s3.find("bulk/deep/out/vectors"))
    table = pa.concat_tables([pq.read_table(s3.open(name)) for name in names])
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), model.embed(texts, "document"), atol=1e-6)
    assert table["_file"].to_pylist()[0].endswith("bulk/in/1.parquet")
    assert not [name for name in s3.find("bulk/deep/out") if "tmp" in name], "nothing half-written is left"

    s3.rm(names[1])
    assert do(inputs, output, shard_rows=60).new_rows == pq.read_metadata(s3.open(names[0])).num_rows

    put(s3, pa.table({"id": range(100), "text": [*texts[150:249], "other"]}), "bulk/in/2.parquet")
    with pytest.raises(JobChangedError, match=r"in/2\.parquet changed"):
        do(inputs, output, shard_rows=60)


def test_from_s3_to_here_text_files(s3: Any, texts: list[str], do: Callable, model: Embedder, tmp_path: Path) -> None:
    with s3.open("bulk/text/a.txt", "wb") as file:
        file.write("\n".join(texts).encode())
    assert do(["s3://bulk/text/"], tmp_path / "out", shard_rows=99, dedupe=True).texts == len(set(texts))
    table = pq.read_table(tmp_path / "out" / "vectors")
    assert table["text"].to_pylist() == texts
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), model.embed(texts, "document"), atol=1e-6)
