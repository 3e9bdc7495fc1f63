from collections.abc import Sequence

class Workspace:
    def __init__(self) -> None: ...

class Matrix:
    def __init__(
        self,
        packed: int,
        bias: int,
        inputs: int,
        outputs: int,
        bits: int,
        offsets: bool,
        coarse: bool,
        /,
    ) -> None: ...
    def packed_bytes(self) -> int: ...

class AttentionShape:
    def __init__(
        self,
        heads: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
        soft_cap: float,
        window: int,
        /,
    ) -> None: ...

class Rope:
    def __init__(self, cos_sin: int, q_norm: int, k_norm: int, eps: float, /) -> None: ...

class Cache:
    def __init__(self, k: int, v: int, type_code: int, block_size: int, /) -> None: ...

class Step:
    def __init__(
        self,
        positions: int,
        slot_mapping: int,
        block_table: int,
        query_start: int,
        seq_lens: int,
        rows: int,
        tokens: int,
        table_stride: int,
        /,
    ) -> None: ...

class Layer:
    def __init__(
        self,
        qkv: Matrix,
        o: Matrix,
        gate_up: Matrix,
        down: Matrix,
        input_norm: int,
        after_attention: int,
        mlp_norm: int,
        after_mlp: int,
        eps: float,
        gate: int,
        shape: AttentionShape,
        rope: Rope,
        /,
    ) -> None: ...

class SamplingColumns:
    def __init__(
        self, temperature: int, top_k: int, top_p: int, min_p: int, seeds: int, stride: int, /
    ) -> None: ...

class SlotTable:
    def __init__(
        self,
        length: int,
        next_input: int,
        block_table: int,
        slots: int,
        input_stride: int,
        table_width: int,
        sampling: SamplingColumns,
        /,
    ) -> None: ...

def isa() -> str: ...
def supported_isas() -> list[str]: ...
def rms_norm(
    type_code: int,
    x: int,
    residual: int,
    weight: int,
    out: int,
    rows: int,
    size: int,
    x_stride: int,
    eps: float,
    /,
) -> None: ...
def gate_mul(type_code: int, x: int, out: int, rows: int, size: int, gate: int, /) -> None: ...
def rope_cache(
    type_code: int, qkv: int, q: int, shape: AttentionShape, step: Step, cache: Cache, rope: Rope, /
) -> None: ...
def attention(
    type_code: int, q: int, out: int, shape: AttentionShape, step: Step, cache: Cache, /
) -> None: ...
def group_linear(
    type_code: int, x: int, out: int, rows: int, matrix: Matrix, workspace: Workspace, /
) -> None: ...
def pack(matrix: Matrix, codes: int, scales: int, offsets: int, out: int, /) -> None: ...
def pack_half(matrix: Matrix, weights: int, first: int, rows: int, out: int, /) -> None: ...
def look_up(matrix: Matrix, ids: int, rows: int, out: int, /) -> None: ...
def run_layers(
    layers: Sequence[Layer],
    residual: int,
    steps: Sequence[Step],
    caches: Sequence[Cache],
    workspace: Workspace,
    /,
) -> None: ...
def argmax(
    type_code: int, logits: int, stride: int, rows: int, width: int, tokens: int, /
) -> None: ...
def sample(
    type_code: int,
    logits: int,
    stride: int,
    rows: int,
    width: int,
    temperature: int,
    top_k: int,
    top_p: int,
    min_p: int,
    uniform: int,
    tokens: int,
    workspace: Workspace,
    /,
) -> None: ...
def sampling_rows(
    columns: SamplingColumns, slots: int, index: int, rows: int, out: int, uniform: int, /
) -> None: ...
def decode_inputs(
    table: SlotTable,
    slots: int,
    rows: int,
    block_size: int,
    longs: int,
    seq_lens: int,
    block_table: int,
    columns: int,
    uniform: int,
    /,
) -> None: ...
def decode_advance(table: SlotTable, slots: int, tokens: int, rows: int, out: int, /) -> None: ...
