"""C++ kernels for the CPU: a decoding step for sampling (`step`), and attention with its gradients for training.

Inside: the C++ sources (`cpp/`), one module of ctypes bindings for each library (`step`, `attention`), and the compiler
driver (`compiler`). The machine's own C++ compiler builds a library when it is first needed, which takes some seconds;
the result is cached on disk. Without a compiler everything runs in torch.

In and out: tensors. Nothing here knows of models.
"""
