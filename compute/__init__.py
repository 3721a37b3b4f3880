"""Programs: ATen operations as data, checked, captured from Python, and run.

Files in import order. Those marked * import no torch, so that a peer's own process may use them.

    operations *   the names of the allowed operations, by category
    writes *       which arguments an operation changes in place
    dependent *    which operations' shapes tell values
    wire *         what an argument may be on the wire, checked
    program *      Program: single-assignment list of operations; canonical bytes, id (PROGRAM.md is its specification)
    spec *         how the tensors of a stored model lie
    dtypes         torch's dtypes by name
    arguments      what each type of an operator's schema accepts
    table          lookup(name): the Entry of an operation, with its argument checks
    checks         the sentences in which guards refuse
    layer_guards   checks of shapes of layers and losses
    shape_guards   checks of shapes that torch's kernels leave out
    value_guards   checks of values that they leave out
    bounds         the sizes of results that depend on data
    estimate       result shapes and sizes before anything runs
    values         Python values and tensors to wire values and bytes, and back
    interpreter    runs a program
    tracing        what capture and model share: graphs to programs
    refusals       what a captured function must not do
    capture        a Python function as a program, for given shapes
    examples       an input for a module, worked out
    model_spec     a captured model as data
    model          an nn.Module as a program, for any batch size, and back
"""
