"""The model side of edgebench: a PyTorch model and a recipe become files for three runtimes."""
