"""The page of examples/demo.py, by Gradio."""

import gradio as gr

from mae.cli.demo import MASKINGS, Demo, Examples
from mae.utils.errors import UserError


_TITLE = "Masked Autoencoder"


def _refusal(error: UserError) -> gr.Error:
    """An error as a sentence on the page, until the visitor closes it."""
    return gr.Error(str(error), duration=None, print_exception=False)


def build_page(demo: Demo, examples: Examples) -> gr.Blocks:
    """The page: what a visitor chooses on the left, and the pictures on the right or, on a phone, below."""

    def open_image(name, path):
        """Show an image on the canvas, without paint."""
        try:
            return {"background": demo.open(name, path).picture, "layers": [], "composite": None}
        except UserError as error:
            raise _refusal(error) from None

    def show(name, path, masking, ratio, seed, canvas):
        layers = (canvas or {}).get("layers") or []
        paint = layers[0][..., 3] if layers else None
        try:
            found = demo.show(name, demo.open(name, path), masking, ratio, seed or 0, paint)
        except UserError as error:
            raise _refusal(error) from None
        return found.masked, found.reconstruction, found.error, found.attention, found.note

    def choose(event: gr.SelectData):
        return examples.files[event.index], None

    problem = demo.problem_of(demo.names[0])
    with gr.Blocks(title=_TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {_TITLE}\nRemove patches of an image, and see what the model predicts for them.")
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
