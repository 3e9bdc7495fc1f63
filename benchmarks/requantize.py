"""Write a GGUF file again with its matrices in other types, as llama-quantize does.

    python benchmarks/requantize.py model.gguf out-folder --types BF16,Q8_0,Q4_0

Needs the `gguf` package. Norms stay float32; with Q4_0 the embedding becomes Q8_0, as
`llama-quantize --pure --token-embedding-type q8_0` writes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

_ENUM_FIELDS = {"general.architecture", "GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"}


def copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter, file_type: int) -> None:
    for field in reader.fields.values():
        if field.name in _ENUM_FIELDS or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = file_type if field.name == "general.file_type" else field.contents()
        writer.add_key_value(field.name, value, kind, sub_type=sub_type)


def write(source: Path, target: Path, kind: gguf.GGMLQuantizationType) -> None:
    reader = gguf.GGUFReader(source)
    architecture = reader.get_field("general.architecture").contents()
    writer = gguf.GGUFWriter(target, architecture)
    copy_metadata(reader, writer, int(gguf.LlamaFileType[f"MOSTLY_{kind.name}"]))
    four_bits = kind == gguf.GGMLQuantizationType.Q4_0
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values.astype(np.float32))
            continue
        is_embedding = tensor.name == "token_embd.weight"
        own = gguf.GGMLQuantizationType.Q8_0 if four_bits and is_embedding else kind
        writer.add_tensor(tensor.name, quantize(values, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--types", default="BF16,F16,Q8_0,Q4_0")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.types.split(","):
        target = args.folder / f"{args.model.stem.rsplit('.', 1)[0]}.{name}.gguf"
        write(args.model, target, gguf.GGMLQuantizationType[name])
        print(target)


if __name__ == "__main__":
    main()
