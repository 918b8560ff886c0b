"""Models on this machine: which can be pulled, fetching them whole and verified, converting them once, listing them."""
