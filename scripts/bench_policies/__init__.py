"""The texts of the synthetic benchmark, a module per policy; `make-bench-policies.py` combines them."""
