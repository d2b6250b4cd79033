"""What is done with a model afterwards: merging adapters, distilling a smaller one, publishing."""
