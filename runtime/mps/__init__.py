"""One GPU shared by ordinary processes under CUDA MPS."""
