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
from typing import TYPE_CHECKING

from mae.arguments.flags import DATA, HARDWARE, MODEL, Arguments, Rule, flag
from mae.cli.parser import parse_arguments
from mae.cli.script import run_script
from mae.utils.errors import UserError


if TYPE_CHECKING:
    import gradio

    from mae.cli.demo import Demo, Examples


DEFAULT_MODEL = "outputs/run_mae"
TITLE = "Masked Autoencoder"
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


def build_page(demo: "Demo", examples: "Examples") -> "gradio.Blocks":
    """The page: what a visitor chooses on the left, and the pictures on the right or, on a phone, below."""
    import gradio as gr

    from mae.cli.demo import MASKINGS

    def refuse(error: Exception) -> None:
        raise gr.Error(str(error), duration=None, print_exception=False)

    def open_image(name, path):
        """Show an image on the canvas, without paint."""
        try:
            return {"background": demo.open(name, path).picture, "layers": [], "composite": None}
        except UserError as error:
            refuse(error)

    def show(name, path, masking, ratio, seed, canvas):
        layers = (canvas or {}).get("layers") or []
        paint = layers[0][..., 3] if layers else None
        try:
            found = demo.show(name, demo.open(name, path), masking, ratio, seed or 0, paint)
        except UserError as error:
            refuse(error)
        return found.masked, found.reconstruction, found.error, found.attention, found.note

    def choose(event: gr.SelectData):
        return examples.files[event.index], None

    problem = demo.problem_of(demo.names[0])
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\nRemove patches of an image, and see what the model predicts for them.")
        if problem is not None:
            gr.Markdown(
                f"**No model yet.** {problem}\n\nMake the default model in 3 minutes on 2 CPU cores, and start this "
                "page again:\n\n```\naccelerate launch examples/run_mae.py\n```"
            )
        path = gr.State(examples.files[0])
        with gr.Row():
            with gr.Column(min_width=300):
                model = gr.Dropdown(
                    demo.names,
                    value=demo.names[0],
                    label="Model",
                    info="One of the list, or a model of pre-training on the Hub, as owner/name.",
                    allow_custom_value=True,
                )
                gallery = gr.Gallery(
                    examples.thumbnails,
                    label="Images",
                    columns=4,
                    height=270,
                    allow_preview=False,
                    object_fit="contain",
                )
                upload = gr.File(label="Or your image", file_count="single", type="filepath", height=110)
                masking = gr.Radio([*MASKINGS, "painted"], value="random", label="Mask")
                ratio = gr.Slider(0.05, 0.95, value=0.75, step=0.05, label="Share of removed patches (random, block)")
                seed = gr.Number(0, label="Seed of the mask", precision=0, minimum=0, maximum=2**31)
                canvas = gr.ImageEditor(
                    label="Paint here",
                    type="numpy",
                    image_mode="RGBA",
                    sources=(),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(default_size=30, colors=["#e0218a"], color_mode="fixed"),
                    height=460,
                )
                button = gr.Button("Reconstruct", variant="primary")
            with gr.Column(min_width=300):
                titles = ("Masked image", "Reconstruction", "Error", "Attention of cls")
                pictures = [
                    gr.Image(
                        label=title,
                        elem_id=title.split()[0].lower(),
                        buttons=["fullscreen"],
                        interactive=False,
                        render=False,
                    )
                    for title in titles
                ]
                for two in (pictures[:2], pictures[2:]):
                    with gr.Row():
                        for picture in two:
                            picture.render()
                note = gr.Markdown()

        inputs = [model, path, masking, ratio, seed, canvas]
        outputs = [*pictures, note]
        drawn = {"fn": show, "inputs": inputs, "outputs": outputs, "concurrency_id": "model"}
        opened = {"fn": open_image, "inputs": [model, path], "outputs": canvas, "concurrency_id": "model"}
        gallery.select(choose, None, [path, upload]).then(**opened).success(**drawn)
        upload.upload(lambda chosen: chosen, upload, path).then(**opened).success(**drawn)
        model.change(**opened).success(**drawn)
        gr.on([button.click, masking.select, ratio.release, seed.submit], **drawn)
        if problem is None:
            page.load(**opened).success(**drawn)
    return page


def main() -> None:
    (arguments,) = parse_arguments(DemoArguments, description=__doc__)
    # Imported after parsing, so that --help and a mistake on the command line need not wait for them.
    try:
        import gradio as gr
    except ImportError:
        raise UserError("The page needs Gradio. Install it with `pip install gradio`.") from None

    from accelerate import PartialState

    from mae.cli.demo import MAX_BYTES, Demo, save_examples

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
