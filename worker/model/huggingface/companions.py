"""The small files beside a model's weights that its users need: tokenizers and image processors.

Copied without parsing, so that nothing can change them here. Of a classifier of images the
processor is replaced: see ``image_processor.py``.
"""

from pathlib import Path

from roadless.worker.errors import ModelUnreadable

NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "preprocessor_config.json",
)
MAX_BYTES = 128 << 20


def read(folder: Path) -> dict[str, bytes]:
    """Return the known files that the folder has; raise ModelUnreadable above the limit."""
    paths = [folder / name for name in NAMES if (folder / name).is_file()]
    try:
        size = sum(path.stat().st_size for path in paths)
        if size > MAX_BYTES:
            raise ModelUnreadable(
                f"expected at most {MAX_BYTES} bytes of tokenizer files, saw {size}"
            )
        return {path.name: path.read_bytes() for path in paths}
    except OSError as error:
        raise ModelUnreadable(f"expected to read {folder.name}, saw: {error.strerror}") from error
