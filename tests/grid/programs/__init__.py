"""Training programs in the style of public tutorials, written as they would be for tensors here.

program.py        what a program is, and running it here and at a peer
vision.py         convolutional networks
sequences.py      recurrent networks, attention, transformers
generative.py     autoencoders, adversarial networks, diffusion
classical.py      regression, factorisation, gradients by hand
decisions.py      reinforcement learning
numbers.py        tables, looked up and counted in by indices that are computed; gammas
packed.py         sequences of different lengths
meta.py           programs about training itself: distillation, transfer, metric and meta learning
"""
