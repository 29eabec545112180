"""Texts to begin with: across languages, code search, a FAQ.

Invariant: queries and documents within the playground's limits; nothing here claims what a model makes of them.
Does not know: models or pages.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Queries and documents that show one use."""

    name: str
    """As it stands in the address."""
    title: str
    summary: str
    queries: tuple[str, ...]
    documents: tuple[str, ...]
    code: bool = False
    """The documents are program text."""


_LANGUAGES = Preset(
    name="languages",
    title="Across languages",
    summary="Eight questions in eight languages; each answer is in another one.",
    queries=(
        "When does the museum open?",
        "¿Cómo llego al aeropuerto?",
        "明天会下雨吗？",
        "كيف أتعلم لغة جديدة؟",
        "Wie kann ich mein Passwort ändern?",
        "Comment cuire le riz ?",
        "भारत की राजधानी क्या है?",
        "Кто победил в футбольном матче?",
    ),
    documents=(
        "Das Museum ist täglich außer montags von neun bis achtzehn Uhr geöffnet.",
        "空港へは中央駅から急行列車で二十五分です。",
        "Rain will reach the whole country tomorrow afternoon.",
        "Aprender un idioma nuevo exige practicar un poco cada día.",
        "Para cambiar su contraseña, abra el enlace del correo.",
        "Rice is cooked in water over low heat for twelve minutes.",
        "New Delhi is the capital of India.",
        "Die Mannschaft gewann das Fußballspiel mit drei zu eins.",
    ),
)
_CODE = Preset(
    name="code",
    title="Code search",
    summary="What a programmer would ask for, and functions in Python, JavaScript, Go and SQL.",
    code=True,
    queries=(
        "read a JSON file",
        "sort people by age",
        "retry a request after an error",
        "remove duplicates from a list",
        "count the words of a text",
    ),
    documents=(
        "def load(path):\n    with open(path) as file:\n        return json.load(file)",
        "people.sort((a, b) => a.age - b.age);",
        "for attempt in range(5):\n    try:\n        return fetch(url)\n    except IOError:\n"
        "        time.sleep(2 ** attempt)",
        "def unique(items):\n    seen = set()\n    return [x for x in items if not (x in seen or seen.add(x))]",
        "func wordCount(s string) int {\n\treturn len(strings.Fields(s))\n}",
        "SELECT name, city FROM users WHERE city = 'Oslo';",
    ),
)
_FAQ = Preset(
    name="faq",
    title="FAQ",
    summary="What customers write, and the help pages of a shop.",
    queries=(
        "my parcel has not arrived",
        "can I pay in instalments?",
        "I forgot my password",
        "how do I delete my account?",
        "do you have a discount for students?",
    ),
    documents=(
        "To reset your password, follow the link on the sign-in page.",
        "Your order was not delivered? After ten days we send it again or refund it.",
        "Payment: the price can be split into three monthly instalments.",
        "To delete your account, open Settings and then Privacy.",
        "Students and teachers get a discount of 20 % with a valid card.",
        "Our shops are open Monday to Saturday from nine to six.",
        "We ship to all countries of the European Union and to Norway.",
    ),
)
_BLANK = Preset(name="blank", title="Your own texts", summary="Begin with nothing.", queries=("",), documents=("", ""))

PRESETS = {preset.name: preset for preset in (_LANGUAGES, _CODE, _FAQ, _BLANK)}
"""By name; the first one is what the playground opens with."""
