"""
A page to try a model: mask an image, and see what the model reconstructs.

    python examples/demo.py                                the model of the default run, on the embedded emoji
    ... --model outputs/mine facebook/vit-mae-base         a list to choose from
    ... --server_name 0.0.0.0 --server_port 8000           for other machines in the network

Choose or upload an image, and mask it by a ratio, or paint the patches to remove. The page shows the reconstruction,
its error and the attention of the cls token. A visitor may name other models on the Hub. It needs the extra `demo`.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mae.arguments.flags import DATA, HARDWARE, MODEL, Arguments, Rule, flag
from mae.cli.parser import parse_arguments
from mae.cli.script import run_script
from mae.utils.errors import UserError


DEFAULT_MODEL = "outputs/run_mae"
NUM_EXAMPLES = 8
PORT = Rule("must be a port, 1 to 65535", lambda port: 1 <= port <= 65535)


@dataclass(kw_only=True)
class DemoArguments(Arguments):
    model: list[str] | None = flag(
        None,
        "Models to choose from: directories, files, or models on the Hub.",
        group=MODEL,
        default_words=f"the variable MAE_MODEL, or {DEFAULT_MODEL}",
        is_path=True,
        aliases=("--model_name_or_path",),
    )
    examples: str | None = flag(
        None,
        "Folder or dataset whose first images stand on the page.",
        group=DATA,
        default_words="the embedded emoji",
        is_path=True,
    )
    server_name: str = flag("127.0.0.1", "Address of the page.", group=HARDWARE)
    server_port: int | None = flag(
        None, "Port of the page.", group=HARDWARE, default_words="the first free one from 7860", rule=PORT
    )


def main() -> None:
    (arguments,) = parse_arguments(DemoArguments, description=__doc__)
    # Imported after parsing, so that --help and a mistake on the command line need not wait for them.
    try:
        import gradio as gr
    except ImportError:
        raise UserError("The page needs Gradio. Install it with `pip install gradio`.") from None

    from accelerate import PartialState

    from mae.cli.demo import MAX_BYTES, Demo, save_examples
    from mae.cli.demo_page import build_page

    demo = Demo(arguments.model or os.environ.get("MAE_MODEL", DEFAULT_MODEL).split(","), PartialState().device)
    with tempfile.TemporaryDirectory() as folder:
        examples = save_examples(arguments.examples, NUM_EXAMPLES, demo, Path(folder))
        page = build_page(demo, examples)
        page.queue(max_size=20, default_concurrency_limit=1)  # a queue that cannot grow without end
        page.launch(
            server_name=arguments.server_name,
            server_port=arguments.server_port,
            max_file_size=MAX_BYTES,
            allowed_paths=[folder],
            # Fonts of the visitor's machine: no request to other hosts.
            theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            footer_links=[],
            show_error=True,
        )


if __name__ == "__main__":
    run_script(main, can_resume=False)
