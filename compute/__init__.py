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
    numeric_guards checks of transforms, factors, alignments, histograms, special functions
    shape_guards   checks of shapes that torch's kernels leave out
    value_guards   checks of values that they leave out
    bounds         the sizes of results that depend on data
    cost           what an operation costs at least, and what this process allows
    estimate       result shapes, sizes and costs before anything runs
    listwise       operations on lists of tensors, one tensor after the other
    recurrent      an LSTM layer and its gradient
    bags           bags of embeddings
    rewrites       operations that the table does not have, said in those that it has
    values         Python values and tensors to wire values and bytes, and back
    layout         results lie in memory as it was said that they would
    interpreter    runs a program
    forecast       what a program costs, before it runs
    tracing        what capture and model share: graphs to programs
    refusals       what a captured function must not do
    capture        a Python function as a program, for given shapes
    examples       an input for a module, worked out
    model_spec     a captured model as data
    model          an nn.Module as a program, for any batch size, and back
"""
