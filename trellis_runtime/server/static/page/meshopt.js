// model-viewer brings meshoptimizer's decoder along, and uses it once the script at this address is loaded.
