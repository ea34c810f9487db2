"""The unit that multiplies, chosen when this is imported: the matrix unit where there is one, else register tiles.

Both offer the same names for products C = A·B. A, the left side, has a row per key or per row of a weight matrix; B,
the right side, a column per query or token. One side is stored, the other was just computed; a product's form
(linear/rows.py) says how it is stored, and whether both are rounded to bfloat16. Columns come in blocks of WIDTH,
whatever is left over in the last; every block of B, and every C, has rows of WIDTH numbers. So a block of A is packed
once for all tokens, and a softmax or an activation works on whole registers of tokens.

    WIDTH, HIGH, STEP          columns of a block; what rows of A and C, and depths, are padded to a multiple of
    DEPTH, HEIGHT, KEYS        depth of one pass over long depths; rows of a weight matrix, and keys, in a block of A
    *_size, *_at, TEMPORARY    floats of what is packed, where a depth of it begins, floats that packing needs
    pack_*                     A from its rows (`left`), B from its columns (`right`), A from activations (`hidden`)
    plan_*, ready_*            pack later, while something else is multiplied, and by now: also A from its columns
                               (`across`) and B from its rows (`right`)
    multiply_*                 a product, and meanwhile what is planned (`packing`), the softmax of another block
                               (`softening`), or first what is turned around (`turning`)
    soften, fill_step          a softmax's weights as B of the next product
"""

from accel.cpu.simd import LANES, MATRIX, njit

if MATRIX:
    from accel.cpu.linear.matrix_packing import (
        HIGH,
        STEP,
        TEMPORARY,
        WIDTH,
        hidden_at,
        hidden_size,
        left_size,
        pack_hidden,
        pack_left,
        pack_right,
        right_at,
        right_size,
        weights_size,
    )
    from accel.cpu.linear.matrix_unit import (
        DEPTH,
        HEIGHT,
        KEYS,
        fill_step,
        multiply_packing,
        multiply_softening,
        multiply_turning,
        nothing_planned,
        plan_across,
        plan_left,
        plan_right,
        plan_size,
        ready_across,
        ready_left,
        ready_right,
        roundings,
        soften,
    )
else:
    from accel.cpu.linear.register_tiles import (
        DEPTH,
        HEIGHT,
        HIGH,
        KEYS,
        STEP,
        TEMPORARY,
        WIDTH,
        fill_step,
        hidden_at,
        hidden_size,
        left_size,
        multiply_packing,
        multiply_softening,
        multiply_turning,
        nothing_planned,
        pack_hidden,
        pack_left,
        pack_right,
        plan_across,
        plan_left,
        plan_right,
        plan_size,
        ready_across,
        ready_left,
        ready_right,
        right_at,
        right_size,
        roundings,
        soften,
        weights_size,
    )

__all__ = [
    "DEPTH",
    "HEIGHT",
    "HIGH",
    "KEYS",
    "STEP",
    "TEMPORARY",
    "WIDTH",
    "fill_step",
    "hidden_at",
    "hidden_size",
    "left_size",
    "multiply_packing",
    "multiply_softening",
    "multiply_turning",
    "nothing_planned",
    "pack_hidden",
    "pack_left",
    "pack_right",
    "plan_across",
    "plan_left",
    "plan_right",
    "plan_size",
    "ready_across",
    "ready_and_plan",
    "ready_left",
    "ready_right",
    "right_at",
    "right_size",
    "roundings",
    "soften",
    "vectors_of",
    "weights_size",
]


@njit(forceinline=True)
def vectors_of(columns):
    """Registers that a block with so many columns fills."""
    return (min(columns, WIDTH) + LANES - 1) // LANES


@njit
def ready_and_plan(plan, lines, form, rows, depth, packed, coming, coming_rows, offset, coming_depth, following):
    """The step of every loop over blocks of A: pack at `packed` the rows that stand at `lines`, as was planned before,
    and plan that those at `coming`, if any, are packed at `following`, from `offset` bytes on in each."""
    ready_left(plan, lines, form, rows, depth, packed)
    if coming_rows > 0:
        plan_left(plan, coming, form, coming_rows, offset, coming_depth, following)
    else:
        nothing_planned(plan)
