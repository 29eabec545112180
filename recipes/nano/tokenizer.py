"""Trains the tokenizer: byte-level BPE behind BLOOM's own pre-tokenisation, balanced over languages.

Invariant: ids 0-3 are BLOOM's <unk> <s> </s> <pad>, then come the four markers; there is no normaliser, so
decoding gives the text back byte for byte.
"""

import argparse
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from data import Example, examples
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "[BOQ]", "[EOQ]", "[BOD]", "[EOD]")
BOQ, EOQ, BOD, EOD = 4, 5, 6, 7
BLOOM_SPLIT = " ?[^(\\s|[.,!?…。，、।۔،])]+"
TECHNICAL = {"ui", "debian", "lexicon"}
LONG_CODES = (
    "arb:ar asm:as ben:bn cat:ca eng:en spa:es eus:eu fra:fr guj:gu hin:hi ind:id ibo:ig kan:kn mal:ml mar:mr "
    "npi:ne nep:ne ory:or pan:pa por:pt kin:rw swh:sw swa:sw tam:ta tel:te tsn:tn tso:ts urd:ur vie:vi wol:wo "
    "xho:xh yor:yo zho:zh zul:zu deu:de rus:ru jpn:ja kor:ko ita:it nld:nl pol:pl tur:tr sot:st sna:sn nya:ny "
    "lin:ln lug:lg bam:bm aka:tw twi:tw"
)
SHORT_CODES = dict(pair.split(":") for pair in LONG_CODES.split())


def language(label: str) -> str:
    """One name for the many labels of a language in the data ("por-BR", "por_Latn", "pt_BR" are all "pt")."""
    short = label.replace("@", "_").replace("-", "_").split("_")[0]
    return SHORT_CODES.get(short, short)


def balanced(found: Iterable[Example], budget_chars: int, seed: int = 0) -> Iterator[str]:
    """Texts of a budget of characters a language: everyday ones first, a quarter at most of technical ones.

    Left alone, interface strings would decide which words of Italian are worth an entry of their own.
    """
    everyday: dict[str, list[str]] = defaultdict(list)
    technical: dict[str, list[str]] = defaultdict(list)
    for e in found:
        (technical if e.group in TECHNICAL else everyday)[language(e.lang)].append(e.text)
    rng = random.Random(seed)
    for lang in sorted({*everyday, *technical}):
        budget = budget_chars * (5 if lang == "en" else 1)
        yield from _within(rng, everyday[lang], budget)
        yield from _within(rng, technical[lang], budget // 4)


def _within(rng: random.Random, texts: list[str], budget_chars: int) -> Iterator[str]:
    rng.shuffle(texts)
    for text in texts:
        if budget_chars <= 0:
            return
        budget_chars -= len(text)
        yield text


def train(texts: Iterable[str], entries: int) -> Tokenizer:
    """A tokenizer of exactly `entries` ids, the special ones included."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(BLOOM_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main() -> None:
    """Trains on `--data` and writes `--work`/tokenizer.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--entries", type=int, default=45_056)
    parser.add_argument("--budget-chars", type=int, default=1_600_000)
    args = parser.parse_args()
    tokenizer = train(balanced(examples(args.data), args.budget_chars), args.entries)
    tokenizer.save(str(args.work / "tokenizer.json"), pretty=False)
    print(tokenizer.get_vocab_size(), "entries")


if __name__ == "__main__":
    main()
