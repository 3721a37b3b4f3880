"""Programs: ATen operations as data, checked, captured from Python, and run.

Files in import order. Those marked * import no torch, so that a peer's own process may use them.

    operations *   the names of the allowed operations, by category
    writes *       which arguments an operation changes in place
    dependent *    which operations' shapes tell values
    wire *         what an argument may be on the wire, checked
    flow *         loops and branches: which there are, and how their arguments are read
    program_parts * inputs, nodes, bodies
    outputs *      which values come out of a program, in order
    program_check * whether references, names and counts of a program are right
    program_wire * canonical bytes
    program_text * readable text
    program_parser * and back
    program *      Program: single-assignment list of operations, with an id (PROGRAM.md is its specification)
    content *      inputs that name the contents they are to have
    numbers *      arithmetic on sizes
    unknown *      what stands for a value of which nothing is known yet
    spec *         how the tensors of a stored model lie
    dtypes         torch's dtypes by name
    nested         values in lists and tuples
    arguments      what each type of an operator's schema accepts
    table          lookup(name): the Entry of an operation, with its argument checks
    checks         the sentences in which guards refuse
    layer_guards   checks of shapes of layers and losses
    numeric_guards checks of transforms, factors, alignments, histograms, special functions
    shape_guards   checks of shapes that torch's kernels leave out
    value_guards   checks of values that they leave out
    lazy           tensors that are conjugated or negated lazily
    bounds         the sizes of results that depend on data
    corrections    what results look like where meta kernels say it otherwise
    cost           what an operation costs at least, and what this process allows
    estimate       result shapes, sizes and costs before anything runs
    listwise       operations on lists of tensors, one tensor after the other
    recurrent      an LSTM layer and its gradient
    bags           bags of embeddings
    packed         sequences of different lengths, padded and packed
    rewrites       operations that the table does not have, said in those that it has
    values         Python values and tensors to wire values and bytes, and back
    layout         results lie in memory as it was said that they would
    sharing        what in a program may share memory, and so which inputs it writes
    prepared       a program made ready to run
    iterating      loops and branches, run
    pulse          a running program looks at the clock
    report         what each node took
    looks          whether inputs look as declared, or as they did before
    proven         values that need no second look: indices that a pooling made
    whole          operations whose kernels write every element of what they give
    known          what is known of the steps of a block that ran
    settled        small results that are told before a program's end
    interpreter    runs a program
    stand_ins      what stands for values that have a shape alone
    following      a program on shapes alone: its values, cost and memory
    forecast       what a program costs, before it runs
    program_types  whether the types of a program's values fit, and its text with them
    tracing        what capture and model share: graphs to programs
    scalar_indices x[i], where i is in a tensor
    packed_layers  packed sequences, written out
    refusals       what a captured function must not do
    effects        what it does besides giving a result
    frames         what it did, frame by frame
    constants      values that it knows though it has none: of numbers that it wrote out
    sizes          sizes that are left open, and arithmetic on them
    recorder       its operations, written down
    counting       what Python counts around the body of a loop
    steady         bodies of loops, settled
    through        gradients through loops and branches
    bodies         bodies of loops, traced
    scans          scans, as one node each, and gradients through loops
    loops          loops and branches, as one node each
    hooks          torch's own operators for them
    inlining       programs that the function calls
    left           what it leaves in its arguments besides tensors: rates, epochs, attributes
    stepping       optimisers in it
    linearized     torch.func.linearize in it
    keeping        modules as they were, after they were run for something else
    given          its arguments, with other tensors in their places
    gradients      gradients that it would lose or lack
    assembling     frames to programs
    capturing      one capture
    capture        a Python function as a program
    examples       an input for a module, worked out
    signature *    what a model takes, as data
    lowering       exported graphs in operations of the table
    model_spec     a captured model as data
    open_sizes     sizes that an export fixed without need
    program_module programs as modules and functions here
    looped_model   the same of a module with loops and branches that stay such
    model          an nn.Module as a program, for any batch size
    jail/          source that runs where the data are: its rules, its scope, its results
    unpatched      whether torch is as it came
    uncompiled     torch's compiler, kept out of processes that compute for others
    closed         functions that hang on nothing but their arguments, read
    alike          arguments that look alike to a capture
    remembered     captures that need not be made again
    exporting      a program as plain torch: .pt2, .onnx
    importing/     models in files of other makers, read as data
"""
