"""What kernels run on: compiled code, threads, memory, arrays as kernels take them."""
