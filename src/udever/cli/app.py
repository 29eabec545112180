"""The table of commands: name, the function behind it (imported when it is called), the line in `udever --help`.

Invariant: importing this module imports cyclopts and nothing heavier.
Does not know: what a command does or which options it takes; that stands in the command's own file.
"""

from cyclopts import App

from udever import __version__

app = App(
    name="udever",
    help="One exact, fast text embedder for every language, human or programming.",
    help_epilogue=(
        "Every command takes --help, and --debug: show a traceback when something fails.\n\nStart with: udever demo"
    ),
    help_format="plaintext",  # Markdown costs 50 ms and we write none
    version=f"udever {__version__}",
    suppress_keyboard_interrupt=False,  # main() says it in one line, with exit code 130
)

COMMANDS = {
    "embed": ("udever.cli.embed:embed", "Embed the texts of files, folders or stdin."),
    "bulk": ("udever.cli.bulk:bulk", "Embed files of any size into a folder, resumably."),
    "verify": ("udever.cli.verify:verify", "Check the output of udever bulk: files, model, sampled vectors."),
    "similarity": ("udever.cli.similarity:similarity", "Print the cosine similarity of two texts."),
    "models": ("udever.cli.models:models", "List the models udever knows by name."),
    "info": ("udever.cli.models:info", "Describe one model."),
    "data": ("udever.cli.data:app", "Import training data; look at what was imported."),
    "mine": ("udever.cli.mine:mine", "Find hard negatives for training data with any model."),
    "serve": ("udever.cli.serve:serve", "Serve embeddings over HTTP, as OpenAI does."),
    "keys": ("udever.cli.keys:app", "Make, list, revoke and rotate API keys; give accounts credit."),
    "usage": ("udever.cli.usage:usage", "Show what was used, by day, model and key."),
    "card": ("udever.cli.card:card", "Put measured scores into a trained model's card."),
    "delta": ("udever.cli.delta:app", "Show what a fine-tune moved; merge, extract and average deltas."),
    "export": ("udever.cli.export:export", "Write a model for sentence-transformers or ONNX Runtime."),
    "train": ("udever.cli.train:train", "Train a model by a recipe, or go on with a run."),
    "evaluate": ("udever.cli.evaluate:app", "Measure a model: on MTEB, CodeSearchNet, Multi-CPR or your own data."),
    "report": ("udever.cli.report:report", "Tables and figures of results, beside the published numbers."),
    "demo": ("udever.cli.demo:demo", "Search Python's standard library in six languages, in a few seconds."),
}
"""Command → (import path, summary)."""

TAKES_FILES = frozenset({"embed", "bulk"})
"""Commands whose arguments without a dash are files: behind a `--`, those with one are, too."""

for name, (import_path, summary) in COMMANDS.items():
    app.command(import_path, name=name, help=summary)
