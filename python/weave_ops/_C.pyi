"""The compiled CPU kernels. Importing the module registers them; it has no names of its own."""
