"""The same file embedded without `udever bulk`, each way in a process of its own.

    python -m bulking.ways engine FILE          (in benchmarks/)  Embedder.embed_iter, texts in memory
    python -m bulking.ways pool FILE FOLDER     sentence-transformers' multi-process pool, one thread a process

Prints {"seconds", "first"}: the time from texts in memory to vectors in memory, and the first vectors. Starting
processes and loading models is left out, as it is of `udever bulk`.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

WARM_UP = 64


def engine(texts: list[str]) -> tuple[float, np.ndarray]:
    """The bare engine."""
    from udever import Embedder

    embedder = Embedder.load("udever-nano")
    embedder.embed(texts[:WARM_UP], "document")
    began = time.perf_counter()
    vectors = np.concatenate(list(embedder.embed_iter(texts, "document")))
    return time.perf_counter() - began, vectors


def pool(texts: list[str], folder: str) -> tuple[float, np.ndarray]:
    """As its documentation says, with as many processes as there are threads for the others."""
    from sentence_transformers import SentenceTransformer

    processes = int(os.environ["OMP_NUM_THREADS"])
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    model = SentenceTransformer(folder, device="cpu")
    workers = model.start_multi_process_pool(["cpu"] * processes)
    model.encode_document(texts[:WARM_UP] * processes, pool=workers, normalize_embeddings=True, chunk_size=WARM_UP)
    began = time.perf_counter()
    vectors = model.encode_document(texts, pool=workers, normalize_embeddings=True)
    seconds = time.perf_counter() - began
    model.stop_multi_process_pool(workers)
    return seconds, vectors


def main(way: str, file: str, *rest: str) -> None:
    """Measure and print."""
    texts = pq.read_table(Path(file))["text"].to_pylist()
    seconds, vectors = {"engine": engine, "pool": pool}[way](texts, *rest)
    print(json.dumps({"seconds": seconds, "first": vectors[:8].tolist()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
