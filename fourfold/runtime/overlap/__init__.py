"""Communication hidden behind the products that depend on it: einsums whose operand is gathered, or whose result is scattered, block by block."""
