"""Names of languages, for people who filter by them.

Invariant: the codes are those of ISO 639, with the script behind a hyphen where a language is counted once for each.
Does not know: which model knows which language.
"""

from types import MappingProxyType

NAMES = MappingProxyType(
    {
        "af": "Afrikaans",
        "ak": "Akan",
        "am": "Amharic",
        "ar": "Arabic",
        "as": "Assamese",
        "az": "Azerbaijani",
        "be": "Belarusian",
        "bg": "Bulgarian",
        "bm": "Bambara",
        "bn": "Bengali",
        "bs": "Bosnian",
        "ca": "Catalan",
        "cs": "Czech",
        "cy": "Welsh",
        "da": "Danish",
        "de": "German",
        "el": "Greek",
        "en": "English",
        "eo": "Esperanto",
        "es": "Spanish",
        "et": "Estonian",
        "eu": "Basque",
        "fa": "Persian",
        "fi": "Finnish",
        "fon": "Fon",
        "fr": "French",
        "ga": "Irish",
        "gl": "Galician",
        "gu": "Gujarati",
        "ha": "Hausa",
        "he": "Hebrew",
        "hi": "Hindi",
        "hr": "Croatian",
        "hu": "Hungarian",
        "hy": "Armenian",
        "id": "Indonesian",
        "ig": "Igbo",
        "is": "Icelandic",
        "it": "Italian",
        "ja": "Japanese",
        "jv": "Javanese",
        "ka": "Georgian",
        "ki": "Kikuyu",
        "kk": "Kazakh",
        "km": "Khmer",
        "kn": "Kannada",
        "ko": "Korean",
        "ky": "Kyrgyz",
        "la": "Latin",
        "lg": "Luganda",
        "ln": "Lingala",
        "lo": "Lao",
        "lt": "Lithuanian",
        "lv": "Latvian",
        "mg": "Malagasy",
        "mi": "Maori",
        "mk": "Macedonian",
        "ml": "Malayalam",
        "mn": "Mongolian",
        "mr": "Marathi",
        "ms": "Malay",
        "mt": "Maltese",
        "my": "Burmese",
        "ne": "Nepali",
        "nl": "Dutch",
        "no": "Norwegian",
        "nso": "Northern Sotho",
        "ny": "Chichewa",
        "or": "Odia",
        "pa": "Punjabi",
        "pl": "Polish",
        "ps": "Pashto",
        "pt": "Portuguese",
        "rn": "Kirundi",
        "ro": "Romanian",
        "ru": "Russian",
        "rw": "Kinyarwanda",
        "sd": "Sindhi",
        "si": "Sinhala",
        "sk": "Slovak",
        "sl": "Slovenian",
        "sn": "Shona",
        "so": "Somali",
        "sq": "Albanian",
        "sr": "Serbian",
        "st": "Sesotho",
        "sv": "Swedish",
        "sw": "Swahili",
        "ta": "Tamil",
        "te": "Telugu",
        "tg": "Tajik",
        "th": "Thai",
        "tk": "Turkmen",
        "tl": "Tagalog",
        "tn": "Setswana",
        "tr": "Turkish",
        "ts": "Tsonga",
        "tum": "Tumbuka",
        "tw": "Twi",
        "ug": "Uyghur",
        "uk": "Ukrainian",
        "ur": "Urdu",
        "uz": "Uzbek",
        "vi": "Vietnamese",
        "wo": "Wolof",
        "xh": "Xhosa",
        "yi": "Yiddish",
        "yo": "Yoruba",
        "zh": "Chinese",
        "zh-Hans": "Chinese (simplified)",
        "zh-Hant": "Chinese (traditional)",
        "zu": "Zulu",
    }
)


LONG_CODES = MappingProxyType(
    {
        "aka": "ak", "arb": "ar", "asm": "as", "bam": "bm", "ben": "bn", "cat": "ca", "deu": "de", "eng": "en",
        "eus": "eu", "fra": "fr", "guj": "gu", "hin": "hi", "ibo": "ig", "ind": "id", "ita": "it", "jpn": "ja",
        "kan": "kn", "kik": "ki", "kin": "rw", "kor": "ko", "lin": "ln", "lug": "lg", "mal": "ml", "mar": "mr",
        "nld": "nl", "npi": "ne", "nya": "ny", "ory": "or", "pan": "pa", "pol": "pl", "por": "pt", "run": "rn",
        "rus": "ru", "sna": "sn", "sot": "st", "spa": "es", "swh": "sw", "tam": "ta", "tel": "te", "tsn": "tn",
        "tso": "ts", "tur": "tr", "twi": "tw", "urd": "ur", "vie": "vi", "wol": "wo", "xho": "xh", "yor": "yo",
        "zul": "zu",
    }
)  # fmt: skip
"""FLORES and others write three letters and a script: "arb_Arab"."""
PROGRAMMING = MappingProxyType(
    {"go": "Go", "java": "Java", "javascript": "JavaScript", "php": "PHP", "python": "Python", "ruby": "Ruby"}
)


def language_name(code: str) -> str:
    """A language's English name, or its code; also of "arb_Arab" and of programming languages in small letters."""
    long, _, script = code.partition("_")
    known = (code, code.replace("zho_", "zh-"), LONG_CODES.get(long, long) if script else code)
    return next((NAMES[name] for name in known if name in NAMES), PROGRAMMING.get(code, code))
