"""MTEB(eng, v1): its 56 tasks by category, and the rule that turns their scores into means.

    category = mean of its tasks      average = mean of all 56, not of the seven categories

Invariant: a mean exists only if every task of it does; a task that is missing is named, never averaged away.
CQADupstack's twelve forums are one task, their mean. Of a task in several languages only the English subset counts, of
MSMARCO the dev split, of every other task the test split.
Does not know: mteb (its JSON is read by mteb_files.py), models, or how a table looks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

CQADUPSTACK = "CQADupstackRetrieval"
"""The task; its forums have results of their own."""

FORUMS = tuple(
    f"CQADupstack{forum}Retrieval"
    for forum in (
        "Android", "English", "Gaming", "Gis", "Mathematica", "Physics",
        "Programmers", "Stats", "Tex", "Unix", "Webmasters", "Wordpress",
    )
)  # fmt: skip

CATEGORIES: Mapping[str, tuple[str, ...]] = {
    "Classification": (
        "AmazonCounterfactualClassification",
        "AmazonPolarityClassification",
        "AmazonReviewsClassification",
        "Banking77Classification",
        "EmotionClassification",
        "ImdbClassification",
        "MTOPDomainClassification",
        "MTOPIntentClassification",
        "MassiveIntentClassification",
        "MassiveScenarioClassification",
        "ToxicConversationsClassification",
        "TweetSentimentExtractionClassification",
    ),
    "Clustering": (
        "ArxivClusteringP2P",
        "ArxivClusteringS2S",
        "BiorxivClusteringP2P",
        "BiorxivClusteringS2S",
        "MedrxivClusteringP2P",
        "MedrxivClusteringS2S",
        "RedditClustering",
        "RedditClusteringP2P",
        "StackExchangeClustering",
        "StackExchangeClusteringP2P",
        "TwentyNewsgroupsClustering",
    ),
    "Pair classification": ("SprintDuplicateQuestions", "TwitterSemEval2015", "TwitterURLCorpus"),
    "Reranking": ("AskUbuntuDupQuestions", "MindSmallReranking", "SciDocsRR", "StackOverflowDupQuestions"),
    "Retrieval": (
        "ArguAna",
        CQADUPSTACK,
        "ClimateFEVER",
        "DBPedia",
        "FEVER",
        "FiQA2018",
        "HotpotQA",
        "MSMARCO",
        "NFCorpus",
        "NQ",
        "QuoraRetrieval",
        "SCIDOCS",
        "SciFact",
        "TRECCOVID",
        "Touche2020",
    ),
    "STS": (
        "BIOSSES",
        "SICK-R",
        "STS12",
        "STS13",
        "STS14",
        "STS15",
        "STS16",
        "STS17",
        "STS22",
        "STSBenchmark",
    ),
    "Summarisation": ("SummEval",),
}
"""Category → tasks, in the order of the published tables."""

TASKS = tuple(task for tasks in CATEGORIES.values() for task in tasks)
CATEGORY_OF = {task: category for category, tasks in CATEGORIES.items() for task in tasks}

DEFAULT_SUBSET = "default"
SUBSETS = {
    "AmazonCounterfactualClassification": "en",
    "AmazonReviewsClassification": "en",
    "MTOPDomainClassification": "en",
    "MTOPIntentClassification": "en",
    "MassiveIntentClassification": "en",
    "MassiveScenarioClassification": "en",
    "STS17": "en-en",
    "STS22": "en",
}
"""The subset that counts; "default" for every other task."""

DEFAULT_SPLIT = "test"
SPLITS = {"MSMARCO": "dev"}
"""The split that counts; "test" for every other task."""

METRICS = dict.fromkeys(CATEGORIES["Pair classification"], ("cosine_ap", "cos_sim_ap"))
"""What is taken instead of mteb's main score, which is the best of several similarities where the published tables have
the cosine's (two spellings, of later and earlier results)."""


def counts(task: str) -> bool:
    """Whether a task is among the 56, or is a forum of CQADupstack."""
    return task in CATEGORY_OF or task in FORUMS


def subset_of(task: str) -> str:
    """The subset that counts."""
    return SUBSETS.get(task, DEFAULT_SUBSET)


def split_of(task: str) -> str:
    """The split that counts."""
    return SPLITS.get(task, DEFAULT_SPLIT)


@dataclass(frozen=True, kw_only=True)
class CategoryMean:
    """One category of one model."""

    category: str
    scores: Mapping[str, float]
    """Of the tasks that are there."""
    missing: tuple[str, ...]

    @property
    def tasks(self) -> int:
        """How many tasks the category has."""
        return len(self.scores) + len(self.missing)

    @property
    def value(self) -> float | None:
        """The mean, or None if a task is missing."""
        return None if self.missing else fmean(self.scores.values())


@dataclass(frozen=True, kw_only=True)
class Averages:
    """The means of one model, in the scale of the scores they were taken of."""

    categories: tuple[CategoryMean, ...]

    @property
    def value(self) -> float | None:
        """The mean of all 56 tasks, or None if one is missing."""
        if any(category.missing for category in self.categories):
            return None
        return fmean(score for category in self.categories for score in category.scores.values())

    @property
    def present(self) -> int:
        """How many of the 56 are there."""
        return sum(len(category.scores) for category in self.categories)


def averages(scores: Mapping[str, float]) -> Averages:
    """The means of task → score; tasks that are not among the 56 do not count, CQADupstack's forums count as one."""
    known = fold_forums(scores)
    return Averages(categories=tuple(_mean(category, tasks, known) for category, tasks in CATEGORIES.items()))


def fold_forums(scores: Mapping[str, float]) -> dict[str, float]:
    """CQADupstack's twelve forums as one task, if all are there; its own result, where there is one, comes first."""
    folded = {task: score for task, score in scores.items() if task not in FORUMS}
    if CQADUPSTACK not in folded and all(forum in scores for forum in FORUMS):
        folded[CQADUPSTACK] = fmean(scores[forum] for forum in FORUMS)
    return folded


def missing_forums(tasks: Iterable[str]) -> tuple[str, ...]:
    """The forums that keep CQADupstack from being complete; none if it is, or if no forum is there."""
    there = set(tasks)
    if CQADUPSTACK in there:
        return ()
    return tuple(forum for forum in FORUMS if forum not in there) if there & set(FORUMS) else ()


def _mean(category: str, tasks: tuple[str, ...], known: Mapping[str, float]) -> CategoryMean:
    return CategoryMean(
        category=category,
        scores={task: known[task] for task in tasks if task in known},
        missing=tuple(task for task in tasks if task not in known),
    )
