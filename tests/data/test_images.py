"""Images: files within limits, and the path from a picture to the tensors of a LLaVA batch."""

import io
import os
from pathlib import Path

import pytest
import torch
from PIL import Image as Pillow
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from holdfast.data.collate import pad
from holdfast.data.images import ImageSettings, keep, open_image, refer
from holdfast.data.schema import Conversation, Image, Message
from holdfast.data.template import PromptTooLong, Template
from holdfast.errors import UserError

CHAT = (
    "{%- for m in messages %}{{- '<|' + m.role + '|> ' }}{%- for part in m.content %}"
    "{{- '<image> ' if part.type == 'image' else part.text + ' ' }}{%- endfor %}{{- '<end> ' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|> ' }}{%- endif %}"
)
WORDS = [
    "<pad>",
    "<end>",
    "<image>",
    "<|user|>",
    "<|assistant|>",
    "[UNK]",
    "what",
    "is",
    "this",
    "red",
    "blue",
]
# An image of 16 x 16 in patches of 8 gives 4 tokens.
TOKENS = 4


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="[UNK]",
        additional_special_tokens=["<image>", "<|user|>", "<|assistant|>"],
    )
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        # The class token of the vision tower, which the strategy drops again.
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )


def picture(folder, colour: str, size: tuple[int, int] = (16, 16), kind: str = "PNG") -> Image:
    path = folder / f"{colour}-{size[0]}.{kind.lower()}"
    Pillow.new("RGB", size, colour).save(path, kind)
    return refer(path)


def test_files_are_known_by_the_hash_of_their_bytes(tmp_path) -> None:
    red, blue = picture(tmp_path, "red"), picture(tmp_path, "blue")
    assert red.sha256 != blue.sha256
    assert red == picture(tmp_path, "red")
    assert open_image(red, ImageSettings()).getpixel((3, 3)) == (255, 0, 0)
    with pytest.raises(UserError, match=r"no image file at .*none\.png"):
        refer(tmp_path / "none.png")


def test_embedded_images_are_saved_once_under_their_hash(tmp_path) -> None:
    red = Pillow.new("RGB", (4, 4), "red")
    stream = io.BytesIO()
    red.save(stream, format="PNG")
    kept = [
        keep(red, tmp_path / "out"),
        keep(stream.getvalue(), tmp_path / "out"),
        keep({"bytes": stream.getvalue(), "path": "any.png"}, tmp_path / "out"),
    ]
    assert kept[0] == kept[1] == kept[2] == refer(kept[0].path)
    assert [file.name for file in (tmp_path / "out").iterdir()] == [f"{kept[0].sha256}.png"]
    with pytest.raises(UserError, match="must be a path, bytes or a Pillow image, not int"):
        keep(7, tmp_path)


def test_a_picture_whose_writing_was_cut_short_is_not_there(tmp_path, monkeypatch) -> None:
    stream = io.BytesIO()
    Pillow.new("RGB", (4, 4), "red").save(stream, format="PNG")
    whole = Path.write_bytes

    def killed(file, content):
        whole(file, content[:20])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        keep(stream.getvalue(), tmp_path)
    monkeypatch.setattr(Path, "write_bytes", whole)
    assert open_image(keep(stream.getvalue(), tmp_path), ImageSettings()).size == (4, 4)


def test_a_picture_may_be_written_by_two_at_once(tmp_path, monkeypatch) -> None:
    whole, waiting = Path.write_bytes, [b"a picture"]

    def meanwhile(file, content):
        whole(file, content)
        if waiting:
            keep(waiting.pop(), tmp_path)

    monkeypatch.setattr(Path, "write_bytes", meanwhile)
    kept = keep(b"a picture", tmp_path)
    assert kept == refer(kept.path)
    assert [str(file) for file in tmp_path.iterdir()] == [kept.path]


def test_grey_and_transparent_pictures_become_rgb(tmp_path) -> None:
    for mode in ("L", "RGBA", "P", "1"):
        Pillow.new(mode, (4, 4)).save(tmp_path / f"{mode}.png")
        assert open_image(refer(tmp_path / f"{mode}.png"), ImageSettings()).mode == "RGB"


def test_pictures_outside_the_limits_are_refused(tmp_path) -> None:
    exact = picture(tmp_path, "red", (10, 10))
    assert open_image(exact, ImageSettings(max_pixels=100)).size == (10, 10)
    with pytest.raises(UserError, match="10 x 10 pixels, more than the 99 allowed"):
        open_image(exact, ImageSettings(max_pixels=99))
    with pytest.raises(UserError, match="cannot be read as JPEG"):
        open_image(exact, ImageSettings(formats=("JPEG",)))


def test_files_that_are_no_pictures_are_refused(tmp_path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match=r"text\.png cannot be read as PNG"):
        open_image(refer(tmp_path / "text.png"), ImageSettings())
    whole = picture(tmp_path, "red", (64, 64))
    cut = tmp_path / "cut.png"
    with open(whole.path, "rb") as stream:
        cut.write_bytes(stream.read()[:80])
    with pytest.raises(UserError, match=r"cut\.png cannot be read"):
        open_image(refer(cut), ImageSettings())


def test_a_changed_or_lost_file_is_noticed(tmp_path) -> None:
    red = picture(tmp_path, "red")
    Pillow.new("RGB", (16, 16), "blue").save(red.path)
    with pytest.raises(UserError, match="another hash than the one recorded"):
        open_image(red, ImageSettings())
    os.remove(red.path)
    with pytest.raises(UserError, match="no image file at"):
        open_image(red, ImageSettings())


