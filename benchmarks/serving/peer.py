"""The service people write themselves: sentence-transformers behind FastAPI, one encode call at a time.

    python -m serving.peer FOLDER PORT      (in benchmarks/)

It gets the same weights, last-token pooling and the markers, so that its vectors are right; requests wait for each
other in a lock, as the model may run once at a time.
"""

import base64
import sys
import threading
from typing import Any

import uvicorn
from fastapi import Body, FastAPI
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer


def create_app(folder: str) -> FastAPI:
    """OpenAI's embeddings endpoint, queries only."""
    words = Transformer(folder, model_kwargs={"dtype": "float32"}, processor_kwargs={"padding_side": "left"})
    pooling = Pooling(words.get_embedding_dimension(), pooling_mode="lasttoken")
    model = SentenceTransformer(modules=[words, pooling], device="cpu").eval()
    app, turn = FastAPI(), threading.Lock()

    @app.get("/health/ready")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/embeddings")
    def embeddings(body: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008
        texts = [f"[BOQ]{text}[EOQ]" for text in body["input"]]
        with turn:
            vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        rows = [base64.b64encode(row.tobytes()).decode() for row in vectors]
        return {"object": "list", "data": [{"index": i, "embedding": row} for i, row in enumerate(rows)]}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[1]), port=int(sys.argv[2]), log_level="warning")
