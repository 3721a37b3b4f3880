"""Models in files of other makers, read as data; called inside the sandbox only (peer/worker/reading.py).

Files in import order:

    imported     what a reader finds
    archive      zip archives within limits
    structures   nested arguments and results
    writing      programs, node by node
    pt2_schema   the fields of the documents of torch.export.save, each checked
    pt2_tensors  the weights and constants beside them
    pt2          archives of torch.export.save
    pt           files of torch.save
    protobuf     protocol buffers
    onnx_schema  the messages of ONNX, and its tensors
    worlds       a program that is written while it is tried
    onnx_nodes   what all operators of ONNX have in common; the register of them
    onnx_math    on elements, reductions, products
    onnx_shapes  on shapes and places
    onnx_layers  convolutions, pooling, normalisation, resizing, attention
    onnx_recurrent  LSTM, GRU, RNN
    onnx         ONNX models
    reading      which reader reads what
"""
