"""The machine under the tensors; knows no run.  Its modules are used by name."""
