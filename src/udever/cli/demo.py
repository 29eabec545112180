"""`udever demo`: what the model can do, on input that is found on every machine, in a few seconds.

    documents = the standard library's functions;  answers = questions in six languages · documents

Invariant: the same Python and model give the same answers; only the timings change.
Does not know: colours and columns (demo_view.py), or how the functions are found (stdlib.py).
"""

import json
import platform
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from udever.cli.options import JsonFlag, ModelChoice, Runtime, load
from udever.cli.stdlib import Function, standard_library

if TYPE_CHECKING:
    from udever import Embedder

ANSWERS = 2
"""Functions shown for each question."""

DOCUMENT_TOKENS = 64
"""Longer documents are cut, to keep the demo short."""

QUESTIONS = (
    ("English", "How do I compress a file with gzip?"),
    ("English", "remove leading whitespace from every line of a text"),
    ("Spanish", "calcular la mediana de unos datos"),
    ("Spanish", "abrir una página en el navegador"),
    ("Chinese", "打印一年的日历"),
    ("Chinese", "怎样打开压缩文件？"),
    ("Arabic", "فتح صفحة في متصفح الإنترنت"),
    ("Arabic", "حذف ملف"),
    ("Hindi", "क्या यह वर्ष लीप वर्ष है?"),
    ("Hindi", "फ़ाइल का आकार बाइट में"),
    ("French", "Comment découper une URL en ses parties ?"),
    ("French", "trouver les n plus grands éléments d'une liste"),
)
"""(language, question)."""

SENTENCES = (
    ("English", "The children are playing football in the park."),
    ("Spanish", "Los niños juegan al fútbol en el parque."),
    ("French", "Les enfants jouent au football dans le parc."),
    ("Portuguese", "As crianças estão jogando futebol no parque."),
    ("Chinese", "孩子们在公园里踢足球。"),
    ("Arabic", "الأطفال يلعبون كرة القدم في الحديقة."),
    ("Hindi", "बच्चे पार्क में फुटबॉल खेल रहे हैं।"),
    ("Vietnamese", "Bọn trẻ đang chơi bóng đá trong công viên."),
    ("something else", "The central bank raised its interest rates again."),
    ("in Spanish", "La receta lleva dos huevos y un poco de harina."),
)
"""(label, sentence): one sentence in eight languages, then two about something else."""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One function found."""

    name: str
    summary: str
    similarity: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One question and the best functions, best first."""

    language: str
    question: str
    hits: list[Hit]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Everything the demo shows."""

    model: str
    fingerprint: str
    dimensions: int
    precision: str
    device: str
    python: str
    functions: int
    tokens: int
    seconds: float
    """Embedding the functions; loading and parsing not included."""
    answers: list[Answer]
    sentences: list[tuple[str, str]]
    similarities: list[list[float]]
    """Cosine of every two sentences."""


def demo(
    *,
    choice: ModelChoice = ModelChoice(),  # noqa: B008  frozen
    runtime: Runtime = Runtime(),  # noqa: B008
    as_json: JsonFlag = False,
) -> None:
    """Search Python's standard library in six languages, in a few seconds.

    Nothing is downloaded: the documents are the public functions of the Python that runs udever.
    """
    from udever.cli.demo_view import console, show, status

    screen = console()
    with status("loading the model and reading Python's standard library …"):
        result = run(load(choice.model, runtime))
    if as_json:
        print(json.dumps(asdict(result), ensure_ascii=False))
    else:
        show(result, screen)


def run(model: "Embedder") -> Demo:
    """Read, embed, ask, compare."""
    functions = standard_library()
    texts = [function.document for function in functions]
    started = time.perf_counter()
    documents = model.embed(texts, role="document", max_tokens=DOCUMENT_TOKENS, truncate="end")
    seconds = time.perf_counter() - started
    sentences = model.embed([sentence for _, sentence in SENTENCES], role="query")
    return Demo(
        model=model.name,
        fingerprint=model.fingerprint,
        dimensions=model.dimensions,
        precision=model.precision,
        device=model.device,
        python=platform.python_version(),
        functions=len(functions),
        tokens=sum(min(count, DOCUMENT_TOKENS) for count in model.count_tokens(texts, role="document")),
        seconds=seconds,
        answers=_answers(model, functions, documents),
        sentences=list(SENTENCES),
        similarities=(sentences @ sentences.T).tolist(),
    )


def _answers(model: "Embedder", functions: list[Function], documents: Any) -> list[Answer]:
    """documents: float32 [len(functions), d], unit length."""
    questions = model.embed([question for _, question in QUESTIONS], role="query")
    answers = []
    for (language, question), similarities in zip(QUESTIONS, questions @ documents.T, strict=True):
        best = (-similarities).argsort(kind="stable")[:ANSWERS]
        hits = [
            Hit(name=functions[i].name, summary=functions[i].summary, similarity=float(similarities[i])) for i in best
        ]
        answers.append(Answer(language=language, question=question, hits=hits))
    return answers