def test_an_image_takes_its_tokens_in_the_prompt(processor, tmp_path) -> None:
    template = Template(processor, max_length=64)
    talk = Conversation.ask("what is this", (picture(tmp_path, "red"),), id="1").answer("red")
    words = [
        "<|user|>",
        *["<image>"] * TOKENS,
        "what",
        "is",
        "this",
        "<end>",
        "<|assistant|>",
        "red",
        "<end>",
    ]
    row = template.answered(talk)
    assert [WORDS[i] for i in row.ids] == words
    assert row.response_mask == [False] * (len(words) - 2) + [True, True]
    assert row.ids[: row.prompt_length] == template.prompt(talk).ids
    text_only = template.answered(Conversation.ask("what is this").answer("red"))
    assert text_only.length == row.length - TOKENS
    assert text_only.images == []


def test_a_known_image_is_opened_once_for_its_tokens_and_one_without_a_hash_each_time(
    processor, tmp_path, monkeypatch
) -> None:
    opened = []
    monkeypatch.setattr(
        "holdfast.data.template.open_image", lambda image, limits: opened.append(image) or open_image(image, limits)
    )
    template, red = Template(processor, max_length=64), picture(tmp_path, "red")
    rows = [template.prompt(Conversation.ask("what is this", (red,))) for _ in range(2)]
    rows.append(template.answered(Conversation.ask("what is this", (red,)).answer("red")))
    assert opened == [red]
    assert [[pixels.image for pixels in row.images] for row in rows] == [[red]] * 3
    nameless = red.model_copy(update={"sha256": ""})
    for _ in range(2):
        assert template.prompt(Conversation.ask("what is this", (nameless,))).ids == rows[0].ids
    assert opened == [red, nameless, nameless]


def test_images_of_several_turns_stand_where_they_were_shown(processor, tmp_path) -> None:
    red, blue = picture(tmp_path, "red"), picture(tmp_path, "blue")
    turns = (
        Message.of("user", "what is this", (red,)),
        Message.of("assistant", "red"),
        Message.of("user", "this", (blue, red)),
    )
    row = Template(processor, max_length=64).prompt(Conversation(messages=turns))
    words = [WORDS[i] for i in row.ids]
    assert words.index("red") == words.index("<|assistant|>") + 1
    assert words[: words.index("red")].count("<image>") == TOKENS
    assert words[words.index("red") :].count("<image>") == 2 * TOKENS
    assert [word for word, turn in zip(words, row.turn_mask) if turn] == ["red", "<end>"]
    assert [pixels.image for pixels in row.images] == [red, blue, red]


@pytest.mark.parametrize("name", ["plain", "chatml"])
def test_built_in_templates_show_images_too(name, processor, tmp_path) -> None:
    template = Template(processor, max_length=64, chat_template=name)
    row = template.prompt(Conversation.ask(" what is this", (picture(tmp_path, "red"),)))
    assert row.ids.count(WORDS.index("<image>")) == TOKENS


def test_a_window_too_small_for_an_image_is_an_error_and_never_a_cut(processor, tmp_path) -> None:
    talk = Conversation.ask("this", (picture(tmp_path, "red"),), id="x").answer("red")
    length = Template(processor, max_length=64).prompt(talk).length
    row = Template(processor, max_length=length + 1).answered(talk)
    assert row.truncated
    assert row.ids.count(WORDS.index("<image>")) == TOKENS
    with pytest.raises(PromptTooLong, match="row x"):
        Template(processor, max_length=length).answered(talk)


def test_a_batch_joins_the_pixels_of_its_images_in_order(processor, tmp_path) -> None:
    red, blue = picture(tmp_path, "red"), picture(tmp_path, "blue", (40, 24))
    template = Template(processor, max_length=64)
    asked = [("what", (red, blue)), ("is", ()), ("this", (blue,))]
    rows = [template.answered(Conversation.ask(text, images).answer("red")) for text, images in asked]
    batch = pad(rows, pad_id=template.pad_id)
    assert set(batch.extra) == {"pixel_values"}
    opened = [Pillow.open(image.path) for image in (red, blue, blue)]
    expected = processor.image_processor(images=opened, return_tensors="pt")["pixel_values"]
    assert torch.equal(batch.extra["pixel_values"], expected)
    assert batch.to("meta").extra["pixel_values"].device.type == "meta"
    assert pad(rows[1:2], pad_id=0).extra == {}


def test_images_of_unequal_shapes_cannot_share_a_batch(processor, tmp_path) -> None:
    class Uneven:
        """A processor that keeps each picture's size."""

        image_processor = CLIPImageProcessorPil(do_resize=False, do_center_crop=False)

    template = Template(processor, max_length=64)
    rows = [
        template.prompt(Conversation.ask("this", (picture(tmp_path, "red", size),), id=str(size[0])))
        for size in ((16, 16), (24, 24))
    ]
    for row in rows:
        object.__setattr__(row.images[0], "processor", Uneven)
    with pytest.raises(UserError, match=r"rows 16, 24: their images give pixel_values of the shapes"):
        pad(rows, pad_id=0)


def test_an_answer_with_an_image_is_refused(processor, tmp_path) -> None:
    red = picture(tmp_path, "red")
    turns = (Message.of("user", "this"), Message.of("assistant", "red", (red,)))
    with pytest.raises(UserError, match="its answer holds an image"):
        Template(processor, max_length=64).answered(Conversation(messages=turns, id="x"))
