"""docs/book.md covers both reference notes, and every name and file in it exists."""

from __future__ import annotations

import pkgutil
import re

from conftest import ROOT

import gpt_lightning

PAGE = (ROOT / "docs" / "book.md").read_text()
SETTINGS = {"data.text", "data.stride", "data.train_ratio", "model.learning_rate", "model.weight_decay"}
HERE = [row.split("|")[2] for row in PAGE.splitlines() if row.startswith("| ") and "---" not in row]


def test_every_name_in_the_table_exists() -> None:
    names = [name for cell in HERE for name in re.findall(r"`([a-z_]+(?:\.[A-Za-z_]+)+)`", cell)]
    modules = {module.name for module in pkgutil.walk_packages(gpt_lightning.__path__, "gpt_lightning.")}

    ours = [name for name in names if any(f"gpt_lightning.{name}".startswith(f"{module}.") for module in modules)]
    ours = [name for name in ours if name not in SETTINGS and not name.endswith((".pdf", ".png", ".pth"))]
    assert len(ours) > 20
    for name in ours:
        assert pkgutil.resolve_name(f"gpt_lightning.{name}"), name


def test_every_file_in_the_table_exists() -> None:
    paths = re.findall(r"`((?:configs|tests)/[\w*./]+)`", PAGE)

    assert len(paths) > 8
    for path in paths:
        assert list(ROOT.glob(path)), path


# Headings of the reference notes A and B, and the functions that they define or call.
A = """5.1 Evaluating generative text models|5.1.1 Using GPT to generate text|5.1.2 Calculating the text generation loss
5.1.3 Calculating the training and validation set losses|5.2 Training an LLM
5.3 Decoding strategies to control randomness|5.3.1 Temperature scaling|5.3.2 Top-k sampling
5.3.3 Modifying the text generation function|5.4 Loading and saving model weights in PyTorch|Saving a Pytorch model
5.5 Loading pretrained weights from OpenAI|exercise 5.1|exercise 5.2|exercise 5.3|Summary"""
B = """Understand training targets|Cross-Entropy Loss|Loss Over Batchs|Perplexity|Loss on data sets|Train
Decoding Strategies|Greedy Decoding|Sample Decoding|Top-k Sampling|Temperature|Train on larger datasets"""
FUNCTIONS = """GPT_CONFIG_124M text_to_token_ids token_ids_to_text calc_loss_batch calc_loss_loader train_model_simple
evaluate_model generate_and_print_sample plot_losses print_sampled_tokens softmax_with_temperature generate
text_to_tensor tensor_to_text build_tokenizer clean_text_remove_empty_lines loss_batch loss_loader complete_text
generate_text_simple"""


def test_every_heading_and_function_of_the_notes_is_in_the_table() -> None:
    rows = [row.split("|")[1] for row in PAGE.splitlines() if row.startswith("| ") and "---" not in row]

    for document, headings in (("A", A), ("B", B)):
        mine = [row for row in rows if re.search(rf"\b{document}\b", row)]
        for heading in headings.replace("\n", "|").split("|"):
            number, title = re.fullmatch(r"([\d.]+ )?(.+)", heading).groups()  # type: ignore[union-attr]
            assert any((number or "") in row and title in row for row in mine), heading
    for name in FUNCTIONS.split():
        assert any(f"`{name}`" in row for row in rows), name


def test_every_figure_of_the_notes_is_in_the_table() -> None:
    for what in (
        "the opening figure",
        "the figure of steps 1 to 3",
        "the figure of the right tokens' probabilities",
        "the figure of steps 4 to 6",
        "the figure from text to ids",
        "the figure from tokens to probabilities",
        "the figure of their batches",
        "the figure of a typical training loop",
        "one epoch over a much larger set",
        "its figure (logits, the top k",
        "the bar figures",
        "the loss figure",
    ):
        assert what in PAGE, what
